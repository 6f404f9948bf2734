/* One read of the tokens gives every statistic. Plain C99 with optional OpenMP; loaded through ctypes by native.py.
 *
 * Tokens are taken eight at a time and a block of dimensions at a time, so that each loaded value is used for all
 * statistics while it is in a register. Within the eight, deviations are taken from the first token, which keeps the
 * sum of squares well conditioned (cancellation is bounded by eight, whatever the mean); the eights are merged in
 * double by the parallel variance formula (Chan, Golub and LeVeque 1983).
 *
 * The fast loop assumes finite values. Where a block turns out not to have them, it is read again by a plain loop in
 * double, which propagates NaN and infinities as the definition does.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#define this_thread() omp_get_thread_num()
#else
#define this_thread() 0
#endif

enum { MEAN, MAX, MIN, STD, FIRST, LAST, CLS, SEGMENT };
enum { FLOAT32, BFLOAT16, FLOAT16 };
#define GROUP 8
#define BLOCK 1024 /* dimensions at a time: eight tokens and all accumulators of a block stay in the first two caches */
#define SERIAL (1 << 16) /* values below which threads cost more than they give */
#define STEP 64    /* dimensions between which the next eight tokens are fetched: rows are too short for the hardware */

typedef struct {
    const char *x;            /* [R, T, D], dimensions adjacent */
    const uint8_t *mask;      /* [R, T] */
    const float *share;       /* [R, T, K], contiguous; NULL without segments */
    const float *total;       /* [R, K], contiguous */
    float *out;               /* [R, P, D], contiguous */
    const int32_t *kinds;     /* [P] */
    int64_t rows, tokens, width, x_row, x_token, mask_row, mask_token, segments, slots, cls;
    int32_t dtype, threads;
} Job;

typedef struct {
    double mean[BLOCK], m2[BLOCK];
    float largest[BLOCK], smallest[BLOCK];
    double *segment; /* [K, BLOCK] */
} Scratch;

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline __attribute__((always_inline)) float load(const void *p, int64_t i, int dtype) {
    if (dtype == FLOAT32) return ((const float *)p)[i];
    uint32_t h = ((const uint16_t *)p)[i];
    if (dtype == BFLOAT16) return from_bits(h << 16);
    /* float16: the exponent is rebiased by a product, which also puts subnormals right; infinities and NaN by hand */
    uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    float magnitude = from_bits((h & 0x7fffu) << 13) * 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &magnitude, 4);
    return from_bits(bits | special | (h & 0x8000u) << 16);
}

typedef struct {
    double count, part, w, w2; /* tokens of the group, one over it, their share of all tokens so far, and w * before */
} Weights;

static Weights weigh(int64_t count, int64_t before) {
    double w = (double)count / (double)(before + count);
    return (Weights){(double)count, 1.0 / (double)count, w, w * (double)before};
}

