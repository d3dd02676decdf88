/* A ReLU on codes: nothing below low, the code of 0.0. */
static void relu(int32_t count, int32_t low, const int8_t *x, int8_t *y)
{
    for (int32_t i = 0; i < count; i++) {
        y[i] = (int8_t)(x[i] < low ? low : x[i]);
    }
}
