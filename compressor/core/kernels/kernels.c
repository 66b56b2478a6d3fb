/* The inner loops of the commonest jobs, each one pass over its block where NumPy needs several.
 *
 * Every function gives the very bits that its NumPy twin gives (tests/core/test_compiled.py compares them), on every
 * processor and from every compiler: floats are IEEE numbers without contraction, nothing calls the mathematical
 * library but for the square root, which is exact, and sums are taken in the order that core/sums.py states: of a
 * run of at most RUN elements the i-th goes to lane i mod LANES, in the elements' own type; the lanes are then added
 * up in double precision, the upper half to the lower until one is left; and so are the runs, from the first on.
 * All arrays are contiguous, and what is written overlaps nothing. Nothing is allocated and nothing can fail.
 */

#include "common.h"

int compressor_kernels_version(void) { return KERNELS_VERSION; }

/* out[row] = sum of a * b over each of `rows` rows of `size`. */
EACH_CPU void dots_f32(const float *a, const float *b, size_t rows, size_t size, double *restrict out) {
    for (size_t row = 0; row < rows; row++) {
        const float *one = a + row * size, *other = b + row * size;
        double total = 0;
        for (size_t first = 0; first < size; first += RUN) {
            const size_t stop = least(first + RUN, size);
            float lanes[LANES] = {0};
            FOR_LANES(first, stop, { lanes[lane] += one[i] * other[i]; });
            total += gathered(lanes);
        }
        out[row] = total;
    }
}

EACH_CPU void dots_f64(const double *a, const double *b, size_t rows, size_t size, double *restrict out) {
    for (size_t row = 0; row < rows; row++) {
        const double *one = a + row * size, *other = b + row * size;
        double total = 0;
        for (size_t first = 0; first < size; first += RUN) {
            const size_t stop = least(first + RUN, size);
            double lanes[LANES] = {0};
            FOR_LANES(first, stop, { lanes[lane] += one[i] * other[i]; });
            total += halved(lanes);
        }
        out[row] = total;
    }
}

/* The binary logarithms of positive finite numbers: with x = m 2^e, m about 1, and s = (m - 1) / (m + 1), the odd
 * powers of s times these `terms`. */
EACH_CPU void logarithms(const double *restrict values, size_t count, const double *restrict terms, size_t length,
                         double *restrict out) {
    for (size_t i = 0; i < count; i++) {
        const double raised = values[i] < 0x1p-1022 ? values[i] * 0x1p54 : values[i]; /* no subnormals */
        uint64_t bits;
        memcpy(&bits, &raised, 8);
        double exponent = (double)((int64_t)(bits >> 52) - (values[i] < 0x1p-1022 ? 1022 + 54 : 1022)), mantissa;
        bits = (bits & 0x000fffffffffffffu) | 0x3fe0000000000000u;
        memcpy(&mantissa, &bits, 8);
        const int low = mantissa < 0.7071067811865476;
        mantissa = low ? 2 * mantissa : mantissa;
        exponent = low ? exponent - 1 : exponent;
        const double share = (mantissa - 1) / (mantissa + 1), square = share * share;
        double series = terms[length - 1];
        for (size_t n = length - 1; n > 0; n--) series = series * square + terms[n - 1];
        out[i] = exponent + share * series;
    }
}

/* out = x^p of positive finite floats: `table` has (upper half of x)^p by the upper half's pattern, and what is left,
 * (1 + d)^p, is four terms of the binomial series with these `terms`. */
EACH_CPU void powers(const float *restrict values, size_t count, const double *restrict table,
                     const double *restrict terms, float *restrict out) {
    const double one = terms[0], two = terms[1], three = terms[2], four = terms[3];
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = as_bits(values[i]);
        const double near = as_float(bits & 0xffff0000u), apart = ((double)values[i] - near) / near;
        const double series = (((four * apart + three) * apart + two) * apart + one) * apart;
        out[i] = (float)((series + 1.0) * table[bits >> 16]);
    }
}

