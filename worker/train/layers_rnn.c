/* layers_rnn.c: LSTM, GRU, SimpleRNN and Bidirectional around them.
 *
 * ONNX wants [steps, N, features] and one block of weights a direction: W [d, gates·H, I],
 * R [d, gates·H, H], B [d, 2·gates·H]. Gates are i o f c in ONNX's LSTM and z r h in its GRU, the
 * latter with linear_before_reset as Keras's reset_after. The initial numbers are drawn a direction
 * and as one matrix of all gates, as Keras draws them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/layers.h"

enum { MERGE_CONCAT, MERGE_SUM };

struct cell {
    const char *op;
    int gates;
};

/* One weight of d directions; each initialised as [rows, cols] of its own. */
static bool weight(struct w_graph *g, const char *name, int d, int64_t rows, int64_t cols,
                   const char *kind, uint64_t salt, const float *bias, struct w_name *dst) {
    struct op_tensor t = {.dtype = OP_F32, .rank = 3, .dims = {d, rows, cols}};
    if (bias) t = (struct op_tensor){.dtype = OP_F32, .rank = 2, .dims = {d, rows}};
    int64_t one = rows * (bias ? 1 : cols);
    float *data = malloc((size_t)(d * one) * sizeof *data + 1);
    if (!data) return w_fail(g->err, W_NO_MEMORY, "%s: no memory for its weights", g->where);
    snprintf(dst->s, sizeof dst->s, "%s/%s", g->name, name);
    uint64_t seed = g->seed ^ salt;
    for (const char *p = dst->s; *p; p++) seed = w__train_mix(seed ^ (unsigned char)*p);
    bool ok = true;
    for (int i = 0; i < d && ok; i++) {
        struct op_tensor part = {
            .dtype = OP_F32, .rank = 2, .dims = {rows, cols}, .data = data + i * one};
        if (bias)
            memcpy(data + i * one, bias, (size_t)one * sizeof *data);
        else
            ok = op_initialize(&part, kind, cols, rows, NAN, w__train_mix(seed + (uint64_t)i));
    }
    t.data = data;
    if (ok) op_builder_weight(g->builder, dst->s, &t);
    free(data);
    if (!ok) return w__layer_fail(g, "there is no initializer \"%s\"", kind);
    return g->layer->trainable || w__freeze(g, dst->s);
}

static bool initializer_name(struct w_graph *g, json_t *json, const char *deflt, char *dst,
                             size_t size) {
    const char *type = deflt;
    if (json && !w__train_typed(json, &type, "an initializer", g->err))
        return w_fail_in(g->err, "%s: ", g->where);
    w__train_snake(type, dst, size);
    return true;
}

/* Every step's output [N, steps, d·H] or the last one's [N, d·H], merged as asked. */
static bool outputs(struct w_graph *g, const struct w_layer *l, const struct w_name *y,
                    const struct w_name *last, int d) {
    int64_t h = l->units, steps = g->flow.dims[0];
    bool sum = d == 2 && l->merge_mode == MERGE_SUM;
    if (l->return_sequences) { /* Y is [steps, d, N, H] */
        int64_t perm[] = {2, 0, 1, 3}, dims[] = {0, steps, d * h};
        g->flow.value = *y;
        w__transpose(g, 4, perm);
        if (sum) {
            struct w_name axes;
            const struct op_arg args[] = {W_INT("keepdims", 0)};
            w__ints(g, "axes", 1, (int64_t[]){2}, &axes);
            g->flow.value =
                w__node(g, "ReduceSum", (const char *[]){g->flow.value.s, axes.s}, 2, args, 1);
        } else if (!w__reshape(g, "merged", 3, dims)) {
            return false;
        }
        g->flow.rank = 2;
    } else { /* Y_h is [d, N, H] */
        int64_t perm[] = {1, 0, 2}, dims[] = {0, d * h};
        g->flow.value = *last;
        w__transpose(g, 3, perm);
        if (!w__reshape(g, "merged", 2, dims)) return false;
        g->flow.rank = 1;
    }
    g->flow.dims[g->flow.rank - 1] = d * h;
    return true;
}

