/* Convolutions with filters of each example's own, float32, and their gradients.
 *
 * Every pass is one small product, done by `sweep`:
 *
 *     to[q][lane] = sum over n of panel[n][lane] * from[at[q] + off[n]]
 *
 * Vectors run over channels (or, for few input channels, over pixels), scalars are broadcast from wherever a table
 * says, so that strides, odd sizes and 7-wide images fill the vectors as well as any.
 *
 *     pass                       lane            q                  n                    panel
 *     output                     output channel  output pixel       (row, input, column) masked filters, transposed
 *     gradient of the filters    output channel  (row, input, col.) output pixel         upstream, transposed
 *     gradient of the input      input channel   input pixel        (row, output, col.)  masked filters, transposed
 *       with few input channels  output pixel    (input, row, col.) output channel       upstream; then folded
 *
 * One example at a time: what it needs fits the second cache in usual layers. Sums have a fixed order: same input,
 * same bits.
 */
#include <stdlib.h>

#include "vectors.h"

/* ---- tables and room, once a call ---- */

#define STRIDES 2

typedef struct {
    long inputs, height, width, outputs, rows, columns, stride, padding; /* rows, columns: of a filter */
} Shape;

typedef struct {
    Plan plan;
    long across, start; /* taps side by side; where its panels start */
} Phase; /* input pixels whose row and column leave the same remainders, so that the same taps reach them */

typedef struct {
    Shape s;
    long height, width, pixels; /* of the output */
    long area, taps, size;      /* numbers of one filter's channel, of one filter, of all filters */
    long high, wide;            /* the padded image */
    long up_high, up_wide;      /* the padded upstream; or a row of a plane to fold into */
    int folds;                  /* the input's gradient is formed in output pixels and folded */
    int *tap, *natural, *pixel; /* offsets of taps in (row, input, column); their place, from (input, row, column) */
    int *first_tap, *end_tap, *first_pixel, *end_pixel; /* what does not meet padding only, by row */
    Phase phase[STRIDES * STRIDES];
    int *step, *all; /* of the folding */
    const float *up_end; /* where the upstream of all examples ends */
    float *image, *filters, *panels, *up_panels, *up_image, *lanes;
} Work;

static long within(long value, long count) { return most(0, least(value, count)); }

static void *room(char **next, long count) {
    char *here = *next;
    *next += (4 * count + 63) / 64 * 64;
    return here;
}

static void tables(Work *k) {
    const Shape s = k->s;
    for (long i = 0; i < s.inputs; i++) {
        for (long r = 0; r < s.rows; r++) {
            for (long c = 0; c < s.columns; c++) {
                const long n = (r * s.inputs + i) * s.columns + c;
                k->natural[(i * s.rows + r) * s.columns + c] = n;
                k->tap[n] = (i * k->high + r) * k->wide + c;
            }
        }
    }
    for (long y = 0; y < k->height; y++) {
        for (long x = 0; x < k->width; x++) k->pixel[y * k->width + x] = s.stride * (y * k->wide + x);
        k->first_tap[y] = within(s.padding - y * s.stride, s.rows) * s.inputs * s.columns;
        k->end_tap[y] = within(s.height + s.padding - y * s.stride, s.rows) * s.inputs * s.columns;
    }
    for (long r = 0; r < s.rows; r++) { /* stride * y + r - padding within [0, height) */
        const long before = most(0, s.padding - r), end = most(0, s.height + s.padding - r);
        k->first_pixel[r] = within((before + s.stride - 1) / s.stride, k->height) * k->width;
        k->end_pixel[r] = within((end + s.stride - 1) / s.stride, k->height) * k->width;
    }
}

/* The tap (row, column) = stride * (a, b) + (top, left) brings the pixel at stride * (y, x) + (top, left) of the padded
 * image the upstream at (y - a, x - b). */
