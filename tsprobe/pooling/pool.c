/* One read of the tokens gives every statistic. Plain C with optional OpenMP; loaded through ctypes by native.py.
 *
 * Tokens are taken eight at a time and 64 dimensions (a strip) at a time, so that each loaded value is used for all
 * statistics while it is in a register. Sums and squares are kept in float32 as deviations from a shift: the first
 * token, then the mean so far. After every 32 tokens they are merged in double by the parallel variance formula (Chan,
 * Golub and LeVeque 1983): cancellation is bounded by the number of tokens between merges, whatever the mean.
 *
 * The fast loop assumes finite values. Where a strip turns out not to have them, it is read again by a plain loop in
 * double, which propagates NaN and infinities as the definition does.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#define this_thread() omp_get_thread_num()
#else
#define this_thread() 0
#endif

enum { MEAN, MAX, MIN, STD, FIRST, LAST, CLS, SEGMENT };
enum { FLOAT32, BFLOAT16, FLOAT16 };
#define GROUP 8
#define LONG 32    /* tokens between merges in double */
#define STRIP 64   /* dimensions that are read together */
#define HALF (STRIP / 2)
#define BLOCK 1024 /* dimensions at a time: eight tokens and all accumulators of a block stay in the first two caches */
#define SERIAL (1 << 16) /* values below which threads cost more than they give */
#define AHEAD 4096 /* bytes that are asked for before they are needed, at the least; a group where that is more */
#define LINE 64    /* bytes: accumulators that cross a line of the cache halve the speed of the whole loop */
#define ceiling(a, b) (((a) + (b) - 1) / (b))
#define inlined static inline __attribute__((always_inline))
#define apart static __attribute__((noinline)) /* in one large function the pointers would be spilled at every step */

typedef struct {
    const char *x;            /* [R, T, D], dimensions adjacent; this, out, weight and threads as each call says */
    const uint8_t *mask;      /* [R, T] */
    const float *share;       /* [R, T, K], contiguous; NULL without segments */
    const float *total;       /* [R, K], contiguous */
    float *out;               /* [R, P, D], contiguous */
    float *weight;            /* [R, P], contiguous */
    const int32_t *kinds;     /* [P] */
    int64_t rows, tokens, width, x_row, x_token, mask_row, mask_token, segments, slots, cls;
    int32_t dtype, threads;
} Job;

/* Of one strip. Lanes stand in the order of dimensions, or, where bfloat16 is `paired`, the even ones before the odd. */
typedef struct {
    _Alignas(LINE) float shift[STRIP];
    float sum[STRIP], square[STRIP], largest[STRIP], smallest[STRIP];
    double mean[STRIP], m2[STRIP];
    int64_t n, paired; /* dimensions; STRIP but for the last strip */
} Strip;

typedef struct {
    Strip strip[BLOCK / STRIP];
    float wide[GROUP][STRIP]; /* tokens in float32, where the loop cannot read them as they lie */
} Scratch;

typedef struct {
    int64_t count, first, last; /* real tokens */
} Found;

inlined float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inlined float load(const void *p, int64_t i, int dtype) {
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

/* n dimensions at p in float32 */
inlined void widen(const void *p, int64_t n, float *restrict to, int dtype) {
    int64_t d = 0;
#ifdef __F16C__
    for (; dtype == FLOAT16 && d + 8 <= n; d += 8)
        _mm256_storeu_ps(to + d, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)p + d))));
#endif
    if (dtype == FLOAT32) memcpy(to, p, (size_t)n * 4);
    else if (dtype == BFLOAT16) for (; d < n; d++) to[d] = load(p, d, BFLOAT16);
    else for (; d < n; d++) to[d] = load(p, d, FLOAT16);
}

/* Ask for bytes that are needed soon. Inlined, or gcc drops it as having no effect. */
inlined void prefetch(const void *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch((const char *)p + i, 0, 3);
}

