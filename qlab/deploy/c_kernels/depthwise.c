/* Depthwise convolution: channel c of the output is made of channel c of the input. weight: [kernel_h][kernel_w][channels]. */
static void depthwise(const Layer *layer, const int8_t *x, int8_t *y)
{
    const Window *s = &layer->window;
    const int32_t channels = s->in_c, zero = layer->in_zero;
    for (int32_t pixel = 0; pixel < s->out_h * s->out_w; pixel++, y += channels) {
        const int32_t top = pixel / s->out_w * s->stride_h - s->pad_h, left = pixel % s->out_w * s->stride_w - s->pad_w;
        const int32_t i0 = first_inside(top, s->dilation_h), i1 = end_inside(top, s->dilation_h, s->in_h, s->kernel_h);
        const int32_t j0 = first_inside(left, s->dilation_w), j1 = end_inside(left, s->dilation_w, s->in_w, s->kernel_w);
        int32_t done = 0;
#ifdef DSP
        const int32_t minus = pair(-zero);
        for (done = 0; done < channels / 4 * 4; done += 4) {
            int32_t sum[4] = {layer->bias[done], layer->bias[done + 1], layer->bias[done + 2], layer->bias[done + 3]};
            for (int32_t i = i0; i < i1; i++) {
                for (int32_t j = j0; j < j1; j++) {
                    const int32_t at = (top + i * s->dilation_h) * s->in_w + left + j * s->dilation_w;
                    const int32_t codes = load4(x + at * channels + done);
                    const int32_t weights = load4(layer->weight + (i * s->kernel_w + j) * channels + done);
                    const int32_t even = __sxtab16(minus, codes), odd = add_odd(minus, codes);
                    sum[0] = __smlabb(even, __sxtb16(weights), sum[0]);
                    sum[1] = __smlabb(odd, odd_bytes(weights), sum[1]);
                    sum[2] = __smlatt(even, __sxtb16(weights), sum[2]);
                    sum[3] = __smlatt(odd, odd_bytes(weights), sum[3]);
                }
            }
            for (int32_t j = 0; j < 4; j++) {
                y[done + j] = output(layer, done + j, sum[j]);
            }
        }
#endif
        for (int32_t c = done; c < channels; c++) {
            int32_t sum = layer->bias[c];
            for (int32_t i = i0; i < i1; i++) {
                for (int32_t j = j0; j < j1; j++) {
                    const int32_t at = (top + i * s->dilation_h) * s->in_w + left + j * s->dilation_w;
                    sum += (x[at * channels + c] - zero) * layer->weight[(i * s->kernel_w + j) * channels + c];
                }
            }
            y[c] = output(layer, c, sum);
        }
    }
}