static void phases(Work *k, char **next) {
    const Shape s = k->s;
    long start = 0;
    for (long top = 0; top < s.stride; top++) {
        for (long left = 0; left < s.stride; left++) {
            Phase *phase = &k->phase[top * s.stride + left];
            Plan *plan = &phase->plan;
            const long skip_y = (top + s.padding * (s.stride - 1)) % s.stride; /* the first of its rows, unpadded */
            const long skip_x = (left + s.padding * (s.stride - 1)) % s.stride;
            const long down = most(0, (s.rows - top + s.stride - 1) / s.stride);
            phase->across = most(0, (s.columns - left + s.stride - 1) / s.stride);
            phase->start = start;
            plan->lanes = rounded(s.inputs);
            plan->count = down * s.outputs * phase->across;
            plan->rows = most(0, (s.height - skip_y + s.stride - 1) / s.stride);
            plan->columns = most(0, (s.width - skip_x + s.stride - 1) / s.stride);
            int *at = room(next, plan->rows * plan->columns), *where = room(next, plan->rows * plan->columns);
            int *off = room(next, plan->count), *low = room(next, plan->rows), *high = room(next, plan->rows);
            plan->at = at, plan->where = where, plan->off = off, plan->low = low, plan->high = high;
            start += plan->lanes * plan->count;
            if (!k->image) continue; /* sizes only */
            for (long n = 0; n < plan->count; n++) {
                const long b = n % phase->across, o = n / phase->across % s.outputs, a = n / phase->across / s.outputs;
                off[n] = (o * k->up_high - a) * k->up_wide - b;
            }
            for (long r = 0; r < plan->rows; r++) {
                const long y = (skip_y + r * s.stride + s.padding) / s.stride;
                low[r] = within(y - k->height + 1, down) * s.outputs * phase->across;
                high[r] = within(y + 1, down) * s.outputs * phase->across;
                for (long c = 0; c < plan->columns; c++) {
                    const long x = (skip_x + c * s.stride + s.padding) / s.stride, q = r * plan->columns + c;
                    at[q] = (y + (s.rows - 1) / s.stride) * k->up_wide + x + (s.columns - 1) / s.stride;
                    where[q] = (skip_y + r * s.stride) * s.width + skip_x + c * s.stride;
                }
            }
        }
    }
}

/* Everything in one piece of memory, `base`; with 0 the sizes only. Returns the end. */
static char *lay_out(Work *k, char *base, int backward) {
    const Shape s = k->s;
    char *next = base;
    const long lanes = rounded(s.outputs), columns = rounded(k->pixels);
    k->tap = room(&next, k->taps), k->natural = room(&next, k->taps), k->pixel = room(&next, k->pixels);
    k->first_tap = room(&next, k->height), k->end_tap = room(&next, k->height);
    k->first_pixel = room(&next, s.rows), k->end_pixel = room(&next, s.rows);
    k->filters = room(&next, k->size + LANES); /* blocks at the end are read beyond it, as of lanes */
    long result = most(k->pixels, backward ? k->taps : 0) * lanes, panels = lanes * k->taps;
    if (backward) {
        result = most(result, k->folds ? k->area * columns : s.height * s.width * rounded(s.inputs));
        panels = k->folds ? columns * s.outputs : rounded(s.inputs) * s.outputs * k->area;
        k->up_panels = room(&next, lanes * k->pixels);
        k->up_image = room(&next, (k->folds ? s.stride : s.outputs) * k->up_high * k->up_wide);
        k->step = room(&next, s.outputs), k->all = room(&next, k->area);
    }
    k->lanes = room(&next, result + LANES), k->panels = room(&next, panels);
    k->image = room(&next, s.inputs * k->high * k->wide);
    if (!base) k->image = 0;
    if (backward && !k->folds) phases(k, &next);
    return next;
}

static char *begin(Work *k, const Shape *shape, int backward) {
    const Shape s = *shape;
    memset(k, 0, sizeof *k);
    k->s = s;
    k->high = s.height + 2 * s.padding, k->wide = s.width + 2 * s.padding;
    k->height = (k->high - s.rows) / s.stride + 1, k->width = (k->wide - s.columns) / s.stride + 1;
    k->pixels = k->height * k->width;
    k->area = s.rows * s.columns, k->taps = s.inputs * k->area, k->size = s.outputs * k->taps;
    /* the share of lanes that work, and a tenth for the folding */
    k->folds = 10 * s.inputs * rounded(k->pixels) < 9 * k->pixels * rounded(s.inputs);
    k->up_high = most((s.height - 1 + s.padding) / s.stride + 1, k->height) + (s.rows - 1) / s.stride;
    k->up_wide = most((s.width - 1 + s.padding) / s.stride + 1, k->width) + (s.columns - 1) / s.stride;
    if (k->folds) k->up_high = k->high, k->up_wide = rounded(most(k->width, k->wide / s.stride + 1)) + s.columns;
    const size_t bytes = lay_out(k, 0, backward) - (char *)0;
    char *base = aligned_alloc(64, bytes);
    if (!base) return 0;
    lay_out(k, base, backward);
    memset(k->image, 0, 4 * s.inputs * k->high * k->wide);
    tables(k);
    if (backward) {
        for (long o = 0; o < s.outputs; o++) k->step[o] = o * k->taps;
        for (long n = 0; n < k->area; n++) k->all[n] = n;
        if (!k->folds) memset(k->up_image, 0, 4 * s.outputs * k->up_high * k->up_wide);
    }
    return base;
}