/* n dimensions, from d on, of each token of a group in float32, filled up to a strip with 0 */
apart void widen_group(const char *const *token, int64_t held, int64_t d, int64_t n, int dtype, int64_t ahead,
                       float (*wide)[STRIP], const void **p) {
    const int64_t size = dtype == FLOAT32 ? 4 : 2;
    for (int64_t j = 0; j < held; j++) {
        const char *at = token[j] + d * size;
        if (ahead) prefetch(at + ahead, n * size);
        p[j] = wide[j];
        if (n == STRIP && dtype == FLOAT16) widen(at, STRIP, wide[j], FLOAT16);
        else widen(at, n, wide[j], dtype), memset(wide[j] + n, 0, (size_t)(STRIP - n) * sizeof(float));
    }
}

typedef struct {
    float shift, sum, square, largest, smallest;
} Lane;

inlined Lane take(const Strip *s, int d) {
    return (Lane){s->shift[d], s->sum[d], s->square[d], s->largest[d], s->smallest[d]};
}

inlined Lane add(Lane a, float x, int spread, int largest, int smallest) {
    if (largest) a.largest = x > a.largest ? x : a.largest;
    if (smallest) a.smallest = x < a.smallest ? x : a.smallest;
    x -= a.shift;
    a.sum += x;
    if (spread) a.square += x * x;
    return a;
}

inlined void put(Strip *s, int d, Lane a, int spread, int largest, int smallest) {
    s->sum[d] = a.sum;
    if (spread) s->square[d] = a.square;
    if (largest) s->largest[d] = a.largest;
    if (smallest) s->smallest[d] = a.smallest;
}

/* Add `count` tokens, in float32, to the statistics of a strip. */
inlined void add_floats(const void *const *p, Strip *restrict s, int count, int spread, int largest, int smallest) {
    const float *q[GROUP];
    for (int i = 0; i < count; i++) q[i] = p[i];
    for (int d = 0; d < STRIP; d++) {
        Lane a = take(s, d);
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) a = add(a, q[i][d], spread, largest, smallest);
        put(s, d, a, spread, largest, smallest);
    }
}

/* The same in bfloat16, two dimensions a word: one operation makes a float of either, without any shuffle. */
inlined void add_pairs(const void *const *p, Strip *restrict s, int count, int spread, int largest, int smallest) {
    const char *q[GROUP];
    for (int i = 0; i < count; i++) q[i] = p[i];
    for (int d = 0; d < HALF; d++) {
        Lane even = take(s, d), odd = take(s, d + HALF);
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) {
            uint32_t word;
            memcpy(&word, q[i] + 4 * d, 4);
            even = add(even, from_bits(word << 16), spread, largest, smallest);
            odd = add(odd, from_bits(word & 0xffff0000u), spread, largest, smallest);
        }
        put(s, d, even, spread, largest, smallest);
        put(s, d + HALF, odd, spread, largest, smallest);
    }
}

typedef void Add(const void *const *, Strip *restrict, int64_t ahead);
#define ADD(NAME, COUNT, SPREAD, LARGEST, SMALLEST) \
    apart void NAME##_floats(const void *const *p, Strip *restrict s, int64_t ahead) { \
        for (int i = 0; ahead && i < COUNT; i++) prefetch((const char *)p[i] + ahead, STRIP * 4); \
        add_floats(p, s, COUNT, SPREAD, LARGEST, SMALLEST); \
    } \
    apart void NAME##_pairs(const void *const *p, Strip *restrict s, int64_t ahead) { \
        for (int i = 0; ahead && i < COUNT; i++) prefetch((const char *)p[i] + ahead, STRIP * 2); \
        add_pairs(p, s, COUNT, SPREAD, LARGEST, SMALLEST); \
    }
ADD(mean, GROUP, 0, 0, 0)
ADD(spread, GROUP, 1, 0, 0)
ADD(largest, GROUP, 1, 1, 0)
ADD(extremes, GROUP, 1, 1, 1)
ADD(single, 1, 1, 1, 1)

