/* The product of two tensors; where one has fewer values, each of its values multiplies several of the other's. */
typedef struct {
    Walk walk;
    int32_t a_zero, b_zero, out_zero, low, high, m;
    int8_t n;
} Mul;

static void mul(const Mul *product, const int8_t *a, const int8_t *b, int8_t *y)
{
    const Walk *w = &product->walk;
    int32_t done[LOOPS] = {0}, at = w->a_first, bt = w->b_first;
    do {
        for (int32_t i = 0; i < w->times[0]; i++) {
            const int32_t value = (a[at + i * w->a[0]] - product->a_zero) * (b[bt + i * w->b[0]] - product->b_zero);
            *y++ = code(scaled(value, product->m, product->n), product->out_zero, product->low, product->high);
        }
    } while (next_run(w, done, &at, &bt));
}
