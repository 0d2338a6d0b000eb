/* The kernels on bytes: every level against loops written out here, bit by bit: ragged sizes, segments, operands at their extremes (where
 * 16-bit products would saturate), every way of finishing, divided work, a canary around the result. */
#include "ops/kern/quant.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { GUARD = 96 };

static const struct k_kernels *level(int i) { /* NULL beyond what the machine has */
    static const char *const names[] = {
#define X(NAME, text) text,
        K_LEVEL_MAP(X)
#undef X
    };
    return i < K_N_LEVELS ? k_find(names[i]) : NULL;
}

static uint32_t seed = 7;
static uint32_t next(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

/* Bytes of one kind: 0 any, 1 the extremes only. */
static uint8_t *bytes(int64_t n, int kind) {
    uint8_t *x = malloc((size_t)n + 4);
    assert_non_null(x);
    for (int64_t i = 0; i < n + 4; i++) x[i] = (uint8_t)(kind ? (next() & 1 ? 0xff : next() & 1 ? 0x80 : 0x7f) : next());
    return x;
}

static float *floats(int64_t n, float scale) {
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) x[i] = ((float)next() * 0x1p-24f + 0.01f) * scale;
    return x;
}

static float limited(float v, float lo, float hi) {
    v = v > lo ? v : lo;
    return nearbyintf(v < hi ? v : hi);
}

static int32_t read_residual(const struct k_quant_after *f, int64_t i, int64_t j) {
    const uint8_t b = f->residual[i * f->residual_row + j];
    return f->residual_signed ? b ^ 0x80 : b;
}

/* The specification in quant.h; what a result's bytes are. */
static uint32_t finished(const struct k_quant_after *f, uint32_t sum, int64_t i, int64_t j) {
    union {
        float f;
        uint32_t u;
    } y;
    if (f->offset) sum += (uint32_t)f->offset[j];
    if (f->row_sum) sum -= (uint32_t)f->row_sum[i] * (uint32_t)f->b_zero[j];
    if (f->out == K_QUANT_SUM) return sum;
    float v = (float)(int32_t)sum * f->scale[j];
    if (f->mid) v = limited(v, f->mid_lo, f->mid_hi);
    if (f->out == K_QUANT_FLOAT) {
        y.f = f->mid ? v * f->mid_scale : v;
        if (f->bias) y.f = y.f + f->bias[j];
        return y.u;
    }
    if (f->residual) v = v * f->mid_scale + ((float)read_residual(f, i, j) - f->residual_zero) * f->residual_scale;
    return (uint8_t)((int32_t)limited(v, f->lo, f->hi) + f->zero);
}

struct sizes {
    int64_t m, n, k, segments;
};

enum form { SUM, ROW_SUMS, FLOAT, FLOAT_MID, BYTE, BYTE_SIGNED, BYTE_LARGE, BYTE_RESIDUAL, BYTE_RESIDUAL_SIGNED, N_FORMS };

static struct k_quant_after make_after(enum form form, const struct sizes *s) {
    struct k_quant_after f = {.out = form <= ROW_SUMS ? K_QUANT_SUM : form <= FLOAT_MID ? K_QUANT_FLOAT : K_QUANT_BYTE};
    int32_t *offset = malloc((size_t)s->n * sizeof *offset), *zeros = malloc((size_t)s->n * sizeof *zeros), *row = malloc((size_t)s->m * sizeof *row);
    const bool large = form == BYTE_LARGE, is_signed = form == BYTE_SIGNED || form == BYTE_RESIDUAL_SIGNED;
    assert_true(offset && zeros && row);
    for (int64_t j = 0; j < s->n; j++) offset[j] = (int32_t)(next() % 20001) - 10000, zeros[j] = (int32_t)(next() % 256) - 128;
    for (int64_t i = 0; i < s->m; i++) row[i] = (int32_t)(next() % 100000);
    if (form == SUM)
        free(offset);
    else
        f.offset = offset;
    if (form == ROW_SUMS)
        f.row_sum = row;
    else
        free(row);
    f.b_zero = zeros;
    f.scale = floats(s->n, large ? 3e6f : 2.0f / (float)(s->k * s->segments + 1) / 64);
    f.small = !large;
    f.bias = floats(s->n, 5);
    f.mid = form == FLOAT_MID || form >= BYTE_RESIDUAL;
    f.mid_lo = -100;
    f.mid_hi = 155;
    f.mid_scale = 0.37f;
    if (form >= BYTE_RESIDUAL) f.residual = bytes(s->m * (s->n + 7), 0);
    f.residual_row = s->n + 7;
    f.residual_signed = form == BYTE_RESIDUAL_SIGNED;
    f.residual_zero = 128;
    f.residual_scale = 0.61f;
    f.zero = is_signed ? -11 : 31;
    f.lo = is_signed ? -128 + 11 : form == BYTE ? 0 : -31;
    f.hi = is_signed ? 127 + 11 : form == BYTE ? 90 : 255 - 31;
    return f;
}

