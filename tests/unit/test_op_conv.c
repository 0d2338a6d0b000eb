/* Conv: random geometries against the plain form on every ISA level; one thread against three, an image alone against the same image
 * in a batch, and all levels with each other, bit by bit; the fused form; what infer refuses. */
#include "ops/exec.h"
#include "ops/kern/kern.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct shape {
    int rank; /* spatial */
    int64_t n, group, ic, oc, in[3], kernel[3], stride[3], dilation[3], pad[6]; /* ic, oc: of a group */
    const char *auto_pad;
};

struct fixture {
    struct op_attr attrs[8];
    struct op_node node;
    struct op_ctx ctx;
    struct op_exec exec;
    struct op_error err;
    struct op_packs packs;
    struct op_tensor x, w, b, r, y;
    const struct op_tensor *in[4];
    struct op_tensor *out[1];
};

static uint32_t seed = 7;
static uint32_t draw(uint32_t n) {
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 10) % n;
}

static float *values(int64_t n) {
    float *x = malloc((size_t)(n > 0 ? n : 1) * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++) x[i] = (float)draw(4096) / 2048.0f - 1.0f;
    return x;
}

static struct op_tensor tensor(int rank, const int64_t *dims) {
    struct op_tensor t = {.dtype = OP_F32, .rank = rank};
    memcpy(t.dims, dims, (size_t)rank * sizeof *dims);
    t.data = values(op_tensor_count(&t));
    return t;
}

static void setup(struct fixture *f, const struct shape *s, bool fused) {
    *f = (struct fixture){0};
    int n = 0;
    f->attrs[n++] = (struct op_attr){.name = "group", .kind = OP_ATTR_INT, .i = s->group, .n = 1};
    f->attrs[n++] = (struct op_attr){.name = "strides", .kind = OP_ATTR_INTS, .ints = (int64_t *)s->stride, .n = s->rank};
    f->attrs[n++] = (struct op_attr){.name = "dilations", .kind = OP_ATTR_INTS, .ints = (int64_t *)s->dilation, .n = s->rank};
    if (s->auto_pad)
        f->attrs[n++] = (struct op_attr){.name = "auto_pad", .kind = OP_ATTR_STRING, .s = {s->auto_pad, strlen(s->auto_pad)}, .n = 1};
    else
        f->attrs[n++] = (struct op_attr){.name = "pads", .kind = OP_ATTR_INTS, .ints = (int64_t *)s->pad, .n = 2 * s->rank};
    if (fused) f->attrs[n++] = (struct op_attr){.name = "activation", .kind = OP_ATTR_STRING, .s = {"HardSwish", 9}, .n = 1};
    int64_t dims[5] = {s->n, s->ic * s->group}, w_dims[5] = {s->oc * s->group, s->ic};
    memcpy(dims + 2, s->in, sizeof s->in);
    memcpy(w_dims + 2, s->kernel, sizeof s->kernel);
    f->x = tensor(2 + s->rank, dims);
    f->w = tensor(2 + s->rank, w_dims);
    f->b = tensor(1, w_dims);
    f->in[0] = &f->x, f->in[1] = &f->w, f->in[2] = &f->b;
    f->out[0] = &f->y;
    f->node = (struct op_node){.name = "c", .op_type = "Conv", .domain = fused ? "quern" : "", .n_in = fused ? 4 : 3, .n_out = 1, .attrs = f->attrs, .n_attrs = n};
    f->node.desc = op__desc_find(f->node.domain, fused ? "FusedConv" : "Conv", 13);
    assert_non_null(f->node.desc);
    f->exec.err = &f->err;
    f->ctx = (struct op_ctx){.node = &f->node, .n_in = fused ? 4 : 3, .n_out = 1, .in = f->in, .out = f->out, .exec = &f->exec};
    if (fused) {
        struct op_prepare p = {.node = &f->node, .n_in = 2, .in = f->in, .cpu = "generic", .packs = &f->packs, .err = &f->err};
        assert_int_equal(f->node.desc->prepare(&p), OP_OK);
        f->ctx.state = f->node.state;
        assert_int_equal(f->node.desc->infer(&f->ctx), OP_OK);
        f->node.desc->release(f->node.state);
        op__packs_finish(&f->packs);
        f->r = tensor(f->y.rank, f->y.dims);
        f->in[3] = &f->r;
    }
}

