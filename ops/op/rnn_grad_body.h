/* rnn_grad_body.h: one direction of a recurrent layer, forward and backward, for elements of type T; included by rnn_grad.c for float
 * and for double. NAME(x) is x with the type's suffix. Shapes: S steps, N rows, I inputs, H hidden, G gates. */

#define PART(piece) ((T *)j->ctx->scratch + j->at.piece)

static inline int64_t NAME(place)(const struct job *j, int dir, int64_t step, int64_t n, bool *alive) { /* the step in X and Y */
    const int64_t length = rnn_length(j->ctx, &j->d, n);
    *alive = step < length;
    return rnn_reverse(j->s, dir) && *alive ? length - 1 - step : step;
}

/* Lays X out in the order of processing: (S, N, I). */
static void NAME(gather_x)(const struct job *j, int dir) {
    T *to = PART(xs);
    bool alive;
    for (int64_t s = 0; s < j->d.steps; s++)
        for (int64_t n = 0; n < j->d.batch; n++, to += j->d.in)
            memcpy(to, (const T *)j->ctx->in[RNN_X]->data + rnn_x_at(j->s, &j->d, NAME(place)(j, dir, s, n, &alive), n), (size_t)j->d.in * sizeof(T));
}

static void NAME(load_state)(const struct job *j, int dir, int input, T *to) {
    const struct op_tensor *t = nn_in(j->ctx, input);
    for (int64_t n = 0; n < j->d.batch; n++, to += j->d.hidden) {
        if (t) memcpy(to, (const T *)t->data + rnn_state_at(j->s, &j->d, dir, n), (size_t)j->d.hidden * sizeof(T));
        else memset(to, 0, (size_t)j->d.hidden * sizeof(T));
    }
}
static void NAME(store_state)(const struct job *j, int dir, int output, const T *from) {
    struct op_tensor *t = nn_out(j->ctx, output);
    for (int64_t n = 0; n < j->d.batch && t; n++, from += j->d.hidden)
        memcpy((T *)t->data + rnn_state_at(j->s, &j->d, dir, n), from, (size_t)j->d.hidden * sizeof(T));
}

/* --- forward: one row of one step; g holds W x with biases (G), r the product with R (G); what stays in g are the gates --------------- */

static void NAME(cell)(const struct job *j, int dir, T *g, const T *r, const T *rb, const T *h, T *h_next, const T *c, T *c_next, T *extra) {
    const int64_t H = j->d.hidden;
    if (j->s->kind == RNN_LSTM) { /* i o f c */
        OP_INDEPENDENT for (int64_t i = 0; i < 4 * H; i++) g[i] += r[i];
        NAME(sigmoid)(j, 3 * H, g);
        NAME(tanh)(j, H, g + 3 * H, g + 3 * H);
        OP_INDEPENDENT for (int64_t i = 0; i < H; i++) c_next[i] = g[2 * H + i] * c[i] + g[i] * g[3 * H + i];
        NAME(tanh)(j, H, c_next, h_next);
        OP_INDEPENDENT for (int64_t i = 0; i < H; i++) h_next[i] *= g[H + i];
    } else if (j->s->kind == RNN_PLAIN) {
        OP_INDEPENDENT for (int64_t i = 0; i < H; i++) g[i] += r[i];
        if (j->s->act[dir][0].fn == RNN_FN_TANH) NAME(tanh)(j, H, g, h_next);
        else
            for (int64_t i = 0; i < H; i++) h_next[i] = g[i] > 0 ? g[i] : 0;
    } else { /* z r h, the first two; extra: R h + bias, or what R is to be multiplied with */
        OP_INDEPENDENT for (int64_t i = 0; i < 2 * H; i++) g[i] += r[i];
        NAME(sigmoid)(j, 2 * H, g);
        if (j->reset_first) {
            OP_INDEPENDENT for (int64_t i = 0; i < H; i++) extra[i] = g[H + i] * h[i];
        } else {
            OP_INDEPENDENT for (int64_t i = 0; i < H; i++) extra[i] = r[2 * H + i] + (rb ? rb[2 * H + i] : 0);
            OP_INDEPENDENT for (int64_t i = 0; i < H; i++) g[2 * H + i] += g[H + i] * extra[i];
        }
    }
}
static void NAME(gru_output)(const struct job *j, T *g, const T *r_h, const T *h, T *h_next) {
    const int64_t H = j->d.hidden;
    if (r_h) {
        OP_INDEPENDENT for (int64_t i = 0; i < H; i++) g[2 * H + i] += r_h[i];
    }
    NAME(tanh)(j, H, g + 2 * H, g + 2 * H);
    OP_INDEPENDENT for (int64_t i = 0; i < H; i++) h_next[i] = (1 - g[i]) * g[2 * H + i] + g[i] * h[i];
}

