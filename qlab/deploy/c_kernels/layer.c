/* A layer with weights; a fully connected one is a convolution of a map of one pixel. */
typedef struct {
    Window window;
    int32_t groups, in_zero, out_zero, low, high;
    const int8_t *weight;                                            /* [out_c][kernel_h][kernel_w][in_c / groups] */
    const int32_t *bias;                                             /* [out_c], as are the multipliers m 2**(n - 31) */
    const int32_t *m;
    const int8_t *n;
} Layer;

static inline int8_t output(const Layer *layer, int32_t channel, int32_t sum)
{
    return code(scaled(sum, layer->m[channel], layer->n[channel]), layer->out_zero, layer->low, layer->high);
}
