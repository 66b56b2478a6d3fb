/* Scales of least squared error of blocks whose codes are 16 levels, NF4's: methods/quantize/nf4/levels.py says what is
 * searched, under the same names, and has the NumPy twin. */

#include "common.h"

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(PORTABLE)
#define TWO_WAYS 1
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#include <immintrin.h>
#endif

#define ANCHOR 12582912.0f /* 1.5 * 2^23: adding it rounds to whole numbers, halves to even */

/* What a search of a block goes by. */
typedef struct {
    const float *starts;
    size_t count;
    float least, most, limit;
    int64_t turns;
    const int16_t *whole, *cells, *places;
    const float *levels;
    const uint8_t *grid;
} LevelRule;

typedef struct { float ratio, gain; } Fit;

#define FINE 32767.0f       /* a block's largest magnitude, where levels are chosen */
#define COARSE 8191.0f      /* the same, where sums are made: those of 64 weights fit 32 bits */
#define LEVEL 4096.0        /* the largest level */
#define UNITS 8192          /* weights that are worked on together: of two blocks at least */
#define BLOCKS (UNITS / LANES)

static inline float rounded(float value) { return (value + ANCHOR) - ANCHOR; }

/* Weights of as many blocks as UNITS holds, over their largest magnitudes and in integers, and what the fits of some of
 * them are made of: of the blocks `which`, under `factors` that take fine units to 2^14 of a scale, Σ unit · level and
 * Σ level². */
typedef struct {
    float exact[UNITS];
    int16_t fine[UNITS], coarse[UNITS];
    int which[BLOCKS];
    int16_t factors[BLOCKS];
    int64_t by_unit[BLOCKS], by_level[BLOCKS];
} Units;

static inline int32_t step_of(int32_t fine, int32_t factor) {
    const int32_t step = 2 * ((fine * factor + (1 << 14)) >> 15);
    return step > 32767 ? 32767 : step < -32768 ? -32768 : step;
}

static inline int16_t factor_of(float ratio) { return (int16_t)rounded(16384.0f / ratio); }

static inline Fit fit_of(double by_unit, double by_level, const LevelRule *rule) {
    const float product = (float)by_unit, square = (float)by_level;
    float best = square > 0 ? product / square : 1;
    best = best < rule->least ? rule->least : best;
    best = best > rule->most ? rule->most : best;
    return (Fit){best, best * (2 * product - best * square)};
}

#ifdef TWO_WAYS

/* Both sums of the lanes. */
AVX512 static inline void add_up(__m512i first, __m512i second, int64_t *totals) {
    const __m512i eight = _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second));
    const __m256i four = _mm256_add_epi32(_mm512_castsi512_si256(eight), _mm512_extracti64x4_epi64(eight, 1));
    __m128i two = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    two = _mm_add_epi32(two, _mm_unpackhi_epi64(two, two));
    totals[0] += _mm_cvtsi128_si32(two);
    totals[1] += _mm_extract_epi32(two, 1);
}

/* A cell is a 32nd of what 16 bits hold: it has one midpoint at most, and a level on either side of it. */
typedef struct { __m512i border, below, above; } Cells;

AVX512 static inline Cells cells_of(const int16_t *cells) {
    return (Cells){_mm512_loadu_si512(cells), _mm512_loadu_si512(cells + 32), _mm512_loadu_si512(cells + 64)};
}

AVX512 static inline __m512i in_cells(const int16_t *fine, __m512i factor, Cells cells) {
    const __m512i half = _mm512_mulhrs_epi16(_mm512_loadu_si512(fine), factor);
    const __m512i step = _mm512_adds_epi16(half, half), cell = _mm512_srai_epi16(step, 11);
    const __mmask32 over = _mm512_cmpgt_epi16_mask(step, _mm512_permutexvar_epi16(cell, cells.border));
    return _mm512_mask_permutexvar_epi16(_mm512_permutexvar_epi16(cell, cells.below), over, cell, cells.above);
}

