/* input.c: all that a job sends for a model's inputs → tensors with a batch dimension.
 *
 * Rank decides between one row and several: a value of the model's rank has the batch dimension,
 * one of a rank less gets it. Every input that has it must have the same number of rows. */
#include "worker/pipeline/input.h"

#include "worker/nearest.h"

#include <stdio.h>
#include <string.h>

/* --- rank ------------------------------------------------------------------------------------- */

static bool misfit(const struct w_signature *sig, const struct op_io *io,
                   const struct op_tensor *sent, int dim, int64_t found, struct w_error *err) {
    char want[200], got[200], why[80] = "";
    if (dim >= 0)
        snprintf(why, sizeof why, " (dimension %d is %lld, not %lld)", dim, (long long)found,
                 (long long)io->dims[dim]);
    else if (sent->rank != io->rank)
        snprintf(why, sizeof why, " (rank %d, expected %d%s)", sent->rank, io->rank,
                 io->rank ? ", or one less for one row" : "");
    return w_fail(err, W_BAD_SHAPE, "model \"%s\": input \"%s\" is %s, the job sent %s%s",
                  sig->model, io->name, w__io_describe(io, want, sizeof want),
                  op_tensor_describe(sent, got, sizeof got), why);
}

/* A flat row of the right count takes the model's shape: one dimension may be free. */
static bool unflatten(const struct op_io *io, struct op_tensor *t) {
    int64_t count = op_tensor_count(t), known = 1;
    int free_dim = -1;
    if (io->rank < 1 || count < 1) return false;
    for (int i = 1; i < io->rank; i++) {
        if (io->dims[i] < 0 && free_dim >= 0) return false;
        if (io->dims[i] < 0)
            free_dim = i;
        else if (__builtin_mul_overflow(known, io->dims[i], &known))
            return false;
    }
    if (known < 1 || count % known || (free_dim < 0 && count != known)) return false;
    t->rank = io->rank;
    t->dims[0] = 1;
    for (int i = 1; i < io->rank; i++) t->dims[i] = i == free_dim ? count / known : io->dims[i];
    return true;
}

/* Optional inputs are weights with a default: they have no batch dimension. */
static bool is_required(const struct w_signature *sig, const struct op_io *io) {
    for (int i = 0; i < sig->n_inputs; i++)
        if (sig->inputs[i] == io) return true;
    return false;
}

bool w__fit(const struct w_signature *sig, const struct op_io *io, bool flat, struct op_tensor *t,
            int64_t *n_rows, struct w_error *err) {
    struct op_tensor sent = *t;
    if (flat && io->rank >= 0 && t->rank == 1 &&
        !(io->rank == 1 && sig->batching == W_BATCH_NONE) && !unflatten(io, t))
        return misfit(sig, io, &sent, -1, 0, err);
    if (io->rank < 0) return true;
    bool has_batch = io->rank > 0 && (io->dims[0] < 0 || io->dims[0] == 1) && is_required(sig, io);
    if (t->rank == io->rank - 1 && has_batch) {
        memmove(t->dims + 1, t->dims, (size_t)t->rank * sizeof *t->dims);
        t->dims[0] = 1;
        t->rank++;
    }
    if (t->rank != io->rank) return misfit(sig, io, &sent, -1, 0, err);
    bool batched = sig->batching != W_BATCH_NONE && is_required(sig, io);
    for (int i = 0; i < io->rank; i++) {
        if (!(i == 0 && batched) && io->dims[i] >= 0 && t->dims[i] != io->dims[i])
            return misfit(sig, io, &sent, i, t->dims[i], err);
    }
    if (!batched || io->rank == 0) return true;
    if (t->dims[0] == 0)
        return w_fail(err, W_BAD_SHAPE, "model \"%s\": input \"%s\" has no rows", sig->model,
                      io->name);
    if (!*n_rows) *n_rows = t->dims[0];
    return *n_rows == t->dims[0] ||
           w_fail(err, W_BAD_SHAPE,
                  "model \"%s\": input \"%s\" has %lld rows, the inputs before it have %lld",
                  sig->model, io->name, (long long)t->dims[0], (long long)*n_rows);
}