/* Whatever is asked for beside the mean, the spread is computed too: it costs little, and halves what is compiled. */
static Add *adder(const int *asked, int paired) {
    if (asked[MIN]) return paired ? extremes_pairs : extremes_floats;
    if (asked[MAX]) return paired ? largest_pairs : largest_floats;
    if (asked[STD]) return paired ? spread_pairs : spread_floats;
    return paired ? mean_pairs : mean_floats;
}

/* Merge what was added since the last time, `tokens` of them after `before` others. */
apart void settle(int64_t tokens, int64_t before, Strip *restrict s) {
    const double count = (double)tokens, part = 1 / count;
    const double w = count / (double)(before + tokens), w2 = w * (double)before;
    for (int d = 0; d < STRIP; d++) {
        double moved = (double)s->sum[d] * part, delta = (double)s->shift[d] - s->mean[d] + moved;
        double mean = s->mean[d] + delta * w;
        s->mean[d] = mean;
        s->m2[d] += (double)s->square[d] - moved * moved * count + delta * delta * w2;
        s->shift[d] = (float)mean;
        s->sum[d] = s->square[d] = 0;
    }
}

/* Begin with the first token. */
static void begin(const char *p, Strip *s) {
    if (!s->paired) memcpy(s->shift, p, sizeof s->shift);
    else for (int d = 0; d < HALF; d++) {
        uint32_t word;
        memcpy(&word, p + 4 * d, 4);
        s->shift[d] = from_bits(word << 16), s->shift[d + HALF] = from_bits(word & 0xffff0000u);
    }
}

static void in_order(const Strip *s, const float *lanes, float *restrict out) {
    if (!s->paired) memcpy(out, lanes, (size_t)s->n * sizeof(float));
    else for (int d = 0; d < HALF; d++) out[2 * d] = lanes[d], out[2 * d + 1] = lanes[d + HALF];
}

/* Add the group to the segments [K, STRIP] that any of its tokens shares steps with. */
static void add_segments(const void *const *p, const float *const *shares, int64_t held, int64_t segments,
                         double *restrict segment) {
    for (int64_t k = 0; k < segments; k++, segment += STRIP) {
        float any = 0, sum[STRIP] = {0};
        for (int64_t i = 0; i < held; i++) any += shares[i][k];
        if (any == 0) continue;
        for (int64_t i = 0; i < held; i++)
            for (int d = 0; d < STRIP; d++) sum[d] += shares[i][k] * ((const float *)p[i])[d];
        for (int d = 0; d < STRIP; d++) segment[d] += sum[d];
    }
}

static const char *token_at(const Job *job, int64_t r, int64_t t, int64_t d) {
    return job->x + (r * job->x_row + t * job->x_token + d) * (job->dtype == FLOAT32 ? 4 : 2);
}

static int is_real(const Job *job, int64_t r, int64_t t) {
    return job->mask[r * job->mask_row + t * job->mask_token] != 0;
}

/* Whether any value is NaN or infinite; by its bits, which the compiler turns into vectors. */
static int64_t not_finite(const double *values) {
    const uint64_t exponent = 0x7ff0000000000000u;
    uint64_t any = 0;
    for (int d = 0; d < STRIP; d++) {
        uint64_t bits;
        memcpy(&bits, values + d, 8);
        any |= (bits & exponent) == exponent;
    }
    return (int64_t)any;
}

static void clear(int64_t segments, Strip *s, double *segment) {
    memset(s, 0, offsetof(Strip, n));
    for (int d = 0; d < STRIP; d++) s->largest[d] = -INFINITY, s->smallest[d] = INFINITY;
    if (segments) memset(segment, 0, (size_t)(segments * STRIP) * sizeof(double));
}