/* bfloat16 to float32; *energy = sum of squares, *zeros = how many are zero, of either sign. */
EACH_CPU void widen_bf16(const uint16_t *restrict in, size_t count, float *restrict out, double *energy,
                         int64_t *zeros) {
    double total = 0;
    int64_t none = 0;
    for (size_t first = 0; first < count; first += RUN) {
        const size_t stop = least(first + RUN, count);
        float lanes[LANES] = {0};
        uint16_t counts[LANES] = {0};
        FOR_LANES(first, stop, {
            float value = as_float((uint32_t)in[i] << 16);
            out[i] = value;
            lanes[lane] += value * value;
            counts[lane] += (uint16_t)(in[i] << 1) == 0;
        });
        total += gathered(lanes);
        none += counted(counts);
    }
    *energy = total;
    *zeros = none;
}

/* |values| >= level */
EACH_CPU void at_least(const float *restrict values, size_t count, float level, uint8_t *restrict out) {
    for (size_t i = 0; i < count; i++) out[i] = as_float(as_bits(values[i]) & 0x7fffffffu) >= level;
}

/* bfloat16 patterns where `keep`, else +0; *lost = sum of squares of those that went, *zeros = zeros in `out`. */
EACH_CPU void select_bf16(const uint16_t *restrict in, const uint8_t *restrict keep, size_t count,
                          uint16_t *restrict out, double *lost, int64_t *zeros) {
    double total = 0;
    int64_t none = 0;
    for (size_t first = 0; first < count; first += RUN) {
        const size_t stop = least(first + RUN, count);
        float lanes[LANES] = {0};
        uint16_t counts[LANES] = {0};
        FOR_LANES(first, stop, {
            uint16_t kept = in[i] & (uint16_t) - (uint16_t)keep[i];
            float gone = as_float((uint32_t)(in[i] ^ kept) << 16);
            out[i] = kept;
            lanes[lane] += gone * gone;
            counts[lane] += (uint16_t)(kept << 1) == 0;
        });
        total += gathered(lanes);
        none += counted(counts);
    }
    *lost = total;
    *zeros = none;
}

/* The largest magnitude of each of `groups` groups of `size`. */
EACH_CPU void largest_magnitudes(const float *restrict values, size_t groups, size_t size, float *restrict out) {
    for (size_t group = 0; group < groups; group++) {
        const float *own = values + group * size;
        uint32_t lanes[LANES] = {0}; /* non-negative floats sort as their patterns do */
        FOR_LANES(0, size, {
            uint32_t bits = as_bits(own[i]) & 0x7fffffffu;
            lanes[lane] = lanes[lane] > bits ? lanes[lane] : bits;
        });
        uint32_t top = 0;
        for (int lane = 0; lane < LANES; lane++) top = top > lanes[lane] ? top : lanes[lane];
        out[group] = as_float(top);
    }
}

/* Codes clip(round(w / s) + z, 0, levels - 1) of each group, halves to even, z a whole number.
 *
 * `scale`, `zero`: one a group, or one for all where `shared`. lost[group] = sum of (code - z - w/s)^2, in units of
 * the scale; *zeros = how many codes are z. Adding 1.5 * 2^23 rounds, and leaves the code in the lowest bits.
 */
EACH_CPU void round_codes(const float *restrict values, size_t groups, size_t size, const float *restrict scale,
                          const float *restrict zero, int shared, int levels, uint8_t *restrict codes,
                          double *restrict lost, int64_t *zeros) {
    const float anchor = 12582912.0f, top = anchor + (float)(levels - 1);
    int64_t none = 0;
    for (size_t group = 0; group < groups; group++) {
        const float *own = values + group * size;
        uint8_t *out = codes + group * size;
        const float step = scale[shared ? 0 : group], offset = anchor + zero[shared ? 0 : group];
        double total = 0;
        for (size_t first = 0; first < size; first += RUN) {
            const size_t stop = least(first + RUN, size);
            float lanes[LANES] = {0};
            uint16_t counts[LANES] = {0};
            FOR_LANES(first, stop, {
                float ratio = own[i] / step;
                float rounded = ratio + offset;
                rounded = rounded < anchor ? anchor : rounded;
                rounded = rounded > top ? top : rounded;
                out[i] = (uint8_t)as_bits(rounded);
                float off = (rounded - offset) - ratio;
                lanes[lane] += off * off;
                counts[lane] += rounded == offset;
            });
            total += gathered(lanes);
            none += counted(counts);
        }
        lost[group] = total;
    }
    *zeros = none;
}

