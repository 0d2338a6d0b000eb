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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normalisations_written_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