static void NAME(forward_step)(const struct job *j, int dir, int64_t s, const T *R, const float *packed, const float *packed_h, const T *rb) {
    const int64_t N = j->d.batch, H = j->d.hidden, G = j->gates, first = j->reset_first ? 2 * H : G;
    T *g = PART(gates) + s * N * G, *h = PART(hs) + s * N * H, *c = PART(cs) + s * N * H, *r = PART(step), *extra = PART(extra) + s * N * H;
    bool alive;
    NAME(product)(j, N, first, H, (struct operand){h, H, 1, NULL}, (struct operand){R, 1, H, packed}, r, G);
    for (int64_t n = 0; n < N; n++)
        NAME(cell)(j, dir, g + n * G, r + n * G, rb, h + n * H, h + (N + n) * H, c + n * H, c + (N + n) * H, extra + n * H);
    if (j->reset_first) NAME(product)(j, N, H, H, (struct operand){extra, H, 1, NULL}, (struct operand){R + 2 * H * H, 1, H, packed_h}, r, G);
    for (int64_t n = 0; n < N; n++) {
        if (j->s->kind == RNN_GRU) NAME(gru_output)(j, g + n * G, j->reset_first ? r + n * G : NULL, h + n * H, h + (N + n) * H);
        (void)NAME(place)(j, dir, s, n, &alive);
        if (alive) continue;
        memcpy(h + (N + n) * H, h + n * H, (size_t)H * sizeof(T));
        if (j->s->kind == RNN_LSTM) memcpy(c + (N + n) * H, c + n * H, (size_t)H * sizeof(T));
    }
}

/* --- backward: one row of one step; g: the gates, then their gradients; dh: of the state after it, then what reaches the state before it
 * directly -------------------------------------------------------------------------------------------------------------------- */

static void NAME(cell_back)(const struct job *j, int dir, T *g, T *dh, T *dc, const T *h, const T *h_next, const T *c, const T *c_next, const T *extra,
                            T *extra_grad, T *room) {
    const int64_t H = j->d.hidden;
    if (j->s->kind == RNN_LSTM) {
        T *gi = g, *go = g + H, *gf = g + 2 * H, *gc = g + 3 * H;
        NAME(tanh)(j, H, c_next, room);
        OP_INDEPENDENT for (int64_t i = 0; i < H; i++) {
            const T t = room[i], in = gi[i], out = go[i], forget = gf[i], new = gc[i], d = dc[i] + dh[i] * out * (1 - t * t);
            go[i] = dh[i] * t * out * (1 - out);
            gi[i] = d * new * in * (1 - in);
            gc[i] = d * in * (1 - new * new);
            gf[i] = d * c[i] * forget * (1 - forget);
            dc[i] = d * forget;
            dh[i] = 0;
        }
    } else if (j->s->kind == RNN_PLAIN) {
        const bool by_tanh = j->s->act[dir][0].fn == RNN_FN_TANH;
        for (int64_t i = 0; i < H; i++) {
            g[i] = dh[i] * (by_tanh ? 1 - h_next[i] * h_next[i] : (T)(h_next[i] > 0));
            dh[i] = 0;
        }
    } else {
        OP_INDEPENDENT for (int64_t i = 0; i < H; i++) {
            const T z = g[i], r = g[H + i], new = g[2 * H + i], d = dh[i] * (1 - z) * (1 - new * new);
            g[i] = dh[i] * (h[i] - new) * z * (1 - z);
            g[2 * H + i] = d;
            dh[i] *= z;
            if (j->reset_first) continue; /* the reset gate waits for the product with R */
            extra_grad[i] = d * r;
            g[H + i] = d * extra[i] * r * (1 - r);
        }
    }
}

