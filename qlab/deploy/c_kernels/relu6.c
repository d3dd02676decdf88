/* A ReLU6 on codes: nothing below low, the code of 0.0, nor above high, the code of 6.0. */
static void relu6(int32_t count, int32_t low, int32_t high, const int8_t *x, int8_t *y)
{
    for (int32_t i = 0; i < count; i++) {
        const int32_t at_least = x[i] < low ? low : x[i];
        y[i] = (int8_t)(at_least > high ? high : at_least);
    }
}