/* Merge up to GROUP tokens at p into the statistics of dimensions from..to; missing places repeat the first token. */
static inline __attribute__((always_inline)) void merge(const void *const *p, int64_t d0, int64_t from, int64_t to,
        Weights weights, Scratch *restrict s, int dtype, int spread, int largest, int smallest) {
    const double count = weights.count, part = weights.part, w = weights.w, w2 = weights.w2;
    const void *p0 = p[0], *p1 = p[1], *p2 = p[2], *p3 = p[3], *p4 = p[4], *p5 = p[5], *p6 = p[6], *p7 = p[7];
#pragma GCC ivdep
    for (int64_t d = from; d < to; d++) {
        float x0 = load(p0, d0 + d, dtype), x1 = load(p1, d0 + d, dtype), x2 = load(p2, d0 + d, dtype);
        float x3 = load(p3, d0 + d, dtype), x4 = load(p4, d0 + d, dtype), x5 = load(p5, d0 + d, dtype);
        float x6 = load(p6, d0 + d, dtype), x7 = load(p7, d0 + d, dtype);
        if (largest) {
            float a = x0 > x1 ? x0 : x1, b = x2 > x3 ? x2 : x3, c = x4 > x5 ? x4 : x5, e = x6 > x7 ? x6 : x7;
            a = a > b ? a : b, c = c > e ? c : e, a = a > c ? a : c;
            s->largest[d] = a > s->largest[d] ? a : s->largest[d];
        }
        if (smallest) {
            float a = x0 < x1 ? x0 : x1, b = x2 < x3 ? x2 : x3, c = x4 < x5 ? x4 : x5, e = x6 < x7 ? x6 : x7;
            a = a < b ? a : b, c = c < e ? c : e, a = a < c ? a : c;
            s->smallest[d] = a < s->smallest[d] ? a : s->smallest[d];
        }
        x1 -= x0, x2 -= x0, x3 -= x0, x4 -= x0, x5 -= x0, x6 -= x0, x7 -= x0;
        double moved = (double)(((x1 + x2) + (x3 + x4)) + ((x5 + x6) + x7)) * part;
        double delta = (double)x0 + moved - s->mean[d];
        s->mean[d] += delta * w;
        if (spread) {
            float q = ((x1 * x1 + x2 * x2) + (x3 * x3 + x4 * x4)) + ((x5 * x5 + x6 * x6) + x7 * x7);
            s->m2[d] += (double)q - moved * moved * count + delta * delta * w2;
        }
    }
}

/* Whatever is asked for beside the mean, the spread is computed too: it costs little, and halves what is compiled. */
#define MERGE(DTYPE) \
    (largest && smallest ? merge(p, d0, from, to, weights, s, DTYPE, 1, 1, 1)   \
     : largest           ? merge(p, d0, from, to, weights, s, DTYPE, 1, 1, 0)   \
     : smallest          ? merge(p, d0, from, to, weights, s, DTYPE, 1, 0, 1)   \
     : spread            ? merge(p, d0, from, to, weights, s, DTYPE, 1, 0, 0)   \
                         : merge(p, d0, from, to, weights, s, DTYPE, 0, 0, 0))

static void merge_any(const void *const *p, int64_t d0, int64_t from, int64_t to, Weights weights, Scratch *s,
                      int dtype, int spread, int largest, int smallest) {
    if (dtype == FLOAT32) MERGE(FLOAT32);
    else if (dtype == BFLOAT16) MERGE(BFLOAT16);
    else MERGE(FLOAT16);
}

static inline __attribute__((always_inline)) void share_out(const void *const *p, const float *w, int64_t d0, int64_t n,
                                                            double *restrict segment, int dtype) {
    const void *p0 = p[0], *p1 = p[1], *p2 = p[2], *p3 = p[3], *p4 = p[4], *p5 = p[5], *p6 = p[6], *p7 = p[7];
    for (int64_t d = 0; d < n; d++)
        segment[d] += ((w[0] * load(p0, d0 + d, dtype) + w[1] * load(p1, d0 + d, dtype)) +
                       (w[2] * load(p2, d0 + d, dtype) + w[3] * load(p3, d0 + d, dtype))) +
                      ((w[4] * load(p4, d0 + d, dtype) + w[5] * load(p5, d0 + d, dtype)) +
                       (w[6] * load(p6, d0 + d, dtype) + w[7] * load(p7, d0 + d, dtype)));
}

/* Add the group to the segments that any of its tokens shares steps with. */
static void add_segments(const Job *job, const void *const *p, const float *const *shares, int64_t count, int64_t d0,
                         int64_t n, Scratch *s) {
    for (int64_t k = 0; k < job->segments; k++) {
        float w[GROUP] = {0}, any = 0;
        for (int64_t i = 0; i < count; i++) any += w[i] = shares[i][k];
        if (any == 0) continue;
        if (job->dtype == FLOAT32) share_out(p, w, d0, n, s->segment + k * BLOCK, FLOAT32);
        else if (job->dtype == BFLOAT16) share_out(p, w, d0, n, s->segment + k * BLOCK, BFLOAT16);
        else share_out(p, w, d0, n, s->segment + k * BLOCK, FLOAT16);
    }
}

