/* Scales of least squared error, group by group, all the way: the searches that their NumPy twins make pass by pass.
 *
 * methods/quantize/int/ways/search.py and methods/quantize/nf4/levels.py say what is searched, under the same names;
 * what is a float32 number there is one here, and a float64 number a double.
 */

#include "common.h"

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

/* Codes against scales and scales against codes, until the scale stands still. */
INLINE void refitted(const float *restrict own, size_t size, double base, const IntRule *rule, int zeros, Point *last,
                     float *stored) {
    for (int64_t turn = 0; turn < rule->turns; turn++) {
        products(own, size, rule, zeros, last, 0);
        if (turn == rule->turns - 1) break;
        double factor;
        const float again = settled(refit(*last), last->zero, base, rule, zeros, &factor);
        const double moved = factor - last->factor, held = last->factor < 0 ? -last->factor : last->factor;
        if (!((moved < 0 ? -moved : moved) > rule->still * held)) break;
        last->factor = factor;
        *stored = again;
    }
}

/* Whether a zero point one beside is worth more; it is taken then. */
INLINE int beside(const float *restrict own, size_t size, double base, const IntRule *rule, Point *last,
                  float *stored) {
    Point best = *last;
    for (int one = -1; one <= 1; one += 2) {
        Point other = {last->factor, smaller(larger(last->zero + one, 0), rule->steps), 0, 0};
        products(own, size, rule, 1, &other, 0);
        if (worth(other) > worth(best)) best = other;
    }
    if (best.zero == last->zero) return 0;
    last->zero = best.zero;
    *stored = settled(refit(best), best.zero, base, rule, 1, &last->factor);
    return 1;
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
                            size_t count, const IntRule *rule, double *restrict zero, float *restrict scales) {
    const int zeros = zero != 0;
    for (size_t group = 0; group < groups; group++) {
        const float *own = units + group * size;
        const double start = zeros ? zero[group] : 0;
        Point first = {1, start, 0, 0}, best, last;
        products(own, size, rule, zeros, &first, 0);
        best = first;
        for (size_t number = 1; number < count; number++) {
            Point one = {factors[number], 0, 0, 0};
            if (zeros) one.zero = zero_for(one.factor, low[group], high[group], rule->steps);
            products(own, size, rule, zeros, &one, 0);
            if (worth(one) > worth(best)) best = one;
        }
        last = best;
        float stored = settled(refit(best), best.zero, base[group], rule, zeros, &last.factor);
        refitted(own, size, base[group], rule, zeros, &last, &stored);
        for (int64_t turn = 0; turn < rule->beside; turn++) {
            if (!beside(own, size, base[group], rule, &last, &stored)) break;
            refitted(own, size, base[group], rule, zeros, &last, &stored);
        }
        if (!(gain(last) > gain(first) * (1 + rule->doubt))) { /* within rounding: both are measured exactly */
            Point ours = last, absmax = first;
            products(own, size, rule, zeros, &ours, 1);
            products(own, size, rule, zeros, &absmax, 1);
            double total = 0;
            for (size_t at = 0; at < size; at += RUN) {
                const size_t stop = least(at + RUN, size);
                float lanes[LANES] = {0};
                FOR_LANES(at, stop, { lanes[lane] += own[i] * own[i]; });
                total += gathered(lanes);
            }
            const double noise = (double)(float)total * rule->noise;
            if (!(ours.factor * ours.factor * ours.cu + noise < absmax.factor * absmax.factor * absmax.cu)) {
                stored = scales[group];
                last.zero = start;
            }
        }
        scales[group] = stored;
        if (zeros) zero[group] = last.zero;
    }
}

/* ---- nf4 ----------------------------------------------------------------------------------------------- */

#define LEVELS 16

/* Σ u·t and Σ t² of a block, t being the level that is nearest to round(u · factor) steps. `borders` are the 15
 * midpoints in steps. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define TWO_WAYS 1
typedef float Sixteen __attribute__((vector_size(64)));
typedef int32_t Places __attribute__((vector_size(64)));

/* With registers of 16 floats the borders and levels are looked up in a register: the borders in the order of a search
 * by halves, of which `tree` has the one to compare with at each place. Blocks are whole sets of lanes. */
