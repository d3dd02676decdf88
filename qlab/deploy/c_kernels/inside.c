/* Of a window's positions start, start + dilation, ..., those in 0 .. size - 1: the first, and the one after the last. */
static int32_t first_inside(int32_t start, int32_t dilation)
{
    return start < 0 ? (dilation - 1 - start) / dilation : 0;
}

static int32_t end_inside(int32_t start, int32_t dilation, int32_t size, int32_t kernel)
{
    const int32_t end = (size - start + dilation - 1) / dilation;
    return end < kernel ? end : kernel;
}