static const void *token_at(const Job *job, int64_t r, int64_t t) {
    return job->x + (r * job->x_row + t * job->x_token) * (job->dtype == FLOAT32 ? 4 : 2);
}

static int is_real(const Job *job, int64_t r, int64_t t) {
    return job->mask[r * job->mask_row + t * job->mask_token] != 0;
}

/* Fetch n dimensions of the next GROUP tokens to the second cache. Inlined, or gcc drops it as having no effect. */
static inline __attribute__((always_inline)) void prefetch(const Job *job, int64_t r, int64_t t, int64_t d0, int64_t n) {
    int64_t size = job->dtype == FLOAT32 ? 4 : 2, end = t + GROUP < job->tokens ? t + GROUP : job->tokens;
    for (; t < end; t++) {
        const char *p = (const char *)token_at(job, r, t) + d0 * size;
        for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(p + i, 0, 2);
    }
}

/* Whether any value is NaN or infinite; by its bits, which the compiler turns into vectors. */
static int64_t not_finite(const double *values, int64_t n) {
    const uint64_t exponent = 0x7ff0000000000000u;
    uint64_t any = 0;
    for (int64_t d = 0; d < n; d++) {
        uint64_t bits;
        memcpy(&bits, values + d, 8);
        any |= (bits & exponent) == exponent;
    }
    return (int64_t)any;
}

static void clear(const Job *job, int64_t n, Scratch *s) {
    memset(s->mean, 0, (size_t)n * sizeof(double));
    memset(s->m2, 0, (size_t)n * sizeof(double));
    for (int64_t d = 0; d < n; d++) s->largest[d] = -INFINITY, s->smallest[d] = INFINITY;
    if (job->segments) memset(s->segment, 0, (size_t)job->segments * BLOCK * sizeof(double));
}

/* Statistics of one block by the definition, for values that are not finite or overflow; slow and rare. */
static void reread(const Job *job, int64_t r, int64_t d0, int64_t n, int64_t count, Scratch *s) {
    clear(job, n, s);
    for (int64_t t = 0; t < job->tokens; t++) {
        if (!is_real(job, r, t)) continue;
        const void *p = token_at(job, r, t);
        for (int64_t d = 0; d < n; d++) {
            float x = load(p, d0 + d, job->dtype);
            s->mean[d] += x;
            if (x > s->largest[d] || isnan(x)) s->largest[d] = x; /* nothing is larger than NaN: it stays */
            if (x < s->smallest[d] || isnan(x)) s->smallest[d] = x;
            for (int64_t k = 0; k < job->segments; k++)
                s->segment[k * BLOCK + d] += (double)job->share[(r * job->tokens + t) * job->segments + k] * x;
        }
    }
    for (int64_t d = 0; d < n; d++) s->mean[d] /= (double)count;
    for (int64_t t = 0; t < job->tokens; t++) {
        if (!is_real(job, r, t)) continue;
        const void *p = token_at(job, r, t);
        for (int64_t d = 0; d < n; d++) {
            double deviation = load(p, d0 + d, job->dtype) - s->mean[d];
            s->m2[d] += deviation * deviation;
        }
    }
}

static void copy_token(const Job *job, int64_t r, int64_t t, int64_t d0, int64_t n, float *out) {
    const void *p = token_at(job, r, t);
    for (int64_t d = 0; d < n; d++) out[d] = load(p, d0 + d, job->dtype);
}

