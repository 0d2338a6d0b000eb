/* Gradients against finite differences. A case is one line: an operator, its inputs and attributes in a small language.
 *
 *   inputs      separated by blanks: f2x3 a float tensor whose gradient is checked, with numbers of [-1, 1]; p2x3 the same with
 *               numbers of [0.5, 1.5]; u2x3 of [0.2, 0.8]; v2x3 of [1.2, 2.2]; k2x3 and q2x3 as f and p without a gradient; i[1,2] an i64 vector; j2x2:5 an i64 tensor of
 *               random numbers below 5; l1x2:4,3 an i64 tensor of these; b[1,0] a bool vector; b an i32 one is h[...]; s0.5 a float scalar constant; "." absent. A shape of
 *               "0" is a scalar.
 *   attributes  name=1 int, name=0.5 float (with a point), name=[1,2] ints, name={0.5,2} floats, name='text'
 *   outputs     names that the loss looks at; "." is one that is not asked for
 *
 * The loss is the sum of all float outputs, each element times a fixed random weight. First in double precision: the gradient
 * that op__grad_build makes is compared with central differences of the loss. Then the same in single precision, where the fast
 * kernels are: the two gradients must agree. Operators without double precision kernels say so (F32_ONLY). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "ops/grad.h"
#include "ops/model.h"
#include "tests/unit/op_testing.h"

#define INPUTS_MAX 12
#define OUTPUTS_MAX 4
enum { F32_ONLY = 1 };

struct gcase {
    const char *op, *inputs, *attrs, *outputs;
    int flags;
};

struct input {
    struct op_tensor t; /* f64 data of floats */
    double *data;
    bool wanted;
};

static uint64_t seed;
static double uniform(void) { /* [0, 1) */
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) / 9007199254740992.0;
}

/* --- reading a case --------------------------------------------------------------------------------- */

static void read_dims(struct op_tensor *t, const char **at) {
    t->rank = 0;
    if (**at == '0' && (*at)[1] != 'x') {
        (*at)++;
        return;
    }
    while (**at >= '0' && **at <= '9') {
        t->dims[t->rank++] = strtol(*at, (char **)(uintptr_t)at, 10);
        if (**at == 'x') (*at)++;
    }
}

static int64_t *read_list(const char **at, int64_t *n) {
    static int64_t list[64];
    *n = 0;
    (*at)++;
    while (**at && **at != ']') {
        list[(*n)++] = strtol(*at, (char **)(uintptr_t)at, 10);
        if (**at == ',') (*at)++;
    }
    if (**at) (*at)++;
    return list;
}

/* One input: what a caller gives is a tensor in `in`, what is constant goes into the model. Returns whether it is given. */
static bool read_input(struct ot *m, const char **at, enum op_type type, const char *name, struct input *in) {
    char kind = *(*at)++;
    *in = (struct input){.t = {.dtype = type}};
    if (kind == 'i' || kind == 'b' || kind == 'h') {
        int64_t n, *list = read_list(at, &n);
        unsigned char bools[64];
        int32_t ints[64];
        for (int64_t i = 0; i < n; i++) bools[i] = list[i] != 0, ints[i] = (int32_t)list[i];
        if (kind == 'i') ot_constant(m, name, OP_I64, 1, &n, list);
        else if (kind == 'h') ot_constant(m, name, OP_I32, 1, &n, ints);
        else if (n == 1) ot_constant(m, name, OP_BOOL, 0, NULL, bools);
        else ot_constant(m, name, OP_BOOL, 1, &n, bools);
        return false;
    }
    if (kind == 's') {
        double d = strtod(*at, (char **)(uintptr_t)at);
        float f = (float)d;
        ot_constant(m, name, type, 0, NULL, type == OP_F32 ? (void *)&f : (void *)&d);
        return false;
    }
    read_dims(&in->t, at);
    int64_t n = op_tensor_count(&in->t);
    if (kind == 'j' || kind == 'l') {
        int64_t below = 0, numbers[64];
        assert_true(n <= 64 && **at == ':');
        for (int64_t i = 0; i < n; i++) {
            if (kind == 'l' || i == 0) (*at)++, below = strtol(*at, (char **)(uintptr_t)at, 10);
            numbers[i] = kind == 'l' ? below : (int64_t)(uniform() * (double)below);
        }
        ot_constant(m, name, OP_I64, in->t.rank, in->t.dims, numbers);
        return false;
    }
    in->data = calloc((size_t)n + 1, sizeof *in->data);
    assert_non_null(in->data);
    for (int64_t i = 0; i < n; i++) {
        double u = uniform();
        in->data[i] = (double)(float)(kind == 'p' || kind == 'q' ? 0.5 + u : kind == 'u' ? 0.2 + 0.6 * u : kind == 'v' ? 1.2 + u : 2 * u - 1);
    }
    in->wanted = kind != 'k' && kind != 'q';
    ot_input(m, name, type, in->t.rank, in->t.dims);
    return true;
}

static void read_attrs(struct ot *m, const char *at) {
    while (*at) {
        char name[40];
        size_t len = strcspn(at, "=");
        snprintf(name, sizeof name, "%.*s", (int)len, at);
        at += len + 1;
        if (*at == '[') {
            int64_t n, *list = read_list(&at, &n);
            ot_ints(m, name, n, list);
        } else if (*at == '{') {
            float floats[16];
            int64_t n = 0;
            while (*at && *at != '}' && n < 16) floats[n++] = strtof(at + 1, (char **)(uintptr_t)&at);
            ot_floats(m, name, n, floats);
            at += *at == '}';
        } else if (*at == '\'') {
            char text[80];
            size_t n = strcspn(at + 1, "'");
            snprintf(text, sizeof text, "%.*s", (int)n, at + 1);
            ot_string(m, name, text);
            at += n + 2;
        } else {
            size_t n = strcspn(at, " ");
            if (memchr(at, '.', n)) ot_float(m, name, strtof(at, NULL));
            else ot_int(m, name, strtol(at, NULL, 10));
            at += n;
        }
        while (*at == ' ') at++;
    }
}

