/* Scales of least squared error, group by group, all the way: the searches that their NumPy twins make pass by pass.
 *
 * methods/quantize/int/ways/search.py says what is searched, under the same names; what is a float32 number there is
 * one here, and a float64 number a double.
 */

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-slp-vectorize") /* with it GCC 12 gives other last bits here */
#endif

#include "common.h"

#define ANCHOR 12582912.0f /* 1.5 * 2^23: adding it rounds to whole numbers, halves to even */
#define WIDE_ANCHOR 6755399441055744.0 /* the same of doubles */

INLINE double smaller(double a, double b) { return b < a ? b : a; }
INLINE double larger(double a, double b) { return b > a ? b : a; }
INLINE double whole(double a) { return (a + WIDE_ANCHOR) - WIDE_ANCHOR; }

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
