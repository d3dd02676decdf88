/* The sum of two maps, code by code. */
static void add(const Add *sum, const int8_t *a, const int8_t *b, int8_t *y)
{
    for (int32_t i = 0; i < sum->count; i++) {
        y[i] = added(sum, a[i], b[i]);
    }
}
