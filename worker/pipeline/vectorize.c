/* vectorize: text → the numbers of its tokens, i64[length]: cut, or padded with zeros. */
#include "worker/pipeline/step.h"
#include "worker/pipeline/vectorizer.h"

#include <string.h>

struct vectorize {
    int32_t split, standardize, length;
    char *vocabulary;
    struct w_vectorizer *v;
};

/* clang-format off */
static const struct w_param params[] = {
    {.name = "split", .kind = W_PARAM_CHOICE, .offset = offsetof(struct vectorize, split), .choices = W_SPLIT_CHOICES},
    {.name = "standardize", .kind = W_PARAM_CHOICE, .offset = offsetof(struct vectorize, standardize), .choices = W_STANDARDIZE_CHOICES},
    {.name = "length", .kind = W_PARAM_INT, .offset = offsetof(struct vectorize, length), .min = 0, .max = 1 << 24, .help = "of the result; 0: as many as there are"},
    {.name = "vocabulary", .kind = W_PARAM_FILE, .offset = offsetof(struct vectorize, vocabulary), .help = "a JSON list: [\"\", \"[UNK]\", …]; not for bytes"},
    {0}};
/* clang-format on */

static bool parse(struct w_step *s, json_t *json, struct w_error *err) {
    struct vectorize *t = s->state;
    (void)json;
    if (!t->vocabulary != (t->split == W_SPLIT_BYTE))
        return w_fail(err, W_BAD_MODEL, "\"vocabulary\" %s",
                      t->vocabulary ? "is not for bytes" : "is missing");
    t->v = w_vectorizer_create((enum w_split)t->split, (enum w_standardize)t->standardize, err);
    return t->v && (!t->vocabulary || w_vectorizer_read(t->v, t->vocabulary, err));
}

static bool check(struct w_step *s, const struct w_spec *in, struct w_spec *out,
                  struct w_error *err) {
    const struct vectorize *t = s->state;
    (void)in;
    (void)err;
    *out = (struct w_spec){.type = W_TENSOR, .dtype = OP_I64, .rank = 1};
    out->dims[0] = t->length ? t->length : -1;
    return true;
}

static bool apply(const struct w_step *s, struct w_row *row, const struct w_value *in,
                  struct w_value *out, struct w_error *err) {
    const struct vectorize *t = s->state;
    int64_t n = t->length;
    if (!n) n = w_vectorizer_encode(t->v, in->span.ptr, in->span.len, NULL, 0);
    int64_t *dst = w_arena_array(&row->arena, (size_t)n, sizeof *dst);
    if (!dst)
        return w_fail(err, W_TOO_LARGE, "%lld tokens are more than a row's memory", (long long)n);
    if (n) memset(dst, 0, (size_t)n * sizeof *dst);
    w_vectorizer_encode(t->v, in->span.ptr, in->span.len, dst, n);
    out->tensor = (struct op_tensor){.dtype = OP_I64, .rank = 1, .dims = {n}, .data = dst};
    return true;
}

static void free_state(void *state) {
    w_vectorizer_destroy(((struct vectorize *)state)->v);
}

static const struct w_step_desc desc = {.name = "vectorize",
                                        .summary = "text becomes the numbers of its tokens",
                                        .params = params,
                                        .state_bytes = sizeof(struct vectorize),
                                        .takes = W_TAKES(W_TEXT),
                                        .gives = W_TENSOR,
                                        .parse = parse,
                                        .check = check,
                                        .apply = apply,
                                        .free = free_state};
W_STEP(desc);