/* --- building --------------------------------------------------------------------------------------- */

struct built {
    struct ot m;
    struct op_session *session;
    struct input in[INPUTS_MAX];
    int n_given, given[INPUTS_MAX]; /* the inputs that a caller gives */
    int dw[INPUTS_MAX];             /* position of each one's gradient among the outputs, -1: zero */
    enum op_type type;
};

/* The forward graph; opset and domain are in the operator's name: "Gelu@20", "quern:Fill". */
static void forward(struct built *b, const struct gcase *c, char *outputs, size_t room) {
    char op[64], domain[32] = "", names[256] = "", one[16];
    const char *colon = strchr(c->op, ':'), *opset = strchr(c->op, '@');
    snprintf(op, sizeof op, "%s", colon ? colon + 1 : c->op);
    op[strcspn(op, "@")] = 0;
    if (colon) snprintf(domain, sizeof domain, "%.*s", (int)(colon - c->op), c->op);
    ot_begin(&b->m, opset ? atoi(opset + 1) : 17);
    seed = 12345;
    int k = 0;
    for (const char *at = c->inputs; *at; k++) {
        assert_true(k < INPUTS_MAX);
        if (*at == '.') {
            strcat(names, ". ");
            at++;
        } else {
            snprintf(one, sizeof one, "x%d", k);
            strcat(strcat(names, one), " ");
            if (read_input(&b->m, &at, b->type, one, &b->in[k])) b->given[b->n_given++] = k;
        }
        while (*at == ' ') at++;
    }
    snprintf(outputs, room, "%s", c->outputs ? c->outputs : "y0");
    ot_node_of(&b->m, domain, op, names, outputs);
    read_attrs(&b->m, c->attrs ? c->attrs : "");
    ot_close_node(&b->m);
}

/* Adds what prepare does for nodes that came after loading. */
static void prepare_from(struct op_graph *g, int first) {
    for (int i = first; i < g->n_nodes; i++) {
        struct op_node *n = g->nodes[i];
        struct op_error err = {0};
        const struct op_tensor *in[64] = {0};
        if (!n->desc->prepare) continue;
        for (int k = 0; k < n->n_in && k < 64; k++) in[k] = op__graph_constant(g, n->in[k]);
        struct op_prepare p = {.node = n, .n_in = n->n_in, .in = in, .cpu = g->model->cpu, .err = &err};
        if (n->desc->prepare(&p) != OP_OK) fail_msg("%s", err.text);
    }
}

static void add_outputs(struct op_graph *g, const int *v, int n) {
    int *outputs = op__arena_array(g->arena, (size_t)(g->n_outputs + n), sizeof *outputs);
    struct op_value *declared = op__arena_array(g->arena, (size_t)(g->n_outputs + n), sizeof *declared);
    struct op_io *ios = op__arena_array(g->arena, (size_t)(g->n_outputs + n), sizeof *ios);
    assert_true(outputs && declared && ios);
    memcpy(outputs, g->outputs, (size_t)g->n_outputs * sizeof *outputs);
    memcpy(declared, g->declared, (size_t)g->n_outputs * sizeof *declared);
    memcpy(ios, g->model->outputs, (size_t)g->n_outputs * sizeof *ios);
    for (int i = 0; i < n; i++) {
        outputs[g->n_outputs + i] = v[i];
        declared[g->n_outputs + i] = (struct op_value){.rank = -1};
        ios[g->n_outputs + i] = (struct op_io){.name = "gradient", .rank = -1};
    }
    g->outputs = outputs;
    g->declared = declared;
    g->model->outputs = ios;
    g->n_outputs += n;
}

static const struct op_tensor *run(struct built *b, struct op_error *err) {
    struct op_tensor in[INPUTS_MAX];
    const struct op_tensor *out = NULL;
    for (int i = 0; i < b->n_given; i++) {
        const struct input *x = &b->in[b->given[i]];
        int64_t n = op_tensor_count(&x->t);
        in[i] = x->t;
        in[i].data = x->data;
        if (b->type != OP_F32) continue;
        float *f = malloc((size_t)(n + 1) * sizeof *f);
        for (int64_t k = 0; k < n; k++) f[k] = (float)x->data[k];
        in[i].data = f;
    }
    enum op_status st = op_session_run(b->session, in, b->n_given, &out, err);
    for (int i = 0; i < b->n_given && b->type == OP_F32; i++) free(in[i].data);
    return st == OP_OK ? out : NULL;
}

static double at(const struct op_tensor *t, int64_t i) {
    return t->dtype == OP_F32 ? (double)((const float *)t->data)[i] : ((const double *)t->data)[i];
}

static void done(struct built *b) {
    op_session_destroy(b->session);
    for (int i = 0; i < INPUTS_MAX; i++) free(b->in[i].data);
    ot_end(&b->m);
    *b = (struct built){0};
}

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            print_error("%s(%s; %s): ", c->op, c->inputs, c->attrs ? c->attrs : "");               \
            print_error(__VA_ARGS__);                                                              \
            print_error("\n");                                                                     \
            fail();                                                                                \
        }                                                                                          \
    } while (0)