static void write_slots(const Job *job, int64_t r, int64_t d0, int64_t n, int64_t count, int64_t first, int64_t last,
                        const Scratch *s) {
    int64_t k = 0;
    for (int64_t i = 0; i < job->slots; i++) {
        float *out = job->out + (r * job->slots + i) * job->width + d0;
        int kind = job->kinds[i];
        int64_t segment = kind == SEGMENT ? k++ : 0;
        if (kind == CLS) copy_token(job, r, job->cls, d0, n, out);
        else if (!count) memset(out, 0, (size_t)n * sizeof(float));
        else if (kind == FIRST || kind == LAST) copy_token(job, r, kind == FIRST ? first : last, d0, n, out);
        else if (kind == MAX || kind == MIN) memcpy(out, kind == MAX ? s->largest : s->smallest, (size_t)n * 4);
        else if (kind == MEAN) for (int64_t d = 0; d < n; d++) out[d] = (float)s->mean[d];
        else if (kind == STD)
            for (int64_t d = 0; d < n; d++) out[d] = sqrtf(s->m2[d] < 0 ? 0 : (float)(s->m2[d] / (double)count));
        else {
            double total = job->total[r * job->segments + segment];
            for (int64_t d = 0; d < n; d++)
                out[d] = (float)(s->segment[segment * BLOCK + d] / (total > 0 ? total : 1));
        }
    }
}

static void pool_block(const Job *job, int64_t r, int64_t d0, int64_t n, const int *asked, Scratch *s) {
    const void *p[GROUP];
    const float *shares[GROUP];
    int64_t count = 0, held = 0, first = -1, last = -1;
    clear(job, n, s);
    for (int64_t t = 0; t <= job->tokens; t++) {
        if (t < job->tokens && is_real(job, r, t)) {
            if (first < 0) first = t;
            last = t;
            p[held] = token_at(job, r, t);
            if (job->segments) shares[held] = job->share + (r * job->tokens + t) * job->segments;
            held++;
        }
        if (held == GROUP || (t == job->tokens && held)) {
            for (int64_t i = held; i < GROUP; i++) p[i] = p[0];
            Weights weights = weigh(held, count);
            for (int64_t d = 0; asked[MEAN] && d < n; d += STEP) {
                int64_t to = d + STEP < n ? d + STEP : n;
                prefetch(job, r, t + 1, d0 + d, to - d);
                merge_any(p, d0, d, to, weights, s, job->dtype, asked[STD], asked[MAX], asked[MIN]);
            }
            if (job->segments) add_segments(job, p, shares, held, d0, n, s);
            count += held, held = 0;
        }
    }
    int64_t unbounded = not_finite(s->mean, n) | not_finite(s->m2, n);
    for (int64_t k = 0; k < job->segments; k++) unbounded |= not_finite(s->segment + k * BLOCK, n);
    if (unbounded) reread(job, r, d0, n, count, s);
    write_slots(job, r, d0, n, count, first, last, s);
}

/* Fill job->out; 0 on success, 1 where memory for the accumulators was refused. */
int tsprobe_pool(const Job *job) {
    int asked[SEGMENT + 1] = {0};
    for (int64_t i = 0; i < job->slots; i++) asked[job->kinds[i]] = 1;
    asked[MEAN] |= asked[MAX] || asked[MIN] || asked[STD] || asked[SEGMENT]; /* shows what is not finite */
    int64_t blocks = (job->width + BLOCK - 1) / BLOCK;
    while (job->rows * blocks < job->threads && job->width / (blocks + 1) >= 64) blocks++;
    int64_t step = ((job->width + blocks - 1) / blocks + 15) / 16 * 16;
    int64_t items = job->rows * blocks, team = job->rows * job->tokens * job->width < SERIAL ? 1 : job->threads;
    Scratch *scratch = malloc((size_t)team * sizeof(Scratch));
    double *segments = malloc((size_t)(team * job->segments * BLOCK + 1) * sizeof(double));
    if (!scratch || !segments) {
        free(scratch), free(segments);
        return 1;
    }
    for (int64_t i = 0; i < team; i++) scratch[i].segment = segments + i * job->segments * BLOCK;
    /* Shared out as threads come for more: where one waits for a processor, the others do its part. */
#pragma omp parallel for schedule(dynamic, 1) if (team > 1) num_threads(job->threads)
    for (int64_t i = 0; i < items; i++) {
        int64_t d0 = i % blocks * step, n = job->width - d0 < step ? job->width - d0 : step;
        if (n > 0) pool_block(job, i / blocks, d0, n, asked, scratch + this_thread());
    }
    free(scratch), free(segments);
    return 0;
}
