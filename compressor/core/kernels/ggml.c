/* Encoders of ggml's block types (ggml-common.h has the layouts): searched scales, codes and bytes in one go.
 *
 * GROUPS groups of weights that share a scale stand side by side, as columns of a tile [size][GROUPS], so that every
 * step of a search is a loop over columns, which any compiler vectorises, and every sum goes down a column from the
 * first weight on. The NumPy twin, methods/quantize/ggml/search.py, works on more columns in the same order and says
 * what is searched; constants stand under the same names there. Once scales are settled codes are made of the weights
 * as they lie. Floats are IEEE numbers without contraction.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(PORTABLE)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#define VECTORS
#include <immintrin.h>
#endif
#define INLINE static inline __attribute__((always_inline))

#define GROUPS 32
#define LANES 16 /* floats of the widest vector */
#define BLOCK 256 /* weights of a K type's block */
#define ANCHOR 12582912.0f /* 1.5 * 2^23: adding it rounds to whole numbers, halves to even */
#define NOTHING 1e-15f /* groups without a larger weight are zero */
#define FLAT 1e-5f /* codes whose variance is a smaller part of their mean square tell no slope */
#define LARGEST_HALF 65504.0f

typedef float Row[GROUPS] __attribute__((aligned(64)));
/* BODY for each column `g`. Short bodies would be taken apart before they are vectorised, were it not for the first
 * pragma; by the second two vectors are worked on at a time, so that sums wait less for their last term. */
#define COLUMNS                                                      \
    _Pragma("GCC unroll 1") for (int lane = 0; lane < LANES; lane++) \
    _Pragma("GCC unroll 2") for (int g = lane; g < GROUPS; g += LANES)
#define CELLS for (int i = 0; i < size; i++) COLUMNS
#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