/* The model with its loss as output 0 and the gradients after it. */
static void build(struct built *b, const struct gcase *c, enum op_type type) {
    char outputs[64], name[80], parts[160] = "";
    const struct op_load_options plain = {.reference = true};
    struct op_error err = {0};
    *b = (struct built){.type = type};
    forward(b, c, outputs, sizeof outputs);
    for (char *o = strtok(outputs, " "); o; o = strtok(NULL, " ")) /* a run of the forward graph tells the outputs' shapes */
        if (*o != '.') ot_output(&b->m, o, OP_UNDEFINED, -1, NULL);
    struct op_model *m = ot_load(&b->m, NULL, &err);
    CHECK(m, "%s", err.text);
    b->session = op_session_create(m, NULL, &err);
    const struct op_tensor *out = run(b, &err);
    CHECK(out, "%s", err.text);
    struct op_tensor shape[OUTPUTS_MAX];
    int n_out = op_model_n_outputs(m);
    for (int i = 0; i < n_out; i++) shape[i] = out[i];
    done(b);
    op_model_release(m);

    b->type = type;
    forward(b, c, outputs, sizeof outputs);
    int i = 0;
    for (char *o = strtok(outputs, " "); o; o = strtok(NULL, " ")) {
        if (*o == '.') continue;
        struct op_tensor *t = &shape[i++];
        int64_t n = op_tensor_count(t);
        if (t->dtype != type) continue;
        void *w = calloc((size_t)n + 1, sizeof(double));
        for (int64_t k = 0; k < n; k++) {
            double u = (double)(float)(2 * uniform() - 1);
            if (type == OP_F32) ((float *)w)[k] = (float)u;
            else ((double *)w)[k] = u;
        }
        snprintf(name, sizeof name, "w_%s", o);
        ot_constant(&b->m, name, type, t->rank, t->dims, w);
        free(w);
        char in[100], part[80];
        snprintf(in, sizeof in, "%s %s", o, name);
        snprintf(name, sizeof name, "m_%s", o);
        ot_node(&b->m, "Mul", in, name);
        snprintf(part, sizeof part, "l_%s", o);
        ot_node(&b->m, "ReduceSum", name, part);
        ot_int(&b->m, "keepdims", 0);
        strcat(strcat(parts, part), " ");
    }
    ot_node(&b->m, "Sum", parts, "loss");
    ot_output(&b->m, "loss", type, 0, NULL);
    b->m.model = ot_load(&b->m, &plain, &err);
    CHECK(b->m.model, "%s", err.text);
    struct op_graph *g = b->m.model->graph;
    int wrt[INPUTS_MAX], dw[INPUTS_MAX], n_wrt = 0, n_nodes = g->n_nodes, add[INPUTS_MAX], n_add = 0;
    for (int k = 0; k < b->n_given; k++)
        if (b->in[b->given[k]].wanted) wrt[n_wrt++] = g->inputs[k];
    enum op_status st = op__grad_build(g, g->outputs[0], wrt, n_wrt, dw, &err);
    CHECK(st == OP_OK, "%s", err.text);
    for (int k = 0, j = 0; k < b->n_given; k++) {
        b->dw[k] = -1;
        if (!b->in[b->given[k]].wanted) continue;
        if (dw[j] >= 0) {
            add[n_add] = dw[j];
            b->dw[k] = ++n_add;
        }
        j++;
    }
    add_outputs(g, add, n_add);
    prepare_from(g, n_nodes);
    b->m.model->options.reference = false; /* from here on the fast kernels, in place where that is possible */
    b->session = op_session_create(b->m.model, NULL, &err);
    CHECK(b->session, "%s", err.text);
}

/* --- checking --------------------------------------------------------------------------------------- */

static void check_differences(struct built *b, const struct gcase *c, double *const *gradient) {
    const bool f32 = b->type == OP_F32;
    const double h = f32 ? 0.0078125 : 1e-5, tolerance = f32 ? 2e-3 : 2e-7;
    const char *sanitizer = getenv("SAN");
    const int64_t points = sanitizer && *sanitizer ? 6 : 60;
    struct op_error err;
    for (int i = 0; i < b->n_given; i++) {
        struct input *x = &b->in[b->given[i]];
        int64_t n = op_tensor_count(&x->t), step = n > points ? n / points : 1;
        for (int64_t k = 0; k < n && x->wanted; k += step) {
            double was = x->data[k];
            x->data[k] = was + h;
            double up = at(run(b, &err), 0);
            x->data[k] = was - h;
            double down = at(run(b, &err), 0);
            x->data[k] = was;
            double numeric = (up - down) / (2 * h), analytic = gradient[i][k];
            CHECK(fabs(numeric - analytic) <= tolerance * (1 + fabs(numeric)), "input %d, element %lld: the gradient is %.9g, differences give %.9g",
                  b->given[i], (long long)k, analytic, numeric);
        }
    }
}

/* The gradients as doubles; checks their shapes. */
static void gradients(struct built *b, const struct gcase *c, double **to) {
    struct op_error err;
    const struct op_tensor *out = run(b, &err);
    CHECK(out, "%s", err.text);
    for (int i = 0; i < b->n_given; i++) {
        const struct input *x = &b->in[b->given[i]];
        int64_t n = op_tensor_count(&x->t);
        to[i] = calloc((size_t)n + 1, sizeof *to[i]);
        if (b->dw[i] < 0) continue;
        const struct op_tensor *d = &out[b->dw[i]];
        char td[160], tx[160];
        CHECK(d->dtype == b->type && d->rank == x->t.rank && !memcmp(d->dims, x->t.dims, (size_t)d->rank * sizeof *d->dims),
              "the gradient of input %d is %s for %s", b->given[i], op_tensor_describe(d, td, sizeof td), op_tensor_describe(&x->t, tx, sizeof tx));
        for (int64_t k = 0; k < n; k++) to[i][k] = at(d, k);
    }
}

/* The same bits with three threads. */
static void check_threads(struct built *b, const struct gcase *c) {
    struct op_error err;
    struct op_session *one = b->session;
    const struct op_tensor *x = run(b, &err);
    const struct op_session_options three = {.n_threads = 3};
    b->session = op_session_create(b->m.model, &three, &err);
    CHECK(b->session, "%s", err.text);
    const struct op_tensor *y = run(b, &err);
    CHECK(x && y, "%s", err.text);
    for (int i = 0; i < op_model_n_outputs(b->m.model); i++)
        CHECK(!op_tensor_count(&x[i]) || !memcmp(x[i].data, y[i].data, (size_t)op_tensor_bytes(&x[i])), "other bits in output %d with three threads", i);
    op_session_destroy(one);
}

