/* The work on one tile of a base weight, fused: kernels/tiles.py, `sweep_tile`, in C for one thread of a CPU.

   W_n = theta + left_n right_n for each expert n, a register block of ROWS x 2 vectors at a time:

       product    |W| v along the rows, or |W|^T u along the columns
       gamma_k    sum_j (right_kj v_j) sum_i (left_ik u_i) sign(W)_ij        (where it is wanted)

   A block of W lives in registers from theta to its signs and is never written. Operands are packed so that the inner
   loops read them in order: a strip of COLUMNS columns of theta, in float32; of `right` and `right v`, for one
   expert after the other; of `left` and `left u`, for the whole tile. Packing pads with zeros to whole blocks:
   there W = 0, which adds nothing to any sum, so the inner loops know no edges.

   Vectors are GCC's and Clang's extension, as wide as the target has them. Every sum has one order, whatever the
   threads. No flag that the build gives lets the compiler assume that NaN or infinity do not occur: they go through to
   the flows, where they are found. */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define ROWS 12 /* 24 of 32 registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define ROWS 6 /* 12 of 16 */
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define ROWS 12
#else
#define VECTOR_BYTES 16
#define ROWS 6
#endif

#define LANES (VECTOR_BYTES / 4)
#define WIDTH (2 * LANES)  /* columns of a register block */
#define COLUMNS 256        /* of a strip; a multiple of every WIDTH */

typedef float vec __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t ivec __attribute__((vector_size(VECTOR_BYTES)));

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

/* One expert at a weight. Pointers are to the whole weight's operands; a call works rows start .. start + rows. */
typedef struct {
    const float *left;  /* (height, rank) */
    const float *right; /* (rank, width) */
    const float *u;     /* (height,) flow on the row side, or NULL */
    const float *v;     /* (width,) flow on the column side, or NULL */
    int64_t rank;       /* 0: W = theta */
} expert;

static inline int64_t blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* x in every lane: x - 0 is x to the bit, so the compiler makes it one load. */
static inline vec splat(float x) { return x - (vec){}; }

static inline vec magnitude(vec x) { return (vec)((ivec)x & 0x7fffffff); }

static inline vec sign(vec x) {
    const vec one = splat(1.0f);
    return (vec)((x != 0.0f) & (((ivec)x & (int32_t)0x80000000) | (ivec)one));
}

static inline float sum(vec x) {
    float total = 0.0f;
    for (int lane = 0; lane < LANES; lane++) total += x[lane];
    return total;
}

int64_t samerge_reads_float16(void) {
#ifdef __FLT16_MANT_DIG__
    return 1;
#else
    return 0;
#endif
}

/* Columns of a row of theta as float32. */
static void widen(float *restrict to, const void *restrict from, int64_t kind, int64_t first, int64_t count) {
    if (kind == FLOAT32) {
        memcpy(to, (const float *)from + first, count * sizeof(float));
    } else if (kind == BFLOAT16) {
        const uint16_t *half = (const uint16_t *)from + first;
        uint32_t *bits = (uint32_t *)to;
        for (int64_t j = 0; j < count; j++) bits[j] = (uint32_t)half[j] << 16;
    } else {
#ifdef __FLT16_MANT_DIG__
        const _Float16 *half = (const _Float16 *)from + first;
        for (int64_t j = 0; j < count; j++) to[j] = (float)half[j];
#endif
    }
}

/* A strip of theta as [row block][column block][ROWS][WIDTH]. */
static void pack_theta(
    float *restrict to, const char *theta, int64_t kind, int64_t stride, int64_t rows, int64_t first, int64_t count
) {
    const int64_t across = blocks(count, WIDTH), bytes = kind == FLOAT32 ? 4 : 2;
    for (int64_t i = 0; i < blocks(rows, ROWS) * ROWS; i++) {
        float *block = to + (i / ROWS * across * ROWS + i % ROWS) * WIDTH;
        for (int64_t c = 0; c < across; c++, block += ROWS * WIDTH) {
            int64_t own = count - c * WIDTH < WIDTH ? count - c * WIDTH : WIDTH;
            if (i >= rows) own = 0;
            if (own == WIDTH)
                widen(block, theta + i * stride * bytes, kind, first + c * WIDTH, WIDTH);
            else {
                memset(block, 0, WIDTH * sizeof(float));
                if (own) widen(block, theta + i * stride * bytes, kind, first + c * WIDTH, own);
            }
        }
    }
}