/* ---- one example ---- */

static void copy_inside(float *to, long high, long wide, long top, long left, const float *from, long channels,
                        long height, long width) {
    for (long i = 0; i < channels; i++) {
        for (long y = 0; y < height; y++) {
            memcpy(to + (i * high + top + y) * wide + left, from + (i * height + y) * width, 4 * width);
        }
    }
}

static void pad_image(Work *k, const float *x) {
    copy_inside(k->image, k->high, k->wide, k->s.padding, k->s.padding, x, k->s.inputs, k->s.height, k->s.width);
}

static void take_filters(Work *k, const float *weight, const float *mask) {
    for (long n = 0; n < k->size; n++) k->filters[n] = mask ? weight[n] * mask[n] : weight[n];
}

static void output(Work *k, float *out, const float *ahead) {
    const Shape s = k->s;
    const Plan plan = {rounded(s.outputs), k->taps, k->height, k->width, k->pixel, k->tap, k->first_tap, k->end_tap, 0};
    to_panels(k->panels, k->filters, s.outputs, k->taps, k->natural, k->filters + k->size + LANES);
    sweep(&plan, k->panels, k->image, k->lanes, ahead, k->size);
    from_lanes(out, k->lanes, s.outputs, k->pixels, 0);
}

/* dm = w G, dw += m G; without a mask dm = G */
static void filter_gradient(Work *k, const float *up, const float *weight, const float *mask, float *dm, float *dw,
                            const float *ahead) {
    const Shape s = k->s;
    const long lanes = rounded(s.outputs);
    const Plan plan = {lanes, k->pixels, s.rows, s.inputs * s.columns, k->tap, k->pixel, k->first_pixel, k->end_pixel,
                       0};
    to_panels(k->up_panels, up, s.outputs, k->pixels, 0, k->up_end);
    sweep(&plan, k->up_panels, k->image, k->lanes, ahead, k->size);
    from_lanes(k->filters, k->lanes, s.outputs, k->taps, k->natural);
    for (long n = 0; n < k->size; n++) {
        const float each = k->filters[n];
        if (dm) dm[n] = mask ? weight[n] * each : each;
        if (dw) dw[n] += mask[n] * each;
    }
}

static void input_gradient(Work *k, const float *up, float *dx, const float *ahead) {
    const Shape s = k->s;
    const long lanes = rounded(s.inputs), back = (s.columns - 1) / s.stride;
    copy_inside(k->up_image, k->up_high, k->up_wide, (s.rows - 1) / s.stride, back, up, s.outputs, k->height, k->width);
    for (long lane = 0; lane < lanes; lane += LANES) {
        for (long n = 0; n < k->area; n += LANES) {
            const long some = least(LANES, k->area - n);
            float *to[LANES];
            long step[LANES];
            for (long i = 0; i < some; i++) {
                const long row = (n + i) / s.columns, column = (n + i) % s.columns;
                const Phase *phase = &k->phase[row % s.stride * s.stride + column % s.stride];
                long wide;
                to[i] = in_panels(k->panels + phase->start, lanes, phase->plan.count, lane, &wide);
                to[i] += (row / s.stride * s.outputs * phase->across + column / s.stride) * wide;
                step[i] = phase->across * wide;
            }
            for (long o = 0; o < s.outputs; o++) {
                vec block[LANES];
                get_block(block, k->filters + (o * s.inputs + lane) * k->area + n, k->area, s.inputs - lane, k->area - n,
                          k->filters + k->size + LANES);
                for (long i = 0; i < some; i++) put(to[i] + o * step[i], block[i]);
            }
        }
    }
    const long parts = s.stride * s.stride, part = k->size / parts;
    for (long p = 0; p < parts; p++) {
        sweep(&k->phase[p].plan, k->panels + k->phase[p].start, k->up_image, k->lanes, ahead ? ahead + p * part : 0,
              part);
    }
    from_lanes(dx, k->lanes, s.inputs, s.height * s.width, 0);
}