static const char *checked[512]; /* the operators of all cases so far */
static int n_checked;

static void check(const struct gcase *c) {
    assert_true(n_checked < 512);
    checked[n_checked++] = c->op;
    struct built b;
    double *wide[INPUTS_MAX] = {0}, *fast[INPUTS_MAX] = {0};
    const bool f32_only = c->flags & F32_ONLY;
    build(&b, c, f32_only ? OP_F32 : OP_F64);
    gradients(&b, c, wide);
    check_differences(&b, c, wide);
    check_threads(&b, c);
    done(&b);
    if (!f32_only) {
        build(&b, c, OP_F32);
        gradients(&b, c, fast);
        check_threads(&b, c);
        for (int i = 0; i < b.n_given; i++) {
            int64_t n = op_tensor_count(&b.in[b.given[i]].t);
            double scale = 1e-3;
            for (int64_t k = 0; k < n; k++) scale = fmax(scale, fabs(wide[i][k]));
            for (int64_t k = 0; k < n && b.in[b.given[i]].wanted; k++)
                CHECK(fabs(fast[i][k] - wide[i][k]) <= 2e-5 * scale, "input %d, element %lld: %.9g in single precision, %.9g in double", b.given[i],
                      (long long)k, fast[i][k], wide[i][k]);
        }
        done(&b);
    }
    for (int i = 0; i < INPUTS_MAX; i++) free(wide[i]), free(fast[i]);
}

static void check_all(const struct gcase *c, size_t n) {
    for (size_t i = 0; i < n; i++) check(&c[i]);
}
#define CHECK_ALL(table) check_all(table, sizeof table / sizeof *table)

/* What a case does not say is zero. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

/* --- the cases -------------------------------------------------------------------------------------- */

static void test_functions_of_one_element(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"Relu", "f3x5"}, {"Sigmoid", "f3x300"}, {"Tanh", "f7"}, {"Exp", "f7"}, {"Sqrt", "p7"}, {"Reciprocal", "p7"}, {"Tan", "f7"}, {"Log", "p7"},
        {"Abs", "f7"}, {"Sin", "f7"}, {"Cos", "f7"}, {"Asin", "u7"}, {"Acos", "u7"}, {"Atan", "f7"}, {"Sinh", "f7"}, {"Cosh", "f7"}, {"Asinh", "f7"}, {"Acosh", "v7"},
        {"Atanh", "u7"}, {"Erf", "f7"}, {"LeakyRelu", "f7", "alpha=0.2"}, {"LeakyRelu", "f7"}, {"Elu", "f7", "alpha=1.5"}, {"Elu", "f7"}, {"Selu", "f7"},
        {"Celu", "f7", "alpha=0.7"}, {"ThresholdedRelu", "f7", "alpha=0.3"}, {"Shrink", "f7", "lambd=0.3 bias=0.1"}, {"HardSigmoid", "f9"},
        {"HardSigmoid", "f9", "alpha=0.9"}, {"HardSwish", "f7"}, {"Softplus", "f3x300"}, {"Softsign", "f7"}, {"Mish@18", "f300"}, {"Gelu@20", "f300"},
        {"Gelu@20", "f300", "approximate='tanh'"}, {"Swish@24", "f300", "alpha=1.3"}, {"com.microsoft:QuickGelu", "f9"}, {"com.microsoft:Gelu", "f9"}, {"Neg", "f2x3"},
        {"Floor", "f5"}, {"Relu", "f0"}, {"Tanh", "f2x0x3"},
    };
    CHECK_ALL(cases);
}

static void test_arithmetic_and_selection(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"Add", "f2x3 f2x3"}, {"Add", "f2x3 f3"}, {"Add", "f2x1x4 f3x1"}, {"Add", "f0 f3x4"}, {"Sub", "f2x3 f2x1"}, {"Sub", "f3 f2x3"}, {"Mul", "f2x3 f2x3"},
        {"Mul", "f2x3x4 f1x3x1"}, {"Mul", "f4 f2x3x4"}, {"Div", "f2x3 p3"}, {"Div", "f3 p2x3"}, {"Pow", "p2x3 s2.0"}, {"Pow", "p2x3 f3"}, {"Pow", "f2x3 i[3]"},
        {"Pow", "f2x3 s2.0"}, {"Sum", "f2x3 f3 f2x1"}, {"Mean", "f2x3 f3"}, {"Mean", "f2x3"}, {"Max", "f2x3 f3 f0"}, {"Min", "f2x3 f2x3"}, {"Max", "f4"},
        {"Where", "b[1,0,1] f2x3 f3"}, {"Clip", "f9 s-0.4 s0.3"}, {"Clip", "f9 . s0.3"}, {"Clip", "f9"}, {"PRelu", "f2x3x4 f3x1"}, {"Identity", "f3"},
        {"Cast", "f3", "to=1", NULL, F32_ONLY}, {"CastLike", "f3 k1"},
    };
    CHECK_ALL(cases);
}

