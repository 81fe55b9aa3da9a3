/* Saliency of single elements (saliency/elements.py) on tiles, in C for one thread of a CPU, float32.

   W_n = theta + m_n tau_n, where m_n are bits: packed row by row, the first element in a byte's highest bit, as NumPy
   packs them; a null pointer where all survive. Where `form` is WHOLE or HALVES, what is given as tau is the expert's own
   weight, theta + tau; HALVES: both in bfloat16, widened on the way. Scores are kept of survivors only, in their order, as integers that are
   ordered as the floats are, and counted by their upper half on the way: the threshold then takes one look at those that
   share its upper half. No flag that the build gives lets the compiler assume that NaN or infinity do not occur. */

#include <stdint.h>
#include <string.h>

#define LANES 8 /* elements of a byte of bits */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

enum { TAU, WHOLE, HALVES };

static const ivec PLACES = {128, 64, 32, 16, 8, 4, 2, 1};

#define INLINE static inline __attribute__((always_inline))

/* Whole blocks have a constant count, so that this is one instruction. */
INLINE vec load(const float *from, int64_t count) {
    vec found = {};
    if (count >= LANES)
        memcpy(&found, from, sizeof(vec));
    else
        memcpy(&found, from, count * sizeof(float));
    return found;
}

INLINE void store(float *to, vec x, int64_t count) {
    if (count >= LANES)
        memcpy(to, &x, sizeof(vec));
    else
        memcpy(to, &x, count * sizeof(float));
}

/* The same of stored weights, from element `at` on. */
INLINE vec stored(const void *from, int64_t at, int64_t count, const int form) {
    if (form != HALVES) return load((const float *)from + at, count);
    const uint16_t *own = (const uint16_t *)from + at;
    hvec found = {};
    if (count >= LANES)
        memcpy(&found, own, sizeof(hvec));
    else
        memcpy(&found, own, count * sizeof(uint16_t));
    return (vec)(__builtin_convertvector(found, uvec) << 16);
}

/* tau, of the base's weights theta. */
INLINE vec change(const void *tau, vec theta, int64_t at, int64_t count, const int form) {
    const vec own = stored(tau, at, count, form);
    return form == TAU ? own : own - theta;
}

/* tau where its bit is set, else 0. */
INLINE vec alive(vec tau, const uint8_t *bits) {
    if (!bits) return tau;
    const ivec place = (ivec){} + (int32_t)*bits;
    return (vec)((ivec)tau & ((place & PLACES) != 0));
}

INLINE vec magnitude(vec x) { return (vec)((ivec)x & 0x7fffffff); }

static inline float sum(vec x) {
    float total = 0.0f;
    for (int lane = 0; lane < LANES; lane++) total += x[lane];
    return total;
}

/* A block of a row: |W|, and the expert's part of `merged`. */
INLINE vec strength(
    const void *theta, const void *tau, int64_t at, const uint8_t *bits, float factor, float *merged, int64_t count,
    const int form
) {
    vec w = stored(theta, at, count, form);
    if (tau) {
        const vec own = alive(change(tau, w, at, count, form), bits);
        w += own;
        if (merged) store(merged, load(merged, count) + own * factor, count);
    }
    return magnitude(w);
}

/* One expert's part of a product on a tile (rows, width): out (rows,) = |W| flow, or out (width,) += |W|^T flow. */
INLINE void element_flow(
    const void *theta, const void *tau, const uint8_t *bits, int64_t rows, int64_t width, const int along_rows,
    const float *flow, float *out, float factor, float *merged, const int form
) {
    const int64_t whole = width / LANES, bytes = (width + LANES - 1) / LANES, rest = width % LANES;
    for (int64_t i = 0; i < rows; i++) {
        const uint8_t *left = bits ? bits + i * bytes : 0;
        float *sums = merged ? merged + i * width : 0;
        vec total[4] = {};
#define BLOCK(c, count) \
    { \
        const int64_t at = (c) * LANES; \
        const vec w = strength( \
            theta, tau, i * width + at, left ? left + (c) : 0, factor, sums ? sums + at : 0, count, form \
        ); \
        if (along_rows) \
            total[(c) & 3] += w * load(flow + at, count); \
        else \
            store(out + at, load(out + at, count) + w * flow[i], count); \
    }
        int64_t c = 0;
        for (; c + 4 <= whole; c += 4) {
            BLOCK(c, LANES)
            BLOCK(c + 1, LANES)
            BLOCK(c + 2, LANES)
            BLOCK(c + 3, LANES)
        }
        for (; c < whole; c++) BLOCK(c, LANES)
        if (rest) BLOCK(c, rest)
#undef BLOCK
        if (along_rows) out[i] = sum(total[0] + total[1]) + sum(total[2] + total[3]);
    }
}

