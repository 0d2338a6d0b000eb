/* The parts of training that need no training: names, schedules, callbacks, metrics, augmentation,
 * IDX, shapes of layers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/train/train.h"

static json_t *parse(const char *text) {
    json_t *o = json_loads(text, 0, NULL);
    assert_non_null(o);
    return o;
}

static void assert_near(double a, double b) {
    if (!(fabs(a - b) <= 1e-9 * (1 + fabs(b)))) fail_msg("%.12g is not %.12g", a, b);
}

/* --- names --------------------------------------------------------------------------------------
 */

static void test_class_names_become_keras_short_names(void **state) {
    static const char *const pairs[][2] = {
        {"Conv2D", "conv2d"},
        {"GlobalAveragePooling1D", "global_average_pooling1d"},
        {"LSTM", "lstm"},
        {"SimpleRNN", "simple_rnn"},
        {"HeNormal", "he_normal"},
        {"TopKCategoricalAccuracy", "top_k_categorical_accuracy"},
        {"mse", "mse"},
        {"MeanSquaredError", "mean_squared_error"},
        {"", ""}};
    char got[64];
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        w__train_snake(pairs[i][0], got, sizeof got);
        assert_string_equal(got, pairs[i][1]);
    }
    w__train_snake("MeanSquaredError", got, 6); /* cut, and ended */
    assert_true(strlen(got) < 6);
}

/* --- schedules ----------------------------------------------------------------------------------
 */

static double rate(const char *text, double base, uint64_t total, uint64_t step) {
    struct w_error err;
    json_t *o = text ? parse(text) : NULL;
    struct w_schedule *s = w_schedule_create(o, base, total, &err);
    assert_non_null(s);
    double v = w_schedule_at(s, step);
    w_schedule_destroy(s);
    json_decref(o);
    return v;
}

static void test_schedules_are_keras_formulas(void **state) {
    (void)state;
    assert_near(rate(NULL, 0.1, 100, 57), 0.1);
    static const char exponential[] = "{\"type\":\"ExponentialDecay\",\"initial_learning_rate\":0."
                                      "1,\"decay_steps\":10,\"decay_rate\":0.5}";
    assert_near(rate(exponential, 1, 100, 10), 0.05);
    assert_near(rate(exponential, 1, 100, 5), 0.1 * sqrt(0.5));
    assert_near(rate("{\"type\":\"StepDecay\",\"initial_learning_rate\":0.1,\"decay_steps\":10,"
                     "\"decay_rate\":0.5}",
                     1, 100, 19),
                0.05);
    static const char cosine[] = "{\"type\":\"CosineDecay\",\"initial_learning_rate\":0.2,\"decay_"
                                 "steps\":100,\"alpha\":0.1}";
    assert_near(rate(cosine, 1, 9, 0), 0.2);
    assert_near(rate(cosine, 1, 9, 50), 0.2 * (0.5 * 0.9 + 0.1));
    assert_near(rate(cosine, 1, 9, 1000), 0.02);
    static const char warm[] = "{\"type\":\"CosineDecay\",\"initial_learning_rate\":0,\"warmup_"
                               "target\":1,\"warmup_steps\":4,\"decay_steps\":10}";
    assert_near(rate(warm, 1, 9, 1), 0.25);
    assert_near(rate(warm, 1, 9, 4), 1);
    assert_near(rate("{\"type\":\"PolynomialDecay\",\"initial_learning_rate\":1,\"end_learning_"
                     "rate\":0.2,\"decay_steps\":10,\"power\":2}",
                     1, 9, 5),
                0.8 * 0.25 + 0.2);
    static const char pieces[] =
        "{\"type\":\"PiecewiseConstantDecay\",\"boundaries\":[10,20],\"values\":[3,2,1]}";
    assert_near(rate(pieces, 1, 9, 10), 3);
    assert_near(rate(pieces, 1, 9, 11), 2);
    assert_near(rate(pieces, 1, 9, 99), 1);
    static const char cycle[] =
        "{\"type\":\"OneCycle\",\"max_learning_rate\":0.4,\"pct_start\":0.3}";
    assert_near(rate(cycle, 1, 100, 0), 0.4 / 25);
    assert_near(rate(cycle, 1, 100, 29), 0.4);
    assert_near(rate(cycle, 1, 100, 99), 0.4 / 25 / 1e4);
}