/* Statistics of one strip by the definition, for values that are not finite or overflow; slow and rare. */
static void reread(const Job *job, int64_t r, int64_t d0, int64_t count, Strip *s, double *segment) {
    float x[STRIP];
    clear(job->segments, s, segment);
    s->paired = 0;
    for (int64_t t = 0; t < job->tokens; t++) {
        if (!is_real(job, r, t)) continue;
        widen(token_at(job, r, t, d0), s->n, x, job->dtype);
        for (int64_t d = 0; d < s->n; d++) {
            s->mean[d] += x[d];
            if (x[d] > s->largest[d] || isnan(x[d])) s->largest[d] = x[d]; /* nothing is larger than NaN: it stays */
            if (x[d] < s->smallest[d] || isnan(x[d])) s->smallest[d] = x[d];
            for (int64_t k = 0; k < job->segments; k++)
                segment[k * STRIP + d] += (double)job->share[(r * job->tokens + t) * job->segments + k] * x[d];
        }
    }
    for (int64_t d = 0; d < s->n; d++) s->mean[d] /= (double)count;
    for (int64_t t = 0; t < job->tokens; t++) {
        if (!is_real(job, r, t)) continue;
        widen(token_at(job, r, t, d0), s->n, x, job->dtype);
        for (int64_t d = 0; d < s->n; d++) s->m2[d] += (x[d] - s->mean[d]) * (x[d] - s->mean[d]);
    }
}

static void write_slots(const Job *job, int64_t r, int64_t d0, Found found, const Strip *s, const double *segment) {
    const float *total = job->total + r * job->segments;
    const double part = 1 / (double)found.count;
    const size_t bytes = (size_t)s->n * sizeof(float);
    float lanes[STRIP];
    for (int64_t i = 0; i < job->slots; i++) {
        float *out = job->out + (r * job->slots + i) * job->width + d0;
        int kind = job->kinds[i];
        if (kind == CLS || (found.count && (kind == FIRST || kind == LAST))) {
            int64_t t = kind == CLS ? job->cls : kind == FIRST ? found.first : found.last;
            widen(token_at(job, r, t, d0), s->n, out, job->dtype);
        } else if (!found.count) memset(out, 0, bytes);
        else if (kind == MAX || kind == MIN) in_order(s, kind == MAX ? s->largest : s->smallest, out);
        else if (kind == SEGMENT) {
            double steps = *total > 0 ? *total : 1;
            for (int64_t d = 0; d < s->n; d++) out[d] = (float)(segment[d] / steps);
            segment += STRIP, total++;
        } else {
            if (kind == MEAN) for (int d = 0; d < STRIP; d++) lanes[d] = (float)s->mean[d];
            else for (int d = 0; d < STRIP; d++) lanes[d] = sqrtf(s->m2[d] < 0 ? 0 : (float)(s->m2[d] * part));
            in_order(s, lanes, out);
        }
    }
}

static void write_weights(const Job *job, int64_t r, int64_t count) {
    const float *total = job->total + r * job->segments;
    for (int64_t i = 0; i < job->slots; i++) {
        int kind = job->kinds[i];
        job->weight[r * job->slots + i] = kind == CLS ? 1 : kind == SEGMENT ? *total++ : (float)count;
    }
}