INLINE void flow_of_form(
    const void *theta, const void *tau, const uint8_t *bits, int64_t rows, int64_t width, int64_t along_rows,
    const float *flow, float *out, float factor, float *merged, const int form
) {
    if (along_rows && bits && !merged)
        element_flow(theta, tau, bits, rows, width, 1, flow, out, factor, 0, form);
    else if (!along_rows && bits && merged)
        element_flow(theta, tau, bits, rows, width, 0, flow, out, factor, merged, form);
    else if (along_rows)
        element_flow(theta, tau, bits, rows, width, 1, flow, out, factor, merged, form);
    else
        element_flow(theta, tau, bits, rows, width, 0, flow, out, factor, merged, form);
}

/* tau may be null: W = theta. Where `merged` (rows, width) is given, factor m tau is added to it. */
void samerge_element_flow(
    const void *theta, const void *tau, const uint8_t *bits, int64_t rows, int64_t width, int64_t along_rows,
    const float *flow, float *out, float factor, float *merged, int64_t form
) {
    if (form == HALVES)
        flow_of_form(theta, tau, bits, rows, width, along_rows, flow, out, factor, merged, HALVES);
    else if (form == WHOLE)
        flow_of_form(theta, tau, bits, rows, width, along_rows, flow, out, factor, merged, WHOLE);
    else
        flow_of_form(theta, tau, bits, rows, width, along_rows, flow, out, factor, merged, TAU);
}

/* What a tile's row is scored with. */
typedef struct {
    const void *theta, *tau;
    const float *merged, *u, *v;
    int64_t row, width, pairs, height, task;
    float factor;
} scored;

INLINE uint32_t *element_scores(
    const scored *of, uint8_t left, int64_t at, int64_t count, uint32_t *next, uint32_t *counts, const int form
) {
    const vec theta = stored(of->theta, of->row + at, count, form);
    const vec own = alive(change(of->tau, theta, of->row + at, count, form), &left), w = theta + own;
    vec score = {};
    for (int64_t p = 0; p < of->pairs; p++) score += load(of->v + p * of->width + at, count) * of->u[p * of->height];
    score *= load(of->merged + at, count);
    score = (vec)((ivec)score & (w != 0.0f));
    score = of->task ? score * (own * of->factor) : (vec)((ivec)score ^ ((ivec)w & (int32_t)0x80000000));
    /* 0.0 and -0.0 alike; then the bits as integers of the same order */
    const ivec raw = (ivec)(score + 0.0f), keys = raw ^ ((raw >> 31) | (int32_t)0x80000000);
    uint32_t found[LANES];
    memcpy(found, &keys, sizeof found);
    if (left == 0xff) {
        memcpy(next, found, sizeof found);
        for (int lane = 0; lane < LANES; lane++) counts[found[lane] >> 16]++;
        return next + LANES;
    }
    for (int lane = 0; lane < LANES; lane++) { /* no branch, which would be mispredicted at every second element */
        const uint32_t lives = left >> (LANES - 1 - lane) & 1;
        *next = found[lane];
        next += lives;
        counts[found[lane] >> 16] += lives;
    }
    return next;
}

INLINE int64_t scores_of_form(
    const void *theta, const void *tau, const uint8_t *bits, int64_t rows, int64_t width, const float *merged,
    const float *u, const float *v, int64_t pairs, int64_t height, int64_t start, int64_t task, float factor,
    uint32_t *scores, uint32_t *counts, const int form
) {
    const int64_t whole = width / LANES, bytes = (width + LANES - 1) / LANES, rest = width % LANES;
    uint32_t *next = scores;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t row = i * width;
        const scored of = {
            theta, tau, merged + row, u + start + i, v, row, width, pairs, height, task, factor
        };
        const uint8_t *own = bits ? bits + i * bytes : 0;
        for (int64_t c = 0; c < whole; c++) {
            const uint8_t left = own ? own[c] : 0xff;
            if (left) next = element_scores(&of, left, c * LANES, LANES, next, counts, form);
        }
        const uint8_t last = rest ? (own ? own[whole] : 0xff) & (uint8_t)(0xff << (LANES - rest)) : 0;
        if (last) next = element_scores(&of, last, whole * LANES, rest, next, counts, form);
    }
    return next - scores;
}