static void test_schedules_refuse_what_they_do_not_know(void **state) {
    struct w_error err;
    (void)state;
    static const char *const bad[] = {
        "{\"type\":\"CosineDecai\"}", "{\"type\":\"CosineDecay\",\"alfa\":1}",
        "{\"type\":\"PiecewiseConstantDecay\",\"boundaries\":[1],\"values\":[1]}", "{\"decay\":1}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *o = parse(bad[i]);
        assert_null(w_schedule_create(o, 1, 10, &err));
        assert_string_equal(err.code, W_BAD_SPEC);
        assert_non_null(strstr(err.text, "learning_rate"));
        json_decref(o);
    }
}

/* --- callbacks ----------------------------------------------------------------------------------
 */

static struct w_verdict epoch(struct w_callbacks *c, int i, double loss) {
    struct w_error err;
    struct w_verdict v;
    json_t *o = json_pack("{s:f}", "val_loss", loss);
    assert_true(w_callbacks_epoch(c, i, o, &v, &err));
    json_decref(o);
    return v;
}

static void test_early_stopping_waits_and_keeps_the_best(void **state) {
    struct w_callbacks c;
    struct w_error err;
    (void)state;
    json_t *list = parse("[{\"type\":\"EarlyStopping\",\"patience\":2,\"min_delta\":0.1,\"restore_"
                         "best_weights\":true}]");
    assert_true(w_callbacks_parse(list, &c, &err));
    assert_true(epoch(&c, 0, 1).best);
    assert_true(epoch(&c, 1, 0.5).best);
    struct w_verdict v = epoch(&c, 2, 0.45); /* better, but not by min_delta */
    assert_false(v.best || v.stop);
    json_t *saved = w_callbacks_save(&c);
    assert_true(epoch(&c, 3, 0.6).stop);
    w_callbacks_load(&c, saved); /* as if it had been stopped after epoch 2 */
    v = epoch(&c, 3, 0.6);
    assert_true(v.stop && v.restore);
    json_decref(saved);
    json_decref(list);
    w_callbacks_finish(&c);
}

static void test_a_plateau_lowers_the_rate_down_to_its_floor(void **state) {
    struct w_callbacks c;
    struct w_error err;
    (void)state;
    json_t *list = parse("[{\"type\":\"ReduceLROnPlateau\",\"patience\":1,\"factor\":0.5,\"min_"
                         "lr\":0.01,\"cooldown\":1}]");
    assert_true(w_callbacks_parse(list, &c, &err));
    assert_near(epoch(&c, 0, 1).lr_factor, 1);
    struct w_verdict v = epoch(&c, 1, 1);
    assert_near(v.lr_factor, 0.5);
    assert_near(v.lr_min, 0.01);
    json_decref(list);
    w_callbacks_finish(&c);
}

static void test_a_callback_that_watches_nothing_is_told(void **state) {
    struct w_callbacks c;
    struct w_error err;
    struct w_verdict v;
    (void)state;
    json_t *list = parse("[{\"type\":\"EarlyStopping\",\"monitor\":\"val_acc\"}]"),
           *o = parse("{\"loss\":1}");
    assert_true(w_callbacks_parse(list, &c, &err));
    assert_int_equal(c.items[0].mode, 1);
    assert_false(w_callbacks_epoch(&c, 0, o, &v, &err));
    assert_non_null(strstr(err.text, "\"val_acc\""));
    json_decref(o);
    json_decref(list);
    w_callbacks_finish(&c);
}