static void test_reductions(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"ReduceSum", "f2x3x4"}, {"ReduceSum", "f2x3x4 i[1]", "keepdims=0"}, {"ReduceSum", "f2x3x4 i[0,-1]"}, {"ReduceMean", "f2x3x4", "axes=[0,2] keepdims=0"},
        {"ReduceMean@18", "f2x3x4 i[2]"}, {"ReduceSum", "f2x3 i[]", "noop_with_empty_axes=1"}, {"ReduceL1", "f2x3x4", "axes=[1]"}, {"ReduceL2", "f2x3x4", "axes=[1]"},
        {"ReduceSumSquare", "f2x3x4", "axes=[2]"}, {"ReduceLogSum", "p2x3x4", "axes=[2]"}, {"ReduceLogSumExp", "f2x3x4", "axes=[1] keepdims=0"},
        {"ReduceProd", "p2x3x4", "axes=[1]"}, {"ReduceMax", "f2x3x4", "axes=[1]"}, {"ReduceMin", "f2x3x4", "keepdims=0"}, {"GlobalAveragePool", "f2x3x4x5"},
        {"GlobalMaxPool", "f2x3x4x5"}, {"Softmax", "f3x7"}, {"Softmax", "f2x5x3", "axis=1"}, {"Softmax@11", "f2x5x3", "axis=1"}, {"LogSoftmax", "f3x300"},
        {"LogSoftmax", "f2x5x3", "axis=1"}, {"Softmax", "f2x3x4x4"},
    };
    CHECK_ALL(cases);
}

static void test_movement(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"Reshape", "f2x3x4 i[4,-1]"}, {"Flatten", "f2x3x4"}, {"Squeeze", "f2x1x3 i[1]"}, {"Unsqueeze", "f2x3 i[0,2]"}, {"Transpose", "f2x3x4"},
        {"Transpose", "f2x3x4x5", "perm=[2,0,3,1]"}, {"Concat", "f2x3 f2x1 k2x2", "axis=1"}, {"Concat", "f2x3 f1x3", "axis=-2"},
        {"Split", "f2x6 i[1,2,3]", "axis=1", "y0 y1 y2"}, {"Split", "f2x6 i[1,2,3]", "axis=1", "y0 . y2"}, {"Slice", "f5x6 i[1,0] i[4,6] . i[1,2]"},
        {"Slice", "f5x6 i[-1] i[-6] i[0] i[-2]"}, {"Gather", "f5x3 j2x4:5"}, {"Gather", "f2x5x3 i[4,0,-1,4]", "axis=1"}, {"Expand", "f3x1 i[2,3,4]"},
        {"Tile", "f2x3 i[2,3]"}, {"Pad", "f2x3 i[0,1,1,2]"}, {"Pad", "f2x3 i[0,1,1,2] s0.5"}, {"Pad", "f2x4 i[0,1,0,2]", "mode='reflect'"},
        {"Pad", "f4x4 i[0,-1,1,-2]"}, {"GatherElements", "f3x4 j2x4:3"}, {"GatherND", "f3x4x2 j3x2:3"}, {"DepthToSpace", "f1x8x2x3", "blocksize=2"},
        {"SpaceToDepth", "f1x2x4x6", "blocksize=2"}, {"Trilu", "f2x4x4", "upper=0"}, {"ReverseSequence", "f4x3x2 i[1,4,2]"},
        {"CenterCropPad@18", "f5x4 i[3,6]"}, {"Compress", "f4x3 b[1,0,1,1]", "axis=0"}, {"quern:SumTo", "f2x3x4 k3x1"}, {"quern:ExpandLike", "f3x1 k2x3x4"},
        {"quern:ReshapeLike", "f2x6 k3x4"}, {"TopK", "f3x6 i[2]", NULL, "y0 y1"}, {"TopK", "f6x3 i[2]", "axis=0"}, {"CumSum", "f3x4 i[1]", "exclusive=1"}, {"CumSum", "f3x4 i[0]", "reverse=1"},
        {"ScatterElements", "f4x3 l1x3:2,0,3 f1x3"}, {"ScatterND", "f4x3 l2x1:3,1 f2x3"}, {"Resize", "f1x2x3x4 . . i[1,2,6,8]", "mode='nearest'"},
        {"Dropout", "f3x7 s0.4 b[1]", "seed=7"}, {"Dropout", "f3x7 s0.4 b[1]", "seed=7", "y0 y1"}, {"Dropout", "f3x7 s0.4 b[0]"}, {"Dropout", "f3x7"},
    };
    CHECK_ALL(cases);
}

static void test_products(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"MatMul", "f3x4 f4x5"}, {"MatMul", "f2x3x4 f4x5"}, {"MatMul", "f2x3x4 f2x4x5"}, {"MatMul", "f2x1x3x4 f3x4x5"}, {"MatMul", "f3x4 f2x4x5"},
        {"MatMul", "f4 f4x5"}, {"MatMul", "f3x4 f4"}, {"MatMul", "f4 f4"}, {"MatMul", "f2x3x4 f4"}, {"MatMul", "f70x33 f33x90"}, {"MatMul", "f2x600x3 f3x5"},
        {"MatMul", "f0x4 f4x5"}, {"MatMul", "f3x0 f0x5"}, {"Gemm", "f3x4 f4x5 f5"}, {"Gemm", "f3x4 f5x4 f3x5", "transB=1 alpha=0.5 beta=2.0"},
        {"Gemm", "f4x3 f4x5 f0", "transA=1"}, {"Gemm", "f4x3 f5x4 f3x1", "transA=1 transB=1"}, {"Gemm", "f40x30 f30x70"},
        {"Einsum", "f2x3 f3x4", "equation='ij,jk->ik'"}, {"Einsum", "f2x3x4 f2x4x5", "equation='bij, bjk'"}, {"Einsum", "f2x3x4 f4x5", "equation='...ij,jk->...ik'"},
        {"Einsum", "f2x3 f2x3", "equation='ij,ij->i'"}, {"Einsum", "f2x3x4x5 f2x6x4x5", "equation='bqhd,bkhd->bhqk'"},
    };
    CHECK_ALL(cases);
}