INLINE float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
INLINE float magnitude(float value) { return as_float(as_bits(value) & 0x7fffffffu); }
INLINE float rounded(float value) { return (value + ANCHOR) - ANCHOR; }
INLINE float within(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

/* The float16 pattern nearest to a number, halves to even; those out of range are its largest. */
INLINE uint32_t half_bits(float value) {
    const uint32_t sign = as_bits(value) >> 16 & 0x8000u;
    const float size = within(magnitude(value), 0, LARGEST_HALF);
    const uint32_t bits = as_bits(size);
    const uint32_t normal = ((bits + 0xfffu + (bits >> 13 & 1u)) >> 13) - (112u << 10);
    const uint32_t small = as_bits(size + 0.5f) - 0x3f000000u; /* in steps of 2^-24 */
    return sign | (size < 0x1p-14f ? small : normal);
}

/* The number that it stands for. */
INLINE float as_half(float value) {
    const uint32_t sign = as_bits(value) & 0x80000000u;
    const float size = within(magnitude(value), 0, LARGEST_HALF);
    const uint32_t bits = as_bits(size);
    const uint32_t normal = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
    const uint32_t small = as_bits((size + 0.5f) - 0.5f);
    return as_float(sign | (size < 0x1p-14f ? small : normal));
}

INLINE void put_word(uint8_t *out, uint32_t bits) {
    out[0] = (uint8_t)bits;
    out[1] = (uint8_t)(bits >> 8);
}

INLINE void put_half(uint8_t *out, float value) { put_word(out, half_bits(value)); }

/* ---- what codes are ------------------------------------------------------------------------------------ */

/* Codes are whole numbers from `low` to `high`, or one of 16 uneven `LEVELS` where `uneven`. */
typedef struct { float low, high; int uneven; } Codes;

static const float LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* The code nearest to a value; where it is not `below` the lowest or `above` the highest, that is not looked at. */
INLINE float nearest(float value, Codes codes, const int uneven, const int below, const int above) {
    if (!uneven) {
        value = rounded(value);
        if (below) value = value < codes.low ? codes.low : value;
        if (above) value = value > codes.high ? codes.high : value;
        return value;
    }
    float found = LEVELS[0];
#pragma GCC unroll 15
    for (int k = 1; k < 16; k++)
        found += value > (LEVELS[k - 1] + LEVELS[k]) * 0.5f ? LEVELS[k] - LEVELS[k - 1] : 0.0f;
    return found;
}

/* The number of a level. */
INLINE float numbered(float level) {
    float number = 0;
#pragma GCC unroll 15
    for (int k = 1; k < 16; k++) number += level >= LEVELS[k] ? 1.0f : 0.0f;
    return number;
}

/* ---- tiles --------------------------------------------------------------------------------------------- */

typedef struct {
    const float *values, *weights; /* of weights a row, or null */
    size_t groups, per_row;        /* in all, and of one row */
} Source;

#if defined(__clang__) || __GNUC__ >= 12
#define CHOSEN(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOSEN(a, b, ...) __builtin_shuffle(a, b, (FourPlaces){__VA_ARGS__})
#endif
typedef float FourFloats __attribute__((vector_size(16)));
typedef int32_t FourPlaces __attribute__((vector_size(16)));

INLINE FourFloats four(const float *from) {
    FourFloats found;
    memcpy(&found, from, sizeof found);
    return found;
}

/* GROUPS rows of `size` as columns: squares of 4 by 4, which compilers do not find out. */
INLINE void turn(const float *const *rows, int size, Row *restrict to) {
    for (int g = 0; g < GROUPS; g += 4)
        for (int i = 0; i < size; i += 4) {
            const FourFloats a = four(rows[g] + i), b = four(rows[g + 1] + i);
            const FourFloats c = four(rows[g + 2] + i), d = four(rows[g + 3] + i);
            const FourFloats low = CHOSEN(a, b, 0, 4, 1, 5), high = CHOSEN(a, b, 2, 6, 3, 7);
            const FourFloats other = CHOSEN(c, d, 0, 4, 1, 5), last = CHOSEN(c, d, 2, 6, 3, 7);
            const FourFloats found[4] = {
                CHOSEN(low, other, 0, 1, 4, 5),
                CHOSEN(low, other, 2, 3, 6, 7),
                CHOSEN(high, last, 0, 1, 4, 5),
                CHOSEN(high, last, 2, 3, 6, 7),
            };
            for (int k = 0; k < 4; k++) memcpy(to[i + k] + g, found + k, sizeof found[k]);
        }
}

#ifdef VECTORS
INLINE __attribute__((target("avx"))) __m256 both(const float *low, const float *high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

/* Likewise two squares at a time. */
__attribute__((target("avx"))) static void turn_pairs(const float *const *rows, int size, Row *restrict to) {
    for (int g = 0; g < GROUPS; g += 8)
        for (int i = 0; i < size; i += 4) {
            const __m256 a = both(rows[g] + i, rows[g + 4] + i), b = both(rows[g + 1] + i, rows[g + 5] + i);
            const __m256 c = both(rows[g + 2] + i, rows[g + 6] + i), d = both(rows[g + 3] + i, rows[g + 7] + i);
            const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
            const __m256 other = _mm256_unpacklo_ps(c, d), last = _mm256_unpackhi_ps(c, d);
            _mm256_store_ps(to[i] + g, _mm256_shuffle_ps(low, other, 0x44));
            _mm256_store_ps(to[i + 1] + g, _mm256_shuffle_ps(low, other, 0xee));
            _mm256_store_ps(to[i + 2] + g, _mm256_shuffle_ps(high, last, 0x44));
            _mm256_store_ps(to[i + 3] + g, _mm256_shuffle_ps(high, last, 0xee));
        }
}
#endif

static void turned(const float *const *rows, int size, Row *restrict to) {
#ifdef VECTORS
    if (__builtin_cpu_supports("avx")) {
        turn_pairs(rows, size, to);
        return;
    }
#endif
    turn(rows, size, to);
}

/* The columns from group `first` on, of which `here` are groups; others are zero, with weights of 1. */
EACH_CPU static void load(const Source *from, size_t first, int here, int size, int weighted, Row *restrict x, Row *restrict
                 w) {
    const float *rows[GROUPS];
    static const float nothing[BLOCK] = {0};
    for (int g = 0; g < GROUPS; g++) rows[g] = g < here ? from->values + (first + g) * size : nothing;
    turned(rows, size, x);
    if (from->groups - first >= 2 * GROUPS) /* what comes next is on its way while these are searched */
        for (int i = 0; i < GROUPS * size; i += 16) __builtin_prefetch(rows[0] + GROUPS * size + i);
    if (!weighted) return;
    size_t column = first % from->per_row;
    for (int g = 0; g < here; g++) {
        rows[g] = from->weights + column * size;
        column = column + 1 < from->per_row ? column + 1 : 0;
    }
    turned(rows, size, w);
    for (int i = 0; i < size; i++)
        for (int g = here; g < GROUPS; g++) w[i][g] = 1;
}

/* ---- a scale: x = s q ---------------------------------------------------------------------------------- */

/* The nearest code, and a sum with a square added to it. `fast`: where processors round to whole numbers and add
 * products in one go, which gives the same numbers for codes and sums of squares of whole ones. */
INLINE float code_of(const int fast, float value, Codes codes, const int uneven, const int below, const int above) {
    if (!fast || uneven) return nearest(value, codes, uneven, below, above);
    value = __builtin_rintf(value);
    if (below) value = value < codes.low ? codes.low : value;
    if (above) value = value > codes.high ? codes.high : value;
    return value;
}

INLINE float with_square(const int fast, float sum, float q) {
    return fast ? __builtin_fmaf(q, q, sum) : sum + q * q;
}

/* Defines NAME(PARAMETERS), of which BODY(fast) is the body: 2 and 1 for processors that are fast at that, with and
 * without AVX-512, 0 for others. What is constant at one call stays unknown to it (noipa): clipping at constants would
 * be taken apart into comparisons. Built for one kind of processor there is that one only: what is inlined could not be
 * in functions for others. */
#if defined(__aarch64__) || defined(__AVX512VL__)
#define ON_EACH(NAME, PARAMETERS, ARGUMENTS, BODY) static void NAME PARAMETERS { BODY(2) }
#elif defined(__AVX2__)
#define ON_EACH(NAME, PARAMETERS, ARGUMENTS, BODY) static void NAME PARAMETERS { BODY(1) }
#elif defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(PORTABLE)
#define ON_EACH(NAME, PARAMETERS, ARGUMENTS, BODY)                                               \
    __attribute__((target("arch=x86-64-v4"), noipa)) static void NAME##_v4 PARAMETERS { BODY(2) } \
    __attribute__((target("arch=x86-64-v3"), noipa)) static void NAME##_v3 PARAMETERS { BODY(1) } \
    __attribute__((noipa)) static void NAME##_v1 PARAMETERS { BODY(0) }                          \
    static void NAME PARAMETERS {                                                                \
        if (__builtin_cpu_supports("x86-64-v4")) NAME##_v4 ARGUMENTS;                            \
        else if (__builtin_cpu_supports("x86-64-v3")) NAME##_v3 ARGUMENTS;                       \
        else NAME##_v1 ARGUMENTS;                                                                \
    }
#else
#define ON_EACH(NAME, PARAMETERS, ARGUMENTS, BODY) static void NAME PARAMETERS { BODY(0) }
#endif

/* product = sum of x q, square = sum of q q, with q the codes of x / s by s' inverse. */
INLINE void project_as(const int fast, const int weighted, const int uneven, const int below, const int above,
                       const Row *restrict x, const Row *restrict w, int size, Codes codes, const float *restrict
                       inverse, float *restrict product, float *restrict square) {
    Row p = {0}, s = {0};
    CELLS {
        const float q = code_of(fast, x[i][g] * inverse[g], codes, uneven, below, above);
        const float wq = weighted ? w[i][g] * q : q;
        p[g] += wq * x[i][g];
        s[g] = weighted ? s[g] + wq * q : with_square(fast, s[g], q);
    }
    memcpy(product, p, sizeof p);
    memcpy(square, s, sizeof s);
}

#define PROJECT(FAST, WEIGHTED, UNEVEN, BELOW, ABOVE) \
    project_as(FAST, WEIGHTED, UNEVEN, BELOW, ABOVE, x, w, size, codes, inverse, product, square)
#define PROJECTED(FAST)                                       \
    if (codes.uneven && weighted) PROJECT(FAST, 1, 1, 0, 0);  \
    else if (codes.uneven) PROJECT(FAST, 0, 1, 0, 0);         \
    else if (weighted) PROJECT(FAST, 1, 0, 1, 1);             \
    else if (below) PROJECT(FAST, 0, 0, 1, 1);                \
    else if (above) PROJECT(FAST, 0, 0, 0, 1);                \
    else PROJECT(FAST, 0, 0, 0, 0);

ON_EACH(project,
        (const Row *restrict x, const Row *restrict w, int size, int weighted, Codes codes, int below, int above,
         const float *restrict inverse, float *restrict product, float *restrict square),
        (x, w, size, weighted, codes, below, above, inverse, product, square), PROJECTED)

#define HALFWAY 0.4f /* what lies so far beyond a code is rounded to it yet */

/* Kept what is better. Selecting in place would be a branch that is guessed wrong as often as not. */
INLINE void keep(const float *restrict better, float *restrict kept) { memcpy(kept, better, sizeof(Row)); }

/* The least and the largest weight of each column, or those given. */
EACH_CPU static void extremes(const Row *restrict x, int size, float *restrict low, float *restrict high) {
    Row least, most;
    memcpy(least, low, sizeof least);
    memcpy(most, high, sizeof most);
    for (int i = 0; i < size; i++)
        COLUMNS {
            least[g] = x[i][g] < least[g] ? x[i][g] : least[g];
            most[g] = x[i][g] > most[g] ? x[i][g] : most[g];
        }
    memcpy(low, least, sizeof least);
    memcpy(high, most, sizeof most);
}

/* Of candidates, codes that the weight of largest magnitude shall have, the scale that loses least once it is
 * refitted to its codes; and once more. */
EACH_CPU static void search_scale(const Row *restrict x, const Row *restrict w, int size, int weighted, Codes codes,
                                  const float *candidates, int count, float *restrict scale) {
    Row high = {0}, low = {0}, top, best = {0}, inverse, product, square, better_gain, better_scale;
    extremes(x, size, low, high);
    COLUMNS {
        top[g] = high[g] >= -low[g] ? high[g] : low[g];
        top[g] = magnitude(top[g]) < NOTHING ? 0.0f : top[g];
        scale[g] = 0;
    }
    for (int c = 0; c <= count; c++) {
        const float candidate = c < count ? candidates[c] : 0, reach = c < count ? magnitude(candidate) : INFINITY;
        COLUMNS {
            const float over = c < count ? candidate : 1.0f, under = c < count ? top[g] : scale[g];
            inverse[g] = under != 0 ? over / (under != 0 ? under : 1.0f) : 0.0f;
        }
        project(x, w, size, weighted, codes, reach > HALFWAY - codes.low, reach > HALFWAY + codes.high, inverse,
                product, square);
        COLUMNS {
            const float fitted = product[g] / (square[g] > 0 ? square[g] : 1.0f);
            const float gain = product[g] * fitted;
            better_scale[g] = gain > best[g] ? fitted : scale[g];
            better_gain[g] = gain > best[g] ? gain : best[g];
        }
        keep(better_gain, best);
        keep(better_scale, scale);
    }
}

/* ---- a scale and a least value: x = s q + m ------------------------------------------------------------ */

typedef struct { Row w, x, q, qq, xq; } Sums; /* of weights, times x, times codes, … */

INLINE void fixed_sums_as(const int weighted, const Row *restrict x, const Row *restrict w, int size, Sums *sums) {
    Row a = {0}, b = {0};
    COLUMNS a[g] = weighted ? 0.0f : (float)size; /* as a sum of ones is */
    CELLS {
        if (weighted) a[g] += w[i][g];
        b[g] += weighted ? w[i][g] * x[i][g] : x[i][g];
    }
    memcpy(sums->w, a, sizeof a);
    memcpy(sums->x, b, sizeof b);
}

EACH_CPU static void fixed_sums(const Row *restrict x, const Row *restrict w, int size, int weighted, Sums *sums) {
    if (weighted) fixed_sums_as(1, x, w, size, sums);
    else fixed_sums_as(0, x, w, size, sums);
}

INLINE void code_sums_as(const int fast, const int weighted, const int uneven, const int clipped, const Row *restrict
                         x, const Row *restrict w, int size, Codes codes, const float *restrict inverse, const float
                         *restrict offset, Sums *sums) {
    Row a = {0}, b = {0}, c = {0};
    CELLS {
        const float q = code_of(fast, (x[i][g] + offset[g]) * inverse[g], codes, uneven, clipped, clipped);
        const float wq = weighted ? w[i][g] * q : q;
        a[g] += wq;
        b[g] = weighted ? b[g] + wq * q : with_square(fast, b[g], q);
        c[g] += wq * x[i][g];
    }
    memcpy(sums->q, a, sizeof a);
    memcpy(sums->qq, b, sizeof b);
    memcpy(sums->xq, c, sizeof c);
}

#define CODE_SUMS(FAST, WEIGHTED, UNEVEN, CLIPPED) \
    code_sums_as(FAST, WEIGHTED, UNEVEN, CLIPPED, x, w, size, codes, inverse, offset, sums)
#define SUMMED(FAST)                                          \
    if (codes.uneven && weighted) CODE_SUMS(FAST, 1, 1, 0);   \
    else if (codes.uneven) CODE_SUMS(FAST, 0, 1, 0);          \
    else if (weighted && clipped) CODE_SUMS(FAST, 1, 0, 1);   \
    else if (weighted) CODE_SUMS(FAST, 1, 0, 0);              \
    else if (clipped) CODE_SUMS(FAST, 0, 0, 1);               \
    else CODE_SUMS(FAST, 0, 0, 0);

ON_EACH(code_sums,
        (const Row *restrict x, const Row *restrict w, int size, int weighted, Codes codes, int clipped, const float
         *restrict inverse, const float *restrict offset, Sums *sums),
        (x, w, size, weighted, codes, clipped, inverse, offset, sums), SUMMED)

/* The scale and least value of least squares for these codes; where they tell none, those given. With `positive` no
 * least value is above zero. */
INLINE void fit(const Sums *sums, const int positive, float *restrict scale, float *restrict least, float *restrict
                gain) {
    COLUMNS {
        const float w = sums->w[g], x = sums->x[g], q = sums->q[g], qq = sums->qq[g], xq = sums->xq[g];
        const float apart = w * qq, spread = apart - q * q;
        const int told = spread > FLAT * apart;
        const float by = told ? spread : 1.0f;
        float a = told ? (w * xq - x * q) / by : scale[g];
        float m = told ? (qq * x - q * xq) / by : least[g];
        const int above = positive && m > 0;
        a = above ? (qq > 0 ? xq / (qq > 0 ? qq : 1.0f) : 0.0f) : a;
        m = above ? 0.0f : m;
        scale[g] = a;
        least[g] = m;
        gain[g] = a > 0 ? a * ((2.0f * xq - a * qq) - 2.0f * m * q) + m * (2.0f * x - m * w) : -1.0f;
    }
}

/* Of candidates, pairs of codes that the least and the largest weight shall have, the pair that loses least once it
 * is refitted to its codes; and once more, if `again`. */
INLINE void search_range_as(const int positive, const Row *restrict x, const Row *restrict w, int size, int weighted,
                            Codes codes, const float (*candidates)[2], int count, int again, float *restrict scale,
                            float *restrict least) {
    Row high, low, best, inverse, offset, a, m, gain, better_gain, better_scale, better_least;
    Sums sums;
    COLUMNS high[g] = low[g] = x[0][g];
    extremes(x, size, low, high);
    fixed_sums(x, w, size, weighted, &sums);
    COLUMNS {
        low[g] = positive && low[g] > 0 ? 0.0f : low[g];
        const float mean = sums.x[g] / (sums.w[g] > 0 ? sums.w[g] : 1.0f);
        least[g] = positive && mean > 0 ? 0.0f : mean;
        best[g] = least[g] * (2.0f * sums.x[g] - least[g] * sums.w[g]);
        scale[g] = 0;
    }
    for (int c = 0; c < count + again; c++) {
        const int searched = c < count;
        const float from = searched ? candidates[c][0] : 0, past = searched ? candidates[c][1] : 0;
        const float codes_apart = (codes.high + past) - from;
        const int clipped = !searched || positive || from < -HALFWAY || past > HALFWAY;
        COLUMNS {
            const float span = high[g] - low[g], tried = span / codes_apart;
            float unit = searched ? tried : scale[g];
            unit = span < NOTHING ? 0.0f : unit;
            const float lowest = low[g] - from * unit;
            float under = searched ? lowest : least[g];
            under = positive && under > 0 ? 0.0f : under;
            a[g] = unit;
            m[g] = under;
            inverse[g] = unit > 0 ? 1.0f / (unit > 0 ? unit : 1.0f) : 0.0f;
            offset[g] = -under;
        }
        code_sums(x, w, size, weighted, codes, clipped, inverse, offset, &sums);
        fit(&sums, positive, a, m, gain);
        COLUMNS {
            better_scale[g] = gain[g] > best[g] ? a[g] : scale[g];
            better_least[g] = gain[g] > best[g] ? m[g] : least[g];
            better_gain[g] = gain[g] > best[g] ? gain[g] : best[g];
        }
        keep(better_gain, best);
        keep(better_scale, scale);
        keep(better_least, least);
    }
}

EACH_CPU static void search_range(const Row *restrict x, const Row *restrict w, int size, int weighted, Codes codes,
                                  int positive, const float (*candidates)[2], int count, int again, float *restrict
                                  scale, float *restrict least) {
    if (positive) search_range_as(1, x, w, size, weighted, codes, candidates, count, again, scale, least);
    else search_range_as(0, x, w, size, weighted, codes, candidates, count, again, scale, least);
}

/* ---- codes by a scale that is settled ------------------------------------------------------------------ */

/* The codes of `count` groups as they lie, as bytes from 0 on, and, if wanted, what they stand for, s q - n. */
EACH_CPU static void settle(const float *restrict x, int size, int count, Codes codes, const float *restrict scale,
                            const float *restrict under, uint8_t *restrict out, float *restrict restored) {
    float unread[BLOCK], q[GROUPS * BLOCK];
    Row inverse;
    COLUMNS inverse[g] = scale[g] != 0 ? 1.0f / (scale[g] != 0 ? scale[g] : 1.0f) : 0.0f;
    for (int g = 0; g < count; g++) {
        const float s = scale[g], by = inverse[g], n = under[g];
        const float *restrict own = x + g * size;
        float *restrict back = restored ? restored + g * size : unread, *restrict at = q + g * size;
        if (codes.uneven)
            for (int i = 0; i < size; i++) at[i] = nearest((own[i] + n) * by, codes, 1, 0, 0);
        else
            for (int i = 0; i < size; i++) at[i] = nearest((own[i] + n) * by, codes, 0, 1, 1);
        for (int i = 0; i < size; i++) back[i] = s * at[i] - n;
    }
    if (codes.uneven)
        for (int i = 0; i < count * size; i++) q[i] = numbered(q[i]);
    const float low = codes.uneven ? 0 : codes.low;
    for (int i = 0; i < count * size; i++) out[i] = (uint8_t)(int)(q[i] - low);
}

/* The lowest 4 bits of 32 words in the halves of 16 bytes, with `flip` applied to them. */
INLINE void put_low_bits(const int fast, const uint32_t *restrict c, uint8_t flip, uint8_t *restrict to) {
#ifdef VECTORS
    if (fast < 2) { /* compilers know how to narrow words by AVX-512 only */
        const __m128i mask = _mm_set1_epi32(15);
        __m128i halves[2];
        for (int half = 0; half < 2; half++) {
            __m128i four[4];
            for (int k = 0; k < 4; k++)
                four[k] = _mm_and_si128(_mm_loadu_si128((const __m128i *)(c + 16 * half + 4 * k)), mask);
            halves[half] = _mm_packus_epi16(_mm_packs_epi32(four[0], four[1]), _mm_packs_epi32(four[2], four[3]));
        }
        const __m128i both = _mm_or_si128(halves[0], _mm_slli_epi16(halves[1], 4));
        _mm_storeu_si128((__m128i *)to, _mm_xor_si128(both, _mm_set1_epi8((char)flip)));
        return;
    }
#endif
    (void)fast;
    for (int i = 0; i < 16; i++) to[i] = (uint8_t)(((c[i] & 15) | c[i + 16] << 4) ^ flip);
}

/* Likewise groups of 32 codes of 4 bits, from -8 or (`ranged`) from 0 on, into the halves of 16 bytes each, `stride`
 * bytes apart: all in one go. Only what is ranged is moved by `under`. */
INLINE void settle_halves_as(const int fast, const int ranged, const float *restrict x, int count, Codes codes, const
                             float *restrict scale, const float *restrict under, uint8_t *restrict out, int stride,
                             float *restrict restored) {
    const float low = ANCHOR + codes.low, high = ANCHOR + codes.high;
    float unread[32];
    Row inverse;
    COLUMNS inverse[g] = scale[g] != 0 ? 1.0f / (scale[g] != 0 ? scale[g] : 1.0f) : 0.0f;
    for (int g = 0; g < count; g++) {
        const float s = scale[g], by = inverse[g], n = under[g];
        const float *restrict own = x + g * 32;
        float *restrict back = restored ? restored + g * 32 : unread;
        uint32_t c[32];
        for (int i = 0; i < 32; i++) {
            const float anchored = within((ranged ? own[i] + n : own[i]) * by + ANCHOR, low, high);
            const float q = anchored - ANCHOR;
            back[i] = ranged ? s * q - n : s * q;
            c[i] = as_bits(anchored); /* whose lowest bits are the code, of negative ones less 16 */
        }
        put_low_bits(fast, c, ranged ? 0 : 0x88, out + g * stride);
    }
}

#define SETTLED_HALVES(FAST)                                                                               \
    if (codes.low < 0) settle_halves_as(FAST, 0, x, count, codes, scale, under, out, stride, restored);    \
    else settle_halves_as(FAST, 1, x, count, codes, scale, under, out, stride, restored);

ON_EACH(settle_halves,
        (const float *restrict x, int count, Codes codes, const float *restrict scale, const float *restrict under,
         uint8_t *restrict out, int stride, float *restrict restored),
        (x, count, codes, scale, under, out, stride, restored), SETTLED_HALVES)

/* sum of (s q - n - x)^2 with the codes that s and n give. */
INLINE void misses_as(const int weighted, const int uneven, const Row *restrict x, const Row *restrict w, int size,
                      Codes codes, const float *restrict scale, const float *restrict under, float *restrict out) {
    Row inverse, total = {0};
    COLUMNS inverse[g] = scale[g] != 0 ? 1.0f / (scale[g] != 0 ? scale[g] : 1.0f) : 0.0f;
    CELLS {
        const float q = nearest((x[i][g] + under[g]) * inverse[g], codes, uneven, 1, 1);
        const float off = (scale[g] * q - under[g]) - x[i][g];
        total[g] += weighted ? (w[i][g] * off) * off : off * off;
    }
    memcpy(out, total, sizeof total);
}

EACH_CPU static void misses(const Row *restrict x, const Row *restrict w, int size, int weighted, Codes codes, const
                            float *restrict scale, const float *restrict under, float *restrict out) {
    if (codes.uneven && weighted) misses_as(1, 1, x, w, size, codes, scale, under, out);
    else if (codes.uneven) misses_as(0, 1, x, w, size, codes, scale, under, out);
    else if (weighted) misses_as(1, 0, x, w, size, codes, scale, under, out);
    else misses_as(0, 0, x, w, size, codes, scale, under, out);
}

/* ---- blocks of sub-blocks: x = (d s) q - (e n) --------------------------------------------------------- */

static const float NEIGHBOURS[7][2] = {{0, 0}, {-1, 0}, {1, 0}, {0, -1}, {0, 1}, {1, 1}, {-1, -1}};
#define ROUNDS 2

/* What is found of a tile: for each column the block's d and e (float16 numbers) and its own s and n. */
typedef struct { Row d, e, s, n; } Found;

/* Small integers `s` (to `top`), and `n` where there are least values, for the scales wanted, and float16 numbers d
 * and e for each `subs` columns. s may be one more or less than the nearest, n too; and when the codes are known, d
 * and e are fitted to all of them, and it starts over; the better stays. */
EACH_CPU static void search_block(const Row *restrict x, const Row *restrict w, int size, int weighted, Codes codes,
                                  int subs, float bottom, float top, int leasts, float *restrict scale, float
                                  *restrict least, Found *found) {
    Row d, e, least_lost;
    Sums sums;
    fixed_sums(x, w, size, weighted, &sums);
    for (int first = 0; first < GROUPS; first += subs) {
        float high = 0, low = 0, deep = 0;
        for (int g = first; g < first + subs; g++) {
            high = scale[g] > high ? scale[g] : high;
            low = scale[g] < low ? scale[g] : low;
            deep = -least[g] > deep ? -least[g] : deep;
        }
        const float unit = as_half(high >= -low ? (bottom < 0 ? high / bottom : high / top) : low / bottom);
        const float step = as_half(deep / top);
        for (int g = first; g < first + subs; g++) {
            d[g] = unit;
            e[g] = step;
        }
    }
    for (int turn = 0; turn < ROUNDS; turn++) {
        Row s, n, near_s, near_n, best_s, best_n, fewest, inverse, offset, better_s, better_n, better_lost;
        COLUMNS {
            near_s[g] = within(rounded(d[g] != 0 ? scale[g] / (d[g] != 0 ? d[g] : 1.0f) : 0.0f), bottom, top);
            near_n[g] = within(rounded(e[g] != 0 ? -least[g] / (e[g] != 0 ? e[g] : 1.0f) : 0.0f), 0, top);
            best_s[g] = near_s[g];
            best_n[g] = near_n[g];
            fewest[g] = INFINITY;
        }
        for (int k = 0; k < (leasts ? 7 : 3); k++) {
            Row a, b, lost;
            COLUMNS {
                s[g] = within(near_s[g] + NEIGHBOURS[k][0], bottom, top);
                n[g] = leasts ? within(near_n[g] + NEIGHBOURS[k][1], 0, top) : 0.0f;
                a[g] = d[g] * s[g];
                b[g] = e[g] * n[g];
            }
            misses(x, w, size, weighted, codes, a, b, lost);
            COLUMNS {
                better_s[g] = lost[g] < fewest[g] ? s[g] : best_s[g];
                better_n[g] = lost[g] < fewest[g] ? n[g] : best_n[g];
                better_lost[g] = lost[g] < fewest[g] ? lost[g] : fewest[g];
            }
            keep(better_s, best_s);
            keep(better_n, best_n);
            keep(better_lost, fewest);
        }
        for (int first = 0; first < GROUPS; first += subs) {
            float lost = 0;
            for (int g = first; g < first + subs; g++) lost += fewest[g];
            const int better = turn == 0 || lost < least_lost[first];
            for (int g = first; g < first + subs; g++) {
                least_lost[g] = better ? lost : least_lost[g];
                found->d[g] = better ? d[g] : found->d[g];
                found->e[g] = better ? e[g] : found->e[g];
                found->s[g] = better ? best_s[g] : found->s[g];
                found->n[g] = better ? best_n[g] : found->n[g];
            }
        }
        if (turn + 1 == ROUNDS) break;
        COLUMNS {
            const float a = d[g] * best_s[g];
            inverse[g] = a != 0 ? 1.0f / (a != 0 ? a : 1.0f) : 0.0f;
            offset[g] = e[g] * best_n[g];
        }
        code_sums(x, w, size, weighted, codes, 1, inverse, offset, &sums);
        for (int first = 0; first < GROUPS; first += subs) {
            float uu = 0, vv = 0, uv = 0, ux = 0, vx = 0;
            for (int g = first; g < first + subs; g++) {
                uu += best_s[g] * best_s[g] * sums.qq[g];
                ux += best_s[g] * sums.xq[g];
                vv += best_n[g] * best_n[g] * sums.w[g];
                uv += best_s[g] * best_n[g] * sums.q[g];
                vx += best_n[g] * sums.x[g];
            }
            float unit = d[first], step = e[first];
            if (!leasts || vv == 0) {
                unit = uu > 0 ? ux / uu : unit;
            } else {
                const float apart = uu * vv, spread = apart - uv * uv;
                const int told = spread > FLAT * apart;
                const float by = told ? spread : 1.0f;
                const float one = (vv * ux - uv * vx) / by, other = (uv * ux - uu * vx) / by;
                const int good = told && one > 0 && other > 0;
                unit = good ? one : unit;
                step = good ? other : step;
            }
            unit = as_half(unit);
            step = as_half(step);
            for (int g = first; g < first + subs; g++) {
                d[g] = unit;
                e[g] = step;
            }
        }
        if (leasts) {
            Row a, m, gain;
            COLUMNS {
                a[g] = scale[g];
                m[g] = least[g];
            }
            fit(&sums, 1, a, m, gain);
            COLUMNS {
                scale[g] = gain[g] > 0 ? a[g] : scale[g];
                least[g] = gain[g] > 0 ? m[g] : least[g];
            }
        } else {
            COLUMNS scale[g] = sums.qq[g] > 0 ? sums.xq[g] / sums.qq[g] : scale[g];
        }
    }
}

/* ---- into blocks -------------------------------------------------------------------------------------- */

/* 32 codes: low halves of bytes the first 16, high ones the others. */
INLINE void put_nibbles(const uint8_t *restrict codes, int half, uint8_t *restrict out) {
    for (int i = 0; i < half; i++) out[i] = (uint8_t)((codes[i] & 15) | codes[i + half] << 4);
}

/* Bit `bit` of eight codes, the first lowest. */
INLINE uint32_t eight_bits(const uint8_t *codes, int bit) {
    uint64_t eight = 0;
    for (int i = 7; i >= 0; i--) eight = eight << 8 | codes[i];
    return (uint32_t)((eight >> bit & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}

INLINE void put_fifth_bits(const uint8_t *restrict codes, uint8_t *restrict out) {
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)eight_bits(codes + 8 * i, 4);
}

/* Two bits of each of 256 codes: 32 bytes hold 128 of them. */
INLINE void put_pairs(const uint8_t *restrict codes, uint8_t *restrict out) {
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *own = codes + 128 * n + i;
            out[32 * n + i] = (uint8_t)((own[0] & 3) | (own[32] & 3) << 2 | (own[64] & 3) << 4 | (own[96] & 3) << 6);
        }
}

/* Eight scales and least values of 6 bits in 12 bytes. */
INLINE void put_sixes(const uint8_t *s, const uint8_t *n, uint8_t *out) {
    for (int j = 0; j < 4; j++) {
        out[j] = (uint8_t)(s[j] | s[j + 4] >> 4 << 6);
        out[j + 4] = (uint8_t)(n[j] | n[j + 4] >> 4 << 6);
        out[j + 8] = (uint8_t)((s[j + 4] & 15) | (n[j + 4] & 15) << 4);
    }
}

/* ---- the types ----------------------------------------------------------------------------------------- */

/* The kernel of this name: BODY with `from`, `weighted`, `out` and `restored`. */
#define OF_TYPE(name, ...)                                                                                     \
    EACH_CPU static void name##_of(const Source *from, int weighted, uint8_t *restrict out, float *restored) { \
        __VA_ARGS__                                                                                            \
    }                                                                                                          \
    void name(const float *values, const float *weights, size_t groups, size_t per_row, uint8_t *out,          \
              float *restored) {                                                                               \
        const Source from = {values, weights, groups, per_row};                                                \
        name##_of(&from, weights != 0, out, restored);                                                         \
    }

/* For each tile of columns of `size` weights: BODY, with `here` columns of it in use from group `first` on. */
#define EACH_TILE(SIZE, ...)                                                                          \
    enum { size = SIZE };                                                                             \
    Row x[size], w[size];                                                                             \
    for (size_t first = 0; first < from->groups; first += GROUPS) {                                   \
        const int here = from->groups - first < GROUPS ? (int)(from->groups - first) : GROUPS;        \
        load(from, first, here, size, weighted, x, w);                                                \
        __VA_ARGS__                                                                                   \
    }

/* `c`: the codes of the tile by scales s and n that are settled. */
#define SETTLE(S, N)                                                                                  \
    uint8_t c[GROUPS * size];                                                                         \
    settle(from->values + first * size, size, here, codes, S, N, c, restored ? restored + first * size : 0)

static const float NONE[GROUPS] = {0};

static const float SCALES_4[] = {-8.7f, -8.2f, -7.7f, -7.2f};
static const float SCALES_5[] = {-17.0f, -16.5f, -16.0f, -15.5f, -15.0f, -14.0f};
static const float SCALES_3[] = {-5.5f,  -5.0f, -4.75f, -4.5f, -4.25f, -4.0f, -3.75f, -3.5f, -3.25f, -3.0f,
                                 -2.75f, -2.5f, -2.0f,  2.5f,  2.75f,  3.0f,  3.25f,  3.5f,  4.0f};
static const float SCALES_6[] = {-33.0f, -32.5f, -32.0f, -31.5f, -31.0f, -30.5f, -30.0f, -29.5f, -29.0f, -28.0f};
static const float SCALES_UNEVEN[] = {-136.0f, -127.0f, -118.0f, -110.0f, -103.0f, 120.0f, 113.0f, 106.0f};
static const float SCALES_TERNARY[] = {1.0f, 1.5f, 2.0f, 2.5f, 3.0f, 4.0f, 5.5f, 7.5f, 10.0f};

/* A float16 scale for 32 codes. */
#define SCALED_32(CODES, CANDIDATES, BYTES, ...)                                                     \
    EACH_TILE(32, {                                                                                   \
        const Codes codes = CODES;                                                                    \
        Row scale;                                                                                    \
        uint32_t bits[GROUPS];                                                                        \
        search_scale(x, w, size, weighted, codes, CANDIDATES, COUNT(CANDIDATES), scale);              \
        COLUMNS bits[g] = half_bits(scale[g]);                                                    \
        COLUMNS scale[g] = as_half(scale[g]);                                                     \
        SETTLE(scale, NONE);                                                                          \
        for (int g = 0; g < here; g++) {                                                              \
            const uint8_t *own = c + g * size;                                                        \
            uint8_t *to = out + (first + g) * BYTES;                                                  \
            put_word(to, bits[g]);                                                                    \
            __VA_ARGS__                                                                               \
        }                                                                                             \
    })

/* Codes of a tile by scales that are settled, AT so many bytes into each block of BYTES. */
#define SETTLE_HALVES(S, N, AT, BYTES)                                                                \
    settle_halves(from->values + first * size, here, codes, S, N, out + first * (BYTES) + (AT),       \
                  BYTES, restored ? restored + first * size : 0)

OF_TYPE(ggml_q4_0, EACH_TILE(32, {
    const Codes codes = {-8, 7, 0};
    Row scale;
    uint32_t bits[GROUPS];
    search_scale(x, w, size, weighted, codes, SCALES_4, COUNT(SCALES_4), scale);
    COLUMNS bits[g] = half_bits(scale[g]);
    COLUMNS scale[g] = as_half(scale[g]);
    SETTLE_HALVES(scale, NONE, 2, 18);
    for (int g = 0; g < here; g++) put_word(out + (first + g) * 18, bits[g]);
}))

OF_TYPE(ggml_q5_0,
        SCALED_32(((Codes){-16, 15, 0}), SCALES_5, 22, put_fifth_bits(own, to + 2); put_nibbles(own, 16, to + 6);))

OF_TYPE(ggml_iq4_nl, SCALED_32(((Codes){-127, 113, 1}), SCALES_UNEVEN, 18, put_nibbles(own, 16, to + 2);))

/* The largest magnitude of a group. */
INLINE float largest(const float *x, int size) {
    int32_t top = 0;
    for (int i = 0; i < size; i++) {
        const int32_t bits = (int32_t)(as_bits(x[i]) & 0x7fffffffu); /* in the order of the numbers */
        top = bits > top ? bits : top;
    }
    return as_float((uint32_t)top);
}

EACH_CPU void ggml_q8_0(const float *values, const float *weights, size_t groups, size_t per_row, uint8_t *out,
                        float *restored) {
    enum { size = 32 };
    const Codes codes = {-127, 127, 0};
    (void)weights, (void)per_row;
    for (size_t first = 0; first < groups; first += GROUPS) {
        const int here = groups - first < GROUPS ? (int)(groups - first) : GROUPS;
        const float *x = values + first * size;
        Row scale = {0};
        uint32_t bits[GROUPS];
        uint8_t c[GROUPS * size];
        for (int g = 0; g < here; g++) scale[g] = largest(x + g * size, size);
        COLUMNS scale[g] /= 127.0f;
        COLUMNS bits[g] = half_bits(scale[g]);
        COLUMNS scale[g] = as_half(scale[g]);
        settle(x, size, here, codes, scale, NONE, c, restored ? restored + first * size : 0);
        for (int g = 0; g < here; g++) {
            uint8_t *to = out + (first + g) * 34;
            put_word(to, bits[g]);
            for (int i = 0; i < size; i++) to[2 + i] = (uint8_t)(c[g * size + i] - 127);
        }
    }
}

static const float RANGES_4[][2] = {{-0.15f, 0.15f}};
static const float RANGES_5[][2] = {{0.15f, 0.2f}, {-0.3f, -0.15f}};
static const float RANGES[][2] = {
    {-0.6f, 0.6f}, {-0.6f, 0.3f}, {-0.6f, 0}, {-0.6f, -0.3f}, {-0.3f, 0.6f}, {-0.3f, 0.3f}, {-0.3f, 0}, {-0.3f, -0.3f},
    {0, 0.6f},     {0, 0.3f},     {0, 0},     {0, -0.3f},     {0.3f, 0.6f},  {0.3f, 0.3f},  {0.3f, 0},  {0.3f, -0.3f}};

/* The float16 scale and float16 least value of each column of a tile, 32 codes each, and both as `bits`; without
 * weights the candidates are FEW, and what they find is not refitted. */
#define FIND_RANGES(FEW)                                                                              \
    Row scale, least, under;                                                                          \
    uint32_t bits[GROUPS];                                                                            \
    if (weighted) search_range(x, w, size, 1, codes, 0, RANGES, COUNT(RANGES), 1, scale, least);      \
    else search_range(x, w, size, 0, codes, 0, FEW, COUNT(FEW), 0, scale, least);                     \
    COLUMNS bits[g] = half_bits(scale[g]) | half_bits(least[g]) << 16;                                \
    COLUMNS scale[g] = as_half(scale[g]);                                                             \
    COLUMNS under[g] = -as_half(least[g])

OF_TYPE(ggml_q4_1, EACH_TILE(32, {
    const Codes codes = {0, 15, 0};
    FIND_RANGES(RANGES_4);
    SETTLE_HALVES(scale, under, 4, 20);
    for (int g = 0; g < here; g++) {
        uint8_t *to = out + (first + g) * 20;
        put_word(to, bits[g]);
        put_word(to + 2, bits[g] >> 16);
    }
}))

OF_TYPE(ggml_q5_1, EACH_TILE(32, {
    const Codes codes = {0, 31, 0};
    FIND_RANGES(RANGES_5);
    SETTLE(scale, under);
    for (int g = 0; g < here; g++) {
        const uint8_t *own = c + g * size;
        uint8_t *to = out + (first + g) * 24;
        put_word(to, bits[g]);
        put_word(to + 2, bits[g] >> 16);
        put_fifth_bits(own, to + 4);
        put_nibbles(own, 16, to + 8);
    }
}))

/* Blocks of 256 in sub-blocks of SIZE; BODY for each block `to`, with its codes `own` from 0 on and integers `s`, `n` of
 * its sub-blocks less `bottom`. */
#define IN_BLOCKS(SIZE, CODES, BOTTOM, TOP, LEASTS, SEARCH, BYTES, ...)                                         \
    EACH_TILE(SIZE, {                                                                                           \
        enum { subs = BLOCK / SIZE };                                                                           \
        const Codes codes = CODES;                                                                              \
        Row scale, least = {0}, a, b;                                                                           \
        Found found;                                                                                            \
        SEARCH;                                                                                                 \
        search_block(x, w, size, weighted, codes, subs, BOTTOM, TOP, LEASTS, scale, least, &found);             \
        COLUMNS a[g] = found.d[g] * found.s[g];                                                             \
        COLUMNS b[g] = found.e[g] * found.n[g];                                                             \
        SETTLE(a, b);                                                                                           \
        for (int column = 0; column < here; column += subs) {                                                   \
            const uint8_t *own = c + column * size;                                                             \
            uint8_t s[subs], n[subs], *to = out + (first + column) / subs * BYTES;                              \
            for (int j = 0; j < subs; j++) s[j] = (uint8_t)(int)(found.s[column + j] - (BOTTOM));               \
            for (int j = 0; j < subs; j++) n[j] = (uint8_t)(int)found.n[column + j];                            \
            const float d = found.d[column], e = found.e[column];                                               \
            (void)e, (void)n;                                                                                   \
            __VA_ARGS__                                                                                         \
        }                                                                                                       \
    })

#define BY_RANGE search_range(x, w, size, weighted, codes, 1, RANGES, COUNT(RANGES), 1, scale, least)
#define BY_SCALE(CANDIDATES) search_scale(x, w, size, weighted, codes, CANDIDATES, COUNT(CANDIDATES), scale)

OF_TYPE(ggml_q2_k, IN_BLOCKS(16, ((Codes){0, 3, 0}), 0, 15, 1, BY_RANGE, 84, {
    for (int j = 0; j < 16; j++) to[j] = (uint8_t)(s[j] | n[j] << 4);
    put_pairs(own, to + 16);
    put_half(to + 80, d);
    put_half(to + 82, e);
}))

/* Bit `bit` of each of 256 codes: byte i of 32 holds those of i, i + 32, … */
INLINE void put_planes(const uint8_t *restrict codes, int bit, uint8_t *restrict out) {
    for (int i = 0; i < 32; i++) {
        uint32_t bits = 0;
        for (int k = 0; k < 8; k++) bits |= (uint32_t)(codes[32 * k + i] >> bit & 1) << k;
        out[i] = (uint8_t)bits;
    }
}

OF_TYPE(ggml_q3_k, IN_BLOCKS(16, ((Codes){-4, 3, 0}), -32, 31, 0, BY_SCALE(SCALES_3), 110, {
    put_planes(own, 2, to);
    put_pairs(own, to + 32);
    for (int j = 0; j < 8; j++) to[96 + j] = (uint8_t)((s[j] & 15) | (s[j + 8] & 15) << 4);
    for (int j = 0; j < 4; j++)
        to[104 + j] = (uint8_t)(s[j] >> 4 | s[j + 4] >> 4 << 2 | s[j + 8] >> 4 << 4 | s[j + 12] >> 4 << 6);
    put_half(to + 108, d);
}))

OF_TYPE(ggml_q4_k, IN_BLOCKS(32, ((Codes){0, 15, 0}), 0, 63, 1, BY_RANGE, 144, {
    put_half(to, d);
    put_half(to + 2, e);
    put_sixes(s, n, to + 4);
    for (int k = 0; k < 4; k++) put_nibbles(own + 64 * k, 32, to + 16 + 32 * k);
}))

OF_TYPE(ggml_q5_k, IN_BLOCKS(32, ((Codes){0, 31, 0}), 0, 63, 1, BY_RANGE, 176, {
    put_half(to, d);
    put_half(to + 2, e);
    put_sixes(s, n, to + 4);
    put_planes(own, 4, to + 16);
    for (int k = 0; k < 4; k++) put_nibbles(own + 64 * k, 32, to + 48 + 32 * k);
}))

OF_TYPE(ggml_q6_k, IN_BLOCKS(16, ((Codes){-32, 31, 0}), -128, 127, 0, BY_SCALE(SCALES_6), 210, {
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *at = own + 128 * k + i;
            to[64 * k + i] = (uint8_t)((at[0] & 15) | (at[64] & 15) << 4);
            to[64 * k + 32 + i] = (uint8_t)((at[32] & 15) | (at[96] & 15) << 4);
            to[128 + 32 * k + i] = (uint8_t)(at[0] >> 4 | at[32] >> 4 << 2 | at[64] >> 4 << 4 | at[96] >> 4 << 6);
        }
    for (int j = 0; j < 16; j++) to[192 + j] = (uint8_t)(s[j] - 128);
    put_half(to + 208, d);
}))