/* --- metrics ------------------------------------------------------------------------------------
 */

static double metric(const char *name, const char *loss, const struct w_outcome *o) {
    struct w_error err;
    struct w_metrics m;
    struct w_spec_train spec = {.loss = {.name = loss}};
    const struct w_train_model model = {.output_rank = 1, .output_dims = {o->classes}};
    json_t *list = json_pack("[s]", name);
    assert_true(w_metrics_parse(list, &spec, &model, &m, &err));
    w_metrics_update(&m, o);
    json_t *saved = w_metrics_save(&m);
    w_metrics_reset(&m);
    w_metrics_load(&m, saved);
    double v = w_metric_value(&m.items[0]);
    json_decref(saved);
    json_decref(list);
    w_metrics_finish(&m);
    return v;
}

static void test_metrics_by_hand(void **state) {
    (void)state;
    const float p[] = {0.1f, 0.2f, 0.7f, 0.5f, 0.3f, 0.2f};
    const int64_t classes[] = {2, 1};
    const struct w_outcome three = {.rows = 2, .classes = 3, .output = p, .sparse = classes};
    assert_near(metric("accuracy", "sparse_categorical_crossentropy", &three), 0.5);
    const float scores[] = {0.9f, 0.8f, 0.3f, 0.1f}, truth[] = {1, 0, 1, 0};
    const struct w_outcome two = {.rows = 4, .classes = 1, .output = scores, .dense = truth};
    assert_near(metric("accuracy", "binary_crossentropy", &two), 0.5);
    assert_near(metric("precision", "binary_crossentropy", &two), 0.5);
    assert_near(metric("recall", "binary_crossentropy", &two), 0.5);
    assert_near(metric("f1", "binary_crossentropy", &two), 0.5);
    assert_near(metric("auc", "binary_crossentropy", &two), 0.75); /* 3 of 4 pairs are in order */
    const float guess[] = {1, 2, 3, 5}, real[] = {1, 2, 3, 4};
    const struct w_outcome line = {.rows = 4, .classes = 1, .output = guess, .dense = real};
    assert_near(metric("mse", "mse", &line), 0.25);
    assert_near(metric("mae", "mse", &line), 0.25);
    assert_near(metric("rmse", "mse", &line), 0.5);
    assert_near(metric("r2", "mse", &line), 1 - 1.0 / 5);
    assert_near(metric("perplexity", "sparse_categorical_crossentropy",
                       &(struct w_outcome){.rows = 2, .classes = 3, .output = p, .sparse = classes,
                                           .loss = log(7)}),
                7);
}

static void test_metrics_of_rankings_by_hand(void **state) {
    (void)state;
    /* Row 0: classes 0 and 2 are relevant and stand at ranks 0 and 2; row 1: class 1, at rank 1,
     * for equal scores count against it. */
    const float scores[] = {0.9f, 0.5f, 0.4f, 0.1f, 0.7f, 0.7f, 0.2f, 0.1f},
                relevant[] = {1, 0, 1, 0, 0, 1, 0, 0};
    const struct w_outcome o = {.rows = 2, .classes = 4, .output = scores, .dense = relevant};
    double ndcg0 = (1 + 1 / log2(4)) / (1 + 1 / log2(3)), ndcg1 = 1 / log2(3);
    assert_near(metric("ndcg", "binary_crossentropy", &o), (ndcg0 + ndcg1) / 2);
    assert_near(metric("map", "binary_crossentropy", &o), ((1 + 2.0 / 3) / 2 + 0.5) / 2);
    assert_near(metric("mrr", "binary_crossentropy", &o), 0.75);
    assert_near(metric("hit_rate", "binary_crossentropy", &o), 1);
    const float flat[] = {1, 1, 1}, order[] = {3, 1, 2};
    assert_near(metric("mrr", "bpr", &(struct w_outcome){.rows = 1, .classes = 3, .output = flat}),
                1.0 / 3);
    assert_near(metric("mrr", "bpr", &(struct w_outcome){.rows = 1, .classes = 3, .output = order}),
                1);
}

