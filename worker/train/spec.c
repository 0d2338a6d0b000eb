/* spec.c: the JSON of a training, read by tables: unknown keys are refused with the nearest name,
 * types and ranges with what is allowed. Words are Keras's; class names ("Adam", "HeNormal") and
 * short names ("adam", "he_normal") are the same. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/nearest.h"
#include "worker/train/train.h"

void w__train_snake(const char *word, char *dst, size_t size) {
    size_t n = 0;
    bool all_upper = true; /* LSTM */
    for (const char *p = word; *p; p++) all_upper &= !(*p >= 'a' && *p <= 'z');
    for (size_t i = 0; word[i] && n + 2 < size; i++) {
        bool upper = word[i] >= 'A' && word[i] <= 'Z';
        bool after_small = i && word[i - 1] >= 'a' && word[i - 1] <= 'z';
        bool begins = i && word[i - 1] >= 'A' && word[i - 1] <= 'Z' && word[i + 1] >= 'a' &&
                      word[i + 1] <= 'z';
        if (upper && (after_small || begins) && !all_upper)
            dst[n++] = '_'; /* TopKAccuracy: top_k_accuracy */
        dst[n++] = upper ? (char)(word[i] + 32) : word[i];
    }
    dst[n] = 0;
}

bool w__train_unknown(const char *where, const char *what, const char *word,
                      const char *(*next)(void *user, size_t i), void *user, struct w_error *err) {
    const char *near = w__nearest(word, next, user), *name;
    char known[300] = "";
    size_t n = 0;
    if (near)
        return w_fail(err, W_BAD_SPEC, "%s: there is no %s \"%.60s\"; did you mean \"%s\"?", where,
                      what, word, near);
    for (size_t i = 0; (name = next(user, i)) && n + 40 < sizeof known; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", name);
    return w_fail(err, W_BAD_SPEC, "%s: there is no %s \"%.60s\"; known are %s", where, what, word,
                  known);
}

bool w__train_params(const struct w_param *params, json_t *json, void *state, const char *where,
                     struct w_error *err) {
    json_t *rest = json_is_object(json) ? json_copy(json) : NULL;
    if (!rest) return w_fail(err, W_BAD_SPEC, "%s must be an object { … }", where);
    json_object_del(rest, "type");
    bool has_name = false;
    for (const struct w_param *p = params; p && p->name; p++) has_name |= !strcmp(p->name, "name");
    if (!has_name) json_object_del(rest, "name");
    bool ok = w__params_read(params, rest, state, NULL, where, err);
    json_decref(rest); /* the values live on in the spec */
    if (!ok && strcmp(err->code, W_BAD_MODEL) == 0) err->code = W_BAD_SPEC;
    return ok;
}

bool w__train_typed(json_t *json, const char **type, const char *where, struct w_error *err) {
    *type = json_is_string(json) ? json_string_value(json)
                                 : json_string_value(json_object_get(json, "type"));
    if (!*type && json_is_object(json)) *type = json_string_value(json_object_get(json, "name"));
    return *type || w_fail(err, W_BAD_SPEC, "%s must be a name, or an object with \"type\"", where);
}

/* --- the objects -------------------------------------------------------------------------------
 */

/* clang-format off */
#define AT(field) offsetof(struct w_spec_train, field)
static const struct w_param model_params[] = {
    {.name = "input_shape", .kind = W_PARAM_JSON, .offset = AT(model.input_shape)},
    {.name = "inputs", .kind = W_PARAM_JSON, .offset = AT(model.inputs)},
    {.name = "layers", .kind = W_PARAM_JSON, .offset = AT(model.layers)},
    {.name = "outputs", .kind = W_PARAM_JSON, .offset = AT(model.outputs)},
    {.name = "onnx", .kind = W_PARAM_TEXT, .offset = AT(model.onnx)},
    {.name = "output", .kind = W_PARAM_TEXT, .offset = AT(model.output)},
    {.name = "freeze", .kind = W_PARAM_JSON, .offset = AT(model.freeze)},
    {.name = "head", .kind = W_PARAM_JSON, .offset = AT(model.head)},
    {0}};
static const struct w_param data_params[] = {
    {.name = "train", .kind = W_PARAM_JSON, .offset = AT(data.train), .required = true, .help = "an object with x and y"},
    {.name = "validation", .kind = W_PARAM_JSON, .offset = AT(data.validation)},
    {.name = "test", .kind = W_PARAM_JSON, .offset = AT(data.test)},
    {.name = "test_split", .kind = W_PARAM_DOUBLE, .offset = AT(data.test_split), .min = 0, .max = 0.99},
    {.name = "allow_empty_classes", .kind = W_PARAM_BOOL, .offset = AT(data.allow_empty_classes)},
    {.name = "memory_mb", .kind = W_PARAM_DOUBLE, .offset = AT(data.memory_mb), .min = 0, .max = 1 << 24, .deflt = 2048},
    {.name = "preprocess", .kind = W_PARAM_JSON, .offset = AT(data.preprocess)},
    {.name = "augment", .kind = W_PARAM_JSON, .offset = AT(data.augment)},
    {0}};
static const struct w_param compile_params[] = {
    {.name = "optimizer", .kind = W_PARAM_JSON, .offset = AT(compile.optimizer)},
    {.name = "loss", .kind = W_PARAM_JSON, .offset = AT(compile.loss), .required = true, .help = "a name, such as \"mse\""},
    {.name = "metrics", .kind = W_PARAM_JSON, .offset = AT(compile.metrics)},
    {0}};
static const struct w_param fit_params[] = {
    {.name = "epochs", .kind = W_PARAM_INT, .offset = AT(fit.epochs), .min = 1, .max = 1e6, .deflt = 1},
    {.name = "batch_size", .kind = W_PARAM_INT, .offset = AT(fit.batch_size), .min = 1, .max = 1 << 20, .deflt = 32},
    {.name = "steps_per_epoch", .kind = W_PARAM_INT, .offset = AT(fit.steps_per_epoch), .min = 0, .max = 1e9},
    {.name = "folds", .kind = W_PARAM_INT, .offset = AT(fit.folds), .min = 0, .max = 1000},
    {.name = "stratify", .kind = W_PARAM_BOOL, .offset = AT(fit.stratify)},
    {.name = "validation_split", .kind = W_PARAM_DOUBLE, .offset = AT(fit.validation_split), .min = 0, .max = 0.99},
    {.name = "seed", .kind = W_PARAM_DOUBLE, .offset = AT(fit.seed), .min = 0, .max = 9007199254740992.0},
    {.name = "shuffle", .kind = W_PARAM_BOOL, .offset = AT(fit.shuffle), .deflt = 1},
    {.name = "checkpoint_s", .kind = W_PARAM_DOUBLE, .offset = AT(fit.checkpoint_s), .min = 0.01, .max = 1e6, .deflt = 30},
    {.name = "checkpoint_steps", .kind = W_PARAM_INT, .offset = AT(fit.checkpoint_steps), .min = 1, .max = 1e9, .deflt = 1e9},
    {.name = "max_steps", .kind = W_PARAM_INT, .offset = AT(fit.max_steps), .min = 1, .max = 1e9},
    {.name = "max_seconds", .kind = W_PARAM_DOUBLE, .offset = AT(fit.max_seconds), .min = 0, .max = 1e9},
    {.name = "callbacks", .kind = W_PARAM_JSON, .offset = AT(fit.callbacks)},
    {.name = "class_weight", .kind = W_PARAM_JSON, .offset = AT(fit.class_weight)},
    {0}};
static const struct w_param publish_params[] = {
    {.name = "name", .kind = W_PARAM_TEXT, .offset = AT(publish), .required = true, .help = "the model's name in the store"},
    {0}};

struct optimizer {
    double learning_rate, momentum, rho, beta_1, beta_2, epsilon, weight_decay, clipnorm, clipvalue, global_clipnorm, ema_momentum;
    bool nesterov, amsgrad, use_ema, lazy;
    int32_t gradient_accumulation_steps;
    json_t *rate;
};
#define OPT(field) offsetof(struct optimizer, field)
static const struct w_param optimizer_params[] = {
    {.name = "learning_rate", .kind = W_PARAM_JSON, .offset = OPT(rate)},
    {.name = "momentum", .kind = W_PARAM_DOUBLE, .offset = OPT(momentum), .min = 0, .max = 1, .deflt = NAN},
    {.name = "rho", .kind = W_PARAM_DOUBLE, .offset = OPT(rho), .min = 0, .max = 1, .deflt = NAN},
    {.name = "beta_1", .kind = W_PARAM_DOUBLE, .offset = OPT(beta_1), .min = 0, .max = 1, .deflt = NAN},
    {.name = "beta_2", .kind = W_PARAM_DOUBLE, .offset = OPT(beta_2), .min = 0, .max = 1, .deflt = NAN},
    {.name = "epsilon", .kind = W_PARAM_DOUBLE, .offset = OPT(epsilon), .min = 0, .max = 1, .deflt = NAN},
    {.name = "weight_decay", .kind = W_PARAM_DOUBLE, .offset = OPT(weight_decay), .min = 0, .max = 100, .deflt = NAN},
    {.name = "nesterov", .kind = W_PARAM_BOOL, .offset = OPT(nesterov)},
    {.name = "amsgrad", .kind = W_PARAM_BOOL, .offset = OPT(amsgrad)},
    {.name = "clipnorm", .kind = W_PARAM_DOUBLE, .offset = OPT(clipnorm), .min = 0, .max = 1e9},
    {.name = "clipvalue", .kind = W_PARAM_DOUBLE, .offset = OPT(clipvalue), .min = 0, .max = 1e9},
    {.name = "global_clipnorm", .kind = W_PARAM_DOUBLE, .offset = OPT(global_clipnorm), .min = 0, .max = 1e9},
    {.name = "lazy", .kind = W_PARAM_BOOL, .offset = OPT(lazy), .deflt = 1},
    {.name = "use_ema", .kind = W_PARAM_BOOL, .offset = OPT(use_ema)},
    {.name = "ema_momentum", .kind = W_PARAM_DOUBLE, .offset = OPT(ema_momentum), .min = 0, .max = 1, .deflt = 0.99},
    {.name = "gradient_accumulation_steps", .kind = W_PARAM_INT, .offset = OPT(gradient_accumulation_steps), .min = 1, .max = 1e6, .deflt = 1},
    {0}};

struct loss {
    bool from_logits;
    double label_smoothing, delta, gamma, alpha, margin;
    int32_t ignore_class, blank_index;
};
#define LOSS(field) offsetof(struct loss, field)
static const struct w_param loss_params[] = {
    {.name = "from_logits", .kind = W_PARAM_BOOL, .offset = LOSS(from_logits)},
    {.name = "label_smoothing", .kind = W_PARAM_DOUBLE, .offset = LOSS(label_smoothing), .min = 0, .max = 1},
    {.name = "delta", .kind = W_PARAM_DOUBLE, .offset = LOSS(delta), .min = 0, .max = 1e9},
    {.name = "gamma", .kind = W_PARAM_DOUBLE, .offset = LOSS(gamma), .min = 0, .max = 100},
    {.name = "alpha", .kind = W_PARAM_DOUBLE, .offset = LOSS(alpha), .min = 0, .max = 1},
    {.name = "margin", .kind = W_PARAM_DOUBLE, .offset = LOSS(margin), .min = 0, .max = 1e6},
    {.name = "blank_index", .kind = W_PARAM_INT, .offset = LOSS(blank_index), .min = 0, .max = 1 << 30},
    {.name = "ignore_class", .kind = W_PARAM_INT, .offset = LOSS(ignore_class), .min = -1, .max = 1 << 30, .deflt = -1},
    {0}};
/* clang-format on */

static const char *next_optimizer(void *user, size_t i) {
    (void)user;
    return op_optimizer_name(i);
}
static const char *next_loss(void *user, size_t i) {
    (void)user;
    return op_loss_name(i);
}
static const char *known(const char *word, const char *(*next)(void *, size_t)) {
    const char *name;
    for (size_t i = 0; (name = next(NULL, i)); i++)
        if (strcmp(name, word) == 0) return name;
    return NULL;
}

static bool read_optimizer(struct w_spec_train *s, struct w_error *err) {
    static const char where[] = "compile.optimizer";
    struct optimizer o = {0};
    const char *type = "rmsprop"; /* Keras's default */
    json_t *json = s->compile.optimizer;
    if (json && !w__train_typed(json, &type, where, err)) return false;
    snprintf(s->optimizer_name, sizeof s->optimizer_name, "%s", type);
    for (char *p = s->optimizer_name; *p; p++) *p = (char)(*p >= 'A' && *p <= 'Z' ? *p + 32 : *p);
    const char *name = known(s->optimizer_name, next_optimizer);
    if (!name) return w__train_unknown(where, "optimizer", type, next_optimizer, NULL, err);
    json_t *none = json_object();
    bool ok = w__train_params(optimizer_params, json_is_object(json) ? json : none, &o, where, err);
    json_decref(none);
    if (!ok) return false;
    op_optimizer_defaults(&s->optimizer, name);
    s->learning_rate = strcmp(name, "sgd") == 0 ? 0.01 : 0.001;
    if (json_is_object(o.rate))
        s->schedule = o.rate;
    else if (o.rate && !json_is_number(o.rate))
        return w_fail(err, W_BAD_SPEC, "%s: \"learning_rate\" must be a number or a schedule",
                      where);
    else if (o.rate)
        s->learning_rate = json_number_value(o.rate);
    if (!(s->learning_rate > 0 && s->learning_rate <= 1e6))
        return w_fail(err, W_BAD_SPEC, "%s: \"learning_rate\" is %g, a number above 0 is expected",
                      where, s->learning_rate);
    struct op_optimizer *d = &s->optimizer;
    d->learning_rate = (float)s->learning_rate;
    d->momentum = (float)o.momentum;
    d->rho = (float)o.rho;
    d->beta_1 = (float)o.beta_1;
    d->beta_2 = (float)o.beta_2;
    d->epsilon = (float)o.epsilon;
    d->weight_decay = (float)o.weight_decay;
    d->nesterov = o.nesterov;
    d->amsgrad = o.amsgrad;
    d->dense = !o.lazy;
    d->clip_norm = (float)o.clipnorm;
    d->clip_value = (float)o.clipvalue;
    d->global_clip_norm = (float)o.global_clipnorm;
    d->ema = o.use_ema ? (float)o.ema_momentum : 0;
    d->accumulate = o.gradient_accumulation_steps;
    return true;
}

static bool read_loss(struct w_spec_train *s, struct w_error *err) {
    static const char where[] = "compile.loss";
    struct loss l = {.ignore_class = -1};
    const char *type;
    if (!w__train_typed(s->compile.loss, &type, where, err)) return false;
    w__train_snake(type, s->loss_name, sizeof s->loss_name);
    const char *name = known(s->loss_name, next_loss);
    if (!name) return w__train_unknown(where, "loss", type, next_loss, NULL, err);
    if (json_is_object(s->compile.loss) &&
        !w__train_params(loss_params, s->compile.loss, &l, where, err))
        return false;
    s->loss = (struct op_loss){.name = name,
                               .from_logits = l.from_logits,
                               .label_smoothing = (float)l.label_smoothing,
                               .delta = (float)l.delta,
                               .gamma = (float)l.gamma,
                               .alpha = (float)l.alpha,
                               .margin = (float)l.margin,
                               .blank = l.blank_index,
                               .ignore_index = l.ignore_class};
    return true;
}

/* A shape of a row: a list of at most OP_RANK_MAX − 1 sizes. */
static bool read_shape(json_t *json, const char *where, int least, int *rank, int64_t *dims,
                       struct w_error *err) {
    size_t i, n = json_array_size(json);
    json_t *item;
    int64_t elements = 1;
    if (!json_is_array(json) || (int)n < least || n > OP_RANK_MAX - 1)
        return w_fail(err, W_BAD_SPEC,
                      "%s must be a list of %d to %d whole numbers, without the batch dimension",
                      where, least, OP_RANK_MAX - 1);
    json_array_foreach(json, i, item) {
        int64_t d = json_integer_value(item);
        if (!json_is_integer(item) || d < 1 || d > (1 << 30) ||
            __builtin_mul_overflow(elements, d, &elements) || elements > (1 << 30))
            return w_fail(err, W_BAD_SPEC,
                          "%s: dimension %zu must be a whole number from 1, and all together at "
                          "most 2^30 elements",
                          where, i);
        dims[i] = d;
    }
    *rank = (int)n;
    return true;
}

bool w__train_inputs(json_t *json, struct w_train_model *m, struct w_error *err) {
    struct given {
        json_t *shape;
        int32_t dtype;
    };
    /* clang-format off */
    static const struct w_param params[] = {
        {.name = "shape", .kind = W_PARAM_JSON, .offset = offsetof(struct given, shape), .required = true, .help = "a list; [] for a number a row"},
        {.name = "dtype", .kind = W_PARAM_CHOICE, .offset = offsetof(struct given, dtype), .choices = "float32 int64 int32"},
        {0}};
    /* clang-format on */
    const char *name;
    json_t *one;
    if (!json_is_object(json) || json_object_size(json) < 1 ||
        json_object_size(json) > W_TRAIN_INPUTS_MAX)
        return w_fail(err, W_BAD_SPEC,
                      "model.inputs must be {name: {\"shape\", \"dtype\"}} of 1 to %d inputs",
                      W_TRAIN_INPUTS_MAX);
    json_object_foreach(json, name, one) {
        struct w_train_input *in = &m->inputs[m->n_inputs++];
        struct given g = {0};
        char where[80];
        snprintf(where, sizeof where, "model.inputs.%.40s", name);
        if (!*name || strlen(name) > 60 || strchr(name, '/'))
            return w_fail(err, W_BAD_SPEC, "%s: a name of 1 to 60 characters without / is expected",
                          where);
        if (!w__train_params(params, one, &g, where, err)) return false;
        *in = (struct w_train_input){.dtype = g.dtype ? OP_I64 : OP_F32};
        snprintf(in->name, sizeof in->name, "%s", name);
        strcat(where, ".shape");
        if (!read_shape(g.shape, where, 0, &in->rank, in->dims, err)) return false;
    }
    return true;
}

static bool read_model(struct w_spec_train *s, struct w_error *err) {
    if (!s->model.onnx == !s->model.layers)
        return w_fail(err, W_BAD_SPEC,
                      "model must have \"input_shape\" and \"layers\", or \"onnx\" (and \"head\"), "
                      "and not both");
    if (s->model.onnx) {
        if (s->model.input_shape || s->model.inputs)
            return w_fail(err, W_BAD_SPEC, "model.%s is for layers; an ONNX file has its own",
                          s->model.inputs ? "inputs" : "input_shape");
        if (s->model.head && !json_is_array(s->model.head))
            return w_fail(err, W_BAD_SPEC, "model.head must be a list of layers");
        return true;
    }
    if (s->model.inputs && s->model.input_shape)
        return w_fail(err, W_BAD_SPEC, "model has both \"inputs\" and \"input_shape\"");
    if (s->model.head || s->model.freeze || s->model.output)
        return w_fail(err, W_BAD_SPEC, "model.%s is for fine-tuning: \"onnx\" is missing",
                      s->model.head     ? "head"
                      : s->model.freeze ? "freeze"
                                        : "output");
    if (!json_is_array(s->model.layers) || json_array_size(s->model.layers) < 1 ||
        json_array_size(s->model.layers) > W_TRAIN_LAYERS_MAX)
        return w_fail(err, W_BAD_SPEC, "model.layers must be a list of 1 to %d layers",
                      W_TRAIN_LAYERS_MAX);
    if (s->model.inputs) return true; /* read with the layers */
    /* As in Keras, the first layer may say it. */
    json_t *first = json_array_get(s->model.layers, 0);
    if (!s->model.input_shape) s->model.input_shape = json_object_get(first, "input_shape");
    if (!s->model.input_shape) s->model.input_shape = json_object_get(first, "shape");
    if (!s->model.input_shape)
        return w_fail(err, W_BAD_SPEC, "model: \"input_shape\" is missing, such as [28, 28, 1]");
    return read_shape(s->model.input_shape, "model.input_shape", 1, &s->model.rank, s->model.dims,
                      err);
}

static bool read_root(struct w_spec_train *s, struct w_error *err) {
    struct root {
        json_t *model, *data, *compile, *fit, *publish, *description;
    } r = {0};
    /* clang-format off */
#define ROOT(field) offsetof(struct root, field)
    static const struct w_param root_params[] = {
        {.name = "model", .kind = W_PARAM_JSON, .offset = ROOT(model), .required = true, .help = "input_shape and layers"},
        {.name = "data", .kind = W_PARAM_JSON, .offset = ROOT(data), .required = true, .help = "train, and test or validation"},
        {.name = "compile", .kind = W_PARAM_JSON, .offset = ROOT(compile), .required = true, .help = "optimizer, loss, metrics"},
        {.name = "fit", .kind = W_PARAM_JSON, .offset = ROOT(fit)},
        {.name = "publish", .kind = W_PARAM_JSON, .offset = ROOT(publish)},
        {.name = "description", .kind = W_PARAM_JSON, .offset = ROOT(description)},
        {0}};
    /* clang-format on */
    json_t *none = json_object();
    bool ok = w__train_params(root_params, s->json, &r, "the training spec", err) &&
              w__train_params(model_params, r.model, s, "model", err) &&
              w__train_params(data_params, r.data, s, "data", err) &&
              w__train_params(compile_params, r.compile, s, "compile", err) &&
              w__train_params(fit_params, r.fit ? r.fit : none, s, "fit", err) &&
              (!r.publish || w__train_params(publish_params, r.publish, s, "publish", err));
    json_decref(none);
    return ok && read_model(s, err) && read_optimizer(s, err) && read_loss(s, err);
}

struct w_spec_train *w_train_spec_from(json_t *json, struct w_error *err) {
    struct w_spec_train *s = calloc(1, sizeof *s);
    if (!s) return w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    s->json = json_incref(json);
    if (read_root(s, err)) return s;
    w_train_spec_destroy(s);
    return NULL;
}

struct w_spec_train *w_train_spec_parse(const char *text, size_t len, struct w_error *err) {
    json_error_t why;
    json_t *json = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    if (!json)
        return w_fail(err, W_BAD_SPEC, "the training spec is no JSON: line %d, column %d: %s",
                      why.line, why.column, why.text),
               NULL;
    struct w_spec_train *s = w_train_spec_from(json, err);
    json_decref(json);
    return s;
}

void w_train_spec_destroy(struct w_spec_train *s) {
    if (!s) return;
    w__params_free(model_params, s);
    w__params_free(publish_params, s);
    json_decref(s->json);
    free(s);
}