static void folded_input_gradient(Work *k, const float *up, float *dx, const float *ahead) {
    (void)ahead;
    const Shape s = k->s;
    const long lanes = rounded(k->pixels);
    const int none = 0, all = s.outputs;
    const Plan plan = {lanes, s.outputs, 1, k->area, k->all, k->step, &none, &all, 0};
    for (long lane = 0; lane < lanes; lane += LANES) {
        long wide;
        float *to = in_panels(k->panels, lanes, s.outputs, lane, &wide);
        for (long o = 0; o < s.outputs; o++) {
            const float *from = up + o * k->pixels + lane; /* lanes behind the last pixel may hold anything */
            put(to + o * wide, k->up_end - from >= LANES ? get(from) : get_some(from, k->pixels - lane));
        }
    }
    /* padded column X is column X / stride of plane X % stride, so that all sums run over neighbours */
    const long pitch = k->up_wide, row = s.stride * pitch;
    bits rest;
    for (long i = 0; i < LANES; i++) rest[i] = i < k->width % LANES ? -1 : 0;
    for (long i = 0; i < s.inputs; i++) {
        sweep(&plan, k->panels, k->filters + i * k->area, k->lanes, 0, 0);
        memset(k->up_image, 0, 4 * k->high * row);
        for (long n = 0; n < k->area; n++) {
            const long down = n / s.columns, right = n % s.columns;
            for (long y = 0; y < k->height; y++) {
                const float *from = k->lanes + n * lanes + y * k->width;
                float *to = k->up_image + (y * s.stride + down) * row + right % s.stride * pitch + right / s.stride;
                long x = 0;
                for (; x + LANES <= k->width; x += LANES) put(to + x, get(to + x) + get(from + x));
                if (x < k->width) put(to + x, get(to + x) + (vec)((bits)get(from + x) & rest));
            }
        }
        for (long y = 0; y < s.height; y++) {
            const float *from = k->up_image + (y + s.padding) * row;
            float *to = dx + (i * s.height + y) * s.width;
            if (s.stride == 1) memcpy(to, from + s.padding, 4 * s.width);
            else for (unsigned long x = s.padding, end = x + s.width; x < end; x++) *to++ = from[x % 2 * pitch + x / 2];
        }
    }
}

/* ---- what Python calls: examples `first` to `end`; 0, or 1 where there is no memory. Without a mask every example
 * has weights of its own, dm is their gradient and dw 0. dx, dm and dw may be 0; dw is added to. ---- */

int forward(const Shape *shape, const float *x, const float *weight, const float *mask, float *out, long first,
            long end) {
    Work k;
    char *memory = begin(&k, shape, 0);
    if (!memory) return 1;
    const float *own = mask ? mask : weight; /* what each example has its own of */
    for (long n = first; n < end; n++) {
        pad_image(&k, x + n * shape->inputs * shape->height * shape->width);
        take_filters(&k, mask ? weight : weight + n * k.size, mask ? mask + n * k.size : 0);
        output(&k, out + n * shape->outputs * k.pixels, n + 1 < end ? own + (n + 1) * k.size : 0);
    }
    free(memory);
    return 0;
}

int backward(const Shape *shape, const float *x, const float *weight, const float *mask, const float *upstream,
             float *dx, float *dm, float *dw, long first, long end) {
    Work k;
    char *memory = begin(&k, shape, 1);
    if (!memory) return 1;
    const float *own = mask ? mask : weight;
    const long image = shape->inputs * shape->height * shape->width;
    k.up_end = upstream + end * shape->outputs * k.pixels;
    for (long n = first; n < end; n++) {
        const float *base = mask ? weight : weight + n * k.size, *hide = mask ? mask + n * k.size : 0;
        const float *up = upstream + n * shape->outputs * k.pixels;
        if (dx) {
            take_filters(&k, base, hide);
            (k.folds ? folded_input_gradient : input_gradient)(&k, up, dx + n * image, dm ? dm + n * k.size : 0);
        }
        if (dm || dw) {
            pad_image(&k, x + n * image);
            filter_gradient(&k, up, base, hide, dm ? dm + n * k.size : 0, dw,
                            n + 1 < end ? own + (n + 1) * k.size : 0);
        }
    }
    free(memory);
    return 0;
}
