/* Range asymmetric numeral systems (rANS), and the planes that floats are taken apart into.
 *
 * files/entropy/rans.py says what is computed and has the same in NumPy, to the byte. The symbols of a stream go round
 * `lanes` states of 32 bits, each in [2^16, 2^32), in 16-bit words. Whole rounds of 32 lanes are decoded sixteen or
 * eight at a time where the processor can (`level` 2: AVX-512, 1: AVX2, at most), and encoded sixteen at a time.
 */

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

#define LANES 32
#define LEAST 65536u /* of a state */
#define PACKED 12    /* bits of frequencies for which a place, its share and its symbol fit 32 bits */
#define MANY (1 << 18) /* bytes that are counted by pairs, whose table is as large */
#define NARROW 64    /* symbols from the first to the last of a table that the lanes look up in registers */

/* Of a symbol: ceil(2^(32 + bits) / frequency), with which x / frequency is exact for every x that is coded; its
 * frequency, and the sum of those before it. */
typedef struct { uint64_t reciprocal; uint32_t frequency, begin; } Share;

#ifdef VECTORS
/* What the processor can do, `most` at most. */
static int level_of(int most) {
    if (most >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    return most >= 1 && __builtin_cpu_supports("avx2");
}
#endif

/* ---- encoding, from the last symbol to the first ------------------------------------------------------- */

/* A symbol onto a state; what leaves it goes under `words`, which is moved down. */
INLINE uint32_t push(uint32_t x, const Share *share, int bits, uint16_t **words) {
    (*words)[-1] = (uint16_t)x;
    const uint32_t full = x >= share->frequency << (32 - bits);
    *words -= full;
    x >>= full << 4;
    const uint32_t quotient = (uint32_t)(x * share->reciprocal >> (32 + bits));
    return x + share->begin + quotient * ((1u << bits) - share->frequency);
}

INLINE size_t symbol_at(const void *symbols, int wide, size_t i) {
    return wide ? ((const uint16_t *)symbols)[i] : ((const uint8_t *)symbols)[i];
}

/* Symbols [from, to) of a stream in which the first has the number `at`. */
INLINE void push_any(const void *symbols, int wide, size_t from, size_t to, const Share *shares, int bits, size_t at,
                     size_t lanes, uint32_t *states, uint16_t **words) {
    for (size_t i = to; i-- > from;) {
        uint32_t *state = states + ((at + i) & (lanes - 1));
        *state = push(*state, shares + symbol_at(symbols, wide, i), bits, words);
    }
}

/* Whole rounds of lanes. */
EACH_CPU static void push_rounds(const uint8_t *restrict symbols, size_t count, const Share *restrict shares,
                                 int bits, uint32_t *restrict states, uint16_t **end) {
    uint16_t *words = *end;
    for (size_t i = count; i > 0;) {
        i -= LANES;
        for (int lane = LANES; lane-- > 0;)
            states[lane] = push(states[lane], shares + symbols[i + lane], bits, &words);
    }
    *end = words;
}

#ifdef VECTORS
#define LESS (1.0f - 0x1p-21f)
typedef struct { uint32_t shares[NARROW]; float reciprocals[NARROW]; } Narrow;

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))

AVX512 INLINE __m512i look_up(const __m512i table[4], __m512i places, __mmask16 upper) {
    const __m512i low = _mm512_permutex2var_epi32(table[0], places, table[1]);
    return _mm512_mask_mov_epi32(low, upper, _mm512_permutex2var_epi32(table[2], places, table[3]));
}

/* As push_rounds, of symbols from `first` on. The quotient q of x by f is that of floats, with a reciprocal that is too
 * small by more than roundings amount to and by less than makes two of a quotient below 2^20: where it is too small by
 * one, the rest tells. q 2^b + c + x mod f is x + c + q (2^b - f). */