static void free_after(struct k_quant_after *f, const int32_t *offset, const int32_t *row) {
    free((void *)(uintptr_t)offset);
    free((void *)(uintptr_t)row);
    free((void *)(uintptr_t)f->b_zero);
    free((void *)(uintptr_t)f->scale);
    free((void *)(uintptr_t)f->bias);
    free((void *)(uintptr_t)f->residual);
}

/* C as every level computes it, from rows at random places; `parts` divides the work. */
static void check_product(const struct sizes *s, enum form form, int kind, bool b_signed, bool parts) {
    const int64_t row_bytes = s->segments * (s->k + 9) + 3, depth = s->segments * s->k;
    uint8_t *a = bytes(s->m * row_bytes, kind), *b = bytes(depth * s->n, kind);
    const uint8_t **rows = malloc((size_t)s->m * sizeof *rows);
    int64_t *segment = malloc((size_t)s->segments * sizeof *segment);
    assert_true(rows && segment);
    for (int64_t i = 0; i < s->m; i++) rows[i] = a + (s->m - 1 - i) * row_bytes;
    for (int64_t i = 0; i < s->segments; i++) segment[i] = (s->segments - 1 - i) * (s->k + 9);
    struct k_quant_after after = make_after(form, s);
    const int32_t *offset = after.offset, *row_sum = after.row_sum;
    const int64_t size = after.out == K_QUANT_BYTE ? 1 : 4, c_row = s->n + 5, c_bytes = s->m * c_row * size + 2 * GUARD;

    for (int l = 0; level(l); l++) {
        const struct k_quant *q = level(l)->quant;
        int8_t *packed = malloc(k_quant_packed_bytes(q, s->segments, s->k, s->n) + 1);
        int32_t *sums = malloc((size_t)s->n * sizeof *sums);
        uint8_t *c = malloc((size_t)c_bytes);
        assert_true(packed && c && sums);
        memset(c, 0xa5, (size_t)c_bytes);
        k_quant_pack(level(l), s->segments, s->k, s->n, b, b_signed, s->k * s->n, s->n, 1, packed, sums);
        if (parts && s->segments == 1) { /* the same from a transposed B */
            uint8_t *across = malloc((size_t)(depth * s->n));
            assert_non_null(across);
            for (int64_t i = 0; i < depth * s->n; i++) across[i % s->n * depth + i / s->n] = b[i];
            k_quant_pack(level(l), 1, s->k, s->n, across, b_signed, 0, 1, depth, packed, sums);
            free(across);
        }
        const struct k_quant_product p = {.n = s->n, .k = s->k, .n_segments = s->segments, .segment = segment, .b = packed, .c_row = c_row, .after = after};
        const int64_t half_m = parts ? s->m / 2 : 0, half_n = parts ? s->n / 2 / q->nr * q->nr : 0;
        k_quant_rows(level(l), &p, rows + half_m, half_m, s->m - half_m, half_n, s->n, c + GUARD + (half_m * c_row + half_n) * size);
        k_quant_rows(level(l), &p, rows + half_m, half_m, s->m - half_m, 0, half_n, c + GUARD + half_m * c_row * size);
        k_quant_rows(level(l), &p, rows, 0, half_m, 0, s->n, c + GUARD);
        for (int64_t j = 0; j < s->n; j++) {
            int32_t total = 0;
            for (int64_t i = 0; i < depth; i++) total += (int8_t)(b[i * s->n + j] ^ (b_signed ? 0 : 0x80));
            assert_int_equal(sums[j], total);
        }
        for (int64_t i = 0; i < s->m; i++)
            for (int64_t j = 0; j < s->n + 5; j++) {
                uint32_t sum = 0, got = 0;
                for (int64_t g = 0; g < s->segments; g++)
                    for (int64_t x = 0; x < s->k; x++)
                        sum += (uint32_t)((int32_t)rows[i][segment[g] + x] * (int8_t)(b[(g * s->k + x) * s->n + (j < s->n ? j : 0)] ^ (b_signed ? 0 : 0x80)));
                const uint32_t want = j < s->n ? finished(&after, sum, i, j) : size == 1 ? 0xa5 : 0xa5a5a5a5u;
                memcpy(&got, c + GUARD + (i * c_row + j) * size, (size_t)size);
                if (got != want)
                    fail_msg("%s m %ld n %ld k %ld x %ld form %d: (%ld, %ld) is %x, expected %x", level(l)->name, (long)s->m, (long)s->n, (long)s->segments, (long)s->k,
                             (int)form, (long)i, (long)j, got, want);
            }
        for (int i = 0; i < GUARD; i++) assert_true(c[i] == 0xa5 && c[c_bytes - 1 - i] == 0xa5);
        free(packed);
        free(sums);
        free(c);
    }
    free_after(&after, offset, row_sum);
    free(a);
    free(b);
    free(rows);
    free(segment);
}