static void test_convolutions(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"Conv", "f2x3x5x6 f4x3x3x3 f4"}, {"Conv", "f2x3x7x6 f4x3x3x2", "strides=[2,3] pads=[1,0,1,2]"}, {"Conv", "f3x2x9 f3x2x3", "dilations=[2] pads=[2,1]"},
        {"Conv", "f1x4x6x5 f6x2x3x3 f6", "group=2 pads=[1,1,1,1]"}, {"Conv", "f2x3x6x7 f3x1x3x3", "group=3 pads=[1,1,1,1]"},
        {"Conv", "f2x3x6x7 f3x1x3x3", "group=3 strides=[2,2] pads=[1,1,0,1]"}, {"Conv", "f1x2x4x5x4 f3x2x2x3x2", "strides=[1,2,1] pads=[0,1,0,1,1,1]"},
        {"Conv", "f2x3x5x6 f4x3x1x1"}, {"Conv", "f3x5x5x6 f4x5x1x1"}, {"Conv", "f2x70x26x26 f3x70x1x1"}, {"Conv", "f2x4x5x6 f6x2x1x1", "group=2"}, {"Conv", "f2x3x5x6 f4x3x1x1", "pads=[1,0,0,0]"}, {"Conv", "f2x3x6x6 f4x3x3x3", "auto_pad='SAME_UPPER' strides=[2,2]"}, {"Conv", "f10x2x20x20 f70x2x3x3", "pads=[1,1,1,1]"},
        {"Conv", "f9x20x9x40 f5x20x3x3", "strides=[2,2] pads=[1,1,1,1]"}, {"Conv", "f2x65x5x5 f3x65x3x3", "pads=[3,3,3,3]"}, {"Conv", "f2x6x5x5 f6x2x3x3", "group=3 strides=[2,1]"},
        {"Conv", "f2x3x4x4x4x4 f2x3x2x2x2x2"}, {"Conv", "f0x3x5x6 f4x3x3x3"}, {"ConvTranspose", "f2x3x4x5 f3x4x3x3 f4"},
        {"ConvTranspose", "f2x4x4x5 f4x3x3x3", "group=2 strides=[2,2] pads=[1,1,1,1] output_padding=[1,0]"}, {"ConvTranspose", "f2x3x5 f3x2x4", "strides=[3] dilations=[2]"},
    };
    CHECK_ALL(cases);
}

static void test_pools_and_normalisations(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"MaxPool", "f2x3x6x7", "kernel_shape=[2,2] strides=[2,2]"}, {"MaxPool", "f2x3x6x7", "kernel_shape=[3,3] pads=[1,1,1,1] dilations=[2,1]"},
        {"MaxPool", "f2x3x7x7", "kernel_shape=[3,2] strides=[2,2] pads=[1,1,1,0]"}, {"MaxPool", "f2x3x7x7", "kernel_shape=[2,2] strides=[2,2] ceil_mode=1"},
        {"MaxPool", "f2x3x8", "kernel_shape=[3] strides=[2] ceil_mode=1", "y0 ."}, {"MaxPool", "f1x2x4x4x4", "kernel_shape=[2,2,3]"},
        {"AveragePool", "f2x3x6x7", "kernel_shape=[2,3] strides=[2,1]"}, {"AveragePool", "f2x3x6x7", "kernel_shape=[3,3] pads=[1,1,1,1]"},
        {"AveragePool", "f2x3x6x7", "kernel_shape=[3,3] pads=[1,1,1,1] count_include_pad=1 strides=[2,2]"},
        {"AveragePool", "f2x3x7", "kernel_shape=[2] strides=[2] ceil_mode=1"}, {"AveragePool", "f2x3x7x7", "kernel_shape=[3,3] auto_pad='SAME_UPPER' strides=[2,2]"},
        {"LRN", "f2x7x3x4", "size=4 alpha=0.3 beta=0.6 bias=0.8"}, {"LayerNormalization", "f4x10 f10 f10"}, {"SimplifiedLayerNormalization", "f4x10 f10"}, {"LayerNormalization", "f4x10 f10", "epsilon=0.1"}, {"LayerNormalization", "f2x3x5x4 f5x4 f5x4", "axis=2"},
        {"LayerNormalization", "f40x300 f300 f300"}, {"RMSNormalization@23", "f4x10 f10"}, {"GroupNormalization@21", "f3x6x5 f6 f6", "num_groups=2"},
        {"GroupNormalization@18", "f3x6x5 f2 f2", "num_groups=2"}, {"InstanceNormalization", "f3x4x5x6 f4 f4"},
        {"BatchNormalization", "f4x3x5x2 f3 f3 k3 q3", "training_mode=1", "y0 . ."}, {"BatchNormalization", "f4x3x5x2 f3 f3 k3 q3"},
        {"BatchNormalization", "f40x3 f3 f3 k3 q3", "training_mode=1 epsilon=0.01", "y0 . ."}, {"BatchNormalization", "f4x3x20x30 f3 f3 k3 q3", "training_mode=1", "y0 . ."},
    };
    CHECK_ALL(cases);
}

static void test_recurrent_layers(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"LSTM", "f5x3x2 f1x16x2 f1x16x4 f1x32", "hidden_size=4", "y0 y1 y2"}, {"LSTM", "f5x3x2 f1x16x2 f1x16x4", "hidden_size=4", ". y1"},
        {"LSTM", "f4x2x3 f2x8x3 f2x8x2 f2x16 . f2x2x2 f2x2x2", "hidden_size=2 direction='bidirectional'", "y0 y1 y2"},
        {"LSTM", "f5x3x2 f1x16x2 f1x16x4 f1x32 h[5,0,3] f1x3x4 f1x3x4", "hidden_size=4 direction='reverse'", "y0 y1 y2"},
        {"LSTM", "f3x4x2 f2x8x2 f2x8x2 f2x16 h[4,2,1] f3x2x2 f3x2x2", "hidden_size=2 direction='bidirectional' layout=1", "y0 y1 y2"},
        {"LSTM", "f3x33x20 f1x80x20 f1x80x20 f1x160", "hidden_size=20"},
        {"GRU", "f5x3x2 f1x12x2 f1x12x4 f1x24", "hidden_size=4", "y0 y1"}, {"GRU", "f5x3x2 f1x12x2 f1x12x4 f1x24", "hidden_size=4 linear_before_reset=1", "y0 y1"},
        {"GRU", "f4x2x3 f2x6x3 f2x6x2 f2x12 h[4,2] f2x2x2", "hidden_size=2 direction='bidirectional' linear_before_reset=1", "y0 y1"},
        {"GRU", "f4x2x3 f2x6x3 f2x6x2 f2x12 h[1,3] f2x2x2", "hidden_size=2 direction='bidirectional'", "y0 y1"},
        {"GRU", "f3x4x2 f1x12x2 f1x12x4 f1x24 . f3x1x4", "hidden_size=4 layout=1 direction='reverse'", ". y1"},
        {"RNN", "f5x3x2 f1x4x2 f1x4x4 f1x8 . f1x3x4", "hidden_size=4", "y0 y1"}, {"RNN", "f5x3x2 f2x4x2 f2x4x4", "hidden_size=4 direction='bidirectional'", "y0"},
        {"RNN", "f0x3x2 f1x4x2 f1x4x4 f1x8 . f1x3x4", "hidden_size=4", "y0 y1"},
    };
    CHECK_ALL(cases);
}

