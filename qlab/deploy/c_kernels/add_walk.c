/* The sum of two tensors that are stored in different orders, or of which one has fewer values, each a term of several sums. */
typedef struct {
    Walk walk;
    Add add;
} AddWalk;

static void add_walk(const AddWalk *sum, const int8_t *a, const int8_t *b, int8_t *y)
{
    const Walk *w = &sum->walk;
    int32_t done[LOOPS] = {0}, at = w->a_first, bt = w->b_first;
    do {
        for (int32_t i = 0; i < w->times[0]; i++) {
            *y++ = added(&sum->add, a[at + i * w->a[0]], b[bt + i * w->b[0]]);
        }
    } while (next_run(w, done, &at, &bt));
}
