/* Scales of least squared error, group by group, all the way: the searches that their NumPy twins make pass by pass.
 *
 * methods/quantize/int/ways/search.py and methods/quantize/nf4/levels.py say what is searched, under the same names;
 * what is a float32 number there is one here, and a float64 number a double.
 */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-slp-vectorize") /* with it GCC 12 gives other last bits here */
#endif

#include "common.h"

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#endif

#define ANCHOR 12582912.0f /* 1.5 * 2^23: adding it rounds to whole numbers, halves to even */
#define WIDE_ANCHOR 6755399441055744.0 /* the same of doubles */
#define INLINE static inline __attribute__((always_inline))

INLINE double smaller(double a, double b) { return b < a ? b : a; }
INLINE double larger(double a, double b) { return b > a ? b : a; }
INLINE double whole(double a) { return (a + WIDE_ANCHOR) - WIDE_ANCHOR; }

/* ---- integers ------------------------------------------------------------------------------------------ */

/* What codes and scales can be. A code is at most `steps` above the least; `kind` is the stored dtype of scales: 0
 * float32, 1 bfloat16, 2 float16, with its smallest and its largest number; `range` is the largest weight there is. */
typedef struct {
    double steps, half, least, most, still, doubt, noise, smallest, largest, range;
    int64_t kind, turns, beside;
} IntRule;

typedef struct { double factor, zero, cu, cc; } Point;

INLINE double worth(Point point) { return point.cc > 0 ? point.cu * point.cu / point.cc : 0; }
INLINE double gain(Point point) { return point.factor * (2 * point.cu - point.factor * point.cc); }
INLINE double refit(Point point) { return point.cc > 0 ? point.cu / point.cc : point.factor; }