OF_TYPE(ggml_iq4_xs, IN_BLOCKS(32, ((Codes){-127, 113, 1}), -32, 31, 0, BY_SCALE(SCALES_UNEVEN), 136, {
    uint32_t high = 0;
    put_half(to, d);
    for (int j = 0; j < 8; j++) high |= (uint32_t)(s[j] >> 4) << 2 * j;
    to[2] = (uint8_t)high;
    to[3] = (uint8_t)(high >> 8);
    for (int j = 0; j < 4; j++) to[4 + j] = (uint8_t)((s[2 * j] & 15) | (s[2 * j + 1] & 15) << 4);
    for (int j = 0; j < 8; j++) put_nibbles(own + 32 * j, 16, to + 8 + 16 * j);
}))

/* ---- ternary -------------------------------------------------------------------------------------------- */

/* BODY for each block `to` with its codes `own` of 0, 1, 2. */
#define TERNARY(BYTES, ...)                                                                                     \
    EACH_TILE(BLOCK, {                                                                                          \
        const Codes codes = {-1, 1, 0};                                                                         \
        Row scale;                                                                                              \
        search_scale(x, w, size, weighted, codes, SCALES_TERNARY, COUNT(SCALES_TERNARY), scale);                \
        COLUMNS scale[g] = as_half(magnitude(scale[g]));                                                    \
        SETTLE(scale, NONE);                                                                                    \
        for (int g = 0; g < here; g++) {                                                                        \
            const uint8_t *own = c + g * size;                                                                  \
            uint8_t *to = out + (first + g) * BYTES;                                                            \
            __VA_ARGS__                                                                                         \
            put_half(to + BYTES - 2, scale[g]);                                                                 \
        }                                                                                                       \
    })

