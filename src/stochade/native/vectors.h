/* Vectors of float32 in the compiler's own terms (GCC and Clang), small products of panels, blocks transposed. */
#include <string.h>

/* A panel has WIDE vectors at most; tiles of TALL rows by 4 or MOST rows by 1 or 2 vectors stay in the registers. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define TALL 6
#if defined(__AVX512F__) || defined(__aarch64__) /* 32 registers */
#define WIDE 4
#define MOST 8
#else /* 16 */
#define WIDE 2
#define MOST 6
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int bits __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE vec get(const float *p) { return *(const loose *)p; }
INLINE void put(float *p, vec v) { *(loose *)p = v; }
INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }
static long rounded(long count) { return (count + LANES - 1) / LANES * LANES; }

/* ---- the product ---- */

INLINE void tile(const int tall, const int wide, const float *panel, const int *off, long count,
                 const float *const *from, float *const *to, const char *ahead, long pace) {
    vec sum[8][4];
    const float *base[8];
    UNROLL for (int j = 0; j < tall; j++) {
        base[j] = from[j];
        UNROLL for (int v = 0; v < wide; v++) sum[j][v] = (vec){0};
    }
    for (long n = 0; n < count; n++, panel += wide * LANES, ahead += pace) {
        const long o = off[n];
        __builtin_prefetch(ahead, 0, 2);
        vec column[4];
        UNROLL for (int v = 0; v < wide; v++) column[v] = get(panel + v * LANES);
        UNROLL for (int j = 0; j < tall; j++) {
            const float s = base[j][o];
            UNROLL for (int v = 0; v < wide; v++) sum[j][v] += column[v] * s;
        }
    }
    UNROLL for (int j = 0; j < tall; j++) {
        UNROLL for (int v = 0; v < wide; v++) put(to[j] + v * LANES, sum[j][v]);
    }
}

typedef void Tile(const float *, const int *, long, const float *const *, float *const *, const char *, long);
#define TILE(tall, wide)                                                                                          \
    static void tile_##tall##_##wide(const float *panel, const int *off, long count, const float *const *from,    \
                                     float *const *to, const char *ahead, long pace) {                            \
        tile(tall, wide, panel, off, count, from, to, ahead, pace);                                               \
    }
#define TILES(wide) \
    TILE(1, wide) TILE(2, wide) TILE(3, wide) TILE(4, wide) TILE(5, wide) TILE(6, wide) TILE(7, wide) TILE(8, wide)
