/* The passes that concern rows (fuse_layer_norm, fuse_attention): what exporters write out runs as one operator and gives what the
 * reference gives; what only looks like it stays. */
#include "pass_testing.h"

/* The nodes of a normalisation of x: `centred` or not, the square as Pow or as a product, the quotient as Div (0), by 1 / . (1) or by
 * Reciprocal (2). */
static void normalisation(struct ot *m, bool centred, bool power, int quotient) {
    const char *d = centred ? "d" : "x";
    char names[40];
    scalar(m, "two", 2);
    scalar(m, "one", 1);
    scalar(m, "epsilon", 1e-3f);
    constant(m, "w", 1, DIMS(8), 0.5f, 2);
    constant(m, "b", 1, DIMS(8), -1, 1);
    if (centred) {
        ot_node(m, "ReduceMean", "x", "m");
        ot_ints(m, "axes", 1, DIMS(-1));
        ot_node(m, "Sub", "x m", "d");
    }
    snprintf(names, sizeof names, "%s %s", d, power ? "two" : d);
    ot_node(m, power ? "Pow" : "Mul", names, "s");
    ot_node(m, "ReduceMean", "s", "v");
    ot_ints(m, "axes", 1, DIMS(-1));
    ot_node(m, "Add", quotient ? "epsilon v" : "v epsilon", "e");
    ot_node(m, "Sqrt", "e", "r");
    if (quotient == 1) ot_node(m, "Div", "one r", "i");
    if (quotient == 2) ot_node(m, "Reciprocal", "r", "i");
    if (quotient == 1) snprintf(names, sizeof names, "i %s", d);
    else snprintf(names, sizeof names, "%s %s", d, quotient ? "i" : "r");
    ot_node(m, quotient ? "Mul" : "Div", names, "n");
    ot_node(m, "Mul", power ? "n w" : "w n", centred ? "p" : "y");
    if (centred) ot_node(m, "Add", "p b", "y");
    ot_output(m, "y", OP_F32, -1, NULL);
}

static void begin(struct ot *m) {
    ot_begin(m, 14);
    ot_input(m, "x", OP_F32, 3, DIMS(-1, -1, 8));
}

static void test_normalisations_written_out(void **state) {
    (void)state;
    struct op_tensor x = tensor(3, DIMS(2, 5, 8));
    struct ot m;
    for (int form = 0; form < 12; form++) {
        begin(&m);
        normalisation(&m, form & 1, form & 2, form / 4);
        compare(&m, &x, 1, form & 1 ? "LayerNormalization" : "RMSNormalization");
    }
    begin(&m); /* the deviation is used elsewhere too */
    normalisation(&m, true, true, 0);
    ot_output(&m, "r", OP_F32, -1, NULL);
    compare(&m, &x, 1, "ReduceMean Sub Pow ReduceMean Add Sqrt Div Mul Add");
    begin(&m); /* the mean of something else is taken away: what is left is an RMSNormalization of d */
    ot_node(&m, "Tanh", "x", "t");
    ot_node(&m, "ReduceMean", "t", "m");
    ot_ints(&m, "axes", 1, DIMS(-1));
    ot_node(&m, "Sub", "x m", "d");
    scalar(&m, "two", 2);
    scalar(&m, "epsilon", 1e-3f);
    constant(&m, "w", 1, DIMS(8), 0.5f, 2);
    ot_node(&m, "Pow", "d two", "s");
    ot_node(&m, "ReduceMean", "s", "v");
    ot_ints(&m, "axes", 1, DIMS(-1));
    ot_node(&m, "Add", "v epsilon", "e");
    ot_node(&m, "Sqrt", "e", "r");
    ot_node(&m, "Div", "d r", "n");
    ot_node(&m, "Mul", "n w", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "Tanh ReduceMean Sub RMSNormalization");
    begin(&m); /* over another axis */
    scalar(&m, "two", 2);
    scalar(&m, "epsilon", 1e-3f);
    constant(&m, "w", 1, DIMS(8), 0.5f, 2);
    ot_node(&m, "Pow", "x two", "s");
    ot_node(&m, "ReduceMean", "s", "v");
    ot_ints(&m, "axes", 1, DIMS(1));
    ot_node(&m, "Add", "v epsilon", "e");
    ot_node(&m, "Sqrt", "e", "r");
    ot_node(&m, "Div", "x r", "n");
    ot_node(&m, "Mul", "n w", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "Pow ReduceMean Add Sqrt Div Mul");
    free(x.data);
}

/* --- attention --------------------------------------------------------------------------------- */

static void ints(struct ot *m, const char *name, int64_t n, const int64_t *x) {
    ot_constant(m, name, OP_I64, 1, &n, x);
}

static void movement(struct ot *m, const char *op, const char *in, const char *out, const int64_t *perm, int64_t n) {
    ot_node(m, op, in, out);
    if (perm) ot_ints(m, "perm", n, perm);
}

