/* The instructions of Cortex-M4 and M7 that multiply two pairs of 16-bit numbers at once. A word of four codes becomes two pairs, of
   its bytes 0 and 2 and of its bytes 1 and 3; the sums are the same as without them, in another order. */
#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__) && !defined(__ARM_BIG_ENDIAN)
#include <arm_acle.h>
#define DSP

static inline int32_t load4(const int8_t *p)
{
    int32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline int32_t pair(int32_t value)
{
    return (int32_t)(((uint32_t)value & 0xffffU) * 0x10001U);
}

static inline int32_t odd_bytes(int32_t word)
{
    int32_t result;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(result) : "r"(word));
    return result;
}

static inline int32_t add_odd(int32_t to, int32_t word)
{
    int32_t result;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(result) : "r"(to), "r"(word));
    return result;
}
#endif