/* Scores of an expert's survivors on a tile, appended to `scores`, and counted by their upper 16 bits in `counts`.

   S = g T sign(W), or |g sign(W)| factor tau T with `task`, g = sum over the pairs of u_i v_j; u is (pairs, height) with
   the tile's rows from `start` on, v (pairs, width). Returns how many there are; one more is overwritten. */
int64_t samerge_element_scores(
    const void *theta, const void *tau, const uint8_t *bits, int64_t rows, int64_t width, const float *merged,
    const float *u, const float *v, int64_t pairs, int64_t height, int64_t start, int64_t task, float factor,
    uint32_t *scores, uint32_t *counts, int64_t form
) {
#define SCORES(form) \
    scores_of_form( \
        theta, tau, bits, rows, width, merged, u, v, pairs, height, start, task, factor, scores, counts, form \
    )
    return form == HALVES ? SCORES(HALVES) : form == WHOLE ? SCORES(WHOLE) : SCORES(TAU);
#undef SCORES
}

/* Of `total` scores with their counts, the `keep`-th largest, and in *ties how many that equal it are among the largest.

   `counts` has 65536 entries and is overwritten. 1 <= keep <= total. */
uint32_t samerge_element_threshold(
    const uint32_t *scores, int64_t total, uint32_t *counts, int64_t keep, int64_t *ties
) {
    int64_t upper = 65535, lower = 65535;
    for (; counts[upper] < keep; upper--) keep -= counts[upper];
    memset(counts, 0, 65536 * sizeof(uint32_t));
    for (int64_t k = 0; k < total; k++)
        if (scores[k] >> 16 == (uint32_t)upper) counts[scores[k] & 0xffff]++;
    for (; counts[lower] < keep; lower--) keep -= counts[lower];
    *ties = keep;
    return (uint32_t)upper << 16 | (uint32_t)lower;
}

/* For each byte of bits and eight flags, the first the highest: the k-th flag at the place of the k-th bit that is set. */
static uint8_t spread[256][256];

/* To be called once, before all else. */
void samerge_element_prepare(void) {
    for (int bits = 0; bits < 256; bits++)
        for (int flags = 0; flags < 256; flags++) {
            uint8_t found = 0;
            int from = 128;
            for (int place = 128; place; place >>= 1)
                if (bits & place) {
                    if (flags & from) found |= place;
                    from >>= 1;
                }
            spread[bits][flags] = found;
        }
}

/* The bits of a weight (rows, width) after pruning, from those before, or a null pointer, and the survivors' scores, of
   which seven more are read than there are. */
void samerge_element_keep(
    const uint8_t *before, int64_t rows, int64_t width, const uint32_t *scores, uint32_t threshold, int64_t ties,
    uint8_t *after
) {
    const int64_t bytes = (width + LANES - 1) / LANES, rest = width % LANES;
    for (int64_t i = 0; i < rows * bytes; i++) {
        uint8_t left = before ? before[i] : 0xff;
        if (rest && i % bytes == bytes - 1) left &= (uint8_t)(0xff << (LANES - rest));
        const int count = __builtin_popcount(left);
        int larger = 0, equal = 0;
        for (int lane = 0; lane < LANES; lane++) {
            larger |= (scores[lane] > threshold) << (LANES - 1 - lane);
            equal |= (scores[lane] == threshold) << (LANES - 1 - lane);
        }
        equal &= 0xff00 >> count; /* those of this byte */
        for (; equal && ties > 0; ties--) { /* the first of them */
            const int first = 1 << (31 - __builtin_clz(equal));
            larger |= first;
            equal ^= first;
        }
        after[i] = spread[left][larger];
        scores += count;
    }
}
