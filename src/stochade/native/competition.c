/* Competitions between two units at every position: logistic noise, and the shares that it gives the two.
 *
 * Noise is made sixteen numbers at a time by sixteen generators (xoshiro128++ of Blackman and Vigna) side by side, on
 * every machine, so that the width of its registers does not change the numbers. Generators start anew for every block
 * of rows, from (seed, block), so that blocks may be made in any order, by any thread. */
#include <stdint.h>
#include <string.h>

#define LANES 16
typedef float vec __attribute__((vector_size(64)));
typedef int32_t bits __attribute__((vector_size(64)));
typedef uint32_t word __attribute__((vector_size(64)));
typedef float loose __attribute__((vector_size(64), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define FAR 40.0f /* beyond it a share is none: subnormal numbers would only be slow */

static uint64_t mixed(uint64_t *state) { /* splitmix64 */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

typedef struct {
    word s[4];
} Generators;

static void begin(Generators *g, uint64_t seed, uint64_t block) {
    uint64_t state = block;
    state = seed ^ mixed(&state);
    state = mixed(&state);
    uint64_t words[2 * LANES];
    for (int i = 0; i < 2 * LANES; i++) words[i] = mixed(&state);
    memcpy(g->s, words, sizeof g->s);
}

INLINE word turned(word v, int by) { return (v << by) | (v >> (32 - by)); }

INLINE word next(Generators *g) {
    word *s = g->s;
    const word result = turned(s[0] + s[3], 7) + s[0], t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = turned(s[3], 11);
    return result;
}

/* Where a comparison holds, `a`, else `b`. */
INLINE vec choose(bits where, vec a, vec b) { return (vec)(((bits)a & where) | ((bits)b & ~where)); }

/* log and exp to a few units in the last place, for normal, positive, not huge numbers (after Cephes, S. Moshier). */
INLINE vec logarithm(vec q) {
    const bits raw = (bits)q;
    vec m = (vec)((raw & 0x007fffff) | 0x3f000000), e = __builtin_convertvector((raw >> 23) - 126, vec);
    const bits low = m < 0.70710678f;
    e += choose(low, (vec){0} - 1.0f, (vec){0});
    m = choose(low, m + m, m) - 1.0f;
    const vec z = m * m;
    vec y = m * 7.0376836292e-2f - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    y = y * m * z - 2.12194440e-4f * e - 0.5f * z;
    return m + y + 0.693359375f * e;
}

INLINE vec exponential(vec x) {
    const vec magic = (vec){0} + 12582912.0f, n = x * 1.44269504089f + magic - magic; /* to the nearest integer */
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = x * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1.0f;
    return y * (vec)((__builtin_convertvector(n, bits) + 127) << 23);
}

/* log u - log(1 - u) for u = (k + 1/2) / 2^23, k uniform: both are exact in float32, and never 0. */
INLINE vec logistic(Generators *g) {
    const vec k = __builtin_convertvector((bits)(next(g) >> 9), vec) + 0.5f;
    return logarithm(k / (8388608.0f - k));
}

INLINE vec get(const float *p, long count) {
    vec v = {0};
    if (count >= LANES) return *(const loose *)p;
    memcpy(&v, p, 4 * count);
    return v;
}

INLINE void put(float *p, vec v, long count) {
    if (count >= LANES) *(loose *)p = v;
    else memcpy(p, &v, 4 * count);
}

/* out[row][size]: noise, for blocks [first, last) of `per` rows each. */
void noise(float *out, long rows, long size, long per, uint64_t seed, long first, long last) {
    for (long block = first; block < last; block++) {
        Generators g;
        begin(&g, seed, block);
        const long end = (block + 1) * per < rows ? (block + 1) * per : rows;
        for (long row = block * per; row < end; row++) {
            for (long i = 0; i < size; i += LANES) put(out + row * size + i, logistic(&g), size - i);
        }
    }
}

/* x, out [row][2][size]: each unit times its share, sigmoid(+-(noise + x[row][0] - x[row][1]) / temperature). */
void draw(const float *x, float *out, long rows, long size, long per, float temperature, uint64_t seed, long first,
          long last) {
    const vec far = (vec){0} + FAR;
    for (long block = first; block < last; block++) {
        Generators g;
        begin(&g, seed, block);
        const long end = (block + 1) * per < rows ? (block + 1) * per : rows;
        for (long row = block * per; row < end; row++) {
            const float *one = x + 2 * row * size;
            float *to = out + 2 * row * size;
            for (long i = 0; i < size; i += LANES) {
                const vec a = get(one + i, size - i), b = get(one + size + i, size - i);
                vec z = (logistic(&g) + a - b) / temperature;
                z = choose(z < far, z, far); /* a NaN becomes FAR here, and the units bring it back */
                z = choose(z > -far, z, -far);
                const vec share = 1.0f / (1.0f + exponential(-z));
                put(to + i, a * share, size - i);
                put(to + size + i, b * (1.0f - share), size - i);
            }
        }
    }
}
