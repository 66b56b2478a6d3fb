/* Decoders of ggml's commoner block types (ggml-common.h has the layouts): bytes to float32, block by block.
 *
 * The NumPy twins, methods/quantize/ggml/decode_*.py, say what each type stands for. Products are taken in the order
 * in which they stand there; floats are IEEE numbers without contraction.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(PORTABLE)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

/* The float16 at `from`; `finite` becomes 0 where it is none that is. */
INLINE float half(const uint8_t *from, int *finite) {
    const uint32_t word = from[0] | (uint32_t)from[1] << 8, size = (word & 0x7fffu) << 13;
    const int endless = (word & 0x7c00u) == 0x7c00u;
    *finite &= !endless;
    return as_float((word & 0x8000u) << 16 | (endless ? size | 0x7f800000u : as_bits(as_float(size) * 0x1p112f)));
}

/* ---- codes, uint8 -------------------------------------------------------------------------------------- */

/* `run` bytes: the low halves, then the high ones. */
INLINE void take_nibbles(const uint8_t *restrict from, int run, uint8_t *restrict codes) {
    for (int i = 0; i < run; i++) codes[i] = from[i] & 15;
    for (int i = 0; i < run; i++) codes[run + i] = from[i] >> 4;
}

/* `bits` bits of each byte, the lowest first: `run` codes of those, then of the next. */
INLINE void take_planes(const uint8_t *restrict from, int run, int bits, uint8_t *restrict codes) {
    for (int k = 0; k < 8 / bits; k++)
        for (int i = 0; i < run; i++) codes[k * run + i] = (uint8_t)(from[i] >> k * bits & ((1 << bits) - 1));
}

/* Bit k of 32 bytes as bit `place` of the codes from 32 k on. */
INLINE void take_bits(const uint8_t *restrict from, int place, uint8_t *restrict codes) {
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < 32; i++) codes[32 * k + i] |= (uint8_t)((from[i] >> k & 1) << place);
}

/* Eight scales and least values of 6 bits out of 12 bytes. */
INLINE void take_sixes(const uint8_t *from, uint8_t *s, uint8_t *n) {
    for (int j = 0; j < 4; j++) {
        s[j] = from[j] & 63;
        n[j] = from[j + 4] & 63;
        s[j + 4] = (uint8_t)((from[j + 8] & 15) | (from[j] >> 2 & 48));
        n[j + 4] = (uint8_t)(from[j + 8] >> 4 | (from[j + 4] >> 2 & 48));
    }
}

/* ---- numbers ------------------------------------------------------------------------------------------- */

/* (q - zero) * scale */
INLINE void scaled(const uint8_t *restrict codes, int size, int zero, float scale, float *restrict out) {
    for (int i = 0; i < size; i++) out[i] = (float)((int)codes[i] - zero) * scale;
}

/* q * scale + least */
INLINE void ranged(const uint8_t *restrict codes, int size, float scale, float least, float *restrict out) {
    for (int i = 0; i < size; i++) out[i] = (float)(int)codes[i] * scale + least;
}

INLINE void signed_bytes(const uint8_t *restrict from, int size, float scale, float *restrict out) {
    for (int i = 0; i < size; i++) out[i] = (float)(int8_t)from[i] * scale;
}

/* The levels of a table, times the scale; `run` bytes hold the low halves, then the high ones. */
INLINE void levels(const uint8_t *restrict from, int run, const float *restrict table, float scale, float *restrict
                   out) {
    for (int i = 0; i < run; i++) out[i] = table[from[i] & 15] * scale;
    for (int i = 0; i < run; i++) out[run + i] = table[from[i] >> 4] * scale;
}