AVX512 static void push_rounds_512(const uint8_t *restrict symbols, size_t count, const Narrow *restrict narrow,
                                   int first, int bits, uint32_t *restrict states, uint16_t **end) {
    uint16_t *words = *end;
    __m512i shares[4], reciprocals[4], x[2];
    for (int i = 0; i < 4; i++) {
        shares[i] = _mm512_loadu_si512(narrow->shares + 16 * i);
        reciprocals[i] = _mm512_loadu_si512(narrow->reciprocals + 16 * i);
    }
    for (int i = 0; i < 2; i++) x[i] = _mm512_loadu_si512(states + 16 * i);
    const __m512i base = _mm512_set1_epi32(first), top = _mm512_set1_epi32(32), half = _mm512_set1_epi32(0xffff);
    const __m512i whole = _mm512_set1_epi32(1 << bits);
    const __m128i limit = _mm_cvtsi32_si128(32 - bits);
    for (size_t i = count; i > 0;) {
        i -= LANES;
        for (int part = 1; part >= 0; part--) {
            const __m128i raw = _mm_loadu_si128((const __m128i *)(symbols + i + 16 * part));
            const __m512i places = _mm512_sub_epi32(_mm512_cvtepu8_epi32(raw), base);
            const __mmask16 upper = _mm512_test_epi32_mask(places, top);
            const __m512i share = look_up(shares, places, upper);
            const __m512 reciprocal = _mm512_castsi512_ps(look_up(reciprocals, places, upper));
            const __m512i frequency = _mm512_srli_epi32(share, 16), begin = _mm512_and_si512(share, half);
            __m512i state = x[part];
            const __mmask16 full = _mm512_cmpge_epu32_mask(state, _mm512_sll_epi32(frequency, limit));
            const int moved = __builtin_popcount(full);
            words -= moved;
            _mm256_mask_storeu_epi16(words, (__mmask16)((1u << moved) - 1),
                                     _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, state)));
            state = _mm512_mask_srli_epi32(state, full, state, 16);
            const __m512i quotient = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_cvtepu32_ps(state), reciprocal));
            const __m512i rest = _mm512_sub_epi32(state, _mm512_mullo_epi32(quotient, frequency));
            const __m512i others = _mm512_sub_epi32(whole, frequency);
            const __mmask16 under = _mm512_cmpge_epu32_mask(rest, frequency);
            state = _mm512_add_epi32(_mm512_add_epi32(state, begin), _mm512_mullo_epi32(quotient, others));
            x[part] = _mm512_mask_add_epi32(state, under, state, others);
        }
    }
    for (int i = 0; i < 2; i++) _mm512_storeu_si512(states + 16 * i, x[i]);
    *end = words;
}
#endif

/* A run of symbols, the first of which has the number `at` in the stream, all from `first` to `last`. Words are put
 * in front of `end`; `written` becomes how many. */
void rans_encode(const void *symbols, int wide, size_t count, const Share *shares, int first, int last, int bits,
                 size_t at, size_t lanes, uint32_t *states, uint16_t *end, int most, int64_t *written) {
    uint16_t *words = end;
    size_t head = (lanes - at % lanes) % lanes;
    if (lanes != LANES || wide || head > count) head = count;
    const size_t rounds = (count - head) / LANES * LANES;
    if (wide) push_any(symbols, 1, head + rounds, count, shares, bits, at, lanes, states, &words);
    else push_any(symbols, 0, head + rounds, count, shares, bits, at, lanes, states, &words);
    if (rounds) {
        const uint8_t *whole = (const uint8_t *)symbols + head;
#ifdef VECTORS
        if (last - first < NARROW && level_of(most) >= 2) {
            Narrow narrow;
            for (int i = 0; i < NARROW; i++) {
                const Share *share = shares + (first + i <= last ? first + i : last);
                narrow.shares[i] = share->frequency << 16 | share->begin;
                narrow.reciprocals[i] = share->frequency ? LESS / (float)share->frequency : 0.0f;
            }
            push_rounds_512(whole, rounds, &narrow, first, bits, states, &words);
        } else
#endif
            push_rounds(whole, rounds, shares, bits, states, &words);
    }
    (void)most, (void)first, (void)last;
    if (wide) push_any(symbols, 1, 0, head, shares, bits, at, lanes, states, &words);
    else push_any(symbols, 0, 0, head, shares, bits, at, lanes, states, &words);
    *written = end - words;
}

