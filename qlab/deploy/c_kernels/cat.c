/* One of several tensors that are put side by side: its codes on the scale of the result, at their places in it. */
typedef struct {
    Walk walk;
    int32_t in_zero, out_zero, low, high, m;
    int8_t n;
} Cat;

static void cat(const Cat *part, const int8_t *x, int8_t *y)
{
    const Walk *w = &part->walk;
    int32_t done[LOOPS] = {0}, a = w->a_first, b = w->b_first;
    do {
        for (int32_t i = 0; i < w->times[0]; i++) {
            const int32_t value = scaled(x[a + i * w->a[0]] - part->in_zero, part->m, part->n);
            y[b + i * w->b[0]] = code(value, part->out_zero, part->low, part->high);
        }
    } while (next_run(w, done, &a, &b));
}
