/* Leaky integrate-and-fire neurons over a whole sequence, and the gradient through them.
 *
 *     h[t] = decay v[t-1] + gain x[t],  s[t] = h[t] >= threshold,  v[t] = h[t] - threshold s[t], or 0 where it fired
 *
 * Blocks of neurons are taken through all steps at once, so that nothing but x, s and gradients goes through memory: the
 * backward works out h again in a scratch of its own. Compiled without fused products and sums, so that h has ATen's
 * bits. */
#include <float.h>
#include <stdlib.h>

#include "vectors.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

enum { CAUCHY, LOGISTIC, HAT, BOX, NORMAL, LAPLACE };

typedef struct {
    long steps, neurons, block; /* tensors are [steps][neurons]; a block is a multiple of LANES */
    float decay, gain, threshold, attached; /* attached: 1, or 0 where no gradient goes through the reset */
    float height, scale, centre;            /* of the surrogate's derivative: height * profile(scale * (u - centre)) */
    int hard, profile;
    int past; /* results go past the caches: for tensors that no cache holds, their rows aligned as vectors are */
} Rule;

INLINE vec all(float value) { return (vec){0} + value; }
INLINE vec where(bits mask, vec a) { return (vec)((bits)a & mask); }
INLINE vec finite(vec a) { return (vec)(((bits)all(FLT_MAX) & (a > FLT_MAX)) | ((bits)a & ~(a > FLT_MAX))); }
INLINE vec size_of(vec a) { return (vec)((bits)a & 0x7fffffff); }

INLINE void leave(float *p, vec v, int past) {
#if defined(__AVX512F__)
    if (past) return _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
    if (past) return _mm256_stream_ps(p, (__m256)v);
#endif
    (void)past;
    put(p, v);
}

/* What went past the caches is there for other threads. */
static void arrive(void) {
#if defined(__AVX__)
    _mm_sfence();
#endif
}

/* exp to a few units in the last place, for negative numbers; 0 below -87 (after Cephes, S. Moshier). */
INLINE vec exponential(vec x) {
    const bits low = x < -87.0f;
    x = where(~low, x); /* whatever: the answer is not used */
    const vec magic = all(12582912.0f), n = x * 1.44269504089f + magic - magic; /* to the nearest integer */
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = x * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    return where(~low, y * (vec)((__builtin_convertvector(n, bits) + 127) << 23));
}

INLINE vec slope(const int profile, const Rule *r, vec u) {
    const vec z = (u - r->centre) * r->scale;
    switch (profile) {
        case CAUCHY: return r->height / (z * z + 1.0f);
        case LOGISTIC: {
            const vec e = exponential(-size_of(z)), more = e + 1.0f;
            return 4.0f * r->height * e / (more * more);
        }
        case HAT: {
            const vec y = 1.0f - size_of(z);
            return r->height * where(y > 0.0f, y);
        }
        case BOX: return where(size_of(z) <= 1.0f, all(r->height));
        case NORMAL: return r->height * exponential(-0.5f * z * z);
    }
    return r->height * exponential(-size_of(z)); /* LAPLACE */
}

INLINE vec charged(const Rule *r, vec v, vec x) { return v * r->decay + x * r->gain; }

INLINE vec left(const int hard, const Rule *r, vec h, bits fired) {
    return hard ? (vec)((bits)h & ~fired) : h - where(fired, all(r->threshold));
}

/* Potentials of `count` neurons, or spikes, into `to`; v is a scratch of a block.
 * A row ahead is fetched meanwhile, and `wanted` after the last: rows are a large power of two apart, where caches hold
 * few of them at once. */
INLINE void run(const int hard, const int spikes, const Rule *r, const float *x, float *to, float *v, long count,
                const float *wanted) {
    for (long t = 0; t < r->steps; t++) {
        const float *from = x + t * r->neurons, *ahead = t < r->steps - 1 ? from + r->neurons : wanted;
        float *out = to + t * (spikes ? r->neurons : r->block);
        for (long i = 0; i < count; i += LANES) {
            const long some = count - i;
            const vec now = some >= LANES ? get(from + i) : get_some(from + i, some);
            __builtin_prefetch(ahead + i, 0, 2);
            const vec h = charged(r, t ? get(v + i) : (vec){0}, now);
            const bits fired = h >= r->threshold;
            put(v + i, left(hard, r, h, fired));
            if (!spikes) put(out + i, h);
            else if (some >= LANES) leave(out + i, where(fired, all(1.0f)), r->past);
            else put_some(out + i, where(fired, all(1.0f)), some);
        }
    }
}