/* ---- decoding ------------------------------------------------------------------------------------------ */

/* The words that are left, and what a slot of [0, 2^bits) stands for: its symbol, and frequency << 16 | begin of
 * each symbol; or, `packed`, frequency << 20 | place in the share << 8 | symbol of each slot. */
typedef struct {
    const uint16_t *words, *end;
    const uint16_t *slots;
    const uint32_t *shares, *packed;
    int bits;
} Stream;

/* A symbol off each of so many lanes, one by one; whether the words were enough. */
static int pull_any(Stream *stream, size_t from, size_t to, size_t at, size_t lanes, uint32_t *states, void *out,
                    int wide) {
    const uint32_t mask = (1u << stream->bits) - 1;
    for (size_t i = from; i < to; i++) {
        uint32_t x = states[(at + i) & (lanes - 1)];
        const uint32_t symbol = stream->slots[x & mask], share = stream->shares[symbol];
        x = (share >> 16) * (x >> stream->bits) + (x & mask) - (share & 0xffff);
        if (x < LEAST) {
            if (stream->words == stream->end) return 0;
            x = x << 16 | *stream->words++;
        }
        states[(at + i) & (lanes - 1)] = x;
        if (wide) ((uint16_t *)out)[i] = (uint16_t)symbol;
        else ((uint8_t *)out)[i] = (uint8_t)symbol;
    }
    return 1;
}

/* Rounds of all lanes as long as there are words enough for any: how many symbols. */
EACH_CPU static size_t pull_rounds(Stream *stream, size_t count, uint32_t *restrict states, uint8_t *restrict out) {
    const uint16_t *words = stream->words, *last = stream->end - LANES;
    const uint16_t *restrict slots = stream->slots;
    const uint32_t *restrict shares = stream->shares;
    const int bits = stream->bits;
    const uint32_t mask = (1u << bits) - 1;
    size_t i = 0;
    for (; i + LANES <= count && words <= last; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t x = states[lane];
            const uint32_t symbol = slots[x & mask], share = shares[symbol];
            x = (share >> 16) * (x >> bits) + (x & mask) - (share & 0xffff);
            const uint32_t low = x < LEAST;
            states[lane] = x << (low << 4) | (*words & (0u - low)); /* no branch, which would be a coin's */
            words += low;
            out[i + lane] = (uint8_t)symbol;
        }
    stream->words = words;
    return i;
}

EACH_CPU static size_t pull_packed(Stream *stream, size_t count, uint32_t *restrict states, uint8_t *restrict out) {
    const uint16_t *words = stream->words, *last = stream->end - LANES;
    const uint32_t *restrict packed = stream->packed;
    size_t i = 0;
    for (; i + LANES <= count && words <= last; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            uint32_t x = states[lane];
            const uint32_t slot = packed[x & ((1u << PACKED) - 1)];
            x = (slot >> 20) * (x >> PACKED) + (slot >> 8 & ((1u << PACKED) - 1));
            const uint32_t low = x < LEAST;
            states[lane] = x << (low << 4) | (*words & (0u - low));
            words += low;
            out[i + lane] = (uint8_t)slot;
        }
    stream->words = words;
    return i;
}

