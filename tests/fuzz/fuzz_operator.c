/* One node of any operator the engine has, with any inputs and attributes: its checks at load and at plan time, and a run
 * where they let it through, plain and fast.
 *
 * The fuzzer's bytes choose the operator, the opset, of each input the type, shape and values, whether it is a constant or left out,
 * and attributes by name from a list of all that are read anywhere, with values that lie at edges. So the bytes need no structure and every
 * choice is a byte; fuzz_onnx.c is for the format. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include "tests/unit/op_testing.h"

#define MEMORY_BYTES_MAX ((uint64_t)16 << 20)
#define FLOPS_MAX 1e8
#define INPUTS_MAX 7
#define INPUT_BYTES_MAX (1 << 16)
#define COUNT(list) (sizeof(list) / sizeof *(list))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {
    "activation", "activation_alpha", "activation_beta", "activations", "aggregate_function", "align_corners", "allowzero", "alpha", "antialias", "approximate",
    "auto_pad", "axes", "axis", "base_values", "batch_axis", "batch_dims", "beta", "bias", "block_size", "blocksize", "broadcast", "case_change_action",
    "cats_int64s", "cats_strings", "ceil_mode", "center_point_box", "class_ids", "class_nodeids", "class_treeids", "class_weights", "classes_strings",
    "classlabels_int64s", "classlabels_ints", "classlabels_strings", "clip", "coefficients", "coordinate_transformation_mode", "count_include_pad",
    "cubic_coeff_a", "decay_factor", "default_float", "default_int64", "default_string", "default_tensor", "delimiter", "detect_negative", "detect_positive",
    "dilations", "direction", "do_rotary", "dtype", "end", "epsilon", "equation", "exclude_outside", "exclusive", "extrapolation_value", "fmod", "group",
    "hidden_size", "high", "ignore_index", "imputed_value_floats", "imputed_value_int64s", "input_forget", "inputdimensions", "intercepts", "interleaved",
    "inverse", "is_case_sensitive", "is_causal", "k", "keep_aspect_ratio_policy", "keepdims", "kernel_params", "kernel_shape", "kernel_type", "keys_floats",
    "keys_int64s", "keys_strings", "keys_tensor", "kv_num_heads", "largest", "layout", "leaf_targetids", "leaf_weights", "linear_before_reset", "low",
    "max_gram_length", "max_skip_count", "maxsplit", "mean", "membership_values", "min_gram_length", "mode", "momentum", "n_supports", "n_targets",
    "nearest_mode", "new_axis", "ngram_counts", "ngram_indexes", "nodes_falseleafs", "nodes_falsenodeids", "nodes_featureids", "nodes_modes", "nodes_nodeids",
    "nodes_splits", "nodes_treeids", "nodes_trueleafs", "nodes_truenodeids", "nodes_values", "noop_with_empty_axes", "norm", "norm_coefficient", "num_groups",
    "num_heads", "num_outputs", "offset", "offset_group", "onesided", "output_datatype", "output_dtype", "output_height", "output_padding", "output_shape",
    "output_width", "p", "padding_mode", "pads", "pattern", "perm", "periodic", "pool_int64s", "pool_strings", "pooled_shape", "post_transform", "prob_a",
    "q_num_heads", "qk_matmul_output_mode", "qkv_hidden_sizes", "ratio", "reduction", "replaced_value_float", "replaced_value_int64", "reverse", "rho",
    "rotary_embedding_dim", "round_mode", "sample_size", "sampling_ratio", "saturate", "scale", "scales", "seed", "select_last_index", "shape", "size",
    "softcap", "sorted", "spatial", "spatial_scale", "split", "start", "starts", "ends", "stash_type", "stopwords", "storage_order", "strides", "support_vectors",
    "target_ids", "target_nodeids", "target_treeids", "target_weights", "threshold", "time_axis", "to", "training_mode", "transA", "transB", "transBatchA",
    "transBatchB", "tree_roots", "unidirectional", "upper", "value", "values_floats", "values_int64s", "values_strings", "values_tensor", "vectors_per_class",
    "weights", "zeros"};
static const char *const words[] = {
    "", "linear", "nearest", "cubic", "bilinear", "constant", "reflect", "edge", "wrap", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "max", "avg", "sum",
    "mean", "none", "add", "mul", "min", "DCR", "CRD", "LEFT", "RIGHT", "forward", "reverse", "bidirectional", "Tanh", "Relu", "Sigmoid", "SOFTMAX", "LOGISTIC",
    "LINEAR", "POLY", "RBF", "SUM", "AVERAGE", "BRANCH_LEQ", "LEAF", "half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize", "half_pixel_symmetric",
    "floor", "ceil", "round_prefer_ceil", "zeros", "border", "reflection", "circular", "tanh", "up", "down", "not_larger", "not_smaller", "output_half_pixel",
    "ij,jk->ik", "ii->i", "...ij->...ji", "a,b->ab", "(a|b)*c", "[a-z]+\\.", "TF", "IDF", "TFIDF", "LOWER", "UPPER", "L1", "L2", "MAX", "b"};
static const int64_t numbers[] = {0, 1, -1, 2, 3, -2, 4, 5, 7, 8, -3, 16, 6, 9, 10, 255, 1000, INT32_MAX, INT64_MAX, INT64_MIN, INT64_MAX / 2, -1000, 26, 1 << 20};
static const float reals[] = {0, 1, -1, 0.5f, 2, 3, 1e-5f, 1e10f, -1e10f, INFINITY, -INFINITY, NAN, 100, 0.25f};
static const int64_t sizes[] = {1, 2, 3, 4, 0, 5, 6, 8, 9, 16, 12, 33};

struct source {
    const uint8_t *data;
    size_t left;
};

static uint8_t byte(struct source *s) {
    if (!s->left) return 0;
    s->left--;
    return *s->data++;
}
static int64_t number(struct source *s) {
    return numbers[byte(s) % COUNT(numbers)];
}

static const struct op_operator *operators;
static int n_operators;

static void keep(void *user, const struct op_operator *o) {
    static struct op_operator all[1024];
    (void)user;
    if (n_operators < 1024) all[n_operators++] = *o;
    operators = all;
}

/* Element values by a byte: zeros, small whole numbers, edges of floats, or bytes as they come. */
static void fill(struct source *s, struct op_tensor *t) {
    const int64_t n = op_tensor_count(t), size = (int64_t)op_type_size(t->dtype);
    const uint8_t how = byte(s);
    for (int64_t i = 0; i < n; i++) {
        char *at = (char *)t->data + i * size;
        if (t->dtype == OP_STRING) {
            const char *w = words[(how + i * 7) % (int64_t)COUNT(words)];
            ((struct op_string *)t->data)[i] = (struct op_string){w, strlen(w)};
        } else if (t->dtype == OP_BOOL) *at = (char)(how >> (i & 7) & 1);
        else if (t->dtype == OP_F32) *(float *)(void *)at = how & 1 ? (float)(i % (1 + how / 8)) - (float)(how & 2) : reals[(how / 2 + i * (how & 4)) % (int64_t)COUNT(reals)];
        else if (t->dtype == OP_F64) *(double *)(void *)at = how & 1 ? (double)(i % (1 + how / 8)) - (how & 2) : (double)reals[(how / 2 + i) % (int64_t)COUNT(reals)];
        else if (how & 1) memcpy(at, &(int64_t){i % (1 + how / 8) - (how & 2)}, (size_t)(size < 8 ? size : 8));
        else if (how & 2) memcpy(at, &(int64_t){number(s)}, (size_t)(size < 8 ? size : 8));
        else
            for (int64_t b = 0; b < size; b++) at[b] = (char)byte(s);
        const bool is_signed = t->dtype == OP_I4 || t->dtype == OP_I2;
        const int low = t->dtype == OP_I4 ? -8 : -2;
        if (is_signed) *at = (char)(low + (*at & (t->dtype == OP_I4 ? 15 : 3))); /* as the reader leaves them */
        if (t->dtype == OP_U4 || t->dtype == OP_F4E2M1) *at &= 15;
        if (t->dtype == OP_U2) *at &= 3;
    }
}

