/* Softmax of each row of codes, in integers: TensorFlow Lite's reference kernel, with gemmlowp's exp and division. */
typedef struct {
    int32_t rows, classes, m, n;                                     /* scale of the codes * 2**26 = m 2**(n - 31) */
} Softmax;

/* round(a b / 2**31), ties up. */
static inline int32_t times(int32_t a, int32_t b)
{
    return scaled(a, b, 0);
}

/* round(a / 2**n), ties away from zero. */
static inline int32_t halved(int32_t a, int32_t n)
{
    const uint32_t size = a < 0 ? 0U - (uint32_t)a : (uint32_t)a;
    const int32_t rounded = (int32_t)((size + ((uint32_t)1 << (n - 1))) >> n);
    return a < 0 ? -rounded : rounded;
}

/* The int32 nearest to 2**n value. */
static inline int32_t saturated(int32_t value, int32_t n)
{
    const int64_t wide = value * ((int64_t)1 << n);
    return wide > INT32_MAX ? INT32_MAX : wide < INT32_MIN ? INT32_MIN : (int32_t)wide;
}

/* exp(d), 31 bits behind the point, of d <= 0 with 26: d = r - k / 4 with -1/4 <= r < 0, a polynomial for r, a constant for each bit
   of k: exp(-1/4), exp(-1/2), .. exp(-16). */
static int32_t exponential(int32_t d)
{
    static const int32_t constants[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    if (d == 0) {
        return INT32_MAX;
    }
    const int32_t r = (int32_t)((uint32_t)d & 0xffffffU) - 0x1000000, x = r * 32 + ((int32_t)1 << 28);      /* r + 1/8 */
    const int32_t x2 = times(x, x), x3 = times(x2, x), x4 = times(x2, x2);
    const int32_t higher = halved(times(halved(x4, 2) + x3, 715827883) + x2, 1);                            /* 715827883 is 1/3 */
    int32_t result = 1895147668 + times(x + higher, 1895147668);                                            /* exp(-1/8) */
    const int32_t quarters = (r - d) >> 24;
    for (int32_t bit = 0; bit < 7; bit++) {
        result = quarters >> bit & 1 ? times(result, constants[bit]) : result;
    }
    return result;
}

/* 1 / (1 + x), 31 bits behind the point, of 0 <= x < 1, by three steps of Newton's method. */
static int32_t one_over_one_plus(uint32_t x)
{
    const int32_t half = (int32_t)((x + 0x80000000U) >> 1);
    int32_t y = 1515870810 + times(half, -1010580540);               /* 48/17 - 32/17 half, 29 bits behind the point */
    for (int32_t step = 0; step < 3; step++) {
        y += saturated(times(y, ((int32_t)1 << 29) - times(half, y)), 2);
    }
    return saturated(y, 1);
}

/* exp(s difference), 31 bits behind the point; 0 where s difference has no place in 32 bits with 26 of them behind the point. */
static int32_t power(const Softmax *layer, int32_t difference)
{
    if (difference < -(int32_t)((31U << 26) >> layer->n)) {
        return 0;
    }
    return exponential(times((int32_t)(difference * ((int64_t)1 << layer->n)), layer->m));
}

static void softmax(const Softmax *layer, const int8_t *x, int8_t *y)
{
    for (int32_t row = 0; row < layer->rows; row++, x += layer->classes, y += layer->classes) {
        int32_t most = INT8_MIN, sum = 0, k = 0;
        for (int32_t i = 0; i < layer->classes; i++) {
            most = x[i] > most ? x[i] : most;
        }
        for (int32_t i = 0; i < layer->classes; i++) {
            sum += halved(power(layer, x[i] - most), 12);            /* 19 bits behind the point */
        }
        while (sum >> (k + 20)) {
            k++;                                                     /* up to 2**k <= sum < 2**(k + 1) */
        }
        const int32_t share = one_over_one_plus(((uint32_t)sum << (12 - k)) - 0x80000000U);
        for (int32_t i = 0; i < layer->classes; i++) {
            const int64_t part = times(share, power(layer, x[i] - most));
            y[i] = code((int32_t)((part + ((int64_t)1 << (k + 22))) >> (k + 23)), INT8_MIN, INT8_MIN, INT8_MAX);
        }
    }
}