#ifdef VECTORS
AVX512 static size_t pull_packed_512(Stream *stream, size_t count, uint32_t *restrict states, uint8_t *restrict out) {
    const uint16_t *words = stream->words, *last = stream->end - LANES;
    __m512i x[2];
    for (int i = 0; i < 2; i++) x[i] = _mm512_loadu_si512(states + 16 * i);
    const __m512i mask = _mm512_set1_epi32((1 << PACKED) - 1), least = _mm512_set1_epi32(LEAST);
    size_t i = 0;
    for (; i + LANES <= count && words <= last; i += LANES)
        for (int part = 0; part < 2; part++) {
            __m512i state = x[part];
            const __m512i slot = _mm512_i32gather_epi32(_mm512_and_si512(state, mask), stream->packed, 4);
            state = _mm512_mullo_epi32(_mm512_srli_epi32(slot, 20), _mm512_srli_epi32(state, PACKED));
            state = _mm512_add_epi32(state, _mm512_and_si512(_mm512_srli_epi32(slot, 8), mask));
            const __mmask16 low = _mm512_cmplt_epu32_mask(state, least);
            const __m512i more = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)words));
            const __m512i spread = _mm512_maskz_expand_epi32(low, more);
            x[part] = _mm512_mask_or_epi32(state, low, _mm512_slli_epi32(state, 16), spread);
            words += __builtin_popcount(low);
            _mm_storeu_si128((__m128i *)(out + i + 16 * part), _mm512_cvtepi32_epi8(slot));
        }
    for (int i = 0; i < 2; i++) _mm512_storeu_si512(states + 16 * i, x[i]);
    stream->words = words;
    return i;
}

__attribute__((target("avx2,popcnt"))) static size_t pull_packed_256(Stream *stream, size_t count,
                                                                    uint32_t *restrict states,
                                                                    uint8_t *restrict out) {
    const uint16_t *words = stream->words, *last = stream->end - LANES;
    uint32_t spread[256][8]; /* by which lanes take a word: the number of the word that each takes */
    for (int lanes = 0; lanes < 256; lanes++)
        for (int lane = 0, taken = 0; lane < 8; lane++) {
            spread[lanes][lane] = (uint32_t)taken;
            taken += lanes >> lane & 1;
        }
    __m256i x[4];
    for (int i = 0; i < 4; i++) x[i] = _mm256_loadu_si256((const __m256i *)(states + 8 * i));
    const __m256i mask = _mm256_set1_epi32((1 << PACKED) - 1);
    const __m256i bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12,
                                           -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    size_t i = 0;
    for (; i + LANES <= count && words <= last; i += LANES)
        for (int part = 0; part < 4; part++) {
            __m256i state = x[part];
            const __m256i slot = _mm256_i32gather_epi32((const int *)stream->packed, _mm256_and_si256(state, mask), 4);
            state = _mm256_mullo_epi32(_mm256_srli_epi32(slot, 20), _mm256_srli_epi32(state, PACKED));
            state = _mm256_add_epi32(state, _mm256_and_si256(_mm256_srli_epi32(slot, 8), mask));
            const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(state, 16), _mm256_setzero_si256());
            const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(low));
            const __m256i more = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)words));
            const __m256i taken = _mm256_permutevar8x32_epi32(
                more, _mm256_loadu_si256((const __m256i *)spread[lanes]));
            x[part] = _mm256_blendv_epi8(state, _mm256_or_si256(_mm256_slli_epi32(state, 16), taken), low);
            words += __builtin_popcount((unsigned)lanes);
            const __m256i symbols = _mm256_shuffle_epi8(slot, bytes);
            const int32_t one = _mm256_extract_epi32(symbols, 0), other = _mm256_extract_epi32(symbols, 4);
            memcpy(out + i + 8 * part, &one, 4);
            memcpy(out + i + 8 * part + 4, &other, 4);
        }
    for (int i = 0; i < 4; i++) _mm256_storeu_si256((__m256i *)(states + 8 * i), x[i]);
    stream->words = words;
    return i;
}
#endif

/* A run of symbols, the first of which has the number `at` in the stream, from `there` words; `taken` becomes how
 * many were used, or -1 where they were too few. `packed` may be missing. */
