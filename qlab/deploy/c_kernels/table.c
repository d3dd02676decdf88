/* Any function of one number, by a table of its codes for -128 .. 127. */
static void table(int32_t count, const int8_t *codes, const int8_t *x, int8_t *y)
{
    for (int32_t i = 0; i < count; i++) {
        y[i] = codes[x[i] + 128];
    }
}