static void NAME(backward_step)(const struct job *j, int dir, int64_t s, const T *R, const float *packed, const float *packed_h) {
    const int64_t N = j->d.batch, H = j->d.hidden, G = j->gates, first = j->reset_first ? 2 * H : G;
    const struct op_tensor *dy = nn_in(j->ctx, IN_DY);
    T *g = PART(gates) + s * N * G, *h = PART(hs) + s * N * H, *c = PART(cs) + s * N * H, *dh = PART(dh), *dc = PART(dc), *more = PART(dh_more),
      *extra = PART(extra) + s * N * H, *extra_grad = j->reset_first ? NULL : PART(extra_grad) + s * N * H, *step = PART(step);
    bool alive;
    for (int64_t n = 0; n < N; n++) {
        const int64_t t = NAME(place)(j, dir, s, n, &alive), at = n * H;
        if (!alive) {
            memset(g + n * G, 0, (size_t)G * sizeof(T));
            if (j->s->kind == RNN_GRU && extra_grad) memset(extra_grad + at, 0, (size_t)H * sizeof(T));
            continue;
        }
        if (dy) {
            const T *from = (const T *)dy->data + rnn_y_at(j->s, &j->d, t, dir, n);
            OP_INDEPENDENT for (int64_t i = 0; i < H; i++) dh[at + i] += from[i];
        }
        NAME(cell_back)(j, dir, g + n * G, dh + at, dc + at, h + at, h + N * H + at, c + at, c + N * H + at, extra + at, extra_grad ? extra_grad + at : NULL, step);
    }
    if (j->reset_first) { /* d(r h) = dn R_h; then the reset gate */
        NAME(product)(j, N, H, H, (struct operand){g + 2 * H, G, 1, NULL}, (struct operand){R + 2 * H * H, H, 1, packed_h}, more, H);
        for (int64_t n = 0; n < N; n++) {
            T *row = g + n * G;
            (void)NAME(place)(j, dir, s, n, &alive);
            for (int64_t i = 0; i < H && alive; i++) {
                const T r = row[H + i], d = more[n * H + i];
                dh[n * H + i] += d * r;
                row[H + i] = d * h[n * H + i] * r * (1 - r);
            }
        }
    }
    const T *from = g;
    if (extra_grad && j->s->kind == RNN_GRU) { /* R sees other gradients than W in its last part */
        for (int64_t n = 0; n < N; n++) {
            memcpy(step + n * G, g + n * G, (size_t)(2 * H) * sizeof(T));
            memcpy(step + n * G + 2 * H, extra_grad + n * H, (size_t)H * sizeof(T));
        }
        from = step;
    }
    NAME(product)(j, N, H, first, (struct operand){from, G, 1, NULL}, (struct operand){R, H, 1, packed}, more, H);
    OP_INDEPENDENT for (int64_t i = 0; i < N * H; i++) dh[i] += more[i];
}

/* --- what is left after all steps ----------------------------------------------------------------------- */

