/* The sum of two codes: both terms on one scale with 20 bits of fraction, then on the scale of the result. */
typedef struct {
    int32_t count, a_zero, b_zero, out_zero, low, high;
    int32_t m[3];                                                    /* of the first term, the second, the sum */
    int8_t n[3];
} Add;

static inline int8_t added(const Add *sum, int8_t a, int8_t b)
{
    const int32_t first = scaled((a - sum->a_zero) * ((int32_t)1 << ADD_SHIFT), sum->m[0], sum->n[0]);
    const int32_t second = scaled((b - sum->b_zero) * ((int32_t)1 << ADD_SHIFT), sum->m[1], sum->n[1]);
    return code(scaled(first + second, sum->m[2], sum->n[2]), sum->out_zero, sum->low, sum->high);
}