#define NAMES(wide) \
    {tile_1_##wide, tile_2_##wide, tile_3_##wide, tile_4_##wide, tile_5_##wide, tile_6_##wide, tile_7_##wide, \
     tile_8_##wide}
TILES(1)
TILES(2)
#if WIDE == 4
TILES(4)
static Tile *const tiles[][8] = {NAMES(1), NAMES(2), NAMES(2), NAMES(4)};
#else
static Tile *const tiles[][8] = {NAMES(1), NAMES(2)};
#endif

/* Panels hold 4, 2 or 1 vectors side by side; the one that begins at lane `first` of `lanes`. */
static long breadth(long first, long lanes) {
    const long left = (lanes - first) / LANES;
    return left >= WIDE ? WIDE : left >= 2 ? 2 : 1;
}

/* Where lanes `lane`.. of row 0 lie in panels of `count` rows; the next row is `*step` numbers on. */
static float *in_panels(float *panels, long lanes, long count, long lane, long *step) {
    long first = lane - lane % (WIDE * LANES);
    while (*step = breadth(first, lanes) * LANES, lane >= first + *step) first += *step;
    return panels + first * count + (lane - first);
}

typedef struct {
    long lanes, count, rows, columns; /* q = row * columns + column */
    const int *at, *off, *low, *high; /* [q], [n]; row r needs n from low[r] to high[r] only, the rest is padding */
    const int *where;                 /* q's row in the result; 0: q */
} Plan; /* to[where[q]][lane] = sum over n of panels[n][lane] * from[at[q] + off[n]] */

/* `ahead`: `size` numbers that are wanted afterwards, or 0. They are fetched little by little, because a product leaves
 * far memory idle, and waiting for masks would otherwise take as long as the products of small images. */
static void sweep(const Plan *plan, const float *panels, const float *from, float *to, const float *ahead,
                  long size) {
    const long all = plan->rows * plan->columns, steps = all * plan->lanes * plan->count / (TALL * WIDE * LANES);
    const long pace = ahead ? 4 * size / most(1, steps) + 1 : 0;
    const char *next = (const char *)(ahead ? ahead : from);
    for (long first = 0, wide; first < plan->lanes; first += wide * LANES) {
        wide = breadth(first, plan->lanes);
        const long tallest = wide == 4 ? TALL : MOST, parts = (all + tallest - 1) / tallest;
        for (long part = 0; part < parts; part++) {
            const long start = part * all / parts, tall = (part + 1) * all / parts - start;
            const float *sources[MOST];
            float *results[MOST];
            long low = plan->count, high = 0;
            for (long r = start / plan->columns; r <= (start + tall - 1) / plan->columns; r++) {
                low = least(low, plan->low[r]);
                high = most(high, plan->high[r]);
            }
            for (long j = 0; j < tall; j++) {
                const long q = start + j;
                sources[j] = from + plan->at[q];
                results[j] = to + (plan->where ? plan->where[q] : q) * plan->lanes + first;
            }
            const long count = most(0, high - low);
            const float *panel = panels + first * plan->count + low * wide * LANES;
            tiles[wide - 1][tall - 1](panel, plan->off + low, count, sources, results, next, pace);
            next += count * pace;
        }
    }
}

/* ---- transposing blocks of LANES x LANES ---- */

#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (bits){__VA_ARGS__})
#endif

INLINE void transpose(vec *block) { /* log2(LANES) perfect shuffles */
    vec next[LANES];
    UNROLL for (int round = 1; round < LANES; round *= 2) {
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = SHUFFLE(block[i], block[i + LANES / 2], LOW);
            next[2 * i + 1] = SHUFFLE(block[i], block[i + LANES / 2], HIGH);
        }
        UNROLL for (int i = 0; i < LANES; i++) block[i] = next[i];
    }
}

INLINE vec get_some(const float *p, long count) {
    vec v = {0};
    if (count >= LANES) return get(p);
    if (count > 0) memcpy(&v, p, 4 * count);
    return v;
}

INLINE void put_some(float *p, vec v, long count) {
    if (count >= LANES) put(p, v);
    else memcpy(p, &v, 4 * count);
}

/* A block of source[lane][n], lanes `step` apart, as rows n with lanes innermost. Rows from `count` and lanes from
 * `lanes` on hold anything: up to `end` memory may be read. */
INLINE void get_block(vec *block, const float *source, long step, long lanes, long count, const float *end) {
    if (end - source >= (LANES - 1) * step + LANES) {
        UNROLL for (int i = 0; i < LANES; i++) block[i] = get(source + i * step);
    } else {
        for (int i = 0; i < LANES; i++) block[i] = i < lanes ? get_some(source + i * step, count) : (vec){0};
    }
    transpose(block);
}

/* source[lane][count] -> panels; row n goes to row place[n] (0: n). */
static void to_panels(float *panels, const float *source, long real, long count, const int *place, const float *end) {
    const long lanes = rounded(real);
    for (long lane = 0; lane < lanes; lane += LANES) {
        long wide;
        float *base = in_panels(panels, lanes, count, lane, &wide);
        for (long n = 0; n < count; n += LANES) {
            vec block[LANES];
            get_block(block, source + lane * count + n, count, real - lane, count - n, end);
            const long some = least(LANES, count - n);
            for (long i = 0; i < some; i++) put(base + (place ? place[n + i] : n + i) * wide, block[i]);
        }
    }
}

/* source[place[n] (0: n)][lanes] -> [real][count] */
static void from_lanes(float *to, const float *source, long real, long count, const int *place) {
    const long lanes = rounded(real);
    for (long lane = 0; lane < real; lane += LANES) {
        for (long n = 0; n < count; n += LANES) {
            vec block[LANES];
            const long some = least(LANES, real - lane), left = least(LANES, count - n);
            UNROLL for (int i = 0; i < LANES; i++) {
                const long row = place ? place[n + least(i, left - 1)] : n + least(i, left - 1);
                block[i] = get(source + row * lanes + lane);
            }
            transpose(block);
            for (long i = 0; i < some; i++) put_some(to + (lane + i) * count + n, block[i], left);
        }
    }
}