static double error_rate(const char *said, const char *is, int64_t separator) {
    float output[20 * 5] = {0};
    int64_t labels[12];
    struct w_error err;
    struct w_metrics m;
    struct w_spec_train spec = {.loss = {.name = "ctc"}};
    const struct w_train_model model = {.output_rank = 2, .output_dims = {(int64_t)strlen(said), 5}};
    for (size_t t = 0; said[t]; t++) output[t * 5 + (size_t)(said[t] - '0')] = 1;
    for (size_t i = 0; i < 12; i++) labels[i] = i < strlen(is) ? is[i] - '0' : -1;
    json_t *list = json_pack("[{s:s, s:I}]", "type", "wer", "separator", (json_int_t)separator);
    assert_true(w_metrics_parse(list, &spec, &model, &m, &err));
    w_metrics_update(&m, &(struct w_outcome){.rows = 1, .classes = 5, .output = output,
                                             .labels = labels, .n_labels = 12,
                                             .steps = (int64_t)strlen(said)});
    double v = w_metric_value(&m.items[0]);
    w_metrics_finish(&m);
    json_decref(list);
    return v;
}

static void test_error_rates_are_edits_over_labels(void **state) {
    (void)state;
    assert_near(error_rate("0110220", "12", -1), 0);     /* 1 2 */
    assert_near(error_rate("01011", "1", -1), 1);        /* 1 1 for 1: one too many */
    assert_near(error_rate("0000", "123", -1), 1);       /* all missing */
    assert_near(error_rate("1020304", "1434", -1), 0.25); /* 1 2 3 4 */
    assert_near(error_rate("1024012", "12412", 4), 0);   /* 12|12, words between 4s */
    assert_near(error_rate("1024011", "12412", 4), 0.5); /* 12|1 */
}

static void test_a_confusion_matrix_counts_pairs(void **state) {
    struct w_error err;
    struct w_metrics m;
    struct w_spec_train spec = {.loss = {.name = "sparse_categorical_crossentropy"}};
    const struct w_train_model model = {.output_rank = 1, .output_dims = {3}};
    const float p[] = {0.1f, 0.2f, 0.7f, 0.5f, 0.3f, 0.2f, 0, 0, 1};
    const int64_t classes[] = {2, 1, 2};
    (void)state;
    json_t *list = parse("[\"confusion_matrix\"]"), *into = json_object();
    assert_true(w_metrics_parse(list, &spec, &model, &m, &err));
    w_metrics_update(&m, &(struct w_outcome){.rows = 3, .classes = 3, .output = p, .sparse = classes});
    w_metrics_json(&m, "", into);
    assert_null(json_object_get(into, "confusion_matrix"));
    w_metrics_matrices(&m, into);
    json_t *wanted = parse("[[0,0,0],[1,0,0],[0,0,2]]");
    assert_true(json_equal(json_object_get(into, "confusion_matrix"), wanted));
    w_metrics_finish(&m);
    json_decref(wanted);
    json_decref(into);
    json_decref(list);
}

static void test_a_metric_that_says_nothing_of_a_loss_is_refused(void **state) {
    struct w_error err;
    struct w_metrics m;
    struct w_spec_train spec = {.loss = {.name = "triplet"}};
    const struct w_train_model model = {.output_rank = 1, .output_dims = {3}};
    json_t *list = parse("[\"accuracy\"]");
    (void)state;
    assert_false(w_metrics_parse(list, &spec, &model, &m, &err));
    assert_non_null(strstr(err.text, "triplet"));
    w_metrics_finish(&m);
    json_decref(list);
}

/* --- augmentation -------------------------------------------------------------------------------
 */

