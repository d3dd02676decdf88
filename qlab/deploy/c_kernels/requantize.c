/* round(a M), M = m 2**(n - 31): a shift to the left for n > 0, which saturates, the upper half of 2 a m, a shift to the right for
   n < 0. Rounded to nearest, ties up in the multiplication and away from zero in the shift (Jacob et al. 2018, appendix B).
   C leaves open what a shift of a negative number gives, and nothing negative is shifted here: 2**62 lifts the product, and 2**31 is
   taken off again. */
static inline int32_t scaled(int32_t a, int32_t m, int32_t n)
{
    if (n > 0) {
        const int64_t wide = a * ((int64_t)1 << n);
        a = wide > INT32_MAX ? INT32_MAX : wide < INT32_MIN ? INT32_MIN : (int32_t)wide;
    }
    const int64_t lifted = (int64_t)a * m + ((int64_t)1 << 30) + ((int64_t)1 << 62);
    const int32_t high = (int32_t)((lifted >> 31) - ((int64_t)1 << 31));
    if (n >= 0) {
        return high;
    }
    const uint32_t size = high < 0 ? 0U - (uint32_t)high : (uint32_t)high;
    const int32_t rounded = (int32_t)((size + ((uint32_t)1 << (-n - 1))) >> -n);
    return high < 0 ? -rounded : rounded;
}

/* The code of value, in steps above the zero-point, between low and high; compared before it is added to, so that nothing overflows. */
static inline int8_t code(int32_t value, int32_t zero, int32_t low, int32_t high)
{
    return (int8_t)(value < low - zero ? low : value > high - zero ? high : value + zero);
}
