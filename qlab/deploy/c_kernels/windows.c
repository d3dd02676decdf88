/* Means of windows of different sizes: the sum of a window's codes above the zero-point times the M of this window. */
typedef struct {
    int32_t in_w, in_c, out_h, out_w, in_zero, out_zero, low, high;
    const int32_t *rows, *columns;                                   /* of each window the first and the one after the last */
    const int32_t *m;                                                /* [out_h][out_w] */
    const int8_t *n;
} Windows;

static void windows(const Windows *pool, const int8_t *x, int8_t *y)
{
    for (int32_t pixel = 0; pixel < pool->out_h * pool->out_w; pixel++) {
        const int32_t *rows = pool->rows + 2 * (pixel / pool->out_w), *columns = pool->columns + 2 * (pixel % pool->out_w);
        for (int32_t c = 0; c < pool->in_c; c++) {
            int32_t sum = 0;
            for (int32_t i = rows[0]; i < rows[1]; i++) {
                for (int32_t j = columns[0]; j < columns[1]; j++) {
                    sum += x[(i * pool->in_w + j) * pool->in_c + c] - pool->in_zero;
                }
            }
            *y++ = code(scaled(sum, pool->m[pixel], pool->n[pixel]), pool->out_zero, pool->low, pool->high);
        }
    }
}