static void test_losses(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"quern:SparseCrossEntropy", "f3x5 j3:5", NULL, NULL, F32_ONLY}, {"quern:SparseCrossEntropy", "f2x3x4 l2x3:1,2,3,0,2,2", "label_smoothing=0.1 ignore_index=2 class_weights={0.5,2,1,3}", NULL, F32_ONLY},
        {"quern:CrossEntropy", "f3x5 q3x5", "label_smoothing=0.2", NULL, F32_ONLY}, {"quern:BinaryCrossEntropy", "f3x5 q3x5", "label_smoothing=0.2", NULL, F32_ONLY},
        {"quern:WeightedMean", "f3x5 q3", "scale=2.0", NULL, F32_ONLY},
        {"quern:CTC", "f2x6x4 l2x3:1,1,3,2,-1,-1", NULL, NULL, F32_ONLY}, {"quern:CTC", "f2x7x3 l2x3:0,1,0,1,1,2 i[7,5]", "blank=2", NULL, F32_ONLY},
        {"quern:CTC", "f1x3x4 l1x2:0,0", NULL, NULL, F32_ONLY}, {"quern:Triplet", "f3x3x4 j3:2", "margin=9.0", NULL, F32_ONLY},
        {"quern:Triplet", "f6x3 l6:0,1,0,2,1,0", "margin=5.0", NULL, F32_ONLY}, {"quern:Triplet", "f3x2 l3:0,1,2", NULL, NULL, F32_ONLY},
        {"quern:Noise", "f3x4", "kind='add' amount=0.3 seed=7", NULL, F32_ONLY}, {"quern:Noise", "f3x4", "kind='multiply' amount=0.5 seed=7", "y0 y1", F32_ONLY},
        {"quern:Noise", "f3x4x2", "kind='channels' amount=0.4 seed=7", "y0 y1", F32_ONLY}, {"quern:Noise", "f2x5x3x2", "kind='channels' amount=0.4 axis=1 seed=7", "y0 y1", F32_ONLY},
        {"quern:PairwiseRank", "f3x4", NULL, NULL, F32_ONLY}, {"quern:PairwiseRank", "f2x2", NULL, NULL, F32_ONLY},
    };
    CHECK_ALL(cases);
}

