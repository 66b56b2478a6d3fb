/* What numbers differ in from those of a base: files/entropy/deltas.py says how, and has the same in NumPy, to the
 * byte. */

#include "common.h"

#define PLAIN 16     /* folded differences below are symbols themselves */
#define CONTEXTS 31  /* that exponents other than zero share, the first one from `top` on; zero has one more */

/* Bits that follow the symbols, the first in the lowest bit of the first byte. */
typedef struct { uint8_t *bytes; uint64_t held; int count; int64_t total; } Bits;

INLINE void put_bits(Bits *to, uint64_t value, int count) {
    to->total += count;
    while (count) { /* at most 32 at once, for up to 7 are held */
        const int now = count < 32 ? count : 32;
        to->held |= (value & (((uint64_t)1 << now) - 1)) << to->count;
        to->count += now;
        for (; to->count >= 8; to->count -= 8, to->held >>= 8) *to->bytes++ = (uint8_t)to->held;
        value >>= now;
        count -= now;
    }
}

/* `count` bits from the bit `at` on; eight bytes behind the last one are there. */
INLINE uint64_t bits_at(const uint8_t *bytes, int64_t at, int count) {
    uint64_t low;
    memcpy(&low, bytes + (at >> 3), 8);
    low >>= at & 7;
    if ((at & 7) + count > 64) low |= (uint64_t)bytes[(at >> 3) + 8] << (64 - (at & 7));
    return low & (((uint64_t)1 << count) - 1);
}

INLINE int length_of(uint64_t value) {
    int length = 0;
#if defined(__GNUC__)
    length = 64 - __builtin_clzll(value);
#else
    for (; value; value >>= 1) length++;
#endif
    return length;
}

/* Floats (`exponent` bits are not 0) ascend as integers once the bits below the sign of negative ones are turned. */
#define KIND(BITS)                                                                                                   \
    typedef uint##BITS##_t U##BITS;                                                                                  \
    INLINE U##BITS ordered_##BITS(U##BITS x, int exponent) {                                                         \
        return exponent ? (U##BITS)(x ^ (U##BITS)((U##BITS)(0 - (x >> (BITS - 1))) >> 1)) : x;                       \
    }                                                                                                                \
    INLINE U##BITS folded_##BITS(U##BITS base, U##BITS now, int exponent) {                                          \
        const U##BITS step = (U##BITS)(ordered_##BITS(now, exponent) - ordered_##BITS(base, exponent));              \
        return (U##BITS)((U##BITS)(step << 1) ^ (U##BITS)(0 - (step >> (BITS - 1))));                                \
    }                                                                                                                \
    INLINE void contexts_##BITS(const U##BITS *restrict base, int exponent, int top, size_t count,                   \
                                uint8_t *restrict contexts) {                                                        \
        const int low = BITS - 1 - exponent;                                                                         \
        const U##BITS mask = (U##BITS)(((U##BITS)1 << exponent) - 1);                                                \
        for (size_t i = 0; i < count; i++) {                                                                         \
            const int there = (int)(base[i] >> low & mask);                                                          \
            int below = top - there;                                                                                 \
            below = below < 0 ? 0 : below;                                                                           \
            below = below > CONTEXTS - 1 ? CONTEXTS - 1 : below;                                                     \
            contexts[i] = (uint8_t)(there ? below : CONTEXTS);                                                         \
        }                                                                                                            \
    }                                                                                                                \
    INLINE void symbols_##BITS(const U##BITS *restrict base, const U##BITS *restrict now, int exponent,              \
                               size_t count, uint8_t *restrict symbols) {                                            \
        for (size_t i = 0; i < count; i++) {                                                                         \
            const U##BITS folded = folded_##BITS(base[i], now[i], exponent);                                         \
            symbols[i] = (uint8_t)(folded < PLAIN ? folded : PLAIN);                                                 \
        }                                                                                                            \
    }                                                                                                                \
    INLINE int64_t sort_##BITS(const U##BITS *restrict base, const U##BITS *restrict now, int exponent,              \
                               size_t count, const uint8_t *restrict symbols, const uint8_t *restrict contexts,      \
                               int64_t *restrict places, uint8_t *restrict sorted, uint8_t *restrict extra) {        \
        Bits bits = {extra, 0, 0, 0};                                                                                \
        for (size_t i = 0; i < count; i++) {                                                                         \
            unsigned symbol = symbols[i];                                                                            \
            if (symbol == PLAIN) {                                                                                   \
                const uint64_t folded = folded_##BITS(base[i], now[i], exponent);                                    \
                const int length = length_of(folded);                                                                \
                symbol = PLAIN + 2u * (unsigned)(length - 5) + (unsigned)(folded >> (length - 2) & 1);               \
                put_bits(&bits, folded, length - 2);                                                                 \
            }                                                                                                        \
            sorted[places[contexts[i]]++] = (uint8_t)symbol;                                                         \
        }                                                                                                            \
        if (bits.count) *bits.bytes = (uint8_t)bits.held;                                                            \
        return bits.total;                                                                                           \
    }                                                                                                                \
    INLINE int64_t join_##BITS(const U##BITS *restrict base, int exponent, size_t count,                             \
                               const uint8_t *restrict contexts, int64_t *restrict places,                           \
                               const uint8_t *restrict sorted, const uint8_t *restrict extra, int64_t there,         \
                               U##BITS *restrict out) {                                                              \
        int64_t at = 0;                                                                                              \
        for (size_t i = 0; i < count; i++) {                                                                         \
            const unsigned symbol = sorted[places[contexts[i]]++];                                                   \
            uint64_t folded = symbol;                                                                                \
            if (symbol >= PLAIN) {                                                                                   \
                const int more = 3 + (int)(symbol - PLAIN) / 2;                                                      \
                if (more > BITS - 2 || at + more > there) return -1;                                                 \
                folded = (uint64_t)(2 | (symbol & 1)) << more | bits_at(extra, at, more);                            \
                at += more;                                                                                          \
            }                                                                                                        \
            out[i] = (U##BITS)folded;                                                                                \
        }                                                                                                            \
        for (size_t i = 0; i < count; i++) {                                                                         \
            const U##BITS step = (U##BITS)((out[i] >> 1) ^ (U##BITS)(0 - (out[i] & 1)));                             \
            out[i] = ordered_##BITS((U##BITS)(ordered_##BITS(base[i], exponent) + step), exponent);                  \
        }                                                                                                            \
        return at;                                                                                                   \
    }
