/* CRC-32 as zlib has it (polynomial 0x104c11db7, reflected), by carry-less products.
 *
 * Of Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009): what
 * lies `n` bits before other data counts as much as its product with x^n modulo the polynomial in its place, so that
 * blocks are folded onto those that follow until 16 bytes are left. Those, and what is too short, go bit by bit.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#define VECTORS
#include <immintrin.h>
#endif
#define INLINE static inline __attribute__((always_inline))

static uint32_t bit_by_bit(uint32_t state, const uint8_t *data, size_t count) {
    for (size_t i = 0; i < count; i++) {
        state ^= data[i];
        for (int bit = 0; bit < 8; bit++) state = state >> 1 ^ (0xedb88320u & (0u - (state & 1)));
    }
    return state;
}

#ifdef VECTORS
/* x^(n + 32) and x^(n - 32) modulo the polynomial, reflected, for n of 128, 512 and 2048. */
#define PAST_16 0x00ccaa009e, 0x01751997d0
#define PAST_64 0x01c6e41596, 0x0154442bd4
#define PAST_256 0x01322d1430, 0x011542778a

#define CARRYLESS __attribute__((target("pclmul,sse4.1")))
#define CARRYLESS_512 __attribute__((target("vpclmulqdq,avx512f,avx512bw,avx512vl,avx512dq,pclmul")))

CARRYLESS INLINE __m128i folded(__m128i block, __m128i past, __m128i onto) {
    const __m128i low = _mm_clmulepi64_si128(block, past, 0x00), high = _mm_clmulepi64_si128(block, past, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), onto);
}

/* Whole blocks of 64 bytes, at least one: the state after them. */
CARRYLESS static uint32_t by_16(uint32_t state, const uint8_t *data, size_t count) {
    const __m128i far = _mm_set_epi64x(PAST_64), near = _mm_set_epi64x(PAST_16);
    __m128i block[4];
    for (int i = 0; i < 4; i++) block[i] = _mm_loadu_si128((const __m128i *)data + i);
    block[0] = _mm_xor_si128(block[0], _mm_cvtsi32_si128((int)state));
    for (size_t at = 64; at < count; at += 64)
        for (int i = 0; i < 4; i++)
            block[i] = folded(block[i], far, _mm_loadu_si128((const __m128i *)(data + at) + i));
    for (int i = 1; i < 4; i++) block[i] = folded(block[i - 1], near, block[i]);
    uint8_t rest[16];
    _mm_storeu_si128((__m128i *)rest, block[3]);
    return bit_by_bit(0, rest, 16);
}

CARRYLESS_512 INLINE __m512i folded_512(__m512i block, __m512i past, __m512i onto) {
    const __m512i low = _mm512_clmulepi64_epi128(block, past, 0x00);
    return _mm512_ternarylogic_epi64(low, _mm512_clmulepi64_epi128(block, past, 0x11), onto, 0x96);
}

/* Whole blocks of 256 bytes, at least one. */
CARRYLESS_512 static uint32_t by_64(uint32_t state, const uint8_t *data, size_t count) {
    const __m512i far = _mm512_broadcast_i32x4(_mm_set_epi64x(PAST_256));
    const __m512i near = _mm512_broadcast_i32x4(_mm_set_epi64x(PAST_64));
    __m512i block[4];
    for (int i = 0; i < 4; i++) block[i] = _mm512_loadu_si512(data + 64 * i);
    block[0] = _mm512_xor_si512(block[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)state)));
    for (size_t at = 256; at < count; at += 256)
        for (int i = 0; i < 4; i++) block[i] = folded_512(block[i], far, _mm512_loadu_si512(data + at + 64 * i));
    for (int i = 1; i < 4; i++) block[i] = folded_512(block[i - 1], near, block[i]);
    uint8_t rest[64];
    _mm512_storeu_si512(rest, block[3]);
    return by_16(0, rest, 64);
}
#endif

/* The CRC-32 of bytes into *check; *done is 0 where the processor has no carry-less product, or may have none: `most`
 * is 2 for those of 512 bits, 1 for those of 128. */
void crc32_of(const uint8_t *data, size_t count, int most, uint32_t *check, int64_t *done) {
    *done = 0;
#ifdef VECTORS
    uint32_t state = 0xffffffffu;
    if (most < 1 || !__builtin_cpu_supports("pclmul") || !__builtin_cpu_supports("sse4.1")) return;
    if (most >= 2 && count >= 256 && __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        const size_t whole = count / 256 * 256;
        state = by_64(state, data, whole);
        data += whole, count -= whole;
    }
    if (count >= 64) {
        const size_t whole = count / 64 * 64;
        state = by_16(state, data, whole);
        data += whole, count -= whole;
    }
    *check = ~bit_by_bit(state, data, count);
    *done = 1;
#else
    (void)bit_by_bit, (void)data, (void)count, (void)most, (void)check;
#endif
}