static const float UNEVEN[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float TWICE_E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* The kernel of this name: BODY for each block `b` of so many bytes, which writes so many weights `to`. Tells whether
 * all are finite: they are where their scales are. */
#define OF_TYPE(name, WEIGHTS, BYTES, ...)                                                              \
    EACH_CPU void name(const uint8_t *blocks, size_t count, float *out, int64_t *finite) {              \
        int all = 1;                                                                                    \
        for (size_t n = 0; n < count; n++) {                                                            \
            const uint8_t *restrict b = blocks + n * BYTES;                                             \
            float *restrict to = out + n * WEIGHTS;                                                     \
            __VA_ARGS__                                                                                 \
        }                                                                                               \
        *finite = all;                                                                                  \
    }

/* (q - zero) * d + m of 32 codes of 4 bits, with fifth bits in a word; m is left out where there is none. */
INLINE void legacy(const uint8_t *restrict from, const uint32_t fifth, int zero, float d, const int ranged, float m,
                   float *restrict out) {
    for (int i = 0; i < 16; i++) {
        const int q = (from[i] & 15) | (int)(fifth >> i & 1) << 4;
        out[i] = ranged ? (float)q * d + m : (float)(q - zero) * d;
    }
    for (int i = 0; i < 16; i++) {
        const int q = from[i] >> 4 | (int)(fifth >> (i + 16) & 1) << 4;
        out[i + 16] = ranged ? (float)q * d + m : (float)(q - zero) * d;
    }
}

INLINE uint32_t word(const uint8_t *from) {
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

OF_TYPE(ggml_numbers_q4_0, 32, 18, { legacy(b + 2, 0, 8, half(b, &all), 0, 0, to); })

OF_TYPE(ggml_numbers_q4_1, 32, 20, { legacy(b + 4, 0, 0, half(b, &all), 1, half(b + 2, &all), to); })

OF_TYPE(ggml_numbers_q5_0, 32, 22, { legacy(b + 6, word(b + 2), 16, half(b, &all), 0, 0, to); })

OF_TYPE(ggml_numbers_q5_1, 32, 24, { legacy(b + 8, word(b + 4), 0, half(b, &all), 1, half(b + 2, &all), to); })

OF_TYPE(ggml_numbers_q8_0, 32, 34, { signed_bytes(b + 2, 32, half(b, &all), to); })

OF_TYPE(ggml_numbers_q2_k, 256, 84, {
    const float d = half(b + 80, &all), least = half(b + 82, &all);
    uint8_t c[256];
    take_planes(b + 16, 32, 2, c);
    take_planes(b + 48, 32, 2, c + 128);
    for (int j = 0; j < 16; j++)
        ranged(c + 16 * j, 16, d * (float)(b[j] & 15), -(least * (float)(b[j] >> 4)), to + 16 * j);
})

OF_TYPE(ggml_numbers_q3_k, 256, 110, {
    const float d = half(b + 108, &all);
    uint8_t c[256];
    take_planes(b + 32, 32, 2, c);
    take_planes(b + 64, 32, 2, c + 128);
    take_bits(b, 2, c);
    for (int j = 0; j < 16; j++) {
        const int low = b[96 + j % 8] >> (j < 8 ? 0 : 4) & 15, high = b[104 + j % 4] >> 2 * (j / 4) & 3;
        scaled(c + 16 * j, 16, 4, d * (float)((low | high << 4) - 32), to + 16 * j);
    }
})

OF_TYPE(ggml_numbers_q4_k, 256, 144, {
    const float d = half(b, &all), least = half(b + 2, &all);
    uint8_t c[256], s[8], n_[8];
    take_sixes(b + 4, s, n_);
    for (int k = 0; k < 4; k++) take_nibbles(b + 16 + 32 * k, 32, c + 64 * k);
    for (int j = 0; j < 8; j++) ranged(c + 32 * j, 32, d * (float)s[j], -(least * (float)n_[j]), to + 32 * j);
})

OF_TYPE(ggml_numbers_q5_k, 256, 176, {
    const float d = half(b, &all), least = half(b + 2, &all);
    uint8_t c[256], s[8], n_[8];
    take_sixes(b + 4, s, n_);
    for (int k = 0; k < 4; k++) take_nibbles(b + 48 + 32 * k, 32, c + 64 * k);
    take_bits(b + 16, 4, c);
    for (int j = 0; j < 8; j++) ranged(c + 32 * j, 32, d * (float)s[j], -(least * (float)n_[j]), to + 32 * j);
})

OF_TYPE(ggml_numbers_q6_k, 256, 210, {
    const float d = half(b + 208, &all);
    uint8_t c[256], high[256];
    for (int k = 0; k < 2; k++) {
        take_nibbles(b + 64 * k, 64, c + 128 * k);
        take_planes(b + 128 + 32 * k, 32, 2, high + 128 * k);
    }
    for (int i = 0; i < 256; i++) c[i] |= (uint8_t)(high[i] << 4);
    for (int j = 0; j < 16; j++) scaled(c + 16 * j, 16, 32, d * (float)(int8_t)b[192 + j], to + 16 * j);
})

OF_TYPE(ggml_numbers_iq4_nl, 32, 18, { levels(b + 2, 16, UNEVEN, half(b, &all), to); })

OF_TYPE(ggml_numbers_iq4_xs, 256, 136, {
    const float d = half(b, &all);
    for (int j = 0; j < 8; j++) {
        const int low = b[4 + j / 2] >> 4 * (j % 2) & 15, high = b[2 + j / 4] >> 2 * (j % 4) & 3;
        levels(b + 8 + 16 * j, 16, UNEVEN, d * (float)((low | high << 4) - 32), to + 32 * j);
    }
})

/* 2^(e - 128): half of what a byte stands for, since the levels are doubled */
INLINE float half_power(uint32_t e) { return as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

#define LARGEST_POWER 252 /* with which 6 is a float */

OF_TYPE(ggml_numbers_mxfp4, 32, 17, {
    levels(b + 1, 16, TWICE_E2M1, half_power(b[0]), to);
    if (b[0] > LARGEST_POWER)
        for (int i = 0; i < 32; i++) all &= (as_bits(to[i]) & 0x7f800000u) != 0x7f800000u;
})

/* `run` bytes of `digits` digits in base 3, the highest first. */
INLINE void take_thirds(const uint8_t *restrict from, int run, int digits, uint8_t *restrict codes) {
    for (int k = 0, power = 1; k < digits; k++, power *= 3)
        for (int i = 0; i < run; i++) codes[k * run + i] = (uint8_t)((uint32_t)(uint8_t)(from[i] * power) * 3 >> 8);
}

OF_TYPE(ggml_numbers_tq1_0, 256, 54, {
    uint8_t c[256];
    take_thirds(b, 32, 5, c);
    take_thirds(b + 32, 16, 5, c + 160);
    take_thirds(b + 48, 4, 4, c + 240);
    scaled(c, 256, 1, half(b + 52, &all), to);
})

OF_TYPE(ggml_numbers_tq2_0, 256, 66, {
    uint8_t c[256];
    take_planes(b, 32, 2, c);
    take_planes(b + 32, 32, 2, c + 128);
    scaled(c, 256, 1, half(b + 64, &all), to);
})