KIND(8)
KIND(16)
KIND(32)
KIND(64)

/* The context of each number of `size` bytes of a base. */
EACH_CPU void delta_contexts(const void *base, int size, int exponent, int top, size_t count, uint8_t *contexts) {
    if (size == 1) contexts_8(base, exponent, top, count, contexts);
    else if (size == 2 && exponent == 8) contexts_16(base, 8, top, count, contexts);
    else if (size == 2) contexts_16(base, exponent, top, count, contexts);
    else if (size == 4) contexts_32(base, exponent, top, count, contexts);
    else contexts_64(base, exponent, top, count, contexts);
}

/* Folded differences, PLAIN for what is not smaller. */
EACH_CPU void delta_symbols(const void *base, const void *now, int size, int exponent, size_t count,
                            uint8_t *symbols) {
    if (size == 1) symbols_8(base, now, exponent, count, symbols);
    else if (size == 2 && exponent) symbols_16(base, now, 8, count, symbols);
    else if (size == 2) symbols_16(base, now, 0, count, symbols);
    else if (size == 4) symbols_32(base, now, exponent, count, symbols);
    else symbols_64(base, now, exponent, count, symbols);
}

/* The symbols, each at the next of the `places` of its context, which go on; the bits behind those symbols that have
 * some: how many these are. */
EACH_CPU void delta_sort(const void *base, const void *now, int size, int exponent, size_t count,
                         const uint8_t *symbols, const uint8_t *contexts, int64_t *places, uint8_t *sorted,
                         uint8_t *extra, int64_t *bits) {
    if (size == 1) *bits = sort_8(base, now, exponent, count, symbols, contexts, places, sorted, extra);
    else if (size == 2) *bits = sort_16(base, now, exponent, count, symbols, contexts, places, sorted, extra);
    else if (size == 4) *bits = sort_32(base, now, exponent, count, symbols, contexts, places, sorted, extra);
    else *bits = sort_64(base, now, exponent, count, symbols, contexts, places, sorted, extra);
}

/* Undo `delta_sort`: the numbers into `out`. `used` becomes how many of the `there` extra bits, or -1 where they are
 * too few or a symbol is wider than the numbers. */
EACH_CPU void delta_join(const void *base, int size, int exponent, size_t count, const uint8_t *contexts,
                         int64_t *places, const uint8_t *sorted, const uint8_t *extra, int64_t there, void *out,
                         int64_t *used) {
    if (size == 1) *used = join_8(base, exponent, count, contexts, places, sorted, extra, there, out);
    else if (size == 2) *used = join_16(base, exponent, count, contexts, places, sorted, extra, there, out);
    else if (size == 4) *used = join_32(base, exponent, count, contexts, places, sorted, extra, there, out);
    else *used = join_64(base, exponent, count, contexts, places, sorted, extra, there, out);
}
