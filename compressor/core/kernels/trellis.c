/* Trellis-coded quantization; methods/numerics/trellis.py says what it is and has the same in NumPy, to the bit. */

#include <stddef.h>
#include <stdint.h>

#define STATES 8
#define SEGMENT 4096 /* columns that have a path of their own, as in trellis.py */
#define FAR 256      /* codes from -FAR to FAR - 1 have costs of their own */

/* In which states the branch is the other one of the code's parity. */
static inline int turned(int state) { return (state >> 1 ^ state >> 2) & 1; }

static inline float cost_of(const float *costs, int code) {
    const int place = code < -FAR ? 0 : code >= FAR ? 2 * FAR - 1 : code + FAR;
    return costs[place];
}

/* The cheapest code of each of the four subsets for `x`, in units of half the distance of a subset's union. */
static inline void nearest(float x, const float *costs, int32_t *codes, float *found) {
    for (int subset = 0; subset < 4; subset++) {
        const float quarter = (x - (float)subset) * 0.25f;
        const int toward_zero = (int)quarter, below = toward_zero - (quarter < (float)toward_zero);
        const int low = 2 * below + (subset >> 1), high = low + 2;
        const float first = x - (float)(2 * low + (subset & 1)), second = x - (float)(2 * high + (subset & 1));
        const float one = first * first + cost_of(costs, low), other = second * second + cost_of(costs, high);
        codes[subset] = other < one ? high : low;
        found[subset] = other < one ? other : one;
    }
}

/* The best path of `count` (at most SEGMENT) numbers: their codes. */
static void path(const float *restrict x, size_t count, const float *restrict costs, int32_t *restrict codes) {
    uint8_t from[SEGMENT];      /* a bit a state: from which of two it came */
    int32_t chosen[SEGMENT][4]; /* by subset */
    float total[STATES], next[STATES];
    for (int state = 0; state < STATES; state++) total[state] = state ? 1e30f : 0.0f;
    for (size_t i = 0; i < count; i++) {
        float own[4];
        nearest(x[i], costs, chosen[i], own);
        uint8_t bits = 0;
        float least = 3e38f;
        for (int state = 0; state < STATES; state++) {
            const int low = state >> 1, high = low + 4, branch = state & 1;
            const float one = total[low] + own[(low & 1) | (branch ^ turned(low)) << 1];
            const float other = total[high] + own[(high & 1) | (branch ^ turned(high)) << 1];
            bits |= (uint8_t)((other < one) << state);
            next[state] = other < one ? other : one;
            least = next[state] < least ? next[state] : least;
        }
        for (int state = 0; state < STATES; state++) total[state] = next[state] - least;
        from[i] = bits;
    }
    int state = 0;
    for (int other = 1; other < STATES; other++) state = total[other] < total[state] ? other : state;
    for (size_t i = count; i-- > 0;) {
        const int before = (state >> 1) + (from[i] >> state & 1) * 4;
        codes[i] = chosen[i][(before & 1) | ((state & 1) ^ turned(before)) << 1];
        state = before;
    }
}

/* Numbers [rows, columns] as codes. */
void trellis_codes(const float *restrict x, size_t rows, size_t columns, const float *restrict costs,
                   int32_t *restrict codes) {
    for (size_t row = 0; row < rows; row++)
        for (size_t start = 0; start < columns; start += SEGMENT) {
            const size_t count = columns - start < SEGMENT ? columns - start : SEGMENT;
            path(x + row * columns + start, count, costs, codes + row * columns + start);
        }
}

/* Twice a code, and one more where the state says so: which of the even and odd numbers each code stands for. With
 * `high` codes are low + 256 * high. */
void trellis_points(const int8_t *restrict low, const int8_t *restrict high, size_t rows, size_t columns,
                    int32_t *restrict points) {
    for (size_t row = 0; row < rows; row++) {
        int state = 0;
        for (size_t i = 0; i < columns; i++) {
            const size_t at = row * columns + i;
            const int code = low[at] + (high ? 256 * high[at] : 0);
            if (i % SEGMENT == 0) state = 0;
            points[at] = 2 * code + (state & 1);
            state = (state << 1 & (STATES - 1)) | ((code & 1) ^ turned(state));
        }
    }
}

/* What codes stand for, times a number for the row and one for the column, each product rounded. `by_row` has a number
 * for each row, or (`step` 0) one for all; `by_column` may be missing. */
void trellis_numbers(const int8_t *restrict low, const int8_t *restrict high, size_t rows, size_t columns,
                     const float *restrict by_row, size_t step, const float *restrict by_column,
                     float *restrict out) {
    int32_t points[SEGMENT];
    for (size_t row = 0; row < rows; row++)
        for (size_t start = 0; start < columns; start += SEGMENT) {
            const size_t count = columns - start < SEGMENT ? columns - start : SEGMENT, at = row * columns + start;
            const float scale = by_row[row * step];
            trellis_points(low + at, high ? high + at : 0, 1, count, points);
            for (size_t i = 0; i < count; i++) out[at + i] = (float)points[i] * scale;
            if (by_column)
                for (size_t i = 0; i < count; i++) out[at + i] *= by_column[start + i];
        }
}