/* The float32 number that a scale is stored as. */
INLINE float in_kind(float value, int64_t kind) {
    const uint32_t bits = as_bits(value);
    if (kind == 1) return as_float((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
    if (kind == 2) {
        const uint32_t normal = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
        return value < 0x1p-14f ? (value + 0.5f) - 0.5f : as_float(normal);
    }
    return value;
}

/* The next number below one that is stored, which is positive. */
INLINE float below(float value, int64_t kind) {
    if (kind == 1) return as_float(as_bits(value) - 0x10000u);
    if (kind == 2) return value <= 0x1p-14f ? value - 0x1p-24f : as_float(as_bits(value) - 0x2000u);
    return as_float(as_bits(value) - 1);
}

/* `scales.store_scale` of one scale. */
INLINE float stored_scale(double scale, double zero, const IntRule *rule, int zeros) {
    const double reach = zeros ? larger(rule->steps - zero, zero) : rule->half;
    const double limit = smaller(rule->range / reach, rule->largest);
    const double size = scale < 0 ? -scale : scale;
    const double wanted = size == 0 ? 1 : smaller(larger(size, rule->smallest), limit);
    float found = in_kind((float)wanted, rule->kind);
    if (found > limit) found = below(found, rule->kind);
    return scale < 0 ? -found : found;
}

/* Σ c·u and Σ c² of a group, rounded to float32 as the twin does, or with `apart` Σ (u/f − c)². */
INLINE void products(const float *restrict own, size_t size, const IntRule *rule, int zeros, Point *point, int apart) {
    const float factor = (float)(1 / point->factor), low = zeros ? (float)-point->zero : (float)-rule->half;
    const float high = low + (float)rule->steps;
    double first_total = 0, second_total = 0;
    for (size_t first = 0; first < size; first += RUN) {
        const size_t stop = least(first + RUN, size);
        float by_unit[LANES] = {0}, by_code[LANES] = {0};
        if (apart)
            FOR_LANES(first, stop, {
                const float ratio = own[i] * factor;
                float code = (ratio + ANCHOR) - ANCHOR;
                code = code < low ? low : code;
                code = code > high ? high : code;
                const float off = ratio - code;
                by_unit[lane] += off * off;
            });
        else
            FOR_LANES(first, stop, {
                float code = own[i] * factor;
                code = code < low ? low : code;
                code = code > high ? high : code;
                code = (code + ANCHOR) - ANCHOR;
                by_unit[lane] += code * own[i];
                by_code[lane] += code * code;
            });
        first_total += gathered(by_unit);
        second_total += gathered(by_code);
    }
    point->cu = (float)first_total;
    point->cc = (float)second_total;
}

/* The scale for a factor of `base`, stored, and the factor that this is. */
INLINE float settled(double factor, double zero, double base, const IntRule *rule, int zeros, double *found) {
    const double size = smaller(larger(factor < 0 ? -factor : factor, rule->least), rule->most) * base;
    const float stored = stored_scale(factor < 0 ? -size : size, zero, rule, zeros);
    *found = stored / base;
    return stored;
}

/* Groups are worked on TOGETHER, turn by turn: what a turn of one waits for, the others do not. */
#define TOGETHER 64

/* Some groups that lie one after the other, as far as their search has come. */
typedef struct {
    const float *units;
    const double *base;
    size_t size;
    const IntRule *rule;
    int zeros;
    Point last[TOGETHER];
    float stored[TOGETHER];
} Batch;

/* Codes against scales and scales against codes, until the scales of these groups stand still. */
INLINE void refitted(Batch *batch, const int *chosen, int count) {
    const IntRule *rule = batch->rule;
    int moving[TOGETHER];
    memcpy(moving, chosen, (size_t)count * sizeof *moving);
    for (int64_t turn = 0; turn < rule->turns && count; turn++) {
        int kept = 0;
        for (int number = 0; number < count; number++) {
            const int at = moving[number];
            Point *last = batch->last + at;
            double factor;
            products(batch->units + (size_t)at * batch->size, batch->size, rule, batch->zeros, last, 0);
            const float again = settled(refit(*last), last->zero, batch->base[at], rule, batch->zeros, &factor);
            const double moved = factor - last->factor, held = last->factor < 0 ? -last->factor : last->factor;
            if (turn == rule->turns - 1 || !((moved < 0 ? -moved : moved) > rule->still * held)) continue;
            last->factor = factor;
            batch->stored[at] = again;
            moving[kept++] = at;
        }
        count = kept;
    }
}

/* Whether a zero point one beside is worth more; it is taken then. */
INLINE int beside(Batch *batch, int at) {
    const IntRule *rule = batch->rule;
    Point *last = batch->last + at, best = *last;
    for (int one = -1; one <= 1; one += 2) {
        Point other = {last->factor, smaller(larger(last->zero + one, 0), rule->steps), 0, 0};
        products(batch->units + (size_t)at * batch->size, batch->size, rule, 1, &other, 0);
        if (worth(other) > worth(best)) best = other;
    }
    if (best.zero == last->zero) return 0;
    last->zero = best.zero;
    batch->stored[at] = settled(refit(best), best.zero, batch->base[at], rule, 1, &last->factor);
    return 1;
}

/* Whether a gain that is within rounding is one, by the errors themselves. */
INLINE int surely(const Batch *batch, int at, Point absmax) {
    const float *own = batch->units + (size_t)at * batch->size;
    Point ours = batch->last[at];
    products(own, batch->size, batch->rule, batch->zeros, &ours, 1);
    products(own, batch->size, batch->rule, batch->zeros, &absmax, 1);
    double total = 0;
    for (size_t first = 0; first < batch->size; first += RUN) {
        const size_t stop = least(first + RUN, batch->size);
        float lanes[LANES] = {0};
        FOR_LANES(first, stop, { lanes[lane] += own[i] * own[i]; });
        total += gathered(lanes);
    }
    const double noise = (double)(float)total * batch->rule->noise;
    return ours.factor * ours.factor * ours.cu + noise < absmax.factor * absmax.factor * absmax.cu;
}

INLINE double zero_for(double factor, double low, double high, double steps) {
    const double middle = whole((steps - (smaller(low, 0) + larger(high, 0)) / factor) / 2);
    return smaller(larger(middle, 0), steps);
}

/* Scales of least squared error of `groups` groups of `size` units, which are weights over `base`. `factors` are the
 * candidates, the first of them 1. low, high: the least and largest unit of each group; `zero` has the zero points
 * that go with the range, and gets those that are found, or is null. `scales` has the scales that go with the range,
 * and gets those that are found, the float32 numbers that they are stored as. */
EACH_CPU void search_scales(const float *restrict units, size_t groups, size_t size, const double *restrict base,
                            const double *restrict low, const double *restrict high, const double *restrict factors,
                            size_t tried, const IntRule *rule, double *restrict zero, float *restrict scales) {
    Batch batch = {.size = size, .rule = rule, .zeros = zero != 0};
    Point first[TOGETHER];
    for (size_t begin = 0; begin < groups; begin += TOGETHER) {
        const int held = (int)least(TOGETHER, groups - begin);
        int chosen[TOGETHER], count = held;
        batch.units = units + begin * size;
        batch.base = base + begin;
        for (int at = 0; at < held; at++) {
            const float *own = batch.units + (size_t)at * size;
            Point best = {1, zero ? zero[begin + at] : 0, 0, 0};
            products(own, size, rule, batch.zeros, &best, 0);
            first[at] = best;
            for (size_t number = 1; number < tried; number++) {
                Point one = {factors[number], 0, 0, 0};
                if (zero) one.zero = zero_for(one.factor, low[begin + at], high[begin + at], rule->steps);
                products(own, size, rule, batch.zeros, &one, 0);
                if (worth(one) > worth(best)) best = one;
            }
            batch.last[at] = best;
            batch.stored[at] = settled(refit(best), best.zero, base[begin + at], rule, batch.zeros,
                                       &batch.last[at].factor);
            chosen[at] = at;
        }
        refitted(&batch, chosen, held);
        for (int64_t turn = 0; turn < rule->beside && count; turn++) {
            int moved = 0;
            for (int number = 0; number < count; number++)
                if (beside(&batch, chosen[number])) chosen[moved++] = chosen[number];
            count = moved;
            refitted(&batch, chosen, count);
        }
        for (int at = 0; at < held; at++) {
            const int better = gain(batch.last[at]) > gain(first[at]) * (1 + rule->doubt) || surely(&batch, at, first[at]);
            if (better) scales[begin + at] = batch.stored[at];
            if (better && zero) zero[begin + at] = batch.last[at].zero;
        }
    }
}

/* ---- nf4 ----------------------------------------------------------------------------------------------- */

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

/* Weights of as many blocks as UNITS holds, over their largest magnitudes and in integers, and what the fits of some of them are made of: of the blocks
 * `which`, under `factors` that take fine units to 2^14 of a scale, Σ unit · level and Σ level². */
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

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TWO_WAYS 1

/* Both sums of the lanes. */
__attribute__((target("arch=x86-64-v4"))) static inline void add_up(__m512i first, __m512i second, int64_t *totals) {
    const __m512i eight = _mm512_add_epi32(_mm512_unpacklo_epi32(first, second), _mm512_unpackhi_epi32(first, second));
    const __m256i four = _mm256_add_epi32(_mm512_castsi512_si256(eight), _mm512_extracti64x4_epi64(eight, 1));
    __m128i two = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    two = _mm_add_epi32(two, _mm_unpackhi_epi64(two, two));
    totals[0] += _mm_cvtsi128_si32(two);
    totals[1] += _mm_extract_epi32(two, 1);
}

/* A cell is a 32nd of what 16 bits hold: it has one midpoint at most, and a level on either side of it. */
typedef struct { __m512i border, below, above; } Cells;

__attribute__((target("arch=x86-64-v4"))) static inline Cells cells_of(const int16_t *cells) {
    return (Cells){_mm512_loadu_si512(cells), _mm512_loadu_si512(cells + 32), _mm512_loadu_si512(cells + 64)};
}

__attribute__((target("arch=x86-64-v4"))) static inline __m512i in_cells(const int16_t *fine, __m512i factor,
                                                                         Cells cells) {
    const __m512i half = _mm512_mulhrs_epi16(_mm512_loadu_si512(fine), factor);
    const __m512i step = _mm512_adds_epi16(half, half), cell = _mm512_srai_epi16(step, 11);
    const __mmask32 over = _mm512_cmpgt_epi16_mask(step, _mm512_permutexvar_epi16(cell, cells.border));
    return _mm512_mask_permutexvar_epi16(_mm512_permutexvar_epi16(cell, cells.below), over, cell, cells.above);
}

__attribute__((target("arch=x86-64-v4"))) static void sums_in_registers(Units *restrict units, int count, size_t size,
                                                                        const LevelRule *rule) {
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
__attribute__((target("arch=x86-64-v4"))) static inline double sum_of(const __m512 *lanes) {
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

__attribute__((target("arch=x86-64-v4"))) static Fit exact_in_registers(const Units *restrict units, size_t begin,
                                                                        size_t size, float ratio,
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
