/* rnn.h: what rnn.c (forms, shapes, reference, registration) and rnn_f32.c (the fast form) share. Internal to ops/op/. */
#ifndef QUERN_OP_RNN_H
#define QUERN_OP_RNN_H

#include "ops/kern/kern.h"
#include "ops/op/nn.h"

enum rnn_kind { RNN_PLAIN, RNN_GRU, RNN_LSTM };

/* X(NAME, name in ONNX, default alpha, default beta, reads alpha, reads beta) */
#define RNN_FN_MAP(X)                                                                              \
    X(RELU, "Relu", 0, 0, 0, 0)                                                                    \
    X(TANH, "Tanh", 0, 0, 0, 0)                                                                    \
    X(SIGMOID, "Sigmoid", 0, 0, 0, 0)                                                              \
    X(AFFINE, "Affine", 1, 0, 1, 1)                                                                \
    X(LEAKY_RELU, "LeakyRelu", 0.01f, 0, 1, 0)                                                     \
    X(THRESHOLDED_RELU, "ThresholdedRelu", 1, 0, 1, 0)                                             \
    X(SCALED_TANH, "ScaledTanh", 1, 1, 1, 1)                                                       \
    X(HARD_SIGMOID, "HardSigmoid", 0.2f, 0.5f, 1, 1)                                               \
    X(ELU, "Elu", 1, 0, 1, 0)                                                                      \
    X(SOFTSIGN, "Softsign", 0, 0, 0, 0)                                                            \
    X(SOFTPLUS, "Softplus", 0, 0, 0, 0)

enum rnn_fn {
#define X(NAME, name, alpha, beta, has_alpha, has_beta) RNN_FN_##NAME,
    RNN_FN_MAP(X)
#undef X
        RNN_N_FN
};

struct rnn_act {
    enum rnn_fn fn;
    float alpha, beta;
};

/* Weights of one direction in panels for the matrix product. R of a GRU is in two parts: z and r, and h. */
struct rnn_packed {
    float *w, *r, *r_h;
};

struct rnn {
    enum rnn_kind kind;
    int n_gates, n_acts, n_dirs;
    bool reverse_first; /* direction "reverse" */
    bool batch_first;   /* layout 1 */
    bool input_forget, linear_before_reset;
    float clip; /* 0: none */
    int64_t hidden; /* attribute; 0: taken from R */
    struct rnn_act act[2][3];
    const struct k_kernels *kern;
    struct rnn_packed packed[2]; /* NULL pointers where weights are no constants */
};

struct rnn_dims {
    int64_t steps, batch, in, hidden;
};

/* Inputs by number */
enum { RNN_X, RNN_W, RNN_R, RNN_B, RNN_LENS, RNN_H0, RNN_C0, RNN_P };

/* For the backward pass (rnn_grad.c): parses attributes into node->state without packing weights; checks the inputs and sets outputs Y,
 * Y_h, Y_c; checks sequence_lens against the steps. */
enum op_status op__rnn_prepare(struct op_prepare *p, enum rnn_kind kind);
void op__rnn_release(void *state);
enum op_status op__rnn_infer(struct op_ctx *ctx);
enum op_status op__rnn_check_lengths(const struct op_ctx *ctx, const struct rnn_dims *d);

void op__rnn_dims(const struct op_ctx *ctx, struct rnn_dims *d);
/* The element where a row of `hidden` begins: in Y, and in a state (Y_h, Y_c, initial_h, initial_c). */
static inline int64_t rnn_y_at(const struct rnn *s, const struct rnn_dims *d, int64_t t, int dir, int64_t n) {
    return (s->batch_first ? (n * d->steps + t) * s->n_dirs + dir : (t * s->n_dirs + dir) * d->batch + n) * d->hidden;
}
static inline int64_t rnn_state_at(const struct rnn *s, const struct rnn_dims *d, int dir, int64_t n) {
    return (s->batch_first ? n * s->n_dirs + dir : dir * d->batch + n) * d->hidden;
}
static inline int64_t rnn_x_at(const struct rnn *s, const struct rnn_dims *d, int64_t t, int64_t n) {
    return (s->batch_first ? n * d->steps + t : t * d->batch + n) * d->in;
}
static inline bool rnn_reverse(const struct rnn *s, int dir) {
    return dir == 1 || s->reverse_first;
}
static inline int64_t rnn_length(const struct op_ctx *ctx, const struct rnn_dims *d, int64_t n) {
    const struct op_tensor *lens = nn_in(ctx, RNN_LENS);
    return lens ? ((const int32_t *)lens->data)[n] : d->steps;
}

/* Floats that the packed weights of one direction take, in the order w, r, r_h. */
size_t op__rnn_packed_floats(const struct rnn *s, const struct k_gemm *g, int64_t in, int64_t hidden, size_t part[3]);
void op__rnn_pack(const struct rnn *s, const struct k_gemm *g, int64_t in, int64_t hidden, const float *w, const float *r, float *dst,
                  struct rnn_packed *packed);
size_t op__rnn_f32_scratch(const struct op_ctx *ctx);
enum op_status op__rnn_f32_run(struct op_ctx *ctx);

#endif