static void test_augmentation_follows_from_the_seed(void **state) {
    struct w_error err;
    float a[48], b[48], c[48];
    int differs = 0;
    (void)state;
    json_t *list = parse("[\"RandomFlip\",{\"type\":\"RandomTranslation\",\"height_factor\":0.3,"
                         "\"width_factor\":0.3},{\"type\":\"RandomRotation\",\"factor\":0.1}]");
    struct w_augment *g = w_augment_create(list, 3, (int64_t[]){4, 4, 3}, &err);
    assert_non_null(g);
    for (uint64_t seed = 0; seed < 20; seed++) {
        for (int i = 0; i < 48; i++) a[i] = b[i] = c[i] = (float)i;
        w_augment_apply(g, a, seed);
        w_augment_apply(g, b, seed);
        w_augment_apply(g, c, seed + 1000);
        assert_memory_equal(a, b, sizeof a);
        differs += memcmp(a, c, sizeof a) != 0;
    }
    assert_true(differs > 15);
    w_augment_destroy(g);
    json_decref(list);
    list = parse("[\"RandomFlip\"]");
    assert_null(w_augment_create(list, 1, (int64_t[]){4}, &err));
    assert_string_equal(err.code, W_BAD_SPEC);
    json_decref(list);
}

/* --- IDX ----------------------------------------------------------------------------------------
 */

static void test_idx_reads_its_types_and_refuses_lies(void **state) {
    struct w_error err;
    struct w_array a;
    (void)state;
    static const uint8_t shorts[] = {0, 0, 0x0b, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0xff, 0xff, 1, 0};
    assert_true(w__train_is_idx(shorts, sizeof shorts));
    assert_true(w__train_read_idx(shorts, sizeof shorts, "x", &a, &err));
    assert_int_equal(a.n, 1);
    assert_int_equal(a.elements, 2);
    assert_int_equal(((int64_t *)a.data)[0], -1);
    assert_int_equal(((int64_t *)a.data)[1], 256);
    free(a.data);
    for (size_t n = 0; n < sizeof shorts; n++)
        assert_false(w__train_read_idx(shorts, n, "x", &a, &err));
    static const uint8_t huge[] = {0,   0,   8,   4,   255, 255, 255, 255, 255, 255, 255,
                                   255, 255, 255, 255, 255, 255, 255, 255, 255, 7};
    assert_false(w__train_read_idx(huge, sizeof huge, "x", &a, &err));
    assert_false(w__train_is_idx((const uint8_t *)"0,0,5,13,9", 10));
}

/* --- the graph ----------------------------------------------------------------------------------
 */

static bool build(const char *model, struct w_train_model *m, struct w_error *err) {
    char text[2048];
    snprintf(text, sizeof text,
             "{\"model\":%s,\"data\":{\"train\":{\"x\":\"x\"}},\"compile\":{\"loss\":\"mse\"}}",
             model);
    struct w_spec_train *s = w_train_spec_parse(text, strlen(text), err);
    bool ok = s && w_train_model_build(s, NULL, NULL, m, err);
    w_train_spec_destroy(s);
    return ok;
}

/* Row-major channels-last rows must reach Dense in Keras's order whatever order the pools work in.
 */
static void test_flatten_has_the_order_of_channels_last(void **state) {
    struct w_train_model m;
    struct w_error err;
    struct op_error why;
    float x[2 * 4 * 3];
    const struct op_tensor *out;
    (void)state;
    for (int i = 0; i < 24; i++) x[i] = (float)i;
    assert_true(build("{\"input_shape\":[2,4,3],\"layers\":[{\"type\":\"MaxPooling2D\",\"pool_"
                      "size\":[1,2]},{\"type\":\"Flatten\"}]}",
                      &m, &err));
    struct op_session *s = op_session_create(m.model, NULL, &why);
    const struct op_tensor in = {.dtype = OP_F32, .rank = 4, .dims = {1, 2, 4, 3}, .data = x};
    assert_int_equal(op_session_run(s, &in, 1, &out, &why), OP_OK);
    assert_int_equal(out->dims[1], 12);
    for (int y = 0; y < 2; y++)
        for (int i = 0; i < 2; i++)
            for (int c = 0; c < 3; c++)
                assert_near((double)((const float *)out->data)[(y * 2 + i) * 3 + c],
                            (double)x[(y * 4 + 2 * i + 1) * 3 + c]);
    op_session_destroy(s);
    w_train_model_finish(&m);
}

