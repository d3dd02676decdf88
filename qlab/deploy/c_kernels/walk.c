/* Two tensors walked together by nested loops, the first of which is the innermost; each has a step for each loop, and one that has
   fewer values does not move in some. */
#define LOOPS 6

typedef struct {
    int32_t loops, a_first, b_first, times[LOOPS], a[LOOPS], b[LOOPS];
} Walk;

/* Where the next run of the innermost loop begins in the two tensors; false after the last. done: how often each loop went round. */
static int next_run(const Walk *walk, int32_t done[LOOPS], int32_t *a, int32_t *b)
{
    for (int32_t i = 1; i < walk->loops; i++) {
        *a += walk->a[i];
        *b += walk->b[i];
        if (++done[i] < walk->times[i]) {
            return 1;
        }
        *a -= walk->a[i] * walk->times[i];
        *b -= walk->b[i] * walk->times[i];
        done[i] = 0;
    }
    return 0;
}