/* A file may hold backward operators with any inputs: here `outputs` is what the message must say. */
static void test_backward_operators_refuse_what_does_not_fit(void **state) {
    (void)state;
    static const struct gcase cases[] = {
        {"quern:ReluGrad", "f2x3 f3x2", NULL, "one type and shape"}, {"quern:CastGrad", "f2x3 f7", NULL, "as many elements"},
        {"quern:DropoutGrad", "f2 b[1,0,1] s0.5 b[1]", NULL, "mask"}, {"quern:ReduceGrad", "f5 f2x3 f5", "kind='ReduceSum'", "for x"},
        {"quern:ReduceGrad", "f0 f2x3 f0", "kind='Sum'", "no reduction"}, {"quern:ReduceGrad", "f2 f2x3 f2 i[7]", "kind='ReduceSum'", "axis 7"},
        {"quern:SoftmaxGrad", "f2x3 f3x2", NULL, "differ"}, {"quern:SoftmaxGrad", "f2x3 f2x3", "axis=2", "axis 2"}, {"quern:MatMulGradA", "f2x5 f2x3 f4x5", NULL, "for a product"},
        {"quern:MatMulGradB", "f2x6 f2x3 f3x5", NULL, "for a product"}, {"quern:ScatterSum", "f3 i[0,1,9] f4", NULL, "position 9"}, {"quern:ScatterSum", "f3 i[0,1] f4", NULL, "differ in size"},
        {"quern:GatherGrad", "f3 i[0,1,9] f4", NULL, "out of range"}, {"quern:GatherGrad", "f2 i[0,1,9] f4", NULL, "does not fit"}, {"quern:SplitLike", "f5 f3", NULL, "leave 2"},
        {"quern:SplitLike", "f5 f7", NULL, "piece 0"}, {"quern:ConvGradX", "f1x4x3x3 f4x2x2x2 f1x2x9x9", NULL, "dimension 2"}, {"quern:ConvGradW", "f1x4x8x8 f1x2x9x9 f4x3x2x2", NULL, "for a convolution"},
        {"quern:ConvGradX", "f1x4x8x8 f4x2x2x2 f1x2x9x9", "group=3", "groups"}, {"quern:ConvGradB", "f3", NULL, "rank 2"}, {"quern:MaxPoolGrad", "f1x1x3x3 f1x1x4x4", "kernel_shape=[3,3]", "dy"},
        {"quern:LayerNormalizationGrad", "f2x3 f2x3 f2", NULL, "scale"}, {"quern:GroupNormalizationGrad", "f2x3x4 f2x3x4 f3", "num_groups=2", "2 groups"},
        {"quern:BatchNormalizationGrad", "f2x3x4 f2x3x4 f3 f3 f4", NULL, "var"}, {"quern:LRNGrad", "f1x2 f1x2", "size=0", "size is 0"},
        {"quern:LSTMGrad", "f5x3x2 f1x16x2 f1x16x4 . . . . . f5x1x3x5", "hidden_size=4", "dY"}, {"quern:LSTMGrad", "f5x3x2 f1x16x2 f1x16x4", "clip=1.0", "clip"},
        {"quern:GRUGrad", "f5x3x2 f1x11x2 f1x12x4", NULL, "W"}, {"quern:SumTo", "f2x3 f4", NULL, "broadcast"},
        {"quern:NoiseGrad", "f2x3 f3", "kind='channels'", "factor"}, {"quern:NoiseGrad", "f2x3 f2x3", "kind='some'", "kind"}, {"quern:TripletGrad", "f2x4x5 j2:3 f2", NULL, "anchor"},
        {"quern:CTCGrad", "f2x4x5 j2x3:4 f3", NULL, "dy"}, {"quern:PairwiseRankGrad", "f2x1 f2", NULL, "negatives"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gcase each = cases[i], *c = &each;
        struct built b = {.type = OP_F32};
        struct op_error err = {0};
        char output[64];
        const char *expected = c->outputs;
        c->outputs = NULL;
        forward(&b, c, output, sizeof output);
        ot_output(&b.m, output, OP_UNDEFINED, -1, NULL);
        b.m.model = ot_load(&b.m, NULL, &err);
        if (b.m.model) {
            b.session = op_session_create(b.m.model, NULL, &err);
            CHECK(b.session, "%s", err.text);
            CHECK(!run(&b, &err), "it was taken");
        }
        CHECK(strstr(err.text, expected), "\"%s\" does not say \"%s\"", err.text, expected);
        done(&b);
    }
}

/* y = x^3 element by element; the gradient of its sum, and the gradient of that. */
static void test_gradient_nodes(void **state) {
    (void)state;
    static const char *const xs[] = {"x"}, *const other[] = {"s"};
    const int64_t n = 3;
    float x[3] = {1, -2, 0.5f};
    for (int good = 0; good < 2; good++) {
        struct ot m;
        struct op_error err = {0};
        const struct op_tensor *out;
        ot_begin(&m, 17);
        ot_input(&m, "x", OP_F32, 1, &n);
        ot_node(&m, "Mul", "x x", "s");
        ot_node(&m, "Mul", "s x", "y");
        ot_node_of(&m, "ai.onnx.preview.training", "Gradient", "x", "first");
        ot_strings(&m, "xs", 1, good ? xs : other);
        ot_string(&m, "y", "y");
        ot_node_of(&m, "ai.onnx.preview.training", "Gradient", "x", "second");
        ot_strings(&m, "xs", 1, xs);
        ot_string(&m, "y", "first");
        ot_output(&m, "first", OP_F32, 1, &n);
        ot_output(&m, "second", OP_F32, 1, &n);
        ot_close_node(&m);
        struct ot_bytes opset = {0};
        ot_put_string(&opset, 1, "ai.onnx.preview.training");
        ot_put_int(&opset, 2, 1);
        ot_finish(&m);
        ot_put_part(&m.file, 8, &opset);
        out = ot_run(&m, NULL, &(struct op_tensor){.dtype = OP_F32, .rank = 1, .dims = {3}, .data = x}, 1, &err);
        if (good) {
            if (!out) fail_msg("%s", err.text);
            for (int i = 0; i < 3; i++) {
                assert_float_equal(((const float *)out[0].data)[i], 3 * x[i] * x[i], 1e-6);
                assert_float_equal(((const float *)out[1].data)[i], 6 * x[i], 1e-6);
            }
        } else {
            assert_null(out);
            assert_non_null(strstr(err.text, "not the value \"s\""));
        }
        ot_end(&m);
    }
}

/* Piecewise constant: a gradient of zero, there is nothing to compare. */
static const char *const constant[] = {"Sign", "Ceil", "Round", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor",
                                       "IsNaN", "IsInf", "ArgMax", "ArgMin", "Shape", "Size", "OneHot", "NonZero", "quern:Fill",
                                       "ai.onnx.preview.training:Gradient" /* a test of its own */};

static bool has_name(const char *op, const char *full) { /* but for the opset */
    size_t len = strcspn(op, "@");
    return strlen(full) == len && !strncmp(op, full, len);
}

static void expect_checked(void *user, const struct op_operator *o) {
    char full[128];
    int *missing = user;
    bool found = false;
    if (!o->gradient) return;
    snprintf(full, sizeof full, "%s%s%s", o->domain, *o->domain ? ":" : "", o->name);
    for (int i = 0; i < n_checked && !found; i++) found = has_name(checked[i], full);
    for (size_t i = 0; i < sizeof constant / sizeof *constant && !found; i++) found = !strcmp(constant[i], full);
    if (found) return;
    print_error("%s has a gradient and no case\n", full);
    ++*missing;
}

static void test_every_gradient_has_a_case(void **state) {
    int missing = 0;
    (void)state;
    op_each_operator(expect_checked, &missing);
    assert_int_equal(missing, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_functions_of_one_element),
        cmocka_unit_test(test_arithmetic_and_selection),
        cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_movement),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_convolutions),
        cmocka_unit_test(test_pools_and_normalisations),
        cmocka_unit_test(test_recurrent_layers),
        cmocka_unit_test(test_losses),
        cmocka_unit_test(test_backward_operators_refuse_what_does_not_fit),
        cmocka_unit_test(test_gradient_nodes),
        cmocka_unit_test(test_every_gradient_has_a_case),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