static void teardown(struct fixture *f) {
    free(f->x.data), free(f->w.data), free(f->b.data), free(f->r.data), free(f->y.data);
}

/* Runs at a level into fresh memory with canaries behind it, which it returns; constant says whether the weights are known at load. */
static float *run(struct fixture *f, const char *cpu, bool constant, bool reference, int n_threads) {
    struct op_prepare p = {.node = &f->node, .n_in = f->ctx.n_in, .cpu = cpu, .packs = &f->packs, .err = &f->err};
    const struct op_tensor *known[4] = {NULL, constant ? &f->w : NULL, &f->b, NULL};
    p.in = known;
    f->node.state = NULL;
    if (f->node.desc->prepare(&p) != OP_OK) fail_msg("prepare: %s", f->err.text);
    f->ctx.state = f->node.state;
    f->ctx.kern = k_find(cpu);
    f->exec.pool = n_threads > 1 ? op__pool_create(n_threads) : NULL;
    if (f->node.desc->infer(&f->ctx) != OP_OK) fail_msg("infer: %s", f->err.text);
    const int64_t count = op_tensor_count(&f->y);
    float *y = malloc((size_t)(count + 16) * sizeof *y);
    assert_non_null(y);
    for (int64_t i = 0; i < count + 16; i++) y[i] = i < count ? NAN : 77.0f;
    f->y.data = y;
    const size_t bytes = reference ? 0 : f->node.desc->scratch(&f->ctx);
    f->ctx.scratch = bytes ? aligned_alloc(64, (bytes + 64 + 63) / 64 * 64) : NULL;
    if (bytes) memset((char *)f->ctx.scratch, 0x5a, bytes + 64);
    void *data = f->w.data;
    if (p.consumed & 2) f->w.data = NULL; /* nobody may read it now */
    assert_int_equal((reference ? f->node.desc->ref : f->node.desc->run)(&f->ctx), OP_OK);
    f->w.data = data;
    for (int i = 0; i < 16; i++) assert_true(y[count + i] == 77.0f);
    for (size_t i = 0; i < 64 && bytes; i++) assert_true(((unsigned char *)f->ctx.scratch)[bytes + i] == 0x5a);
    free(f->ctx.scratch);
    f->ctx.scratch = NULL;
    f->node.desc->release(f->node.state);
    op__packs_finish(&f->packs);
    op__pool_destroy(f->exec.pool);
    f->exec.pool = NULL;
    f->y.data = NULL;
    return y;
}

static const char *const levels[] = {"generic", "avx2", "avx512", "vnni"};

