/* Pooling by the maximum; what lies over the edge does not count. */
static void maxpool(const Window *s, const int8_t *x, int8_t *y)
{
    for (int32_t pixel = 0; pixel < s->out_h * s->out_w; pixel++, y += s->out_c) {
        const int32_t top = pixel / s->out_w * s->stride_h - s->pad_h, left = pixel % s->out_w * s->stride_w - s->pad_w;
        const int32_t i0 = first_inside(top, s->dilation_h), i1 = end_inside(top, s->dilation_h, s->in_h, s->kernel_h);
        const int32_t j0 = first_inside(left, s->dilation_w), j1 = end_inside(left, s->dilation_w, s->in_w, s->kernel_w);
        memset(y, INT8_MIN, (size_t)s->out_c);
        for (int32_t i = i0; i < i1; i++) {
            for (int32_t j = j0; j < j1; j++) {
                const int8_t *from = x + ((top + i * s->dilation_h) * s->in_w + left + j * s->dilation_w) * s->in_c;
                for (int32_t c = 0; c < s->out_c; c++) {
                    y[c] = from[c] > y[c] ? from[c] : y[c];
                }
            }
        }
    }
}