static void test_shapes_are_worked_out_layer_by_layer(void **state) {
    static const struct {
        const char *model;
        int rank;
        int64_t dims[3];
    } cases[] = {{"{\"input_shape\":[7,7,3],\"layers\":[{\"type\":\"Conv2D\",\"filters\":5,"
                  "\"kernel_size\":3,\"strides\":2,\"padding\":\"same\"}]}",
                  3,
                  {4, 4, 5}},
                 {"{\"input_shape\":[7,7,3],\"layers\":[{\"type\":\"Conv2D\",\"filters\":5,"
                  "\"kernel_size\":[3,2]}]}",
                  3,
                  {5, 6, 5}},
                 {"{\"input_shape\":[9,4],\"layers\":[{\"type\":\"Conv1D\",\"filters\":2,\"kernel_"
                  "size\":3,\"padding\":\"causal\",\"dilation_rate\":2}]}",
                  2,
                  {9, 2}},
                 {"{\"input_shape\":[9,4],\"layers\":[{\"type\":\"Bidirectional\",\"layer\":{"
                  "\"type\":\"LSTM\",\"units\":3}}]}",
                  1,
                  {6}},
                 {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Embedding\",\"input_dim\":9,"
                  "\"output_dim\":2},{\"type\":\"Reshape\",\"target_shape\":[-1]}]}",
                  1,
                  {8}},
                 {"{\"input_shape\":[3,3,2],\"layers\":[{\"type\":\"ZeroPadding2D\"},{\"type\":"
                  "\"UpSampling2D\",\"size\":[1,3]},{\"type\":\"DepthwiseConv2D\",\"kernel_size\":"
                  "1,\"depth_multiplier\":2}]}",
                  3,
                  {5, 15, 4}},
                 {"{\"input_shape\":[5,6,2],\"layers\":[{\"type\":\"Conv2DTranspose\",\"filters\":3,"
                  "\"kernel_size\":[3,2],\"strides\":[2,3],\"padding\":\"same\"},{\"type\":\"PReLU\","
                  "\"shared_axes\":[1,2]}]}",
                  3,
                  {10, 18, 3}},
                 {"{\"input_shape\":[5,6,2],\"layers\":[{\"type\":\"Conv2DTranspose\",\"filters\":1,"
                  "\"kernel_size\":4,\"strides\":2},{\"type\":\"Cropping2D\",\"cropping\":[1,2]}]}",
                  3,
                  {10, 10, 1}},
                 {"{\"input_shape\":[3],\"layers\":[{\"type\":\"RepeatVector\",\"n\":4},{\"type\":"
                  "\"UpSampling1D\",\"size\":3},{\"type\":\"ZeroPadding1D\",\"padding\":[1,2]},"
                  "{\"type\":\"Cropping1D\",\"cropping\":[0,3]},{\"type\":\"SpatialDropout1D\",\"rate\":"
                  "0.5}]}",
                  2,
                  {12, 3}},
                 {"{\"input_shape\":[4,5,6,1],\"layers\":[{\"type\":\"TimeDistributed\",\"layer\":{"
                  "\"type\":\"Conv2D\",\"filters\":2,\"kernel_size\":3}},{\"type\":\"TimeDistributed\","
                  "\"layer\":{\"type\":\"Flatten\"}},{\"type\":\"TimeDistributed\",\"layer\":{\"type\":"
                  "\"Dense\",\"units\":7}}]}",
                  2,
                  {4, 7}},
                 {"{\"input_shape\":[6],\"layers\":[{\"type\":\"Embedding\",\"input_dim\":9,"
                  "\"output_dim\":2,\"mask_zero\":true},{\"type\":\"GRU\",\"units\":3,\"dropout\":0.2,"
                  "\"return_sequences\":true},{\"type\":\"GlobalAveragePooling1D\"}]}",
                  1,
                  {3}},
                 {"{\"input_shape\":[9,4],\"layers\":[{\"type\":\"SeparableConv1D\",\"filters\":6,"
                  "\"kernel_size\":3,\"depth_multiplier\":2},{\"type\":\"DepthwiseConv1D\","
                  "\"kernel_size\":2},{\"type\":\"GaussianNoise\",\"stddev\":0.1}]}",
                  2,
                  {6, 6}}};
    struct w_train_model m;
    struct w_error err;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!build(cases[i].model, &m, &err)) fail_msg("%s", err.text);
        assert_int_equal(m.output_rank, cases[i].rank);
        for (int k = 0; k < m.output_rank; k++)
            assert_int_equal(m.output_dims[k], cases[i].dims[k]);
        /* The engine, too, finds these shapes: one row of zeros is run. */
        float zeros[256] = {0};
        int64_t ids[16] = {0};
        struct op_error why;
        const struct op_tensor *out;
        const struct w_train_input *input = &m.inputs[0];
        struct op_tensor in = {.dtype = input->dtype,
                               .rank = input->rank + 1,
                               .dims = {1},
                               .data = input->dtype == OP_I64 ? (void *)ids : (void *)zeros};
        memcpy(in.dims + 1, input->dims, (size_t)input->rank * sizeof *in.dims);
        struct op_session *s = op_session_create(m.model, NULL, &why);
        if (op_session_run(s, &in, 1, &out, &why) != OP_OK) fail_msg("%s", why.text);
        assert_int_equal(out->rank, m.output_rank + 1);
        for (int k = 0; k < m.output_rank; k++)
            assert_int_equal(out->dims[k + 1], cases[i].dims[k]);
        op_session_destroy(s);
        w_train_model_finish(&m);
    }
}