static void check(const struct shape *s) {
    struct fixture f;
    setup(&f, s, false);
    /* Weights that are known at load may take Winograd's way: other bits, but the same ones everywhere. */
    float *want = run(&f, "generic", false, true, 1), *first = run(&f, "generic", true, false, 1), *unknown = run(&f, "generic", false, false, 1);
    const int64_t count = op_tensor_count(&f.y), terms = s->ic * s->kernel[0] * s->kernel[1] * s->kernel[2];
    for (int64_t i = 0; i < count; i++)
        if (!(fabsf(want[i] - first[i]) <= 1e-6f * (float)terms + 1e-6f) || !(fabsf(want[i] - unknown[i]) <= 1e-6f * (float)terms + 1e-6f))
            fail_msg("rank %d n %ld group %ld ic %ld oc %ld in %ld %ld kernel %ld %ld stride %ld %ld: element %ld is %g, expected %g", s->rank, (long)s->n,
                     (long)s->group, (long)s->ic, (long)s->oc, (long)s->in[0], (long)s->in[1], (long)s->kernel[0], (long)s->kernel[1], (long)s->stride[0],
                     (long)s->stride[1], (long)i, (double)first[i], (double)want[i]);
    for (int l = 0; l < 4; l++)
        for (int variant = 0; variant < 4 && k_find(levels[l]); variant++) {
            float *got = run(&f, levels[l], variant & 1, false, variant & 2 ? 3 : 1);
            if (memcmp(variant & 1 ? first : unknown, got, (size_t)count * sizeof *got) != 0) fail_msg("%s, variant %d: other bits than plain C, one thread", levels[l], variant);
            free(got);
        }
    if (s->n > 1) { /* the last image alone */
        const int64_t one = count / s->n, x_one = op_tensor_count(&f.x) / s->n;
        float *x = f.x.data;
        f.x.dims[0] = 1;
        f.x.data = x + (s->n - 1) * x_one;
        float *got = run(&f, k_default()->name, true, false, 1);
        assert_memory_equal(got, first + (s->n - 1) * one, (size_t)one * sizeof *got);
        f.x.data = x;
        free(got);
    }
    free(want), free(first), free(unknown);
    teardown(&f);
}

static void test_random_geometries(void **state) {
    (void)state;
    for (int i = 0; i < 400; i++) {
        struct shape s = {.rank = 1 + (int)draw(3), .n = 1 + draw(2), .group = draw(4) ? 1 : 1 + draw(3), .ic = 1 + draw(9), .oc = 1 + draw(20)};
        if (draw(3) == 0) s.group = 1 + draw(5), s.ic = 1, s.oc = 1 + draw(2); /* depthwise */
        for (int a = 0; a < 3; a++) s.in[a] = s.kernel[a] = s.stride[a] = s.dilation[a] = 1;
        for (int a = 0; a < s.rank; a++) {
            s.kernel[a] = draw(3) ? 1 + draw(5) : 3;
            s.stride[a] = 1 + draw(3);
            s.dilation[a] = draw(3) ? 1 : 1 + draw(2);
            s.pad[a] = draw(4), s.pad[s.rank + a] = draw(4);
            s.in[a] = (s.kernel[a] - 1) * s.dilation[a] + 1 + draw(s.rank == 3 ? 6 : s.rank == 2 ? 30 : 200);
        }
        static const char *const pads[] = {"SAME_UPPER", "SAME_LOWER", "VALID"};
        if (draw(5) == 0) s.auto_pad = pads[draw(3)];
        check(&s);
    }
}

