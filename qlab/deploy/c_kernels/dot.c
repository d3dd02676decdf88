/* sum[j] += sum of (x[k] - zero) w[j n + k] over k < n, for four rows j of weights: each x is fetched once for all of them. */
static inline void dot4(const int8_t *x, const int8_t *w, int32_t n, int32_t zero, int32_t sum[4])
{
    int32_t left = n;
#ifdef DSP
    const int32_t minus = pair(-zero);
    int32_t sum0 = sum[0], sum1 = sum[1], sum2 = sum[2], sum3 = sum[3];
    for (; left >= 4; left -= 4, x += 4, w += 4) {
        const int32_t codes = load4(x), even = __sxtab16(minus, codes), odd = add_odd(minus, codes);
        const int32_t w0 = load4(w), w1 = load4(w + n), w2 = load4(w + 2 * n), w3 = load4(w + 3 * n);
        sum0 = __smlad(odd, odd_bytes(w0), __smlad(even, __sxtb16(w0), sum0));
        sum1 = __smlad(odd, odd_bytes(w1), __smlad(even, __sxtb16(w1), sum1));
        sum2 = __smlad(odd, odd_bytes(w2), __smlad(even, __sxtb16(w2), sum2));
        sum3 = __smlad(odd, odd_bytes(w3), __smlad(even, __sxtb16(w3), sum3));
    }
    sum[0] = sum0, sum[1] = sum1, sum[2] = sum2, sum[3] = sum3;
#endif
    for (; left > 0; left--, x++, w++) {
        for (int32_t j = 0; j < 4; j++) {
            sum[j] += (*x - zero) * w[j * n];
        }
    }
}