/* Σ c·u and Σ c² of each group of `size` units u, with the codes c = clip(round(u * r), lowest, lowest + span), halves to
 * even, `lowest` and `span` whole numbers below 2^22. The g-th group is row chosen[g] of `units`, or row g where `chosen`
 * is null; `weights`, rows like those of `units`, multiply each term, or are null. */
#define CODE_PRODUCTS(...)                                                            \
    for (size_t group = 0; group < groups; group++) {                                 \
        const size_t row = chosen ? (size_t)chosen[group] : group;                    \
        const float *own = units + row * size;                                        \
        const float factor = reciprocal[group], low = lowest[group], high = low + span; \
        double first_total = 0, second_total = 0;                                     \
        for (size_t first = 0; first < size; first += RUN) {                          \
            const size_t stop = least(first + RUN, size);                          \
            float by_unit[LANES] = {0}, by_code[LANES] = {0};                         \
            FOR_LANES(first, stop, {                                                  \
                float code = own[i] * factor;                                         \
                code = code < low ? low : code;                                       \
                code = code > high ? high : code;                                     \
                code = (code + anchor) - anchor;                                      \
                const float term = __VA_ARGS__;                                       \
                by_unit[lane] += term * own[i];                                       \
                by_code[lane] += term * code;                                         \
            });                                                                       \
            first_total += gathered(by_unit);                                         \
            second_total += gathered(by_code);                                        \
        }                                                                             \
        by_units[group] = first_total;                                                \
        by_codes[group] = second_total;                                               \
    }

EACH_CPU void code_products(const float *restrict units, const int64_t *restrict chosen, size_t groups, size_t size,
                            const float *restrict reciprocal, const float *restrict lowest, float span,
                            const float *restrict weights, double *restrict by_units, double *restrict by_codes) {
    const float anchor = 12582912.0f;
    if (weights)
        CODE_PRODUCTS(code * weights[row * size + i])
    else
        CODE_PRODUCTS(code)
}

/* What a small float can be: its lowest normal, its largest number, and what raises a power of two to the anchor of
 * numbers from there to the next. methods/numerics/minifloat.py has how numbers are rounded to it. */
typedef struct { float lowest, largest, raise; } Minifloat;

static inline Minifloat minifloat(int mantissa, float lowest, float largest) {
    return (Minifloat){lowest, largest, 1.5f * (float)(1u << (23 - mantissa))};
}

/* Of a number that is no larger than the largest, of either sign. */
static inline float anchor_of(float number, Minifloat kind) {
    const float anchor = as_float(as_bits(number) & 0x7f800000u);
    return (anchor < kind.lowest ? kind.lowest : anchor) * kind.raise;
}

/* Values [rows, columns] over their scales, of which each is for `size` values of a row (the last of a row for what is
 * left), and `stride` is from one row's scales to the next's: codes (uint8, or none), and the numbers they stand for.
 * `first` is the pattern of the anchor of subnormals. */