/* Time first, a packed projection cut in three, as torch exports nn.MultiheadAttention; x is [n, 5, 12], of 3 heads of 4. */
static void packed(struct ot *m, int64_t n, bool give_weights) {
    ot_begin(m, 17);
    ot_input(m, "x", OP_F32, 3, DIMS(-1, 5, 12));
    constant(m, "w", 2, DIMS(12, 36), -1, 1);
    constant(m, "b", 1, DIMS(36), -1, 1);
    scalar(m, "root", 2);
    ints(m, "heads", 3, DIMS(5, n * 3, 4));
    ints(m, "rows", 2, DIMS(5 * n, 12));
    ints(m, "last", 1, DIMS(2));
    ints(m, "at0", 1, DIMS(0)), ints(m, "at1", 1, DIMS(12)), ints(m, "at2", 1, DIMS(24)), ints(m, "at3", 1, DIMS(36));
    movement(m, "Transpose", "x", "t", DIMS(1, 0, 2), 3);
    ot_node(m, "MatMul", "t w", "p");
    ot_node(m, "Add", "b p", "all");
    static const char *const cut[] = {"all at0 at1 last", "all at1 at2 last", "all at2 at3 last"};
    for (int i = 0; i < 3; i++) {
        const char *s = (const char *[]){"s0", "s1", "s2"}[i], *r = (const char *[]){"r0", "r1", "r2"}[i];
        char names[20];
        ot_node(m, "Slice", cut[i], s);
        snprintf(names, sizeof names, "%s heads", s);
        ot_node(m, "Reshape", names, r);
    }
    ot_node(m, "Shape", "s1", "shape"); /* as they ask for the length */
    movement(m, "Transpose", "r0", "q", DIMS(1, 0, 2), 3);
    movement(m, "Transpose", "r1", "k", DIMS(1, 2, 0), 3);
    movement(m, "Transpose", "r2", "v", DIMS(1, 0, 2), 3);
    ot_node(m, "Div", "q root", "scaled");
    ot_node(m, "MatMul", "scaled k", "scores");
    ot_node(m, "Softmax", "scores", "weights");
    ot_int(m, "axis", -1);
    ot_node(m, "MatMul", "weights v", "heads_out");
    movement(m, "Transpose", "heads_out", "back", DIMS(1, 0, 2), 3);
    ot_node(m, "Reshape", "back rows", "flat");
    ot_node(m, "Neg", "flat", "y");
    ot_output(m, "y", OP_F32, -1, NULL);
    ot_output(m, "shape", OP_I64, -1, NULL);
    if (give_weights) ot_output(m, "weights", OP_F32, -1, NULL);
}

static void test_attention_of_a_packed_projection(void **state) {
    (void)state;
    for (int64_t n = 1; n < 4; n++) {
        struct op_tensor x = tensor(3, DIMS(n, 5, 12));
        struct ot m;
        packed(&m, n, false);
        compare(&m, &x, 1, "FusedMatMul FusedAttention Neg");
        packed(&m, n, true);
        compare(&m, &x, 1,
                "FusedMatMul Transpose Slice Reshape Slice Reshape Slice Reshape Transpose Transpose Transpose Div MatMul Softmax MatMul Transpose Reshape Neg");
        free(x.data);
    }
}

/* One Reshape and one Transpose for all three, Gather picks each, as timm does; a factor at k, and a mask. */
static void test_attention_of_gathered_parts(void **state) {
    (void)state;
    struct op_tensor x = tensor(3, DIMS(2, 6, 24));
    struct ot m;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 3, DIMS(-1, 6, 24));
    ints(&m, "five", 5, DIMS(0, 6, 3, 2, 4));
    ints(&m, "three", 3, DIMS(0, 6, -1));
    const int64_t index[] = {0, 1, -1};
    ot_constant(&m, "i0", OP_I64, 0, NULL, &index[0]);
    ot_constant(&m, "i1", OP_I64, 0, NULL, &index[1]);
    ot_constant(&m, "i2", OP_I64, 0, NULL, &index[2]);
    scalar(&m, "half", 0.5f);
    constant(&m, "mask", 3, DIMS(2, 1, 6), -2, 0);
    ot_node(&m, "Reshape", "x five", "r");
    movement(&m, "Transpose", "r", "t", DIMS(2, 0, 3, 1, 4), 5);
    ot_node(&m, "Gather", "t i0", "q");
    ot_node(&m, "Gather", "t i1", "k");
    ot_node(&m, "Gather", "t i2", "v");
    movement(&m, "Transpose", "k", "kt", DIMS(0, 1, 3, 2), 4);
    ot_node(&m, "Mul", "kt half", "ks");
    ot_node(&m, "MatMul", "q ks", "scores");
    ot_node(&m, "Add", "mask scores", "masked");
    ot_node(&m, "Softmax", "masked", "weights");
    ot_int(&m, "axis", 3);
    ot_node(&m, "MatMul", "weights v", "o");
    movement(&m, "Transpose", "o", "b", DIMS(0, 2, 1, 3), 4);
    ot_node(&m, "Reshape", "b three", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, &x, 1, "FusedAttention");
    free(x.data);
}

