/* What the kernels share: how floats are looked at, and sums in the order that core/sums.py states. */

#ifndef COMPRESSOR_COMMON_H
#define COMPRESSOR_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 32
#define RUN 4096

/* -DPORTABLE leaves out whatever is for some processors alone. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(PORTABLE)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif

#define INLINE static inline __attribute__((always_inline))

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
    typedef float Floats __attribute__((vector_size(32)));
    Eight wide[4];
    for (int part = 0; part < 4; part++) {
        Floats eight;
        memcpy(&eight, lanes + 8 * part, sizeof eight);
        wide[part] = __builtin_convertvector(eight, Eight);
    }
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

#endif