EACH_CPU void minifloat_codes(const float *restrict values, size_t rows, size_t columns, size_t size,
                              const float *restrict scales, size_t stride, int bits, int mantissa, float lowest,
                              float largest, uint32_t first, uint8_t *restrict codes, float *restrict restored) {
    const Minifloat kind = minifloat(mantissa, lowest, largest);
    const uint32_t shift = 23 - mantissa, offset = (first >> shift) + first, sign = 1u << (bits - 1);
    uint32_t wide[RUN]; /* codes as wide as the floats: runs may be as short as a register */
    for (size_t row = 0; row < rows; row++)
        for (size_t begin = 0; begin < columns; begin += size) {
            const float scale = scales[row * stride + begin / size];
            for (size_t start = begin; start < least(begin + size, columns); start += RUN) {
                const size_t count = least(RUN, least(begin + size, columns) - start);
                const float *own = values + row * columns + start;
                float *restrict out = restored + row * columns + start;
                for (size_t i = 0; i < count; i++) {
                    const uint32_t pattern = as_bits(own[i]);
                    float size_of = as_float(as_bits(own[i] / scale) & 0x7fffffffu);
                    size_of = size_of > kind.largest ? kind.largest : size_of;
                    const float anchor = anchor_of(size_of, kind), sum = size_of + anchor;
                    out[i] = as_float(as_bits((sum - anchor) * scale) | (pattern & 0x80000000u));
                    wide[i] =
                        ((as_bits(anchor) >> shift) + as_bits(sum) - offset) | (pattern >> (32 - bits) & sign);
                }
                if (codes) {
                    uint8_t *restrict narrow = codes + row * columns + start;
                    for (size_t i = 0; i < count; i++) narrow[i] = (uint8_t)wide[i];
                }
            }
        }
}

/* Squared errors of values [rows, columns] in units of their scales, where each is for `size` values of a row: sums
 * over these, in the order above, for each of `trials` sets of scales. `reciprocals` has one over each scale, for
 * `apart` rows (all, or 1) of a set. */
EACH_CPU void minifloat_errors(const float *restrict values, size_t rows, size_t columns, size_t size,
                               const float *restrict reciprocals, size_t trials, size_t apart, int mantissa,
                               float lowest, float largest, double *restrict errors) {
    const Minifloat kind = minifloat(mantissa, lowest, largest);
    const size_t segments = (columns + size - 1) / size;
    for (size_t row = 0; row < rows; row++)
        for (size_t segment = 0; segment < segments; segment++) {
            const float *own = values + row * columns + segment * size;
            const size_t length = least(size, columns - segment * size);
            for (size_t trial = 0; trial < trials; trial++) {
                const float factor = reciprocals[(trial * apart + (apart > 1 ? row : 0)) * segments + segment];
                double total = 0;
                for (size_t begin = 0; begin < length; begin += RUN) {
                    const size_t stop = least(begin + RUN, length);
                    float lanes[LANES] = {0};
                    FOR_LANES(begin, stop, {
                        const float ratio = own[i] * factor;
                        float near = ratio > kind.largest ? kind.largest : ratio;
                        near = near < -kind.largest ? -kind.largest : near;
                        const float anchor = anchor_of(near, kind), off = ratio - ((near + anchor) - anchor);
                        lanes[lane] += off * off;
                    });
                    total += gathered(lanes);
                }
                errors[(trial * rows + row) * segments + segment] = total;
            }
        }
}

/* The best of some scales for each of `blocks` blocks of `size` (16 or 32) values, a number of the rising `ladder`
 * up to `top`: of those that are `tried[0 .. trials]` rungs from rungs[block], the one of least squared error, of
 * equals the first, into `rungs`. Squares are added up in float, the upper half of a block to the lower until one
 * is left. TILE blocks stand beside each other, so that no sum runs along a register. */