void rans_decode(const uint16_t *words, size_t there, size_t count, const uint16_t *slots, const uint32_t *shares,
                 const uint32_t *packed, int bits, size_t at, size_t lanes, uint32_t *states, void *out, int wide,
                 int most, int64_t *taken) {
    Stream stream = {words, words + there, slots, shares, packed, bits};
    size_t head = (lanes - at % lanes) % lanes;
    if (lanes != LANES || wide || head > count) head = count;
    int enough = pull_any(&stream, 0, head, at, lanes, states, out, wide);
    if (enough && head < count) {
        uint8_t *whole = (uint8_t *)out + head;
        size_t done = 0;
        if (there >= LANES) {
            if (!packed) done = pull_rounds(&stream, count - head, states, whole);
#ifdef VECTORS
            else if (level_of(most) == 2) done = pull_packed_512(&stream, count - head, states, whole);
            else if (level_of(most) == 1) done = pull_packed_256(&stream, count - head, states, whole);
#endif
            else done = pull_packed(&stream, count - head, states, whole);
        }
        enough = pull_any(&stream, head + done, count, at, lanes, states, out, 0);
    }
    (void)most;
    *taken = enough ? stream.words - words : -1;
}

/* ---- archives of version 1: a stack of 32-bit words under a state of 64 bits, frequencies of 24 bits ----- */

/* Places of `count` symbols whose shares begin at `begins`; `coarse` has the place at the beginning of each of 2^10
 * equal pieces of [0, 2^24). `left` words are left, the last one first. */
void ans_decode(const uint32_t *words, int64_t *left, uint64_t *state, const uint32_t *begins, const int32_t *coarse,
                size_t count, int64_t *out) {
    uint64_t x = *state;
    int64_t there = *left;
    for (size_t i = 0; i < count; i++) {
        const uint32_t point = (uint32_t)x & 0xffffff;
        int32_t place = coarse[point >> 14];
        while (begins[place + 1] <= point) place++;
        x = (x >> 24) * (begins[place + 1] - begins[place]) + point - begins[place];
        if (x < (uint64_t)1 << 32 && there > 0) x = x << 32 | words[--there];
        out[i] = place;
    }
    *state = x;
    *left = there;
}

/* ---- planes -------------------------------------------------------------------------------------------- */

/* The same by pairs of bytes, each of which is half the work; what is left over is for the caller. */
EACH_CPU static size_t pair_counts(const uint8_t *restrict values, size_t count, int64_t *restrict counts) {
    uint32_t pairs[1 << 16];
    size_t i = 0;
    memset(pairs, 0, sizeof pairs);
    for (; i + 8 <= count; i += 8) {
        uint64_t eight;
        memcpy(&eight, values + i, 8);
        for (int pair = 0; pair < 4; pair++) pairs[eight >> (16 * pair) & 65535]++;
    }
    for (int high = 0; high < 256; high++) {
        const uint32_t *row = pairs + 256 * high;
        uint64_t sum = 0;
        for (int low = 0; low < 256; low++) {
            sum += row[low];
            counts[low] += row[low];
        }
        counts[high] += (int64_t)sum;
    }
    return i;
}

/* How often each byte occurs: in four tables, since neighbours are often alike. */
void byte_counts(const uint8_t *restrict values, size_t count, int64_t *restrict counts) {
    uint32_t tables[4][256];
    memset(counts, 0, 256 * sizeof *counts);
    while (count) {
        const size_t run = count < (size_t)1 << 30 ? count : (size_t)1 << 30;
        size_t i = run < MANY ? 0 : pair_counts(values, run, counts);
        memset(tables, 0, sizeof tables);
        for (; i + 8 <= run; i += 8) {
            uint64_t eight;
            memcpy(&eight, values + i, 8);
            for (int byte = 0; byte < 8; byte++) tables[byte & 3][eight >> (8 * byte) & 255]++;
        }
        for (; i < run; i++) tables[0][values[i]]++;
        for (int value = 0; value < 256; value++)
            counts[value] += (int64_t)tables[0][value] + tables[1][value] + tables[2][value] + tables[3][value];
        values += run;
        count -= run;
    }
}

