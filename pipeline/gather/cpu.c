/* The gather on a CPU; pipeline/gather.py holds the formulas. Compiled by pipeline/gather_native.py.

   Integers are 32 bits wide and shifts arithmetic, as there. One call makes samples first..last-1 of
   the batch; calls on different samples may run at the same time. */

#include <stdint.h>

#define MAX_ROW 4096

typedef struct {
    const uint8_t *plane[2]; /* rgb: [n,c,c,3] and none; yuv420: [n,c,c] and [n,c/2,c/2,2] */
    const int64_t *index;
    const int32_t *A_q16, *erase_xyxy, *taps;
    const float *colour;
    float scale[3], black[3], white[3];
    void *out;
    int64_t sample_stride, channel_stride, row_stride, pixel_stride; /* of out, elements */
    int32_t side, size, frames, colour_stride, is_yuv420, is_uint8;
} Gather;

static inline int32_t clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : value > high ? high : value;
}

/* The first of two neighbouring pixels, and the second's weight, 0..256. */
static inline int32_t corner(int32_t position, int32_t side, int32_t *weight) {
    int32_t at = clamp((position + 128) >> 8, 0, (side - 1) * 256);
    int32_t first = at >> 8 > side - 2 ? side - 2 : at >> 8;
    *weight = at - first * 256;
    return first;
}

static inline int32_t blend(const uint8_t *top, const uint8_t *low, int32_t step, int32_t fx,
                            int32_t fy) {
    int32_t upper = top[0] * 256 + (top[step] - top[0]) * fx;
    int32_t lower = low[0] * 256 + (low[step] - low[0]) * fx;
    return upper * 256 + (lower - upper) * fy;
}

/* Add the values of a plane's channels at one place. */
static inline void add_values(const uint8_t *plane, int32_t side, int32_t channels, int32_t X,
                              int32_t Y, int32_t *total) {
    int32_t fx, fy, x = corner(X, side, &fx), y = corner(Y, side, &fy);
    const uint8_t *top = plane + ((int64_t)y * side + x) * channels;
    const uint8_t *low = top + side * channels;
    for (int32_t k = 0; k < channels; k++) total[k] += blend(top + k, low + k, channels, fx, fy);
}

/* How far tap i of n is from the middle along one axis, rounded down. */
static inline int32_t offset(int32_t A, int32_t i, int32_t n) {
    int32_t a = (2 * i + 1 - n) * A, b = 2 * n, quotient = a / b;
    return quotient - (a % b < 0);
}

static inline void levels(const uint8_t *first, const uint8_t *second, int32_t side,
                          int32_t is_yuv420, int32_t X, int32_t Y, int32_t *total) {
    if (is_yuv420) {
        add_values(first, side, 1, X, Y, total);
        add_values(second, side / 2, 2, (X - 32768) >> 1, (Y - 32768) >> 1, total + 1);
    } else {
        add_values(first, side, 3, X, Y, total);
    }
}

static inline void row_of_levels(const Gather *g, const uint8_t *first, const uint8_t *second,
                                 const int32_t *A, int32_t n, int32_t v, int32_t is_yuv420,
                                 float (*p)[MAX_ROW]) {
    int32_t X0 = A[1] * v + A[2], Y0 = A[4] * v + A[5];
    for (int32_t u = 0; u < g->size; u++) {
        int32_t X = A[0] * u + X0, Y = A[3] * u + Y0, total[3] = {0, 0, 0}, level[3];
        if (n == 1) {
            levels(first, second, g->side, is_yuv420, X, Y, total);
            for (int k = 0; k < 3; k++) level[k] = (total[k] + 32768) >> 16;
        } else {
            for (int32_t j = 0; j < n; j++)
                for (int32_t i = 0; i < n; i++)
                    levels(first, second, g->side, is_yuv420,
                           X + offset(A[0], i, n) + offset(A[1], j, n),
                           Y + offset(A[3], i, n) + offset(A[4], j, n), total);
            for (int k = 0; k < 3; k++) level[k] = (total[k] + n * n * 32768) / (n * n * 65536);
        }
        if (is_yuv420) {
            int32_t y = level[0], d = level[1] - 128, e = level[2] - 128;
            level[0] = clamp(y + ((91881 * e + 32768) >> 16), 0, 255);
            level[1] = clamp(y + ((-22554 * d - 46802 * e + 32768) >> 16), 0, 255);
            level[2] = clamp(y + ((116130 * d + 32768) >> 16), 0, 255);
        }
        for (int k = 0; k < 3; k++) p[k][u] = (float)level[k];
    }
}

static void sample(const Gather *g, int32_t k) {
    int32_t row = k / g->frames, side = g->side;
    const int32_t *A = g->A_q16 + row * 6, *erase = g->erase_xyxy + row * 4;
    const float *colour = g->colour + (int64_t)row * g->colour_stride;
    int64_t pixels = g->index[k] * side * side;
    const uint8_t *first = g->plane[0] + pixels * (g->is_yuv420 ? 1 : 3);
    const uint8_t *second = g->is_yuv420 ? g->plane[1] + pixels / 2 : 0;
    float p[3][MAX_ROW], z[MAX_ROW];
    for (int32_t v = 0; v < g->size; v++) {
        if (g->is_yuv420) row_of_levels(g, first, second, A, g->taps[row], v, 1, p);
        else row_of_levels(g, first, second, A, g->taps[row], v, 0, p);
        int32_t begin = clamp(erase[0], 0, g->size), end = clamp(erase[2], 0, g->size);
        int32_t erased = v >= erase[1] && v < erase[3];
        for (int i = 0; i < 3; i++) {
            const float *m = colour + i * 4;
            float s = g->scale[i], black = g->black[i], white = g->white[i];
            float m0 = m[0] * s, m1 = m[1] * s, m2 = m[2] * s, m3 = m[3] * s + black;
            for (int32_t u = 0; u < g->size; u++) {
                float value = m3 + m0 * p[0][u] + m1 * p[1][u] + m2 * p[2][u];
                value = value < black ? black : value;
                z[u] = value > white ? white : value;
            }
            if (erased)
                for (int32_t u = begin; u < end; u++) z[u] = 0;
            int64_t at = k * g->sample_stride + i * g->channel_stride + v * g->row_stride;
            int64_t step = g->pixel_stride;
            if (g->is_uint8) {
                uint8_t *out = (uint8_t *)g->out + at;
                for (int32_t u = 0; u < g->size; u++) out[u * step] = (uint8_t)(z[u] + 0.5f);
            } else {
                float *out = (float *)g->out + at;
                for (int32_t u = 0; u < g->size; u++) out[u * step] = z[u];
            }
        }
    }
}

void gather(const Gather *g, int32_t first, int32_t last) {
    for (int32_t k = first; k < last; k++) sample(g, k);
}