static void test_product_equals_the_plain_sum(void **state) {
    (void)state;
    for (int round = 0; round < 120; round++) {
        const struct sizes s = {1 + next() % 21, 1 + next() % 150, 1 + next() % 70, 1 + next() % 4};
        check_product(&s, (enum form)(round % N_FORMS), round % 4 == 3, round & 1, round % 5 == 0);
    }
}

static void test_product_of_whole_panels(void **state) {
    (void)state;
    for (int form = 0; form < N_FORMS; form++) check_product(&(struct sizes){13, 128, 64, 1}, (enum form)form, form & 1, true, true);
    for (int form = 0; form < N_FORMS; form++) check_product(&(struct sizes){70, 144, 128, 1 + form % 3}, (enum form)form, form & 1, true, form & 1);
    check_product(&(struct sizes){2, 17, 2500, 1}, SUM, 1, false, true);
}

static void test_depthwise_equals_the_plain_sum(void **state) {
    (void)state;
    for (int round = 0; round < 60; round++) {
        const int64_t channels = 1 + next() % 150, kh = round % 3 ? 3 : 1 + next() % 6, kw = round % 3 ? 3 : 1 + next() % 5, width = 1 + next() % 9;
        struct k_depthwise_q d = {.channels = channels, .width = width, .kh = kh, .kw = kw, .stride = round % 2 ? 1 : 1 + next() % 3,
                                  .dilation = round % 2 ? 1 : 1 + next() % 2, .left = -(int64_t)(next() % 3), .in_width = 1 + next() % 14, .zero = (uint8_t)next()};
        uint8_t *x = bytes(kh * d.in_width * channels + 64, round % 4 == 1), *w = bytes(channels * kh * kw, round % 4 == 1);
        const uint8_t *rows[8];
        for (int64_t i = 0; i < kh; i++) rows[i] = x + i * d.in_width * channels;
        int32_t *offset = calloc(256, sizeof *offset), *plain_offset = calloc(256, sizeof *offset);
        float *scale = calloc(256, sizeof *scale), *plain_scale = floats(256, 0.02f);
        uint8_t *y = malloc((size_t)(width * channels + 2 * GUARD));
        assert_true(offset && plain_offset && scale && y);
        for (int64_t c = 0; c < channels; c++) plain_offset[c] = (int32_t)(next() % 20001) - 10000;
        struct k_quant_after after = {.out = K_QUANT_BYTE, .lo = -3, .hi = 252, .zero = 3, .offset = offset, .scale = scale, .small = round % 5 != 0};
        struct k_quant_after plain = after;
        plain.offset = plain_offset, plain.scale = plain_scale;
        for (int l = 0; level(l); l++) {
            const struct k_quant *q = level(l)->quant;
            int8_t *packed = malloc(k_quant_depthwise_bytes(q, channels, kh, kw));
            assert_non_null(packed);
            k_quant_pack_depthwise(q, channels, kh, kw, (const int8_t *)w, packed);
            for (int64_t c = 0; c < channels; c++) offset[k_quant_channel(q, c)] = plain_offset[c], scale[k_quant_channel(q, c)] = plain_scale[c];
            memset(y, 0xa5, (size_t)(width * channels + 2 * GUARD));
            d.w = packed, d.rows = rows, d.y = y + GUARD, d.after = &after;
            q->depthwise(&d);
            for (int64_t o = 0; o < width; o++)
                for (int64_t c = 0; c < channels; c++) {
                    uint32_t sum = 0;
                    for (int64_t i = 0; i < kh * kw; i++) {
                        const int64_t at = d.left + o * d.stride + i % kw * d.dilation;
                        const int32_t v = at < 0 || at >= d.in_width ? d.zero : rows[i / kw][at * channels + c];
                        sum += (uint32_t)(v * (int8_t)w[c * kh * kw + i]);
                    }
                    const uint8_t want = (uint8_t)finished(&plain, sum, 0, c), got = d.y[o * channels + c];
                    if (got != want) fail_msg("%s channels %ld output %ld: %d, expected %d", level(l)->name, (long)c, (long)o, got, want);
                }
            for (int i = 0; i < GUARD; i++) assert_true(y[i] == 0xa5 && y[width * channels + GUARD + i] == 0xa5);
            free(packed);
        }
        free(x);
        free(w);
        free(offset);
        free(plain_offset);
        free(scale);
        free(plain_scale);
        free(y);
    }
}