AVX512 static void sums_in_registers(Units *restrict units, int count, size_t size, const LevelRule *rule) {
    const Cells cells = cells_of(rule->cells);
    for (int number = 0; number < count; number++) {
        const size_t begin = units->which[number] * size;
        const __m512i factor = _mm512_set1_epi16(units->factors[number]);
        int64_t totals[2] = {0};
        for (size_t first = 0; first < size; first += 64) {
            __m512i by_unit = _mm512_setzero_si512(), by_level = by_unit;
            for (size_t i = begin + first; i < begin + least(first + 64, size); i += 32) {
                const __m512i unit = _mm512_loadu_si512(units->coarse + i);
                const __m512i level = in_cells(units->fine + i, factor, cells);
                by_unit = _mm512_add_epi32(by_unit, _mm512_madd_epi16(unit, level));
                by_level = _mm512_add_epi32(by_level, _mm512_madd_epi16(level, level));
            }
            add_up(by_unit, by_level, totals);
        }
        units->by_unit[number] = totals[0];
        units->by_level[number] = totals[1];
    }
}

/* `gathered` of 32 lanes. */
AVX512 static inline double sum_of(const __m512 *lanes) {
    __m512d parts[4];
    for (int part = 0; part < 4; part++) {
        const __m512d both = _mm512_castps_pd(lanes[part / 2]);
        parts[part] = _mm512_cvtps_pd(
            _mm256_castpd_ps(part % 2 ? _mm512_extractf64x4_pd(both, 1) : _mm512_castpd512_pd256(both)));
    }
    const __m512d eight = _mm512_add_pd(_mm512_add_pd(parts[0], parts[2]), _mm512_add_pd(parts[1], parts[3]));
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

AVX512 static Fit exact_in_registers(const Units *restrict units, size_t begin, size_t size, float ratio,
                                     const LevelRule *rule) {
    const Cells cells = cells_of(rule->places);
    const __m512 levels = _mm512_loadu_ps(rule->levels);
    const __m512i factor = _mm512_set1_epi16(factor_of(ratio));
    __m512 by_unit[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, by_level[2] = {by_unit[0], by_unit[0]};
    for (size_t i = begin; i < begin + size; i += 32) {
        const __m512i places = in_cells(units->fine + i, factor, cells);
        const __m256i halves[2] = {_mm512_castsi512_si256(places), _mm512_extracti64x4_epi64(places, 1)};
        for (int half = 0; half < 2; half++) {
            const __m512 level = _mm512_permutexvar_ps(_mm512_cvtepi16_epi32(halves[half]), levels);
            const __m512 unit = _mm512_loadu_ps(units->exact + i + 16 * half);
            by_unit[half] = _mm512_add_ps(by_unit[half], _mm512_mul_ps(unit, level));
            by_level[half] = _mm512_add_ps(by_level[half], _mm512_mul_ps(level, level));
        }
    }
    return fit_of(sum_of(by_unit), sum_of(by_level), rule);
}
#endif

EACH_CPU static void sums_by_table(Units *restrict units, int count, size_t size, const LevelRule *rule) {
    for (int number = 0; number < count; number++) {
        const int16_t *fine = units->fine + units->which[number] * size;
        const int16_t *coarse = units->coarse + units->which[number] * size;
        const int32_t factor = units->factors[number];
        int64_t by_unit = 0, by_level = 0;
        for (size_t first = 0; first < size; first += 32) {
            int16_t level[32];
            for (size_t i = 0; i < 32; i++)
                level[i] = rule->whole[rule->grid[step_of(fine[first + i], factor) >> 4 & 0xfff]];
            int32_t unit_sum = 0, level_sum = 0;
            for (size_t i = 0; i < 32; i++) {
                unit_sum += coarse[first + i] * level[i];
                level_sum += level[i] * level[i];
            }
            by_unit += unit_sum;
            by_level += level_sum;
        }
        units->by_unit[number] = by_unit;
        units->by_level[number] = by_level;
    }
}

static Fit exact_by_table(const Units *restrict units, size_t begin, size_t size, float ratio, const LevelRule *rule) {
    const int16_t *fine = units->fine + begin;
    const float *exact = units->exact + begin;
    const int32_t factor = factor_of(ratio);
    float by_unit[LANES] = {0}, by_level[LANES] = {0};
    FOR_LANES(0, size, {
        const float level = rule->levels[rule->grid[step_of(fine[i], factor) >> 4 & 0xfff]];
        by_unit[lane] += exact[i] * level;
        by_level[lane] += level * level;
    });
    return fit_of(gathered(by_unit), gathered(by_level), rule);
}

#ifdef TWO_WAYS
#define BY_CPU(NAME, ...) \
    (__builtin_cpu_supports("x86-64-v4") ? NAME##_in_registers(__VA_ARGS__) : NAME##_by_table(__VA_ARGS__))
#else
#define BY_CPU(NAME, ...) NAME##_by_table(__VA_ARGS__)
#endif

/* The fits of `count` of the blocks to the levels that are nearest under `ratios`. */
static inline void fit_levels(Units *restrict units, int count, size_t size, const float *restrict ratios,
                              Fit *restrict found, const LevelRule *rule) {
    for (int number = 0; number < count; number++) units->factors[number] = factor_of(ratios[number]);
    BY_CPU(sums, units, count, size, rule);
    for (int number = 0; number < count; number++)
        found[number] = fit_of((double)units->by_unit[number] * (1 / (COARSE * LEVEL)),
                               (double)units->by_level[number] * (1 / (LEVEL * LEVEL)), rule);
}

/* Scales of least squared error of blocks of `size` weights, whose largest magnitudes are `absmax`, into `scales`; size
 * is 32, 64, … 4096. `levels` are the 16, and `whole` the same in integers; `grid` has the place among them for each 16th
 * step, a step being 2^-15 of a scale, in two's complement of 12 bits; `cells` the midpoints of the cells, then the
 * levels below them and above, in integers; `places` the same with the places of levels. */
EACH_CPU void search_levels(const float *restrict values, size_t blocks, size_t size, const float *restrict absmax,
                            const LevelRule *rule, float *restrict scales) {
    Units units;
    Fit best[BLOCKS], found[BLOCKS];
    float ratios[BLOCKS];
    for (size_t begin = 0; begin < blocks; begin += UNITS / size) {
        const int held = (int)least(UNITS / size, blocks - begin);
        for (int at = 0; at < held; at++) {
            const float top = absmax[begin + at], whole = top > 0 ? top : 1;
            const float *from = values + (begin + at) * size;
            for (size_t i = 0; i < size; i++) {
                const float unit = from[i] / whole;
                units.exact[at * size + i] = unit;
                units.fine[at * size + i] = (int16_t)(int32_t)rounded(unit * FINE);
                units.coarse[at * size + i] = (int16_t)(int32_t)rounded(unit * COARSE);
            }
            units.which[at] = at;
        }
        for (size_t number = 0; number < rule->count; number++) {
            for (int at = 0; at < held; at++) ratios[at] = rule->starts[number];
            fit_levels(&units, held, size, ratios, found, rule);
            for (int at = 0; at < held; at++)
                if (!number || found[at].gain > best[at].gain) best[at] = found[at];
        }
        int count = held;
        for (int64_t turn = 0; turn < rule->turns && count; turn++) {
            for (int number = 0; number < count; number++) ratios[number] = best[units.which[number]].ratio;
            fit_levels(&units, count, size, ratios, found, rule);
            int kept = 0;
            for (int number = 0; number < count; number++) {
                const int at = units.which[number];
                best[at].ratio = found[number].ratio;
                if (found[number].ratio != ratios[number]) units.which[kept++] = at;
            }
            count = kept;
        }
        for (int at = 0; at < held; at++) {
            const Fit exact = BY_CPU(exact, &units, at * size, size, best[at].ratio, rule);
            const float scale = absmax[begin + at] * exact.ratio;
            scales[begin + at] = scale > rule->limit ? rule->limit : scale;
        }
    }
}