/* One row of ids through Embedding with a mask and the layers behind it. */
static void masked(const char *layers, int64_t steps, const int64_t *ids, float *dst) {
    char text[600];
    struct w_train_model m;
    struct w_error err;
    struct op_error why;
    const struct op_tensor *out;
    snprintf(text, sizeof text,
             "{\"input_shape\":[%d],\"layers\":[{\"type\":\"Embedding\",\"input_dim\":9,"
             "\"output_dim\":3,\"mask_zero\":true},%s]}",
             (int)steps, layers);
    if (!build(text, &m, &err)) fail_msg("%s", err.text);
    struct op_session *s = op_session_create(m.model, NULL, &why);
    const struct op_tensor in = {
        .dtype = OP_I64, .rank = 2, .dims = {1, steps}, .data = (void *)(uintptr_t)ids};
    if (op_session_run(s, &in, 1, &out, &why) != OP_OK) fail_msg("%s", why.text);
    memcpy(dst, out->data, 4 * sizeof *dst);
    op_session_destroy(s);
    w_train_model_finish(&m);
}

static void test_what_pads_a_row_does_not_change_its_result(void **state) {
    static const char *const layers[] = {
        "{\"type\":\"LSTM\",\"units\":4}", "{\"type\":\"GRU\",\"units\":4}",
        "{\"type\":\"Bidirectional\",\"layer\":{\"type\":\"LSTM\",\"units\":2}}",
        "{\"type\":\"SpatialDropout1D\",\"rate\":0.3},{\"type\":\"SimpleRNN\",\"units\":4}",
        "{\"type\":\"Dense\",\"units\":4},{\"type\":\"GlobalAveragePooling1D\"}",
        "{\"type\":\"LSTM\",\"units\":4,\"return_sequences\":true},{\"type\":\"GRU\",\"units\":4}"};
    static const int64_t ids[] = {5, 2, 8, 0, 0, 0};
    float padded[4], exact[4], other[4];
    (void)state;
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
        masked(layers[i], 6, ids, padded);
        masked(layers[i], 3, ids, exact);
        masked(layers[i], 2, ids, other);
        for (int k = 0; k < 4; k++)
            if (fabsf(padded[k] - exact[k]) > 1e-6f) fail_msg("%s: other numbers", layers[i]);
        assert_memory_not_equal(exact, other, sizeof exact);
    }
}