/* `bytes` bytes of `digits` digits each, digit k of byte i at i + k * bytes, as fractions of 256 in base 3. */
INLINE void put_thirds(const uint8_t *restrict codes, int bytes, int digits, uint8_t *restrict out) {
    for (int i = 0; i < bytes; i++) {
        uint32_t number = 0;
        for (int k = 0; k < digits; k++) number = number * 3 + codes[i + k * bytes];
        for (int k = digits; k < 5; k++) number *= 3;
        out[i] = (uint8_t)((number * 256 + 242) / 243);
    }
}

OF_TYPE(ggml_tq1_0, TERNARY(54, {
    put_thirds(own, 32, 5, to);
    put_thirds(own + 160, 16, 5, to + 32);
    put_thirds(own + 240, 4, 4, to + 48);
}))

OF_TYPE(ggml_tq2_0, TERNARY(66, put_pairs(own, to);))

/* ---- 4-bit floats by a power of two ---------------------------------------------------------------------- */

/* The E2M1 magnitude nearest to a magnitude, halves to the lower. */
INLINE float e2m1(float size) {
    return (size > 0.25f ? 0.5f : 0.0f) + (size > 0.75f ? 0.5f : 0.0f) + (size > 1.25f ? 0.5f : 0.0f) +
           (size > 1.75f ? 0.5f : 0.0f) + (size > 2.5f ? 1.0f : 0.0f) + (size > 3.5f ? 1.0f : 0.0f) +
           (size > 5.0f ? 2.0f : 0.0f);
}