static void test_shapes_of_networks(void **state) {
    (void)state;
    static const struct shape shapes[] = {
        {2, 1, 1, 3, 64, {33, 35, 1}, {7, 7, 1}, {2, 2, 1}, {1, 1, 1}, {3, 3, 3, 3}, NULL},     /* a stem */
        {2, 2, 1, 70, 66, {14, 14, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0}, NULL},             /* 1 x 1, packed */
        {2, 2, 1, 600, 8, {7, 7, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0}, NULL},               /* 1 x 1, in place, two blocks of K */
        {2, 1, 1, 70, 12, {7, 7, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1, 1}, NULL},      /* 3 x 3, two blocks of K */
        {2, 1, 1, 16, 70, {14, 14, 1}, {1, 1, 1}, {2, 2, 1}, {1, 1, 1}, {0}, NULL},             /* a shortcut */
        {2, 1, 9, 1, 1, {28, 28, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1, 1}, NULL},      /* depthwise */
        {2, 1, 9, 1, 1, {29, 29, 1}, {3, 3, 1}, {2, 2, 1}, {1, 1, 1}, {1, 1, 1, 1}, NULL},
        {2, 2, 9, 1, 1, {40, 75, 1}, {5, 5, 1}, {2, 2, 1}, {1, 1, 1}, {2, 2, 2, 2}, NULL},
        {2, 1, 9, 1, 1, {14, 70, 1}, {5, 5, 1}, {1, 1, 1}, {1, 1, 1}, {2, 2, 2, 2}, NULL},
        {2, 2, 1, 20, 70, {29, 31, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1, 1}, NULL},    /* Winograd F(4, 3) */
        {2, 3, 1, 16, 16, {6, 5, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {0, 2, 3, 1}, NULL},      /* several images a block, padding of all kinds */
        {2, 1, 1, 17, 18, {3, 90, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {9, 9, 9, 9}, NULL},
        {2, 2, 1, 150, 140, {15, 14, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1, 1}, NULL},  /* Winograd F(2, 3) */
        {1, 1, 1, 2, 3, {5, 1, 1}, {1, 1, 1}, {7, 1, 1}, {1, 1, 1}, {400, 400}, NULL},          /* mostly padding */
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check(&shapes[i]);
}

static void test_fused_is_the_sum_then_the_activation(void **state) {
    (void)state;
    static const struct shape shapes[] = {{2, 2, 1, 5, 19, {9, 11, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1, 1}, NULL},
                                          {2, 2, 1, 16, 19, {9, 11, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1, 1}, NULL},
                                          {2, 1, 7, 1, 1, {9, 11, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1, 1}, NULL}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct fixture f;
        setup(&f, &shapes[i], true);
        float *got = run(&f, k_default()->name, true, false, 1);
        f.node.domain = "", f.node.n_in = f.ctx.n_in = 3, f.node.n_attrs--; /* the plain operator on the same tensors */
        f.node.desc = op__desc_find("", "Conv", 13);
        float *y = run(&f, k_default()->name, true, false, 1);
        const int64_t count = op_tensor_count(&f.y);
        k_default()->math->binary[K_ADD](count, y, false, f.r.data, false, y);
        k_default()->math->unary[K_HARD_SWISH](count, y, y, 0, 0);
        assert_memory_equal(got, y, (size_t)count * sizeof *y);
        free(got), free(y);
        teardown(&f);
    }
}

static enum op_status infer_of(struct fixture *f) {
    struct op_prepare p = {.node = &f->node, .n_in = 3, .in = (const struct op_tensor *[3]){NULL}, .cpu = "generic", .packs = &f->packs, .err = &f->err};
    enum op_status status = f->node.desc->prepare(&p);
    f->ctx.state = f->node.state;
    if (status == OP_OK) status = f->node.desc->infer(&f->ctx);
    f->node.desc->release(f->node.state);
    op__packs_finish(&f->packs);
    f->node.state = NULL;
    return status;
}

static void test_what_infer_refuses(void **state) {
    (void)state;
    const struct shape s = {2, 1, 2, 3, 2, {9, 9, 1}, {3, 3, 1}, {1, 1, 1}, {1, 1, 1}, {0}, NULL};
    struct fixture f;
    setup(&f, &s, false);
    assert_int_equal(infer_of(&f), OP_OK);
    f.x.dims[1] = 5;
    assert_int_equal(infer_of(&f), OP_BAD_SHAPE);
    assert_non_null(strstr(f.err.text, "f32[1,5,9,9]"));
    f.x.dims[1] = 6;
    f.w.dtype = OP_F64;
    assert_int_equal(infer_of(&f), OP_BAD_TYPE);
    f.w.dtype = OP_F32;
    f.w.dims[2] = 12;
    assert_int_equal(infer_of(&f), OP_BAD_SHAPE);
    f.w.dims[2] = 3;
    f.b.dims[0] = 3;
    assert_int_equal(infer_of(&f), OP_BAD_SHAPE);
    f.b.dims[0] = 4;
    f.attrs[0].i = 0;
    assert_int_equal(infer_of(&f), OP_BAD_VALUE);
    f.attrs[0].i = 3;
    assert_int_equal(infer_of(&f), OP_BAD_SHAPE);
    teardown(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes_of_networks),
        cmocka_unit_test(test_random_geometries),
        cmocka_unit_test(test_fused_is_the_sum_then_the_activation),
        cmocka_unit_test(test_what_infer_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