INLINE double total(vec v) {
    double sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

/* With p = dL/dh:  p[t] = up[t] slope(h[t]) + decay p[t+1] dv[t]/dh[t],  dx[t] = gain p[t]. Where `inner`, returns the
 * sum of p[t] (v[t-1] - inputs h[t]): the derivative with respect to the decay, times 1 - decay where inputs is 1. No
 * gradient comes from an infinite potential that is reset to 0. Lanes behind the last neuron are 0 all the way. */
INLINE double back(const int hard, const int profile, const Rule *r, const float *h, const float *up, float *dx, float *p,
                   long count, int inner, float inputs, const float *wanted) {
    double sum = 0;
    for (long t = r->steps - 1; t >= 0; t--) {
        const float *potential = h + t * r->block, *before = potential - r->block, *from = up + t * r->neurons;
        const float *ahead = t ? from - r->neurons : wanted;
        float *out = dx + t * r->neurons;
        vec part = {0};
        for (long i = 0; i < count; i += LANES) {
            const long some = count - i;
            __builtin_prefetch(ahead + i, 0, 2);
            const vec got = get(potential + i), here = hard ? finite(got) : got;
            const vec each = slope(profile, r, got - r->threshold);
            vec now = (some >= LANES ? get(from + i) : get_some(from + i, some)) * each;
            if (t < r->steps - 1) {
                const vec stays = hard ? (vec)((bits)all(1.0f) & ~(here >= r->threshold)) : all(1.0f);
                now += get(p + i) * r->decay * (stays - (hard ? here : all(r->threshold)) * each * r->attached);
            }
            put(p + i, now);
            if (some >= LANES) leave(out + i, now * r->gain, r->past);
            else put_some(out + i, now * r->gain, some);
            if (inner) {
                const vec last = t ? get(before + i) : (vec){0};
                part += now * ((t ? left(hard, r, last, last >= r->threshold) : last) - inputs * here);
            }
        }
        if (inner) sum += total(part);
    }
    return sum;
}

static double backward_block(const Rule *r, const float *h, const float *up, float *dx, float *p, long count, int inner,
                             float inputs, const float *wanted) {
#define CASE(profile)                                                                      \
    case profile:                                                                          \
        return r->hard ? back(1, profile, r, h, up, dx, p, count, inner, inputs, wanted)   \
                       : back(0, profile, r, h, up, dx, p, count, inner, inputs, wanted);
    switch (r->profile) {
        CASE(CAUCHY)
        CASE(LOGISTIC)
        CASE(HAT)
        CASE(BOX)
        CASE(NORMAL)
        CASE(LAPLACE)
    }
#undef CASE
    return 0;
}

/* ---- what Python calls: blocks `first` to `last`; 0, or 1 where there is no memory ---- */

int forward(const Rule *r, const float *x, float *s, long first, long last) {
    float *v = aligned_alloc(64, 4 * r->block);
    if (!v) return 1;
    for (long block = first; block < last; block++) {
        const long start = block * r->block, count = least(r->block, r->neurons - start);
        const float *next = x + (block + 1 < last ? start + r->block : start);
        if (r->hard) run(1, 1, r, x + start, s + start, v, count, next);
        else run(0, 1, r, x + start, s + start, v, count, next);
    }
    free(v);
    arrive();
    return 0;
}

/* sums[block]: see `back`; 0 where nobody asks. */
int backward(const Rule *r, const float *x, const float *up, float *dx, double *sums, float inputs, long first,
             long last) {
    float *v = aligned_alloc(64, 4 * r->block * (r->steps + 1)), *h = v + r->block;
    if (!v) return 1;
    for (long block = first; block < last; block++) {
        const long start = block * r->block, count = least(r->block, r->neurons - start);
        const long last_row = (r->steps - 1) * r->neurons + start;
        const float *next = x + (block + 1 < last ? start + r->block : start);
        if (r->hard) run(1, 0, r, x + start, h, v, count, up + last_row);
        else run(0, 0, r, x + start, h, v, count, up + last_row);
        const double sum = backward_block(r, h, up + start, dx + start, v, count, sums != 0, inputs, next);
        if (sums) sums[block] = sum;
    }
    free(v);
    arrive();
    return 0;
}