#define TILE 16
EACH_CPU void best_rungs(const float *restrict values, size_t blocks, size_t size, const float *restrict ladder,
                         int64_t top, const int64_t *restrict tried, size_t trials, int mantissa, float lowest,
                         float largest, int64_t *restrict rungs) {
    const Minifloat kind = minifloat(mantissa, lowest, largest);
    float magnitudes[32][TILE], squares[32][TILE];
    for (size_t start = 0; start < blocks; start += TILE) {
        const size_t count = least(TILE, blocks - start);
        float unit[TILE], scale[TILE], error[TILE];
        int64_t best[TILE], trial[TILE];
        for (size_t t = 0; t < TILE; t++) {
            const size_t block = start + (t < count ? t : 0); /* a short tile ends in copies of its first */
            best[t] = rungs[block];
            unit[t] = ladder[best[t]];
            error[t] = __builtin_inff();
            for (size_t k = 0; k < size; k++)
                magnitudes[k][t] = as_float(as_bits(values[block * size + k]) & 0x7fffffffu);
        }
        for (size_t number = 0; number < trials; number++) {
            for (size_t t = 0; t < TILE; t++) {
                int64_t at = rungs[start + (t < count ? t : 0)] + tried[number];
                at = at < 0 ? 0 : at;
                trial[t] = at > top ? top : at;
                scale[t] = ladder[trial[t]];
            }
            for (size_t k = 0; k < size; k++)
                for (size_t t = 0; t < TILE; t++) {
                    const float quotient = magnitudes[k][t] / scale[t];
                    const float held = quotient > kind.largest ? kind.largest : quotient;
                    const float anchor = anchor_of(held, kind), apart = quotient - ((held + anchor) - anchor);
                    squares[k][t] = apart * apart;
                }
            for (size_t half = size / 2; half > 0; half /= 2)
                for (size_t k = 0; k < half; k++)
                    for (size_t t = 0; t < TILE; t++) squares[k][t] += squares[k + half][t];
            for (size_t t = 0; t < TILE; t++) {
                const float ratio = scale[t] / unit[t], found = squares[0][t] * (ratio * ratio);
                best[t] = found < error[t] ? trial[t] : best[t];
                error[t] = found < error[t] ? found : error[t];
            }
        }
        for (size_t t = 0; t < count; t++) rungs[start + t] = best[t];
    }
}

/* How many of `count` limits (at most 255) lie below each value [rows, columns]; `stride` is from one row's limits to
 * the next's. */
EACH_CPU void count_below(const float *restrict values, size_t rows, size_t columns, const float *restrict limits,
                          size_t count, size_t stride, uint8_t *restrict out) {
    for (size_t row = 0; row < rows; row++) {
        const float *own = values + row * columns, *border = limits + row * stride;
        uint8_t *restrict codes = out + row * columns;
        size_t start = 0;
        for (; start + LANES <= columns; start += LANES) {
            int32_t below[LANES] = {0};
            for (size_t number = 0; number < count; number++)
                for (int lane = 0; lane < LANES; lane++) below[lane] += own[start + lane] > border[number];
            for (int lane = 0; lane < LANES; lane++) codes[start + lane] = (uint8_t)below[lane];
        }
        for (; start < columns; start++) {
            int32_t below = 0;
            for (size_t number = 0; number < count; number++) below += own[start] > border[number];
            codes[start] = (uint8_t)below;
        }
    }
}

/* Two codes below 16 to a byte, the first in the low half; `count` is even. */
EACH_CPU void pack_nibbles(const uint8_t *restrict codes, size_t count, uint8_t *restrict out) {
    for (size_t i = 0; i < count / 2; i++) out[i] = (uint8_t)(codes[2 * i] | codes[2 * i + 1] << 4);
}

/* One step of Adam on `count` weights: g = (gradient [+ more]) [* keep], m += .., v += .., w -= rate * m / (sqrt(v) + e).
 * `more` and `keep` may be null. `betas`: b1, 1 - b1, b2, 1 - b2. */
