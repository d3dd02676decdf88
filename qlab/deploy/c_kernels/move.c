/* Bytes copied from where the walk's first tensor has them to where its second one does; the other bytes of the result, if there are
   any, are all the same. */
typedef struct {
    Walk walk;
    int32_t bytes, fill;                                             /* of the result; 0 where each is copied */
} Move;

static void move(const Move *m, const int8_t *x, int8_t *y)
{
    const Walk *w = &m->walk;
    int32_t done[LOOPS] = {0}, a = w->a_first, b = w->b_first;
    memset(y, (int)m->fill, (size_t)m->bytes);
    do {
        if (w->a[0] == 1 && w->b[0] == 1) {
            memcpy(y + b, x + a, (size_t)w->times[0]);
        } else {
            for (int32_t i = 0; i < w->times[0]; i++) {
                y[b + i * w->b[0]] = x[a + i * w->a[0]];
            }
        }
    } while (next_run(w, done, &a, &b));
}