/* Pool row r from dimension d0 on; `segments` are accumulators [BLOCK / STRIP, K, STRIP]. */
static void pool_block(const Job *job, int64_t r, int64_t d0, int64_t width, const int *asked, Scratch *s,
                       double *segments) {
    const char *token[GROUP];
    const void *p[GROUP];
    const float *shares[GROUP];
    const int64_t strips = ceiling(width, STRIP), k = job->segments, size = job->dtype == FLOAT32 ? 4 : 2;
    const int64_t later = GROUP * ceiling(AHEAD, GROUP * (width + !width) * size); /* tokens */
    int64_t held = 0, open = 0; /* tokens that wait for a full group; tokens added since the last merge */
    Found found = {0, -1, -1};
    for (int64_t i = 0; i < strips; i++) {
        clear(k, s->strip + i, segments + i * k * STRIP);
        s->strip[i].n = width - i * STRIP < STRIP ? width - i * STRIP : STRIP;
        s->strip[i].paired = job->dtype == BFLOAT16 && !k && s->strip[i].n == STRIP;
    }
    for (int64_t t = 0; t <= job->tokens; t++) {
        if (t < job->tokens && is_real(job, r, t)) {
            if (found.first < 0) found.first = t;
            found.last = t;
            token[held] = token_at(job, r, t, d0);
            if (k) shares[held] = job->share + (r * job->tokens + t) * k;
            held++;
        }
        if (held < GROUP && (t < job->tokens || !held)) continue;
        const int64_t settles = open >= LONG && held == GROUP;
        for (int64_t i = 0; asked[MEAN] && i < strips; i++) {
            Strip *strip = s->strip + i;
            int64_t ahead = t + later < job->tokens ? later * job->x_token * size : 0;
            if (strip->paired || (job->dtype == FLOAT32 && strip->n == STRIP))
                for (int64_t j = 0; j < held; j++) p[j] = token[j] + i * STRIP * size;
            else widen_group(token, held, i * STRIP, strip->n, job->dtype, ahead, s->wide, p), ahead = 0;
            if (!found.count) begin(p[0], strip);
            if (settles) settle(open, found.count - open, strip);
            if (held == GROUP) adder(asked, (int)strip->paired)(p, strip, ahead);
            else for (int64_t j = 0; j < held; j++) (strip->paired ? single_pairs : single_floats)(p + j, strip, 0);
            if (k) add_segments(p, shares, held, k, segments + i * k * STRIP);
        }
        found.count += held, open = settles ? held : open + held, held = 0;
    }
    for (int64_t i = 0; i < strips; i++) {
        Strip *strip = s->strip + i;
        double *segment = segments + i * k * STRIP;
        if (open) settle(open, found.count - open, strip);
        int64_t unbounded = not_finite(strip->mean) | not_finite(strip->m2);
        for (int64_t j = 0; j < k; j++) unbounded |= not_finite(segment + j * STRIP);
        if (unbounded) reread(job, r, d0 + i * STRIP, found.count, strip, segment);
        write_slots(job, r, d0 + i * STRIP, found, strip, segment);
    }
    if (!d0) write_weights(job, r, found.count);
}

/* Fill out and weight; 0 on success, 1 where memory for the segments was refused. */
int tsprobe_pool(const Job *prepared, const void *x, void *out, void *weight, int32_t threads) {
    static _Thread_local Scratch scratch;
    Job all = *prepared, *job = &all;
    all.x = x, all.out = out, all.weight = weight, all.threads = threads;
    int asked[SEGMENT + 1] = {0};
    for (int64_t i = 0; i < job->slots; i++) asked[job->kinds[i]] = 1;
    asked[MEAN] |= asked[MAX] || asked[MIN] || asked[STD] || asked[SEGMENT]; /* shows what is not finite */
    int64_t blocks = job->width ? ceiling(job->width, BLOCK) : 1;
    while (job->rows * blocks < threads && job->width / (blocks + 1) >= STRIP) blocks++;
    int64_t step = ceiling(ceiling(job->width, blocks), STRIP) * STRIP;
    int64_t items = job->rows * blocks, team = job->rows * job->tokens * job->width < SERIAL ? 1 : threads;
    double *segments = job->segments ? malloc((size_t)(team * job->segments * BLOCK) * sizeof(double)) : NULL;
    if (job->segments && !segments) return 1;
    /* Shared out as threads come for more: where one waits for a processor, the others do its part. */
#pragma omp parallel for schedule(dynamic, 1) if (team > 1) num_threads(threads)
    for (int64_t i = 0; i < items; i++) {
        int64_t d0 = i % blocks * step, n = job->width - d0 < step ? job->width - d0 : step;
        double *segment = segments ? segments + this_thread() * job->segments * BLOCK : NULL;
        if (n > 0 || !d0) pool_block(job, i / blocks, d0, n, asked, &scratch, segment);
    }
    free(segments);
    return 0;
}