static void NAME(column_sums)(int64_t rows, int64_t n, const T *from, int64_t stride, T *to) {
    memset(to, 0, (size_t)n * sizeof(T));
    for (int64_t r = 0; r < rows; r++, from += stride)
        OP_INDEPENDENT for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

static void NAME(weights)(const struct job *j, int dir, const T *W) {
    const int64_t H = j->d.hidden, G = j->gates, I = j->d.in, rows = j->rows;
    T *g = PART(gates), *xs = PART(xs), *hs = PART(hs);
    struct op_tensor *dw = nn_out(j->ctx, OUT_W), *dr = nn_out(j->ctx, OUT_R), *db = nn_out(j->ctx, OUT_B), *dx = nn_out(j->ctx, OUT_X);
    if (dw) NAME(product)(j, G, I, rows, (struct operand){g, 1, G, NULL}, (struct operand){xs, I, 1, NULL}, (T *)dw->data + dir * G * I, I);
    if (db) NAME(column_sums)(rows, G, g, G, (T *)db->data + dir * 2 * G);
    if (dx) { /* over xs, which is done with */
        bool alive;
        NAME(product)(j, rows, I, G, (struct operand){g, G, 1, NULL}, (struct operand){W, I, 1, NULL}, xs, I);
        for (int64_t s = 0; s < j->d.steps; s++)
            for (int64_t n = 0; n < j->d.batch; n++) {
                T *to = (T *)dx->data + rnn_x_at(j->s, &j->d, NAME(place)(j, dir, s, n, &alive), n), *from = xs + (s * j->d.batch + n) * I;
                if (!alive) continue;
                OP_INDEPENDENT for (int64_t i = 0; i < I; i++) to[i] += from[i];
            }
    }
    /* R: the gradients of its gates and what they were multiplied with */
    const bool gru = j->s->kind == RNN_GRU;
    const int64_t first = gru ? 2 * H : G;
    if (dr) {
        T *to = (T *)dr->data + dir * G * H;
        NAME(product)(j, first, H, rows, (struct operand){g, 1, G, NULL}, (struct operand){hs, H, 1, NULL}, to, H);
        if (gru && j->reset_first)
            NAME(product)(j, H, H, rows, (struct operand){g + 2 * H, 1, G, NULL}, (struct operand){PART(extra), H, 1, NULL}, to + 2 * H * H, H);
        else if (gru)
            NAME(product)(j, H, H, rows, (struct operand){PART(extra_grad), 1, H, NULL}, (struct operand){hs, H, 1, NULL}, to + 2 * H * H, H);
    }
    if (db) {
        T *w = (T *)db->data + dir * 2 * G, *r = w + G;
        memcpy(r, w, (size_t)G * sizeof(T));
        if (gru && !j->reset_first) NAME(column_sums)(rows, H, PART(extra_grad), H, r + 2 * H);
    }
}

static void NAME(direction)(const struct job *j, int dir) {
    const int64_t H = j->d.hidden, G = j->gates, I = j->d.in, first = j->reset_first ? 2 * H : G;
    const T *W = (const T *)j->ctx->in[RNN_W]->data + dir * G * I, *R = (const T *)j->ctx->in[RNN_R]->data + dir * G * H;
    const struct op_tensor *b = nn_in(j->ctx, RNN_B);
    const T *wb = b ? (const T *)b->data + dir * 2 * G : NULL, *rb = wb ? wb + G : NULL;
    const float *forward = NAME(pack)(j, j->at.r_forward, H, first, R, 1, H), *back = NAME(pack)(j, j->at.r_back, first, H, R, H, 1), *forward_h = NULL, *back_h = NULL;
    if (j->reset_first) {
        forward_h = NAME(pack)(j, j->at.r_forward_h, H, H, R + 2 * H * H, 1, H);
        back_h = NAME(pack)(j, j->at.r_back_h, H, H, R + 2 * H * H, H, 1);
    }
    NAME(gather_x)(j, dir);
    NAME(product)(j, j->rows, G, I, (struct operand){PART(xs), I, 1, NULL}, (struct operand){W, 1, I, NULL}, PART(gates), G);
    /* Biases of R come in here too, but that of a GRU's last gate where it is added before the reset. */
    const int64_t with_rb = j->s->kind == RNN_GRU && !j->reset_first ? 2 * H : G;
    for (int64_t r = 0; r < j->rows && wb; r++) {
        T *g = PART(gates) + r * G;
        OP_INDEPENDENT for (int64_t i = 0; i < G; i++) g[i] += wb[i];
        OP_INDEPENDENT for (int64_t i = 0; i < with_rb; i++) g[i] += rb[i];
    }
    NAME(load_state)(j, dir, RNN_H0, PART(hs));
    if (j->s->kind == RNN_LSTM) NAME(load_state)(j, dir, RNN_C0, PART(cs));
    for (int64_t s = 0; s < j->d.steps; s++) NAME(forward_step)(j, dir, s, R, forward, forward_h, rb);
    NAME(load_state)(j, dir, IN_DY_H, PART(dh));
    NAME(load_state)(j, dir, IN_DY_C, PART(dc));
    for (int64_t s = j->d.steps - 1; s >= 0; s--) NAME(backward_step)(j, dir, s, R, back, back_h);
    NAME(store_state)(j, dir, OUT_H0, PART(dh));
    NAME(store_state)(j, dir, OUT_C0, PART(dc));
    NAME(weights)(j, dir, W);
}

#undef PART
