/* The inputs of one output pixel in one row, n of them, the zero-point where the window reaches over the edge. */
static void gather(const Window *s, const int8_t *x, int32_t top, int32_t left, int32_t channels, int32_t zero, int8_t *patch)
{
    for (int32_t i = 0; i < s->kernel_h; i++) {
        for (int32_t j = 0; j < s->kernel_w; j++, patch += channels) {
            const int32_t row = top + i * s->dilation_h, column = left + j * s->dilation_w;
            if (row >= 0 && row < s->in_h && column >= 0 && column < s->in_w) {
                memcpy(patch, x + (row * s->in_w + column) * s->in_c, (size_t)channels);
            } else {
                memset(patch, (int)zero, (size_t)channels);
            }
        }
    }
}

/* Convolution. patch: room for one window's inputs; a null pointer where a window is one pixel, which needs no gathering. */
static void convolution(const Layer *layer, const int8_t *x, int8_t *patch, int8_t *y)
{
    const Window *s = &layer->window;
    const int32_t in = s->in_c / layer->groups, out = s->out_c / layer->groups, n = s->kernel_h * s->kernel_w * in;
    for (int32_t pixel = 0; pixel < s->out_h * s->out_w; pixel++, y += s->out_c) {
        const int32_t top = pixel / s->out_w * s->stride_h - s->pad_h, left = pixel % s->out_w * s->stride_w - s->pad_w;
        for (int32_t group = 0; group < layer->groups; group++) {
            const int8_t *from = x + group * in, *inputs = patch;
            if (patch) {
                gather(s, from, top, left, in, layer->in_zero, patch);
            } else {
                inputs = from + (top * s->in_w + left) * s->in_c;
            }
            const int32_t end = (group + 1) * out;
            for (int32_t o = group * out; o < end;) {
                if (o + 4 <= end) {
                    int32_t sum[4] = {layer->bias[o], layer->bias[o + 1], layer->bias[o + 2], layer->bias[o + 3]};
                    dot4(inputs, layer->weight + o * n, n, layer->in_zero, sum);
                    for (int32_t j = 0; j < 4; j++, o++) {
                        y[o] = output(layer, o, sum[j]);
                    }
                } else {
                    int32_t sum = layer->bias[o];
                    for (int32_t k = 0; k < n; k++) {
                        sum += (inputs[k] - layer->in_zero) * layer->weight[o * n + k];
                    }
                    y[o] = output(layer, o, sum);
                    o++;
                }
            }
        }
    }
}