/* A strip of `right` as [column block][rank][WIDTH], and of `right v` where it is wanted. */
static void pack_right(
    float *restrict to, float *restrict weighted, const expert *own, int64_t width, int64_t first, int64_t count
) {
    for (int64_t c = 0; c < blocks(count, WIDTH); c++) {
        const int64_t place = first + c * WIDTH;
        const int64_t here = count - c * WIDTH < WIDTH ? count - c * WIDTH : WIDTH;
        for (int64_t k = 0; k < own->rank; k++, to += WIDTH) {
            const float *row = own->right + k * width + place;
            if (here < WIDTH) memset(to, 0, WIDTH * sizeof(float));
            memcpy(to, row, here * sizeof(float));
            if (!weighted) continue;
            if (here < WIDTH) memset(weighted, 0, WIDTH * sizeof(float));
            for (int64_t j = 0; j < here; j++) weighted[j] = row[j] * own->v[place + j];
            weighted += WIDTH;
        }
    }
}

/* The tile's rows of `left` as [row block][rank][ROWS], and of `left u` where it is wanted. */
static void pack_left(float *restrict to, float *restrict sensed, const expert *own, int64_t start, int64_t rows) {
    for (int64_t b = 0; b < blocks(rows, ROWS); b++) {
        for (int64_t i = 0; i < ROWS; i++) {
            const int64_t row = b * ROWS + i;
            const float *from = own->left + (start + row) * own->rank;
            for (int64_t k = 0; k < own->rank; k++) {
                const float value = row < rows ? from[k] : 0.0f;
                to[(b * own->rank + k) * ROWS + i] = value;
                if (sensed) sensed[(b * own->rank + k) * ROWS + i] = row < rows ? value * own->u[start + row] : 0.0f;
            }
        }
    }
}

/* ROWS rows of one strip for one expert. */
static inline __attribute__((always_inline)) void row_block(
    const int along_rows, const int sensing, int64_t across, int64_t rank, const float *restrict theta,
    const float *restrict left, const float *restrict right, const float *restrict sensed,
    const float *restrict weighted, const float *restrict flow, vec *restrict product, vec *restrict gamma
) {
    for (int64_t c = 0; c < across; c++) {
        const vec *base = (const vec *)(theta + c * ROWS * WIDTH);
        const vec *columns = (const vec *)(right + c * rank * WIDTH);
        vec w[ROWS][2];
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; i++) {
            w[i][0] = base[2 * i];
            w[i][1] = base[2 * i + 1];
        }
        for (int64_t k = 0; k < rank; k++) {
            const vec right0 = columns[2 * k], right1 = columns[2 * k + 1];
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; i++) {
                const vec scale = splat(left[k * ROWS + i]);
                w[i][0] += scale * right0;
                w[i][1] += scale * right1;
            }
        }
        if (along_rows) {
            const vec flow0 = ((const vec *)flow)[2 * c], flow1 = ((const vec *)flow)[2 * c + 1];
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; i++) {
                vec total = product[i] + magnitude(w[i][0]) * flow0;
                product[i] = total + magnitude(w[i][1]) * flow1;
            }
        } else {
            vec product0 = product[2 * c], product1 = product[2 * c + 1];
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; i++) {
                const vec scale = splat(flow[i]);
                product0 += magnitude(w[i][0]) * scale;
                product1 += magnitude(w[i][1]) * scale;
            }
            product[2 * c] = product0;
            product[2 * c + 1] = product1;
        }
        if (sensing && rank) {
#pragma GCC unroll 12
            for (int i = 0; i < ROWS; i++) {
                w[i][0] = sign(w[i][0]);
                w[i][1] = sign(w[i][1]);
            }
            const vec *factors = (const vec *)(weighted + c * rank * WIDTH);
            for (int64_t k = 0; k < rank; k++) {
                vec total0 = {}, total1 = {};
#pragma GCC unroll 12
                for (int i = 0; i < ROWS; i++) {
                    const vec scale = splat(sensed[k * ROWS + i]);
                    total0 += scale * w[i][0];
                    total1 += scale * w[i][1];
                }
                gamma[k] += total0 * factors[2 * k] + total1 * factors[2 * k + 1];
            }
        }
    }
}

#define VARIANT(name, along_rows, sensing) \
    static void name( \
        int64_t across, int64_t rank, const float *theta, const float *left, const float *right, const float *sensed, \
        const float *weighted, const float *flow, vec *product, vec *gamma \
    ) { \
        row_block(along_rows, sensing, across, rank, theta, left, right, sensed, weighted, flow, product, gamma); \
    }
VARIANT(columns_plain, 0, 0)
VARIANT(columns_sensing, 0, 1)
VARIANT(rows_plain, 1, 0)
VARIANT(rows_sensing, 1, 1)

/* Places in the scratch memory, in floats, each a whole number of cache lines. */
typedef struct {
    int64_t theta, left, sensed, right, weighted, flow, product, gamma, total;
} layout;