__attribute__((target("arch=x86-64-v4"))) static inline void level_products(
    const float *restrict own, size_t size, float factor, Sixteen tree, Sixteen levels, float *by_unit,
    float *by_level) {
    Sixteen unit_lanes[2] = {{0}, {0}}, level_lanes[2] = {{0}, {0}};
    for (size_t i = 0; i < size; i += LANES)
        for (int half = 0; half < 2; half++) {
            Sixteen unit;
            memcpy(&unit, own + i + 16 * half, sizeof unit);
            const Sixteen step = (unit * factor + ANCHOR) - ANCHOR;
            Places place = (Places){0} + 1; /* a node of the tree; `step > border` is -1 or 0 */
            for (int depth = 0; depth < 4; depth++)
                place = place + place - (Places)(step > __builtin_shuffle(tree, place));
            const Sixteen level = __builtin_shuffle(levels, place - LEVELS);
            unit_lanes[half] += unit * level;
            level_lanes[half] += level * level;
        }
    memcpy(by_unit, unit_lanes, sizeof unit_lanes);
    memcpy(by_level, level_lanes, sizeof level_lanes);
}
#endif

/* What a search of a block goes by. */
typedef struct {
    const float *starts;
    size_t count;
    float least, most, steps, limit;
    int64_t turns;
} LevelRule;

typedef struct { float ratio, gain; } Fit;

static inline Fit fit_of(double by_unit, double by_level, const LevelRule *rule) {
    const float product = (float)by_unit, square = (float)by_level;
    float best = square > 0 ? product / square : 1;
    best = best < rule->least ? rule->least : best;
    best = best > rule->most ? rule->most : best;
    return (Fit){best, best * (2 * product - best * square)};
}

/* Scales of least squared error of blocks of `size` weights, whose largest magnitudes are `absmax`, into `scales`.
 * FIT gives the fit of a ratio. */
#define FITTED(...)                                                                              \
    for (size_t block = 0; block < blocks; block++) {                                            \
        const float whole = absmax[block] > 0 ? absmax[block] : 1;                               \
        for (size_t i = 0; i < size; i++) unit[i] = values[block * size + i] / whole;            \
        Fit best = {0, 0};                                                                       \
        for (size_t number = 0; number < rule->count; number++) {                                \
            const float ratio = rule->starts[number];                                            \
            Fit found;                                                                           \
            __VA_ARGS__                                                                          \
            if (!number || found.gain > best.gain) best = found;                                 \
        }                                                                                        \
        for (int64_t turn = 0; turn < rule->turns; turn++) {                                     \
            const float ratio = best.ratio;                                                      \
            Fit found;                                                                           \
            __VA_ARGS__                                                                          \
            best.ratio = found.ratio;                                                            \
            if (best.ratio == ratio) break;                                                      \
        }                                                                                        \
        const float scale = absmax[block] * best.ratio;                                          \
        scales[block] = scale > rule->limit ? rule->limit : scale;                               \
    }

#define MOST_OF_A_BLOCK 4096

EACH_CPU static void fitted_anywhere(const float *restrict values, size_t blocks, size_t size,
                                     const float *restrict absmax, const float *restrict table, const LevelRule *rule,
                                     float *restrict scales) {
    float unit[MOST_OF_A_BLOCK];
    FITTED({
        const float factor = rule->steps / ratio;
        float by_unit[LANES] = {0}, by_level[LANES] = {0};
        FOR_LANES(0, size, {
            const float level = table[as_bits(unit[i] * factor + ANCHOR) & 0xffffu];
            by_unit[lane] += unit[i] * level;
            by_level[lane] += level * level;
        });
        found = fit_of(gathered(by_unit), gathered(by_level), rule);
    })
}

#ifdef TWO_WAYS
__attribute__((target("arch=x86-64-v4"))) static void fitted_in_registers(
    const float *restrict values, size_t blocks, size_t size, const float *restrict absmax, const float *restrict tree,
    const float *restrict levels, const LevelRule *rule, float *restrict scales) {
    float unit[MOST_OF_A_BLOCK];
    Sixteen nodes, numbers;
    memcpy(&nodes, tree, sizeof nodes);
    memcpy(&numbers, levels, sizeof numbers);
    FITTED({
        float by_unit[LANES], by_level[LANES];
        level_products(unit, size, rule->steps / ratio, nodes, numbers, by_unit, by_level);
        found = fit_of(gathered(by_unit), gathered(by_level), rule);
    })
}
#endif

/* `table` has the level that is nearest to each number of steps, negative ones in two's complement of 16 bits; `tree`
 * the midpoints in steps, those to compare with first before others, from place 1 on; size is 32, 64, … 4096. */
void search_levels(const float *restrict values, size_t blocks, size_t size, const float *restrict absmax,
                   const float *restrict table, const float *restrict tree, const float *restrict levels,
                   const LevelRule *rule, float *restrict scales) {
#ifdef TWO_WAYS
    if (__builtin_cpu_supports("x86-64-v4")) {
        fitted_in_registers(values, blocks, size, absmax, tree, levels, rule, scales);
        return;
    }
#endif
    fitted_anywhere(values, blocks, size, absmax, table, rule, scales);
}