#define HIGHEST 252 /* with which 6 is a float */

INLINE float power_of_two(int32_t biased) { return biased > 0 ? as_float((uint32_t)biased << 23) : 0x1p-127f; }

OF_TYPE(ggml_mxfp4, EACH_TILE(32, {
    Row high = {0}, fewest, scale;
    int32_t suggested[GROUPS], best[GROUPS];
    CELLS high[g] = magnitude(x[i][g]) > high[g] ? magnitude(x[i][g]) : high[g];
    COLUMNS suggested[g] = (int32_t)(as_bits(high[g]) >> 23) - 2;
    for (int k = 0; k < 2; k++) {
        Row lost = {0}, inverse;
        int32_t trial[GROUPS];
        COLUMNS {
            trial[g] = suggested[g] + k > 0 ? suggested[g] + k : 0;
            trial[g] = trial[g] < HIGHEST ? trial[g] : HIGHEST;
            scale[g] = power_of_two(trial[g]);
            inverse[g] = 1.0f / scale[g];
        }
        CELLS {
            const float size_ = magnitude(x[i][g]) * inverse[g];
            const float off = e2m1(size_) - size_;
            lost[g] += weighted ? (w[i][g] * off) * off : off * off;
        }
        COLUMNS {
            const float unit = scale[g] / power_of_two(suggested[g] > 0 ? suggested[g] : 0);
            const float sum = lost[g] * (unit * unit);
            const int better = k == 0 || sum < fewest[g];
            fewest[g] = better ? sum : fewest[g];
            best[g] = better ? trial[g] : best[g];
        }
    }
    COLUMNS scale[g] = power_of_two(best[g]);
    for (int g = 0; g < here; g++) {
        uint8_t c[32], *to = out + (first + g) * 17;
        const float *value = from->values + (first + g) * size, unit = scale[g];
        float unread[size], *read = restored ? restored + (first + g) * size : unread;
        for (int i = 0; i < size; i++) {
            const float found = e2m1(magnitude(value[i]) / unit);
            const int negative = value[i] < 0 && found > 0;
            read[i] = negative ? -found * unit : found * unit;
            c[i] = (uint8_t)((negative ? 8 : 0) +
                             (int)(found > 2 ? (found > 3 ? (found > 4 ? 7.0f : 6.0f) : 5.0f) : found * 2.0f));
        }
        to[0] = (uint8_t)best[g];
        put_nibbles(c, 16, to + 1);
    }
}))