/* How many steps a row has, by the mask: i32[N], at least 1. What pads stands behind. */
static bool lengths_of(struct w_graph *g, struct w_name *dst) {
    struct w_name axes, least;
    const struct op_arg args[] = {W_INT("keepdims", 0)};
    if (!w__ints(g, "mask_axes", 1, (int64_t[]){1}, &axes) || !w__scalar(g, "least", 1, &least))
        return false;
    *dst = w__node(g, "ReduceSum", (const char *[]){g->flow.mask.s, axes.s}, 2, args, 1);
    *dst = W_NODE2(g, "Max", *dst, least);
    *dst = W_NODE1(g, "Cast", *dst, W_INT("to", 6)); /* i32 */
    return true;
}

static bool recurrent(struct w_graph *g, const struct w_layer *l, const struct cell *cell, int d) {
    int64_t in = g->flow.dims[1], h = l->units, rows = cell->gates * h;
    struct w_name w, r, b = {""}, lengths = {""}, y, last;
    char kind[48], recurrent_kind[48], word[40] = "tanh", gate[40] = "sigmoid";
    if (!w__rank_is(g, 2, "[N, steps, features]") ||
        !w__regularize(g, l->kernel_regularizer, "kernel_regularizer", "kernel") ||
        !w__regularize(g, l->recurrent_regularizer, "recurrent_regularizer", "recurrent_kernel") ||
        !w__regularize(g, l->bias_regularizer, "bias_regularizer", "bias") ||
        !initializer_name(g, l->kernel_initializer, "glorot_uniform", kind, sizeof kind) ||
        !initializer_name(g, l->recurrent_initializer, "orthogonal", recurrent_kind,
                          sizeof recurrent_kind))
        return false;
    w__channels_last(g);
    if (l->activation) w__train_snake(l->activation, word, sizeof word);
    if (l->recurrent_activation) w__train_snake(l->recurrent_activation, gate, sizeof gate);
    const char *f = w__activation_op(gate), *a = w__activation_op(word);
    if (!f || !a)
        return w__layer_fail(g, "activations \"%s\" and \"%s\" cannot both be inside a recurrence",
                             gate, word);
    if (!weight(g, "kernel", d, rows, in, kind, 0, NULL, &w) ||
        !weight(g, "recurrent_kernel", d, rows, h, recurrent_kind, 0, NULL, &r))
        return false;
    if (l->use_bias) {
        float *bias = calloc((size_t)(2 * rows), sizeof *bias);
        for (int64_t i = 0; bias && cell->gates == 4 && l->unit_forget_bias && i < h; i++)
            bias[2 * h + i] = 1; /* i o f c */
        bool ok = bias ? weight(g, "bias", d, 2 * rows, 1, "zeros", 0, bias, &b)
                       : w_fail(g->err, W_NO_MEMORY, "out of memory");
        free(bias);
        if (!ok) return false;
    }
    /* One mask for all steps of a row, as Keras's `dropout` draws it. */
    if (!w__noise(g, "channels", l->rate, -1) || (g->flow.mask.s[0] && !lengths_of(g, &lengths)))
        return false;
    w__transpose(g, 3, (int64_t[]){1, 0, 2});
    snprintf(y.s, sizeof y.s, "%s/y", g->name);
    snprintf(last.s, sizeof last.s, "%s/y_last", g->name);
    const char *inputs[] = {g->flow.value.s, w.s, r.s, b.s, lengths.s},
               *made[] = {l->return_sequences ? y.s : "", l->return_sequences ? "" : last.s};
    struct op_arg args[5] = {W_INT("hidden_size", h),
                             W_STRING("direction", d == 2            ? "bidirectional"
                                                   : l->go_backwards ? "reverse"
                                                                     : "forward")};
    int n = 2;
    if (cell->gates == 3) args[n++] = (struct op_arg)W_INT("linear_before_reset", l->reset_after);
    if (strcmp(f, "Sigmoid") || strcmp(a, "Tanh"))
        return w__layer_fail(g, "inside a recurrence activation \"tanh\" and recurrent_activation "
                                "\"sigmoid\" are supported");
    op_builder_node(g->builder, cell->op, inputs, lengths.s[0] ? 5 : l->use_bias ? 4 : 3, made,
                    l->return_sequences ? 1 : 2, args, n);
    return outputs(g, l, &y, &last, d);
}