/* Exact halves, values far outside, no numbers; scales that have no reciprocal. */
static void test_quantize_rounds_the_quotient(void **state) {
    (void)state;
    static const float scales[] = {0.5f, 0.1f, 3.0f, 1.0f / 255, 0x1p-140f, 0x1p120f, 0.007843138f};
    for (size_t k = 0; k < sizeof scales / sizeof *scales; k++) {
        float x[203];
        uint8_t y[203];
        for (int i = 0; i < 203; i++) x[i] = i < 100 ? ((float)i - 50.5f) * scales[k] : ((float)(next() & 0xffff) - 32768.0f) * scales[k] / 64;
        x[3] = INFINITY, x[4] = -INFINITY, x[5] = NAN, x[6] = 3e38f, x[7] = -3e38f, x[8] = -0.0f, x[9] = 1e-44f;
        for (int l = 0; level(l); l++) {
            level(l)->quant->quantize(203, x, scales[k], -100, 155, 100, y);
            for (int i = 0; i < 203; i++) {
                const float v = x[i] / scales[k], want = v != v ? 0 : limited(v, -100, 155);
                if (y[i] != (int)want + 100) fail_msg("%s scale %a: %a gives %d, expected %d", level(l)->name, (double)scales[k], (double)x[i], y[i], (int)want + 100);
            }
        }
    }
}

static void test_elements(void **state) {
    (void)state;
    for (int64_t n = 0; n < 200; n += 13) {
        uint8_t *a = bytes(n, 0), *b = bytes(n, 0), y[200], z[200];
        float f[200];
        int32_t sums[200];
        const struct k_quant_after after = {.residual_zero = 17, .residual_scale = 0.4f, .lo = -20, .hi = 235, .zero = 20};
        for (int l = 0; level(l); l++) {
            const struct k_quant *q = level(l)->quant;
            int32_t total = 0;
            q->add(n, a, n % 2, 3, 0.7f, b, &after, y);
            for (int64_t i = 0; i < n; i++)
                assert_int_equal(y[i], (int)limited(((float)(n % 2 ? (int8_t)a[i] : a[i]) - 3) * 0.7f + ((float)b[i] - 17) * 0.4f, -20, 235) + 20);
            q->multiply(n, a, n % 2, 3, 0.007f, b, &after, y);
            for (int64_t i = 0; i < n; i++)
                assert_int_equal(y[i], (int)limited(((float)(n % 2 ? (int8_t)a[i] : a[i]) - 3) * ((float)b[i] - 17) * 0.007f, -20, 235) + 20);
            q->dequantize(n, a, n % 2, -5, 0.3f, f);
            for (int64_t i = 0; i < n; i++) assert_true(f[i] == (float)((n % 2 ? (int8_t)a[i] : a[i]) + 5) * 0.3f);
            memcpy(z, b, (size_t)n);
            q->max(n, a, z, n % 2);
            for (int64_t i = 0; i < n; i++) assert_int_equal(z[i], n % 2 ? (uint8_t)((int8_t)a[i] > (int8_t)b[i] ? a[i] : b[i]) : a[i] > b[i] ? a[i] : b[i]);
            q->flip(n, a, z);
            for (int64_t i = 0; i < n; i++) sums[i] = (int32_t)i, assert_int_equal(z[i], a[i] ^ 0x80);
            q->sums(n, a, sums);
            for (int64_t i = 0; i < n; i++) assert_int_equal(sums[i], i + a[i]), total += a[i];
            assert_int_equal(q->sum(n, a), total);
        }
        free(a);
        free(b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_product_equals_the_plain_sum), cmocka_unit_test(test_product_of_whole_panels),
                                       cmocka_unit_test(test_depthwise_equals_the_plain_sum), cmocka_unit_test(test_quantize_rounds_the_quotient),
                                       cmocka_unit_test(test_elements)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