static void test_bad_layers_are_refused_with_their_place(void **state) {
    static const char *const cases[][2] = {
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Dense\"}]}", "units"},
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Dense\",\"units\":0}]}", "units"},
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Dense\",\"units\":2,\"activation\":"
         "\"rellu\"}]}",
         "\"relu\""},
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Dense\",\"units\":2,\"kernel_initializer\":"
         "\"he\"}]}",
         "he_normal"},
        {"{\"input_shape\":[0],\"layers\":[{\"type\":\"Flatten\"}]}", "input_shape"},
        {"{\"input_shape\":[1000000000,1000000000],\"layers\":[{\"type\":\"Flatten\"}]}",
         "input_shape"},
        {"{\"input_shape\":[4],\"layers\":[]}", "layers"},
        {"{\"input_shape\":[4],\"layers\":[7]}", "layers[0]"},
        {"{\"input_shape\":[1],\"layers\":[{\"type\":\"Dense\",\"units\":16777216},{\"type\":"
         "\"Dense\",\"units\":16777216}]}",
         "layers[1]"},
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Reshape\",\"target_shape\":[3,-1]}]}",
         "target_shape"},
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Add\"}]}", "inputs"},
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Dense\",\"units\":2,\"name\":\"a\"},{"
         "\"type\":\"Dense\",\"units\":2,\"name\":\"a\"}]}",
         "\"a\""},
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Dense\",\"units\":2,\"inputs\":\"b\"}]}",
         "\"b\""},
        {"{\"input_shape\":[4],\"layers\":[{\"type\":\"Dense\",\"units\":2},{\"type\":"
         "\"Embedding\",\"input_dim\":3,\"output_dim\":2}]}",
         "first layer"}};
    struct w_train_model m;
    struct w_error err;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (build(cases[i][0], &m, &err)) fail_msg("taken: %s", cases[i][0]);
        assert_string_equal(err.code, W_BAD_SPEC);
        if (!strstr(err.text, cases[i][1])) fail_msg("\"%s\" is not in: %s", cases[i][1], err.text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_class_names_become_keras_short_names),
        cmocka_unit_test(test_schedules_are_keras_formulas),
        cmocka_unit_test(test_schedules_refuse_what_they_do_not_know),
        cmocka_unit_test(test_early_stopping_waits_and_keeps_the_best),
        cmocka_unit_test(test_a_plateau_lowers_the_rate_down_to_its_floor),
        cmocka_unit_test(test_a_callback_that_watches_nothing_is_told),
        cmocka_unit_test(test_metrics_by_hand),
        cmocka_unit_test(test_metrics_of_rankings_by_hand),
        cmocka_unit_test(test_error_rates_are_edits_over_labels),
        cmocka_unit_test(test_a_confusion_matrix_counts_pairs),
        cmocka_unit_test(test_a_metric_that_says_nothing_of_a_loss_is_refused),
        cmocka_unit_test(test_augmentation_follows_from_the_seed),
        cmocka_unit_test(test_idx_reads_its_types_and_refuses_lies),
        cmocka_unit_test(test_flatten_has_the_order_of_channels_last),
        cmocka_unit_test(test_shapes_are_worked_out_layer_by_layer),
        cmocka_unit_test(test_what_pads_a_row_does_not_change_its_result),
        cmocka_unit_test(test_bad_layers_are_refused_with_their_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
