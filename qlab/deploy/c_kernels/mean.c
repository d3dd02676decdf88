/* The mean of each window, none of which reaches over the edge: the sum of its codes above the zero-point times M. */
typedef struct {
    Window window;
    int32_t in_zero, out_zero, low, high, m;
    int8_t n;
} Mean;

static void mean(const Mean *pool, const int8_t *x, int8_t *y)
{
    const Window *s = &pool->window;
    for (int32_t pixel = 0; pixel < s->out_h * s->out_w; pixel++) {
        const int32_t top = pixel / s->out_w * s->stride_h, left = pixel % s->out_w * s->stride_w;
        for (int32_t c = 0; c < s->out_c; c++) {
            int32_t sum = 0;
            for (int32_t i = 0; i < s->kernel_h; i++) {
                for (int32_t j = 0; j < s->kernel_w; j++) {
                    sum += x[((top + i) * s->in_w + left + j) * s->in_c + c] - pool->in_zero;
                }
            }
            *y++ = code(scaled(sum, pool->m, pool->n), pool->out_zero, pool->low, pool->high);
        }
    }
}
