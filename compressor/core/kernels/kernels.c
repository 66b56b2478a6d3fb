/* The inner loops of the commonest jobs, each one pass over its block where NumPy needs several.
 *
 * Every function gives the very bits that its NumPy twin gives (tests/core/test_compiled.py compares them), on every
 * processor and from every compiler: floats are IEEE numbers without contraction, nothing calls the mathematical
 * library but for the square root, which is exact, and sums are taken in the order that core/sums.py states: of a
 * run of at most RUN elements the i-th goes to lane i mod LANES, in the elements' own type; the lanes are then added
 * up in double precision, the upper half to the lower until one is left; and so are the runs, from the first on.
 * All arrays are contiguous, and what is written overlaps nothing. Nothing is allocated and nothing can fail.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 32
#define RUN 4096

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif

int compressor_kernels_version(void) { return KERNELS_VERSION; }

static inline float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* The upper half of the lanes to the lower, until one is left. */
static inline double halved(double *lanes) {
    for (int lane = 0; lane < 16; lane++) lanes[lane] += lanes[lane + 16];
    for (int lane = 0; lane < 8; lane++) lanes[lane] += lanes[lane + 8];
    for (int lane = 0; lane < 4; lane++) lanes[lane] += lanes[lane + 4];
    for (int lane = 0; lane < 2; lane++) lanes[lane] += lanes[lane + 2];
    return lanes[0] + lanes[1];
}

#if defined(__GNUC__)
typedef double Eight __attribute__((vector_size(64)));
typedef double Four __attribute__((vector_size(32)));
typedef double Two __attribute__((vector_size(16)));

/* The same as `halved` in registers, which compilers do not find out. */
static inline double gathered(const float *lanes) {
    Eight wide[4];
    for (int part = 0; part < 4; part++)
        for (int lane = 0; lane < 8; lane++) wide[part][lane] = lanes[8 * part + lane];
    const Eight eight = (wide[0] + wide[2]) + (wide[1] + wide[3]);
    Four low, high;
    memcpy(&low, &eight, sizeof low);
    memcpy(&high, (const char *)&eight + sizeof low, sizeof high);
    const Four four = low + high;
    Two first, second;
    memcpy(&first, &four, sizeof first);
    memcpy(&second, (const char *)&four + sizeof first, sizeof second);
    const Two two = first + second;
    return two[0] + two[1];
}
#else
static inline double gathered(const float *lanes) {
    double wide[LANES];
    for (int lane = 0; lane < LANES; lane++) wide[lane] = lanes[lane];
    return halved(wide);
}
#endif

static inline int64_t counted(const uint16_t *lanes) {
    int64_t total = 0;
    for (int lane = 0; lane < LANES; lane++) total += lanes[lane];
    return total;
}

/* BODY for each `i` from `first` to before `stop`, which may add to lane `lane`: compilers vectorise whole sets of
 * lanes. */
#define FOR_LANES(first, stop, ...)                                              \
    do {                                                                         \
        size_t at_ = (first);                                                    \
        for (; at_ + LANES <= (stop); at_ += LANES)                              \
            for (int lane = 0; lane < LANES; lane++) {                           \
                const size_t i = at_ + lane;                                     \
                __VA_ARGS__                                                      \
            }                                                                    \
        for (int lane = 0, left_ = (int)((stop) - at_); lane < left_; lane++) {  \
            const size_t i = at_ + lane;                                         \
            __VA_ARGS__                                                          \
        }                                                                        \
    } while (0)

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
 * over these, in the order above. `reciprocals` has one over each scale, `stride` from one row's to the next's. */
EACH_CPU void minifloat_errors(const float *restrict values, size_t rows, size_t columns, size_t size,
                               const float *restrict reciprocals, size_t stride, int mantissa, float lowest,
                               float largest, double *restrict errors) {
    const Minifloat kind = minifloat(mantissa, lowest, largest);
    const size_t segments = (columns + size - 1) / size;
    for (size_t row = 0; row < rows; row++)
        for (size_t segment = 0; segment < segments; segment++) {
            const float *own = values + row * columns + segment * size;
            const float factor = reciprocals[row * stride + segment];
            const size_t length = least(size, columns - segment * size);
            double total = 0;
            for (size_t begin = 0; begin < length; begin += RUN) {
                const size_t stop = least(begin + RUN, length);
                float lanes[LANES] = {0};
                FOR_LANES(begin, stop, {
                    const float ratio = own[i] * factor;
                    float near = ratio > kind.largest ? kind.largest : ratio;
                    near = near < -kind.largest ? -kind.largest : near;
                    const float anchor = anchor_of(near, kind), apart = ratio - ((near + anchor) - anchor);
                    lanes[lane] += apart * apart;
                });
                total += gathered(lanes);
            }
            errors[row * segments + segment] = total;
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

/* Σ u·t and Σ t² of each row of `size` units u, where t = table[round(u * factor)], a whole number's 16 lowest bits being
 * its place. The r-th row is row chosen[r] of `units`, or row r where `chosen` is null. */
EACH_CPU void table_products(const float *restrict units, const int64_t *restrict chosen, size_t rows, size_t size,
                             const float *restrict factors, const float *restrict table, double *restrict by_units,
                             double *restrict by_table) {
    const float anchor = 12582912.0f;
    for (size_t row = 0; row < rows; row++) {
        const float *own = units + (chosen ? (size_t)chosen[row] : row) * size;
        const float factor = factors[row];
        double first_total = 0, second_total = 0;
        for (size_t first = 0; first < size; first += RUN) {
            const size_t stop = least(first + RUN, size);
            float by_unit[LANES] = {0}, by_entry[LANES] = {0};
            FOR_LANES(first, stop, {
                const float entry = table[as_bits(own[i] * factor + anchor) & 0xffffu];
                by_unit[lane] += own[i] * entry;
                by_entry[lane] += entry * entry;
            });
            first_total += gathered(by_unit);
            second_total += gathered(by_entry);
        }
        by_units[row] = first_total;
        by_table[row] = second_total;
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