/* --- all inputs ------------------------------------------------------------------------------- */

static int n_all(const struct w_signature *sig) {
    return sig->n_inputs + sig->n_optional;
}

static const char *next_input(void *user, size_t i) {
    const struct w_signature *sig = user;
    return i < (size_t)n_all(sig) ? sig->inputs[i]->name : NULL;
}

static int find_input(const struct w_signature *sig, struct w_span key) {
    for (int i = 0; i < n_all(sig); i++)
        if (w__key_is(key, sig->inputs[i]->name)) return i;
    return -1;
}

/* Whether the object at json is one tensor, not a map of input names. */
static bool is_value_object(const struct w_signature *sig, struct w_span json) {
    struct w_scan s = {json.ptr, json.ptr + json.len};
    struct w_span key, value;
    bool first = true;
    if (!w__scan_open(&s, '{')) return false;
    while (w__scan_member(&s, &first, &key, &value) > 0)
        if (w__key_of_value(key)) return find_input(sig, key) < 0;
    return false;
}

static bool decode_named(const struct w_source_of *of, const struct w_signature *sig,
                         struct w_span json, struct op_tensor *dst, struct w_error *err) {
    struct w_scan s = {json.ptr, json.ptr + json.len};
    struct w_span key, value;
    bool first = true;
    int got;
    w__scan_open(&s, '{');
    while ((got = w__scan_member(&s, &first, &key, &value)) > 0) {
        /* Names with escapes or beyond ASCII are compared decoded. */
        size_t len;
        char *name = w__scan_string(key, of->arena, false, &len);
        int i = 0;
        while (name && i < n_all(sig) && strcmp(name, sig->inputs[i]->name)) i++;
        if (!name || i == n_all(sig)) {
            const char *near = name ? w__nearest(name, next_input, (void *)(uintptr_t)sig) : NULL;
            return w_fail(err, W_BAD_INPUT, "model \"%s\" has no input %.*s%s%s%s", sig->model,
                          key.len < 80 ? (int)key.len : 80, key.ptr,
                          near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
        }
        if (!w__decode_tensor(of, sig->inputs[i], value, &dst[i], err)) return false;
    }
    return got == 0 || w_fail(err, W_BAD_JSON, "the input is a malformed JSON object");
}

static bool decode_value(const struct w_source_of *of, const struct w_signature *sig,
                         const struct w_value *v, struct op_tensor *dst, struct w_error *err) {
    struct op_tensor none = {.rank = -1};
    switch (v->type) {
    case W_TENSOR:
        dst[0] = v->tensor;
        return w__convert(of, sig->inputs[0]->dtype, &dst[0], err);
    case W_BYTES:
        return w__decode_bytes(of, sig->inputs[0], v->span, sig->inputs[0]->dtype, &none, &dst[0],
                               err);
    default:
        return w_fail(err, W_BAD_INPUT, "model \"%s\" takes tensors, the row is %s", sig->model,
                      w_type_name(v->type));
    }
}

static bool only_one(const struct w_signature *sig, struct w_error *err) {
    if (sig->n_inputs == 1 || (sig->n_inputs == 0 && sig->n_optional == 1)) return true;
    char names[200];
    int at = 0;
    names[0] = 0;
    for (int i = 0; i < sig->n_inputs && at < 160; i++)
        at += snprintf(names + at, sizeof names - (size_t)at, "%s\"%.30s\"", i ? ", " : "",
                       sig->inputs[i]->name);
    return w_fail(
        err, W_BAD_INPUT,
        "model \"%s\" has %d inputs (%s): the input must be an object with a value for each",
        sig->model, sig->n_inputs, names);
}

bool w__decode_inputs(const struct w_source_of *of, const struct w_signature *sig,
                      const struct w_input *input, struct op_tensor *dst, int64_t *n_rows,
                      struct w_error *err) {
    for (int i = 0; i < n_all(sig); i++) dst[i] = (struct op_tensor){.dtype = OP_UNDEFINED};
    const struct w_value *v = input->kind == W_INPUT_VALUE ? input->value : NULL;
    struct w_span json = v && v->type == W_JSON ? v->span : input->json;
    if (v && v->type != W_JSON) {
        if (!only_one(sig, err) || !decode_value(of, sig, v, dst, err)) return false;
    } else if (input->kind == W_INPUT_REF) {
        struct w_scan s = {json.ptr, json.ptr + json.len};
        w__scan_blank(&s);
        struct w_span bytes;
        struct op_tensor none = {.rank = -1};
        if (!only_one(sig, err)) return false;
        bool is_text = s.p < s.end && *s.p == '"';
        if (is_text ? !w__decode_blob(of, json, true, &bytes, err) ||
                          !w__decode_bytes(of, sig->inputs[0], bytes, sig->inputs[0]->dtype, &none,
                                           &dst[0], err)
                    : !w__decode_tensor(of, sig->inputs[0], json, &dst[0], err))
            return false;
    } else {
        struct w_scan s = {json.ptr, json.ptr + json.len};
        w__scan_blank(&s);
        if (s.p == s.end) return w_fail(err, W_BAD_INPUT, "the job has no input");
        bool named = *s.p == '{' && !is_value_object(sig, json);
        if (named
                ? !decode_named(of, sig, json, dst, err)
                : !only_one(sig, err) || !w__decode_tensor(of, sig->inputs[0], json, &dst[0], err))
            return false;
    }
    *n_rows = 0;
    for (int i = 0; i < n_all(sig); i++) {
        const struct op_io *io = sig->inputs[i];
        char want[200];
        if (dst[i].dtype == OP_UNDEFINED && i >= sig->n_inputs) continue;
        if (dst[i].dtype == OP_UNDEFINED)
            return w_fail(err, W_BAD_INPUT, "model \"%s\": the input \"%s\" (%s) is missing",
                          sig->model, io->name, w__io_describe(io, want, sizeof want));
        bool flat = v && v->flat;
        if (!w__fit(sig, io, flat, &dst[i], n_rows, err)) return false;
    }
    if (!*n_rows) *n_rows = 1;
    return true;
}

/* --- references, ahead of time ---------------------------------------------------------------- */

static int refs_in(struct w_span json, int depth, struct w_arena *arena,
                   bool (*fn)(void *, const char *), void *user) {
    struct w_scan s = {json.ptr, json.ptr + json.len};
    struct w_span key, value;
    bool first = true, array = false;
    int n = 0, got;
    w__scan_blank(&s);
    if (s.p == s.end || (*s.p != '{' && *s.p != '[') || depth > W_SCAN_DEPTH_MAX) return 0;
    array = *s.p++ == '[';
    while ((got = array ? w__scan_item(&s, &first, &value)
                        : w__scan_member(&s, &first, &key, &value)) > 0) {
        if (!array && w__key_is(key, "ref") && value.ptr[0] == '"') {
            const char *ref = w__scan_string(value, arena, false, NULL);
            n++;
            if (ref && !fn(user, ref)) return n;
        } else if (value.ptr[0] == '{' ||
                   (value.ptr[0] == '[' && memmem(value.ptr, value.len, "\"ref\"", 5))) {
            int inner = refs_in(value, depth + 1, arena, fn, user);
            if (inner < 0) return -1;
            n += inner;
        }
    }
    return got < 0 ? -1 : n;
}

int w_input_refs(const char *json, size_t len, bool is_ref, bool (*fn)(void *user, const char *ref),
                 void *user) {
    struct w_scan s = {json, json + len};
    w__scan_blank(&s);
    bool text = s.p < s.end && *s.p == '"';
    if (!text && !memmem(json, len, "\"ref\"", 5)) return 0;
    struct w_arena arena;
    w_arena_init(&arena, 1 << 20);
    int n;
    if (text) {
        struct w_span raw;
        const char *ref = w__scan_value(&s, &raw) ? w__scan_string(raw, &arena, false, NULL) : NULL;
        bool known = ref && is_ref;
        n = known ? 1 : ref || !is_ref ? 0 : -1;
        if (known) fn(user, ref);
    } else {
        n = refs_in((struct w_span){json, len}, 0, &arena, fn, user);
    }
    w_arena_finish(&arena);
    return n;
}