EACH_CPU void adam(float *restrict weight, const float *restrict gradient, const float *restrict more,
                   const float *restrict keep, float *restrict first, float *restrict second, size_t count,
                   const float *restrict betas, float rate, float epsilon) {
    const float b1 = betas[0], f1 = betas[1], b2 = betas[2], f2 = betas[3];
    for (size_t start = 0; start < count; start += RUN) {
        const size_t stop = least(start + RUN, count);
        float slope[RUN];
        memcpy(slope, gradient + start, (stop - start) * sizeof(float));
        if (more)
            for (size_t i = start; i < stop; i++) slope[i - start] += more[i];
        if (keep)
            for (size_t i = start; i < stop; i++) slope[i - start] *= keep[i];
        for (size_t i = start; i < stop; i++) {
            float g = slope[i - start];
            first[i] = first[i] * b1 + g * f1;
            second[i] = second[i] * b2 + (g * g) * f2;
            weight[i] -= first[i] / (__builtin_sqrtf(second[i]) + epsilon) * rate;
        }
    }
}

/* *lost = sum of (before - after)^2, *zeros = how many of `after` are zero. */
EACH_CPU void squared_difference(const float *restrict before, const float *restrict after, size_t count, double *lost,
                                 int64_t *zeros) {
    double total = 0;
    int64_t none = 0;
    for (size_t first = 0; first < count; first += RUN) {
        const size_t stop = least(first + RUN, count);
        float lanes[LANES] = {0};
        uint16_t counts[LANES] = {0};
        FOR_LANES(first, stop, {
            const float apart = before[i] - after[i];
            lanes[lane] += apart * apart;
            counts[lane] += after[i] == 0;
        });
        total += gathered(lanes);
        none += counted(counts);
    }
    *lost = total;
    *zeros = none;
}

/* Two arrays beside each other: sums[0 .. 3] = of (a - b)^2, a^2, b^2, a b; zeros[0 .. 1] = how many are zero in each;
 * the largest |a - b|, of numbers that are none whatever. */
EACH_CPU void compare_f32(const float *restrict a, const float *restrict b, size_t count, double *restrict sums,
                          int64_t *restrict zeros, float *largest) {
    uint32_t tops[LANES] = {0}; /* non-negative floats sort as their patterns do */
    for (int number = 0; number < 4; number++) sums[number] = 0;
    zeros[0] = zeros[1] = 0;
    for (size_t first = 0; first < count; first += RUN) {
        const size_t stop = least(first + RUN, count);
        float apart_lanes[LANES] = {0}, a_lanes[LANES] = {0}, b_lanes[LANES] = {0}, both_lanes[LANES] = {0};
        uint16_t a_zeros[LANES] = {0}, b_zeros[LANES] = {0};
        FOR_LANES(first, stop, {
            const float apart = a[i] - b[i];
            const uint32_t bits = as_bits(apart) & 0x7fffffffu;
            apart_lanes[lane] += apart * apart;
            a_lanes[lane] += a[i] * a[i];
            b_lanes[lane] += b[i] * b[i];
            both_lanes[lane] += a[i] * b[i];
            tops[lane] = tops[lane] > bits ? tops[lane] : bits;
            a_zeros[lane] += a[i] == 0;
            b_zeros[lane] += b[i] == 0;
        });
        sums[0] += gathered(apart_lanes);
        sums[1] += gathered(a_lanes);
        sums[2] += gathered(b_lanes);
        sums[3] += gathered(both_lanes);
        zeros[0] += counted(a_zeros);
        zeros[1] += counted(b_zeros);
    }
    uint32_t top = 0;
    for (int lane = 0; lane < LANES; lane++) top = top > tops[lane] ? top : tops[lane];
    *largest = as_float(top);
}

/* float32 to the nearest bfloat16, halves to even, and back into `wide`; *energy and *zeros as of `widen_bf16`. */
EACH_CPU void settle_bf16(const float *restrict in, size_t count, uint16_t *restrict out, float *restrict wide,
                          double *energy, int64_t *zeros) {
    double total = 0;
    int64_t none = 0;
    for (size_t first = 0; first < count; first += RUN) {
        const size_t stop = least(first + RUN, count);
        float lanes[LANES] = {0};
        uint16_t counts[LANES] = {0};
        FOR_LANES(first, stop, {
            const uint32_t bits = as_bits(in[i]);
            const uint32_t near = bits + 0x7fffu + (bits >> 16 & 1u), quiet = (bits & 0x80000000u) | 0x7fc00000u;
            const uint32_t kept = ((bits & 0x7fffffffu) > 0x7f800000u ? quiet : near) & 0xffff0000u;
            const float value = as_float(kept);
            out[i] = (uint16_t)(kept >> 16);
            wide[i] = value;
            lanes[lane] += value * value;
            counts[lane] += value == 0;
        });
        total += gathered(lanes);
        none += counted(counts);
    }
    *energy = total;
    *zeros = none;
}