/* Four heads of queries share two of keys by an Expand, as the Llama exporters write it. */
static void test_attention_of_shared_keys(void **state) {
    (void)state;
    struct op_tensor in[] = {tensor(4, DIMS(2, 7, 4, 8)), tensor(4, DIMS(2, 2, 9, 8)), tensor(4, DIMS(2, 2, 9, 8)), tensor(4, DIMS(2, 1, 7, 9))};
    struct ot m;
    ot_begin(&m, 17);
    ot_input(&m, "q", OP_F32, 4, DIMS(2, 7, 4, 8));
    ot_input(&m, "k", OP_F32, 4, DIMS(2, 2, 9, 8));
    ot_input(&m, "v", OP_F32, 4, DIMS(2, 2, 9, 8));
    ot_input(&m, "mask", OP_F32, 4, DIMS(2, 1, 7, 9));
    ints(&m, "axis", 1, DIMS(2));
    ints(&m, "wide", 5, DIMS(2, 2, 2, 9, 8));
    ints(&m, "all", 4, DIMS(2, 4, 9, 8));
    scalar(&m, "root", 2.5f);
    movement(&m, "Transpose", "q", "qt", DIMS(0, 2, 1, 3), 4);
    for (int i = 0; i < 2; i++) {
        ot_node(&m, "Unsqueeze", i ? "v axis" : "k axis", i ? "v1" : "k1");
        ot_node(&m, "Expand", i ? "v1 wide" : "k1 wide", i ? "v2" : "k2");
        ot_node(&m, "Reshape", i ? "v2 all" : "k2 all", i ? "v3" : "k3");
    }
    movement(&m, "Transpose", "k3", "kt", DIMS(0, 1, 3, 2), 4);
    ot_node(&m, "MatMul", "qt kt", "s");
    ot_node(&m, "Div", "s root", "d");
    ot_node(&m, "Add", "d mask", "a");
    ot_node(&m, "Softmax", "a", "p");
    ot_node(&m, "MatMul", "p v3", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, in, 4, "FusedAttention");
    for (int i = 0; i < 4; i++) free(in[i].data);
}

/* Shapes that strides do not describe, products that broadcast, a mask of more queries than there were: the nodes' own way. */
static void test_attention_across_the_grain(void **state) {
    (void)state;
    struct op_tensor in[] = {tensor(3, DIMS(2, 6, 8)), tensor(3, DIMS(1, 8, 6)), tensor(2, DIMS(3, 6))};
    struct ot m;
    ot_begin(&m, 17);
    ot_input(&m, "x", OP_F32, 3, DIMS(2, 6, 8));
    ot_input(&m, "z", OP_F32, 3, DIMS(1, 8, 6));
    ints(&m, "shape", 3, DIMS(2, 6, 8));
    ints(&m, "flat", 2, DIMS(4, 24));
    movement(&m, "Transpose", "x", "t", DIMS(0, 2, 1), 3);
    ot_node(&m, "Reshape", "t shape", "q");
    ot_node(&m, "MatMul", "q z", "s");
    ot_node(&m, "Softmax", "s", "p");
    ot_node(&m, "MatMul", "p x", "o");
    movement(&m, "Transpose", "o", "r", DIMS(0, 2, 1), 3);
    ot_node(&m, "Reshape", "r flat", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, in, 2, "FusedAttention");
    free(in[0].data), free(in[1].data);
    in[0] = tensor(3, DIMS(2, 1, 8)), in[1] = tensor(3, DIMS(2, 6, 8));
    ot_begin(&m, 17);
    ot_input(&m, "q", OP_F32, 3, DIMS(2, 1, 8));
    ot_input(&m, "k", OP_F32, 3, DIMS(2, 6, 8));
    ot_input(&m, "mask", OP_F32, 2, DIMS(3, 6));
    movement(&m, "Transpose", "k", "kt", DIMS(0, 2, 1), 3);
    ot_node(&m, "MatMul", "q kt", "s");
    ot_node(&m, "Add", "s mask", "a");
    ot_node(&m, "Softmax", "a", "p");
    ot_node(&m, "MatMul", "p k", "y");
    ot_output(&m, "y", OP_F32, -1, NULL);
    compare(&m, in, 3, "FusedAttention");
    for (int i = 0; i < 3; i++) free(in[i].data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normalisations_written_out),
        cmocka_unit_test(test_attention_of_a_packed_projection),
        cmocka_unit_test(test_attention_of_gathered_parts),
        cmocka_unit_test(test_attention_of_shared_keys),
        cmocka_unit_test(test_attention_across_the_grain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