static int64_t put(int64_t *end, int64_t floats) {
    const int64_t place = *end;
    *end += blocks(floats, 16) * 16;
    return place;
}

static layout plan(const expert *experts, int64_t count, int64_t rows, int64_t along_rows) {
    int64_t ranks = 0, most = 0, end = 0;
    const int64_t padded = blocks(rows, ROWS) * ROWS;
    for (int64_t n = 0; n < count; n++) {
        ranks += experts[n].rank;
        if (experts[n].rank > most) most = experts[n].rank;
    }
    layout found;
    found.theta = put(&end, padded * COLUMNS);
    found.left = put(&end, padded * ranks);
    found.sensed = put(&end, padded * ranks);
    found.right = put(&end, most * COLUMNS);
    found.weighted = put(&end, most * COLUMNS);
    found.flow = put(&end, along_rows ? COLUMNS : count * padded);
    found.product = put(&end, along_rows ? count * padded * LANES : COLUMNS);
    found.gamma = put(&end, ranks * LANES);
    found.total = end;
    return found;
}

/* Floats of scratch memory that a call needs. */
int64_t samerge_scratch(const expert *experts, int64_t count, int64_t rows, int64_t along_rows) {
    return plan(experts, count, rows, along_rows).total;
}

/* Rows start .. start + rows of a weight, for all experts.

   theta is the tile (rows, width) with `stride` entries from row to row, of the kind that the enum above says. out is
   (count, rows) along the rows and (count, width) along the columns, gamma the experts' own one after another, or NULL.
   scratch is aligned to VECTOR_BYTES. */
void samerge_sweep(
    const void *theta, int64_t kind, int64_t stride, int64_t rows, int64_t width, int64_t start, const expert *experts,
    int64_t count, int64_t along_rows, float *restrict out, double *restrict gamma, float *restrict scratch
) {
    const layout at = plan(experts, count, rows, along_rows);
    const int64_t down = blocks(rows, ROWS), padded = down * ROWS;
    vec *sums = (vec *)(scratch + at.gamma);
    int64_t ranks = 0;
    for (int64_t n = 0; n < count; n++) {
        pack_left(
            scratch + at.left + padded * ranks, gamma ? scratch + at.sensed + padded * ranks : NULL, experts + n, start,
            rows
        );
        if (!along_rows) {
            float *flow = scratch + at.flow + n * padded;
            memset(flow, 0, padded * sizeof(float));
            memcpy(flow, experts[n].u + start, rows * sizeof(float));
        }
        ranks += experts[n].rank;
    }
    memset(sums, 0, ranks * sizeof(vec));
    if (along_rows) memset(scratch + at.product, 0, count * padded * sizeof(vec));

    for (int64_t first = 0; first < width; first += COLUMNS) {
        const int64_t columns = width - first < COLUMNS ? width - first : COLUMNS, across = blocks(columns, WIDTH);
        pack_theta(scratch + at.theta, theta, kind, stride, rows, first, columns);
        int64_t before = 0; /* ranks of the experts that came before */
        for (int64_t n = 0; n < count; n++) {
            const expert *own = experts + n;
            pack_right(scratch + at.right, gamma ? scratch + at.weighted : NULL, own, width, first, columns);
            float *flow = scratch + at.flow;
            vec *product = (vec *)(scratch + at.product);
            if (along_rows) {
                memset(flow, 0, COLUMNS * sizeof(float));
                memcpy(flow, own->v + first, columns * sizeof(float));
                product += n * padded;
            } else {
                flow += n * padded;
                memset(product, 0, COLUMNS * sizeof(float));
            }
            for (int64_t b = 0; b < down; b++) {
                (along_rows ? (gamma ? rows_sensing : rows_plain) : (gamma ? columns_sensing : columns_plain))(
                    across, own->rank, scratch + at.theta + b * across * ROWS * WIDTH,
                    scratch + at.left + padded * before + b * own->rank * ROWS, scratch + at.right,
                    scratch + at.sensed + padded * before + b * own->rank * ROWS, scratch + at.weighted,
                    along_rows ? flow : flow + b * ROWS, along_rows ? product + b * ROWS : product, sums + before
                );
            }
            if (!along_rows) memcpy(out + n * width + first, product, columns * sizeof(float));
            before += own->rank;
        }
    }
    if (along_rows)
        for (int64_t n = 0; n < count; n++)
            for (int64_t i = 0; i < rows; i++) out[n * rows + i] = sum(((vec *)(scratch + at.product))[n * padded + i]);
    if (gamma)
        for (int64_t k = 0; k < ranks; k++) {
            gamma[k] = 0.0;
            for (int lane = 0; lane < LANES; lane++) gamma[k] += (double)sums[k][lane];
        }
}