/* (code - z) * s of groups of codes; `scale`, `zero`: one a group, or one for all where shared. */
EACH_CPU void scaled_codes(const uint8_t *restrict codes, size_t groups, size_t size, const float *restrict scale,
                           int one_scale, const float *restrict zero, int one_zero, float *restrict out) {
    for (size_t group = 0; group < groups; group++) {
        const uint8_t *own = codes + group * size;
        float *restrict to = out + group * size;
        const float step = scale[one_scale ? 0 : group], offset = zero[one_zero ? 0 : group];
        for (size_t i = 0; i < size; i++) to[i] = ((float)own[i] - offset) * step;
    }
}

/* Each byte's low half, then its high one; `count` codes, an even number. */
EACH_CPU void unpack_nibbles(const uint8_t *restrict in, size_t count, uint8_t *restrict out) {
    for (size_t i = 0; i < count / 2; i++) {
        out[2 * i] = in[i] & 15;
        out[2 * i + 1] = in[i] >> 4;
    }
}

/* Eight codes of 1 to 7 bits are `bits` bytes, the first code in the lowest bits; core/bitpacking.py says more. Rows
 * begin on a byte, every `stride` bytes, and what is left of a row's last byte is zero. */
static inline uint64_t octet(const uint8_t *from, size_t count) {
    uint64_t word = 0;
    for (size_t i = 0; i < count; i++) word |= (uint64_t)from[i] << 8 * i;
    return word;
}

static inline uint64_t merged(uint64_t word, int bits) {
    word = (word & 0x00ff00ff00ff00ffu) | (word & 0xff00ff00ff00ff00u) >> (8 - bits);
    word = (word & 0x0000ffff0000ffffu) | (word & 0xffff0000ffff0000u) >> (16 - 2 * bits);
    return (word & 0x00000000ffffffffu) | (word & 0xffffffff00000000u) >> (32 - 4 * bits);
}

static inline uint64_t parted(uint64_t word, int bits) {
    const uint64_t four = (1ull << 4 * bits) - 1, two = ((1ull << 2 * bits) - 1) * 0x0000000100000001u;
    const uint64_t one = ((1ull << bits) - 1) * 0x0001000100010001u;
    word = (word & four) | (word & four << 4 * bits) << (32 - 4 * bits);
    word = (word & two) | (word & two << 2 * bits) << (16 - 2 * bits);
    return (word & one) | (word & one << bits) << (8 - bits);
}

EACH_CPU void pack_bits(const uint8_t *restrict codes, size_t rows, size_t columns, int bits, size_t stride,
                        uint8_t *restrict out) {
    for (size_t row = 0; row < rows; row++) {
        const uint8_t *own = codes + row * columns;
        uint8_t *restrict to = out + row * stride;
        size_t i = 0;
        for (; i + 8 <= columns; i += 8, to += bits) {
            const uint64_t word = merged(octet(own + i, 8), bits);
            for (int byte = 0; byte < bits; byte++) to[byte] = (uint8_t)(word >> 8 * byte);
        }
        if (i < columns) {
            const uint64_t word = merged(octet(own + i, columns - i), bits);
            for (size_t byte = 0; byte < ((columns - i) * bits + 7) / 8; byte++) to[byte] = (uint8_t)(word >> 8 * byte);
        }
    }
}