static bool make_tensor(struct source *s, enum op_type dtype, struct op_tensor *t) {
    *t = (struct op_tensor){.dtype = dtype, .rank = byte(s) % 6};
    for (int d = 0; d < t->rank; d++) t->dims[d] = sizes[byte(s) % COUNT(sizes)];
    const int64_t bytes = op_tensor_bytes(t);
    if (bytes < 0 || bytes > INPUT_BYTES_MAX) return false;
    t->data = calloc(1, bytes ? (size_t)bytes : 1);
    if (t->data) fill(s, t);
    return t->data != NULL;
}

/* As a TensorProto wants it: packed. */
static void put_constant(struct ot *m, const char *name, const struct op_tensor *t) {
    if (t->dtype == OP_U4 || t->dtype == OP_I4 || t->dtype == OP_F4E2M1 || t->dtype == OP_U2 || t->dtype == OP_I2) {
        struct ot_bytes b = {0};
        const int64_t each = t->dtype == OP_U2 || t->dtype == OP_I2 ? 4 : 2;
        for (int d = 0; d < t->rank; d++) ot_put_int(&b, 1, t->dims[d]);
        ot_put_int(&b, 2, t->dtype);
        ot_put_string(&b, 8, name);
        ot_put_bytes(&b, 9, t->data, (size_t)((op_tensor_count(t) + each - 1) / each));
        ot_put_part(&m->graph, 5, &b);
    } else ot_constant(m, name, t->dtype, t->rank, t->dims, t->data);
}