/* Floats of BITS bits: the `low` lowest bits with the sign on top of them, as planes of bytes from the lowest on; the
 * bits between as symbols. */
#define PLANES(BITS, SYMBOL)                                                                                         \
    INLINE void split_##BITS##_##SYMBOL(const uint##BITS##_t *restrict floats, size_t count, int low,                \
                                        SYMBOL *restrict symbols, uint8_t *restrict planes) {                       \
        const uint##BITS##_t under = (uint##BITS##_t)(((uint##BITS##_t)1 << low) - 1);                               \
        const uint##BITS##_t inner = (uint##BITS##_t)((uint##BITS##_t)~(uint##BITS##_t)0 >> 1) >> low;               \
        for (size_t i = 0; i < count; i++) symbols[i] = (SYMBOL)(floats[i] >> low & inner);                          \
        for (int byte = 0; byte * 8 <= low; byte++)                                                                  \
            for (size_t i = 0; i < count; i++) {                                                                     \
                const uint##BITS##_t rest =                                                                          \
                    (uint##BITS##_t)((floats[i] & under) | (uint##BITS##_t)(floats[i] >> (BITS - 1)) << low);        \
                planes[byte * count + i] = (uint8_t)(rest >> (8 * byte));                                            \
            }                                                                                                        \
    }                                                                                                                \
    INLINE void join_##BITS##_##SYMBOL(const SYMBOL *restrict symbols, const uint8_t *restrict planes, size_t count, \
                                       int low, uint##BITS##_t *restrict floats) {                                  \
        const uint##BITS##_t under = (uint##BITS##_t)(((uint##BITS##_t)1 << low) - 1);                               \
        for (size_t i = 0; i < count; i++) {                                                                         \
            uint##BITS##_t rest = 0;                                                                                 \
            for (int byte = 0; byte * 8 <= low; byte++)                                                              \
                rest |= (uint##BITS##_t)((uint##BITS##_t)planes[byte * count + i] << (8 * byte));                    \
            floats[i] = (uint##BITS##_t)((rest & under) | (uint##BITS##_t)symbols[i] << low |                        \
                                         (uint##BITS##_t)(rest >> low) << (BITS - 1));                               \
        }                                                                                                            \
    }
PLANES(16, uint8_t)
PLANES(16, uint16_t)
PLANES(32, uint8_t)
PLANES(32, uint16_t)
PLANES(64, uint16_t)

/* Symbols are of two bytes if `wide`, those of 64 bits always. What is commonest has loops of its own. */
EACH_CPU void split_floats(const void *floats, int size, size_t count, int low, int wide, void *symbols,
                           uint8_t *planes) {
    if (size == 8) split_64_uint16_t(floats, count, low, symbols, planes);
    else if (size == 4 && wide) split_32_uint16_t(floats, count, low, symbols, planes);
    else if (size == 4 && low == 23) split_32_uint8_t(floats, count, 23, symbols, planes);
    else if (size == 4) split_32_uint8_t(floats, count, low, symbols, planes);
    else if (wide) split_16_uint16_t(floats, count, low, symbols, planes);
    else if (low == 7) split_16_uint8_t(floats, count, 7, symbols, planes);
    else split_16_uint8_t(floats, count, low, symbols, planes);
}

EACH_CPU void join_floats(const void *symbols, int wide, const uint8_t *planes, int size, size_t count, int low,
                          void *floats) {
    if (size == 8) join_64_uint16_t(symbols, planes, count, low, floats);
    else if (size == 4 && wide) join_32_uint16_t(symbols, planes, count, low, floats);
    else if (size == 4 && low == 23) join_32_uint8_t(symbols, planes, count, 23, floats);
    else if (size == 4) join_32_uint8_t(symbols, planes, count, low, floats);
    else if (wide) join_16_uint16_t(symbols, planes, count, low, floats);
    else if (low == 7) join_16_uint8_t(symbols, planes, count, 7, floats);
    else join_16_uint8_t(symbols, planes, count, low, floats);
}