EACH_CPU void unpack_bits(const uint8_t *restrict in, size_t rows, size_t columns, int bits, size_t stride,
                          uint8_t *restrict codes) {
    for (size_t row = 0; row < rows; row++) {
        const uint8_t *own = in + row * stride;
        uint8_t *restrict to = codes + row * columns;
        size_t i = 0;
        for (; i + 8 <= columns; i += 8, own += bits) {
            const uint64_t word = parted(octet(own, (size_t)bits), bits);
            for (int place = 0; place < 8; place++) to[i + place] = (uint8_t)(word >> 8 * place);
        }
        if (i < columns) {
            const uint64_t word = parted(octet(own, ((columns - i) * bits + 7) / 8), bits);
            for (size_t place = 0; i + place < columns; place++) to[i + place] = (uint8_t)(word >> 8 * place);
        }
    }
}

/* Which of every `m` (at most 16) keys of a row are among its `n` largest, the first of equal ones; all that fill no
 * block stay. BESIDE blocks stand beside each other; of the usual sizes of a block compilers know all there is. */
#define BESIDE 64
#define KEEP_LARGEST(NAME, TYPE)                                                                               \
    INLINE void NAME##_of(const TYPE *restrict keys, size_t rows, size_t columns, int n, const int m,          \
                          uint8_t *restrict out) {                                                             \
        TYPE planes[16][BESIDE];                                                                               \
        int32_t ranks[16][BESIDE];                                                                             \
        uint8_t kept[BESIDE * 16];                                                                             \
        const size_t blocks = columns / m;                                                                     \
        for (size_t row = 0; row < rows; row++) {                                                              \
            const TYPE *own = keys + row * columns;                                                            \
            uint8_t *restrict to = out + row * columns;                                                        \
            for (size_t start = 0; start < blocks; start += BESIDE) {                                          \
                const size_t first = blocks < BESIDE ? 0 : least(start, blocks - BESIDE);                      \
                const size_t count = least(BESIDE, blocks);                                                    \
                const TYPE *from = own + first * m;                                                            \
                if (count == BESIDE)                                                                           \
                    for (size_t t = 0; t < BESIDE; t++)                                                        \
                        for (int place = 0; place < m; place++) planes[place][t] = from[t * m + place];        \
                else                                                                                           \
                    for (size_t t = 0; t < BESIDE; t++)                                                        \
                        for (int place = 0; place < m; place++)                                                \
                            planes[place][t] = t < count ? from[t * m + place] : 0;                            \
                for (int place = 0; place < m; place++)                                                        \
                    for (int t = 0; t < BESIDE; t++) ranks[place][t] = 0;                                      \
                for (int one = 0; one < m; one++)                                                              \
                    for (int other = one + 1; other < m; other++)                                              \
                        for (int t = 0; t < BESIDE; t++) {                                                     \
                            const int32_t beats = planes[one][t] >= planes[other][t];                          \
                            ranks[other][t] += beats;                                                          \
                            ranks[one][t] += 1 - beats;                                                        \
                        }                                                                                      \
                for (size_t t = 0; t < BESIDE; t++)                                                            \
                    for (int place = 0; place < m; place++) kept[t * m + place] = ranks[place][t] < n;         \
                memcpy(to + first * m, kept, count * m);                                                       \
            }                                                                                                  \
            for (size_t i = blocks * m; i < columns; i++) to[i] = 1;                                           \
        }                                                                                                      \
    }                                                                                                          \
    EACH_CPU void NAME(const TYPE *restrict keys, size_t rows, size_t columns, int n, int m,                   \
                       uint8_t *restrict out) {                                                                \
        if (m == 4)                                                                                            \
            NAME##_of(keys, rows, columns, n, 4, out);                                                         \
        else if (m == 8)                                                                                       \
            NAME##_of(keys, rows, columns, n, 8, out);                                                         \
        else                                                                                                   \
            NAME##_of(keys, rows, columns, n, m, out);                                                         \
    }
KEEP_LARGEST(keep_largest_f32, float)
KEEP_LARGEST(keep_largest_u32, uint32_t)