static void put_attribute(struct source *s, struct ot *m) {
    const char *name = names[byte(s) % COUNT(names)];
    int64_t ints[8];
    float floats[8];
    const char *strings[4];
    const uint8_t kind = byte(s), n = byte(s) % 8;
    struct op_tensor t;
    for (int i = 0; i < 8; i++) ints[i] = i < n || i == 0 ? number(s) : 0;
    switch (kind % 8) {
    case 0: case 1: case 2: ot_int(m, name, ints[0]); break;
    case 3: ot_ints(m, name, n, ints); break;
    case 4: ot_float(m, name, reals[byte(s) % COUNT(reals)]); break;
    case 5: ot_string(m, name, words[byte(s) % COUNT(words)]); break;
    case 6:
        for (int i = 0; i < 8; i++) floats[i] = reals[(size_t)(ints[i] & 255) % COUNT(reals)];
        for (int i = 0; i < 4; i++) strings[i] = words[(size_t)(ints[i] & 255) % COUNT(words)];
        if (kind & 8) ot_floats(m, name, n, floats);
        else ot_strings(m, name, n % 4, strings);
        break;
    default:
        t.data = NULL;
        if (make_tensor(s, (enum op_type)(1 + byte(s) % OP_BF16), &t)) ot_tensor_attr(m, name, t.dtype, t.rank, t.dims, t.data);
        free(t.data);
    }
}

static void run(const struct ot *m, bool reference, const struct op_tensor *in, int n_in) {
    const struct op_load_options options = {.reference = reference, .memory_bytes_max = MEMORY_BYTES_MAX};
    struct op_error err;
    const struct op_tensor *out;
    size_t peak;
    double flops;
    struct op_model *model = op_model_load_memory(m->file.data, m->file.len, NULL, &options, &err);
    struct op_session *s = model ? op_session_create(model, NULL, &err) : NULL;
    if (s && op_session_plan(s, in, n_in, &peak, &flops, &err) == OP_OK && flops < FLOPS_MAX) op_session_run(s, in, n_in, &out, &err);
    op_session_destroy(s);
    op_model_release(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct source s = {data, size};
    struct op_tensor all[INPUTS_MAX] = {0}, given[INPUTS_MAX];
    struct ot m;
    char in_names[64] = "", out_names[16] = "";
    int n_given = 0;
    if (!operators) op_each_operator(keep, NULL);
    const struct op_operator *o = &operators[(byte(&s) * 256 + byte(&s)) % n_operators];
    static const int opsets[] = {0, 24, 13, 18, 21, 11, 27, 7};
    const int opset = opsets[byte(&s) % COUNT(opsets)], n_in = byte(&s) % (INPUTS_MAX + 1), n_out = 1 + byte(&s) % 4, n_attrs = byte(&s) % 8;
    ot_begin(&m, *o->domain ? 21 : opset > o->since ? opset : o->since);
    m.domain_opset = *o->domain ? o->since : 1;
    enum op_type first = OP_F32;
    for (int i = 0; i < n_in; i++) {
        const uint8_t how = byte(&s);
        char name[4];
        enum op_type dtype = how & 3 ? (i ? how & 4 ? first : OP_I64 : OP_F32) : (enum op_type)(1 + byte(&s) % OP_I2);
        if (!i) first = dtype;
        snprintf(name, sizeof name, "x%d", i);
        strcat(in_names, i ? " " : "");
        if ((how & 0xe0) == 0xe0 || !make_tensor(&s, dtype, &all[i])) {
            strcat(in_names, ".");
            continue;
        }
        strcat(in_names, name);
        if (how & 16) put_constant(&m, name, &all[i]);
        else {
            ot_input(&m, name, dtype, how & 8 ? -1 : all[i].rank, all[i].dims);
            given[n_given++] = all[i];
        }
    }
    for (int i = 0; i < n_out; i++) sprintf(out_names + strlen(out_names), "%sy%d", i ? " " : "", i);
    ot_node_of(&m, o->domain, o->name, in_names, out_names);
    for (int i = 0; i < n_attrs; i++) put_attribute(&s, &m);
    for (int i = 0; i < n_out; i++) ot_output(&m, (char[]){'y', (char)('0' + i), 0}, OP_UNDEFINED, -1, NULL);
    ot_finish(&m);
    run(&m, true, given, n_given);
    run(&m, false, given, n_given);
    free(m.file.data);
    free(m.functions.data);
    for (int i = 0; i < n_in; i++) free(all[i].data);
    return 0;
}