static const struct cell cells[] = {{"LSTM", 4}, {"GRU", 3}, {"RNN", 1}};

static bool lstm(struct w_graph *g, const struct w_layer *l) {
    return recurrent(g, l, &cells[0], 1);
}
static bool gru(struct w_graph *g, const struct w_layer *l) {
    return recurrent(g, l, &cells[1], 1);
}
static bool simple_rnn(struct w_graph *g, const struct w_layer *l) {
    return recurrent(g, l, &cells[2], 1);
}

static bool bidirectional(struct w_graph *g, const struct w_layer *l) {
    const struct w_layer_desc *desc;
    struct w_layer inner = {0};
    char where[256];
    snprintf(where, sizeof where, "%s: layer", g->where);
    if (!w__layer_read(l->layer, &desc, &inner, where, g->err)) return false;
    const struct cell *cell = desc->build == lstm         ? &cells[0]
                              : desc->build == gru        ? &cells[1]
                              : desc->build == simple_rnn ? &cells[2]
                                                          : NULL;
    inner.merge_mode = l->merge_mode;
    bool ok =
        !cell ? w__layer_fail(g, "\"layer\" is %s; LSTM, GRU or SimpleRNN is expected", desc->name)
        : inner.merge_mode == MERGE_SUM && !inner.return_sequences
            ? w__layer_fail(g, "merge_mode \"sum\" needs \"return_sequences\": true")
            : recurrent(g, &inner, cell, 2);
    if (ok && inner.merge_mode == MERGE_SUM) g->flow.dims[1] = inner.units;
    w__layer_free(desc, &inner);
    return ok;
}

/* clang-format off */
#define RNN W_P_COMMON, W_P_NUMBER("dropout", rate, 0, 0.999, 0), W_P_NEEDED("units", units, "size of the state"), W_P_BOOL("return_sequences", return_sequences, 0), W_P_BOOL("go_backwards", go_backwards, 0), \
    W_P_JSON("recurrent_initializer", recurrent_initializer), W_P_JSON("recurrent_regularizer", recurrent_regularizer), W_P_WEIGHTS
static const struct w_param lstm_params[] = {RNN, W_P_TEXT("recurrent_activation", recurrent_activation), W_P_BOOL("unit_forget_bias", unit_forget_bias, 1), {0}};
static const struct w_param gru_params[] = {RNN, W_P_TEXT("recurrent_activation", recurrent_activation), W_P_BOOL("reset_after", reset_after, 1), {0}};
static const struct w_param rnn_params[] = {RNN, {0}};
static const struct w_param bidirectional_params[] = {W_P_COMMON, {.name = "layer", .kind = W_PARAM_JSON, .offset = W_AT(layer), .required = true, .help = "an LSTM, GRU or SimpleRNN"},
    {.name = "merge_mode", .kind = W_PARAM_CHOICE, .offset = W_AT(merge_mode), .choices = "concat sum"}, {0}};

static const struct w_layer_desc rnn_layers[] = {
    {"LSTM", lstm_params, lstm, false},
    {"GRU", gru_params, gru, false},
    {"SimpleRNN", rnn_params, simple_rnn, false},
    {"Bidirectional", bidirectional_params, bidirectional, false},
    {0}};
/* clang-format on */
W_LAYERS(rnn_layers);
