/* A row's way through pipelines, with a made-up model in place of the engine: rules of rank,
 * several inputs, several rows, chains of runs, answers, golden samples, and what is refused at
 * load. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "worker/data/data.h"

/* --- the model: scores[N,4] = x[N,4]·2 -------------------------------------------------------- */

static const struct op_io io_x = {
    .name = "x", .dtype = OP_F32, .rank = 2, .dims = {-1, 4}, .symbols = {"N"}};
static const struct op_io io_scores = {
    .name = "scores", .dtype = OP_F32, .rank = 2, .dims = {-1, 4}, .symbols = {"N"}};
static const struct op_io io_one = {.name = "x", .dtype = OP_F32, .rank = 2, .dims = {1, 4}};
static const struct op_io io_one_out = {
    .name = "scores", .dtype = OP_F32, .rank = 2, .dims = {1, 4}};
static const struct op_io io_image = {
    .name = "image", .dtype = OP_F32, .rank = 4, .dims = {-1, 3, 8, 8}, .symbols = {"N"}};
static const struct op_io io_sr = {.name = "sr", .dtype = OP_I64, .rank = 0};
static const struct op_io io_weight = {
    .name = "w", .dtype = OP_F32, .rank = 1, .dims = {4}, .optional = true};

static struct w_signature rows_sig = {.model = "double",
                                      .batching = W_BATCH_ROWS,
                                      .n_inputs = 1,
                                      .n_outputs = 1,
                                      .inputs = {&io_x},
                                      .outputs = {&io_scores}};
static struct w_signature one_sig = {.model = "double",
                                     .batching = W_BATCH_ONE,
                                     .n_inputs = 1,
                                     .n_outputs = 1,
                                     .inputs = {&io_one},
                                     .outputs = {&io_one_out}};
static struct w_signature image_sig = {.model = "net",
                                       .batching = W_BATCH_ROWS,
                                       .n_inputs = 1,
                                       .n_outputs = 1,
                                       .inputs = {&io_image},
                                       .outputs = {&io_scores}};
static struct w_signature many_sig = {.model = "many",
                                      .batching = W_BATCH_NONE,
                                      .n_inputs = 2,
                                      .n_optional = 1,
                                      .n_outputs = 1,
                                      .inputs = {&io_x, &io_sr, &io_weight},
                                      .outputs = {&io_scores}};

struct model {
    float out[64];
    struct op_tensor t;
    int n_runs;
};

static bool run_model(void *user, const struct op_tensor *inputs, int n,
                      const struct op_tensor **outputs, int *n_outputs, struct w_error *err) {
    struct model *m = user;
    int64_t count = op_tensor_count(&inputs[0]);
    (void)err;
    assert_true(n >= 1 && count <= 64);
    for (int64_t i = 0; i < count; i++) m->out[i] = 2 * ((const float *)inputs[0].data)[i];
    m->t = (struct op_tensor){.dtype = OP_F32, .rank = 2, .dims = {count / 4, 4}, .data = m->out};
    m->n_runs++;
    *outputs = &m->t;
    *n_outputs = 1;
    return true;
}

static struct w_row *row;
static char folder[] = "/tmp/quern-flow-XXXXXX";

static int setup(void **unused) {
    (void)unused;
    row = w_row_create(64 << 20);
    return row && mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **unused) {
    char command[64];
    (void)unused;
    w_row_destroy(row);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void put_file(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* Runs one input; the result is in row->result. */
static bool send_with(const struct w_pipeline *p, const char *json, struct w_error *err) {
    struct model m = {.n_runs = 0};
    struct w_input input = {.kind = W_INPUT_JSON, .json = {json, strlen(json)}};
    bool b64 = row->b64, no_outputs = row->no_outputs;
    struct w_span params = row->params;
    w_row_reset(row);
    row->b64 = b64;
    row->no_outputs = no_outputs;
    row->params = params;
    return w_pipeline_run(p, row, &input, run_model, &m, err);
}

static void gives(const struct w_pipeline *p, const char *json, const char *result) {
    struct w_error err;
    if (!send_with(p, json, &err)) fail_msg("%s: %s", json, err.text);
    if (strlen(result) != row->result.len || memcmp(result, row->result.ptr, row->result.len))
        fail_msg("%s gave %.*s", json, (int)row->result.len, row->result.ptr);
}

static void refuses(const struct w_pipeline *p, const char *json, const char *code,
                    const char *text) {
    struct w_error err;
    if (send_with(p, json, &err))
        fail_msg("%s was taken: %.*s", json, (int)row->result.len, row->result.ptr);
    if (strcmp(err.code, code) || !strstr(err.text, text))
        fail_msg("%s: %s: %s", json, err.code, err.text);
}

static struct w_pipeline *load(const char *steps, const struct w_signature *sig) {
    char text[2000];
    struct w_error err;
    snprintf(text, sizeof text, "{\"quern\":1,\"pipeline\":%s}", steps);
    struct w_pipeline *p = w_pipeline_parse(text, strlen(text), folder, sig, &err);
    if (!p) fail_msg("%s: %s", steps, err.text);
    return p;
}

static void load_fails(const char *json, const struct w_signature *sig, const char *text) {
    struct w_error err;
    struct w_pipeline *p = w_pipeline_parse(json, strlen(json), folder, sig, &err);
    if (p) fail_msg("%s was taken", json);
    if (strcmp(err.code, W_BAD_MODEL) || !strstr(err.text, text))
        fail_msg("%s: %s: %s", json, err.code, err.text);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void test_without_model_json(void **unused) {
    struct w_error err;
    struct w_pipeline *p = w_pipeline_load(NULL, &rows_sig, &err);
    (void)unused;
    gives(p, "[1,2,3,4]",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[2,4,6,8]}}}");
    assert_int_equal(row->n_rows, 1);
    gives(p, "[[1,2,3,4],[0.5,0,0,-1]]",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[2,4],\"data\":[2,4,6,8,1,0,0,-2]}"
          "}}");
    assert_int_equal(row->n_rows, 2);
    gives(p, "{\"x\":[1,2,3,4]}",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[2,4,6,8]}}}");
    const char *b64 = "{\"dtype\":\"f32\",\"shape\":[1,4],\"b64\":\"AACAPwAAAEAAAEBAAACAQA==\"}";
    gives(p, b64,
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[2,4,6,8]}}}");
    gives(p, "{\"b64\":\"AACAPwAAAEAAAEBAAACAQA==\"}",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[2,4,6,8]}}}");
    gives(p, "{\"x\":{\"dtype\":\"f32\",\"shape\":[2,4],\"data\":[1,2,3,4,5,6,7,8]}}",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[2,4],\"data\":[2,4,6,8,10,12,14,"
          "16]}}}");
    row->b64 = true;
    gives(p, "[1,2,3,4]",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"b64\":"
          "\"AAAAQAAAgEAAAMBAAAAAQQ==\"}}}");
    row->b64 = false;
    w_pipeline_destroy(p);
}

static void test_wrong_inputs_are_told(void **unused) {
    struct w_error err;
    struct w_pipeline *p = w_pipeline_load(NULL, &rows_sig, &err);
    (void)unused;
    refuses(
        p, "[1,2,3]", W_BAD_SHAPE,
        "model \"double\": input \"x\" is f32[N,4], the job sent f32[3] (dimension 1 is 3, not 4)");
    refuses(p, "[[[1,2,3,4]]]", W_BAD_SHAPE, "rank 3, expected 2");
    refuses(p, "[]", W_BAD_SHAPE, "f32[0]");
    refuses(p, "{\"dtype\":\"f32\",\"shape\":[0,4],\"b64\":\"\"}", W_BAD_SHAPE, "no rows");
    refuses(p, "5", W_BAD_SHAPE, "rank 0");
    refuses(p, "null", W_BAD_INPUT, "null");
    refuses(p, "", W_BAD_INPUT, "no input");
    refuses(p, "{\"y\":[1,2,3,4]}", W_BAD_INPUT, "has no input \"y\"");
    refuses(p, "{}", W_BAD_INPUT, "\"x\" (f32[N,4]) is missing");
    refuses(p, "{\"dtype\":\"f64\",\"shape\":[4],\"b64\":\"AA==\"}", W_BAD_DTYPE,
            "the job sent f64");
    refuses(p, "{\"dtype\":\"f31\",\"shape\":[4],\"b64\":\"AA==\"}", W_BAD_DTYPE,
            "expected one of");
    refuses(p, "{\"dtype\":\"f32\",\"shape\":[4],\"b64\":\"AACAPw==\"}", W_BAD_SHAPE,
            "4 bytes, f32[4] needs 16");
    refuses(p, "{\"dtype\":\"f32\",\"shape\":[4],\"b64\":\"AACAP*==\"}", W_BAD_INPUT,
            "character 5");
    refuses(p, "{\"dtype\":\"f32\",\"shape\":[-4],\"b64\":\"\"}", W_BAD_SHAPE, "negative");
    refuses(p, "{\"dtype\":\"f32\",\"shape\":[4611686018427387904,4],\"b64\":\"\"}", W_BAD_SHAPE,
            "bytes");
    refuses(p, "{\"dtype\":\"f32\",\"shpe\":[4],\"b64\":\"\"}", W_BAD_INPUT,
            "did you mean \"shape\"");
    refuses(p, "{\"dtype\":\"f32\",\"shape\":[4]}", W_BAD_INPUT, "exactly one of");
    refuses(p, "{\"ref\":\"file:/etc/passwd\"}", W_REF_DENIED, "/etc/passwd");
    refuses(p, "{\"b64\":\"AACAPwAAAEA=\"}", W_BAD_SHAPE, "do not make whole rows");
    refuses(p, "{\"b64\":\"iVBORw0KGgoAAAAN\"}", W_BAD_INPUT, "is an image file");
    refuses(p, "{\"x\":[1,2,3,4]", W_BAD_JSON, "malformed");
    w_pipeline_destroy(p);
}

static void test_batch_fixed_at_one_takes_both_forms(void **unused) {
    struct w_error err;
    struct w_pipeline *p = w_pipeline_load(NULL, &one_sig, &err);
    (void)unused;
    gives(p, "[1,2,3,4]",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[2,4,6,8]}}}");
    gives(p, "[[1,2,3,4]]",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[2,4,6,8]}}}");
    gives(p, "[[1,2,3,4],[5,6,7,8]]",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[2,4],\"data\":[2,4,6,8,10,12,14,"
          "16]}}}");
    w_pipeline_destroy(p);
}

static void test_several_inputs(void **unused) {
    struct w_error err;
    struct w_pipeline *p = w_pipeline_load(NULL, &many_sig, &err);
    (void)unused;
    gives(p, "{\"sr\":16000,\"x\":[[1,2,3,4]]}",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[2,4,6,8]}}}");
    assert_int_equal(row->n_inputs, 2);
    assert_true(*(int64_t *)row->inputs[1].data == 16000);
    gives(p, "{\"w\":[1,1,1,1],\"sr\":16000,\"x\":[[1,2,3,4],[0,0,0,0]]}",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[2,4],\"data\":[2,4,6,8,0,0,0,0]}}"
          "}");
    assert_int_equal(row->n_inputs, 3);
    refuses(p, "[[1,2,3,4]]", W_BAD_INPUT, "has 2 inputs (\"x\", \"sr\")");
    refuses(p, "{\"x\":[[1,2,3,4]]}", W_BAD_INPUT, "\"sr\" (i64[]) is missing");
    refuses(p, "{\"x\":[[1,2,3,4]],\"sr\":1.5}", W_BAD_DTYPE, "i64 cannot hold");
    refuses(p, "{\"x\":[[1,2,3,4]],\"sr\":1,\"w\":[1]}", W_BAD_SHAPE, "\"w\" is f32[4]");
    w_pipeline_destroy(p);
}

static void test_answers(void **unused) {
    put_file("labels.txt", "ant\nbee\r\ncat\n\"dog\"\n");
    struct w_pipeline *p =
        load("[{\"run\":{}},{\"topk\":{\"k\":2,\"labels\":\"labels.txt\"}}]", &rows_sig);
    (void)unused;
    row->no_outputs = true;
    gives(p, "[1,0.25,1,4]",
          "{\"top\":[{\"index\":3,\"label\":\"\\\"dog\\\"\",\"score\":8},{\"index\":0,\"label\":"
          "\"ant\",\"score\":2}]}");
    gives(p, "[[1,0,1,0],[0,0,0,1]]",
          "{\"top\":[[{\"index\":0,\"label\":\"ant\",\"score\":2},{\"index\":2,\"label\":\"cat\","
          "\"score\":2}],"
          "[{\"index\":3,\"label\":\"\\\"dog\\\"\",\"score\":2},{\"index\":0,\"label\":\"ant\","
          "\"score\":0}]]}");
    row->params = (struct w_span){"{\"a\":[1],\"k\":1}", 15};
    gives(p, "[1,0.25,1,4]", "{\"top\":[{\"index\":3,\"label\":\"\\\"dog\\\"\",\"score\":8}]}");
    row->params = (struct w_span){"{\"top_k\":0}", 11};
    refuses(p, "[1,0.25,1,4]", W_BAD_INPUT, "whole number from 1");
    row->params = (struct w_span){NULL, 0};
    row->no_outputs = false;
    gives(p, "[0,0,0,1]",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[0,0,0,2]}},"
          "\"top\":[{\"index\":3,\"label\":\"\\\"dog\\\"\",\"score\":2},{\"index\":0,\"label\":"
          "\"ant\",\"score\":0}]}");
    refuses(p, "{\"dtype\":\"f32\",\"b64\":\"AADAfwAAAEAAAEBAAACAQA==\"}", W_BAD_INPUT,
            "score of class 0 is");
    w_pipeline_destroy(p);

    p = load("[{\"tensor\":{\"shape\":[4],\"affine\":[10,1]}},{\"run\":{}},{\"activate\":{\"kind\":"
             "\"softmax\"}},{\"topk\":{\"k\":4,\"min\":0.2}},{\"emit\":{\"fields\":[\"index\","
             "\"score\"],\"digits\":3}}]",
             &rows_sig);
    gives(p, "[0,0.1,0,0.1]",
          "{\"top\":[{\"index\":1,\"score\":0.44},{\"index\":3,\"score\":0.44}]}");
    gives(p, "[[0,0.1,0,0.1],[1,0,0,0]]",
          "{\"rows\":[{\"top\":[{\"index\":1,\"score\":0.44},{\"index\":3,\"score\":0.44}]},{"
          "\"top\":[{\"index\":0,\"score\":1}]}]}");
    w_pipeline_destroy(p);
    p = load("[{\"run\":{},\"as\":\"raw\"},{\"activate\":{\"kind\":\"softmax\"}}]", &rows_sig);
    refuses(p, "[0.1,0.2,0.1,0.1]", W_BAD_MODEL, "softmax of its own");
    w_pipeline_destroy(p);
}

/* The model twice: scores of the first run go into the second. */
static void test_chain_of_runs(void **unused) {
    struct w_pipeline *p = load("[{\"run\":{}},{\"run\":{\"in\":{\"x\":\"scores\"},\"out\":["
                                "\"scores\"]}},{\"emit\":{\"fields\":{\"v\":\".\"}}}]",
                                &rows_sig);
    (void)unused;
    gives(p, "[1,2,3,4]", "{\"v\":{\"dtype\":\"f32\",\"shape\":[4],\"data\":[4,8,12,16]}}");
    refuses(p, "[[1,2,3,4],[1,2,3,4]]", W_UNSUPPORTED, "one row a job");
    w_pipeline_destroy(p);
}

static void test_constants(void **unused) {
    struct w_pipeline *p =
        load("[{\"tensor\":{}},{\"run\":{\"in\":{\"x\":\".\",\"sr\":16000}}}]", &many_sig);
    (void)unused;
    gives(p, "[[1,2,3,4]]",
          "{\"outputs\":{\"scores\":{\"dtype\":\"f32\",\"shape\":[1,4],\"data\":[2,4,6,8]}}}");
    assert_int_equal(row->n_inputs, 2);
    assert_true(*(int64_t *)row->inputs[1].data == 16000);
    w_pipeline_destroy(p);
    load_fails("{\"quern\":1,\"pipeline\":[{\"run\":{\"in\":{\"x\":\".\",\"sr\":1.5}}}]}",
               &many_sig, "i64 cannot hold");
    load_fails(
        "{\"quern\":1,\"pipeline\":[{\"tensor\":{}},{\"run\":{\"in\":{\"x\":\".\",\"sr\":[1]}}}]}",
        &many_sig, "rank 1");
    load_fails("{\"quern\":1,\"pipeline\":[{\"run\":{\"in\":{\"x\":\".\",\"sr\":null}}}]}",
               &many_sig, "or be numbers");
    load_fails("{\"quern\":1,\"pipeline\":[{\"run\":{\"state\":{\"a\":\"b\"}}}]}", &many_sig,
               "\"state\" is not supported");
}

static void test_rows_of_tables(void **unused) {
    struct w_error err;
    struct w_pipeline *p = w_pipeline_load(NULL, &image_sig, &err);
    static double pixels[192];
    struct w_value v = {.type = W_TENSOR,
                        .flat = true,
                        .tensor = {.dtype = OP_F64, .rank = 1, .dims = {192}, .data = pixels}};
    struct w_input input = {.kind = W_INPUT_VALUE, .value = &v};
    (void)unused;
    for (int i = 0; i < 192; i++) pixels[i] = i;
    w_row_reset(row);
    assert_int_equal(w_pipeline_before(p, row, &input, &err), W_NEXT_RUN);
    assert_int_equal(row->inputs[0].rank, 4);
    assert_int_equal(row->inputs[0].dims[3], 8);
    assert_true(((float *)row->inputs[0].data)[191] == 191);
    v.tensor.dims[0] = 191;
    assert_int_equal(w_pipeline_before(p, row, &input, &err), W_NEXT_FAILED);
    assert_string_equal(err.code, W_BAD_SHAPE);
    w_pipeline_destroy(p);
}

static void test_golden_samples(void **unused) {
    static const char model[] =
        "{\"quern\":1,\"batch\":{\"max\":8,\"pad\":\"longest\"},\"pipeline\":[{\"run\":{}},{"
        "\"topk\":{\"k\":2}}],\"golden\":["
        "{\"input\":[1,2,3,4],\"expect\":{\"top\":[{\"index\":3,\"score\":8.0005}]},\"tol\":0.001},"
        "{\"input\":\"sample.json\",\"expect\":{\"outputs\":{\"scores\":{\"data\":[2]}}}},"
        "{\"input\":[1,2,3,4],\"expect\":{\"top\":[{\"index\":2}]}},"
        "{\"input\":[1,2,3,4],\"expect\":{\"text\":\"no\"}},"
        "{\"input\":\"../escape.json\",\"expect\":{}}]}";
    struct w_error err;
    struct model m = {.n_runs = 0};
    (void)unused;
    put_file("sample.json", "[1,0,0,0]");
    struct w_pipeline *p = w_pipeline_parse(model, strlen(model), folder, &rows_sig, &err);
    if (!p) fail_msg("%s", err.text);
    assert_int_equal(w_pipeline_batch(p).max, 8);
    assert_int_equal(w_pipeline_batch(p).pad, W_PAD_LONGEST);
    assert_int_equal(w_pipeline_n_golden(p), 5);
    for (int i = 0; i < 2; i++)
        if (!w_pipeline_golden(p, i, run_model, &m, NULL, NULL, &err)) fail_msg("%s", err.text);
    assert_false(w_pipeline_golden(p, 2, run_model, &m, NULL, NULL, &err));
    if (!strstr(err.text, "golden sample 3 (input): result.top[0].index is 3, expected 2"))
        fail_msg("%s", err.text);
    assert_false(w_pipeline_golden(p, 3, run_model, &m, NULL, NULL, &err));
    if (!strstr(err.text, "result.text is missing, expected \"no\"")) fail_msg("%s", err.text);
    assert_false(w_pipeline_golden(p, 4, run_model, &m, NULL, NULL, &err));
    w_pipeline_destroy(p);
}

static void test_mistakes_of_model_json(void **unused) {
    static const struct {
        const char *json, *text;
    } cases[] = {
        {"{", "line 1"},
        {"[]", "an object was expected"},
        {"{\"pipeline\":[]}", "\"quern\": 1"},
        {"{\"quern\":2}", "\"quern\": 1"},
        {"{\"quern\":1,\"pipline\":[]}", "unknown key \"pipline\""},
        {"{\"quern\":1,\"pipeline\":{}}", "must be a list"},
        {"{\"quern\":1,\"pipeline\":[3]}", "step 1 must be an object"},
        {"{\"quern\":1,\"pipeline\":[{}]}", "names no step"},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{},\"topk\":{}}]}", "names two steps"},
        {"{\"quern\":1,\"pipeline\":[{\"color\":{\"to\":\"gray\"}}]}", "cannot be the first step"},
        {"{\"quern\":1,\"pipeline\":[{\"tensor\":{}}]}", "no step \"run\""},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{\"in\":{\"y\":\".\"}}}]}", "has no input \"y\""},
        {"{\"quern\":1,\"pipeline\":[{\"tensor\":{}},{\"run\":{\"in\":{\"x\":\"z\"}}}]}",
         "gives the name \"z\""},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{\"out\":[\"skores\"]}}]}",
         "did you mean \"scores\""},
        {"{\"quern\":1,\"pipeline\":[{\"tensor\":{\"dtype\":\"i64\"}},{\"run\":{}}]}",
         "is f32[N,4], the pipeline gives i64"},
        {"{\"quern\":1,\"pipeline\":[{\"tensor\":{\"shape\":[5]}},{\"run\":{}}]}",
         "gives 5 in dimension 1, not 4"},
        {"{\"quern\":1,\"pipeline\":[{\"tensor\":{\"shape\":[2,2,4]}},{\"run\":{}}]}", "of rank 3"},
        {"{\"quern\":1,\"pipeline\":[{\"decode_image\":{}},{\"run\":{}}]}",
         "an image becomes a tensor by the step \"pixels\""},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{}},{\"topk\":{\"labels\":[\"a\"]}}]}",
         "1 labels, the tensor has 4 classes"},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{}},{\"topk\":{\"labels\":\"none.txt\"}}]}",
         "cannot be opened"},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{}},{\"topk\":{\"labels\":\"../../etc/passwd\"}}]}",
         "outside the model's folder"},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{}},{\"topk\":{\"labels\":\"/etc/passwd\"}}]}",
         "cannot be opened"},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{}},{\"topk\":{\"k\":1.5}}]}",
         "\"k\" is 1.5, expected a whole number from 1"},
        {"{\"quern\":1,\"pipeline\":[{\"run\":{}},{\"activate\":{}}]}", "\"kind\" is missing"},
        {"{\"quern\":1,\"batch\":{\"max\":0}}", "from 1 to 65536"},
        {"{\"quern\":1,\"batch\":{\"pad\":\"short\"}}", "one of: none longest fixed bucket"},
        {"{\"quern\":1,\"golden\":[{\"input\":1}]}", "an object \"expect\""},
        {"{\"quern\":1,\"golden\":[{\"input\":1,\"expect\":{},\"tol\":-1}]}", "\"tol\" must be"},
        {"{\"quern\":1,\"quern\":1}", "duplicate"}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        load_fails(cases[i].json, &rows_sig, cases[i].text);
    load_fails("{\"quern\":1,\"pipeline\":[{\"decode_image\":{}},{\"resize\":{\"size\":9}},{"
               "\"pixels\":{}},{\"run\":{}}]}",
               &image_sig, "gives 9 in dimension 2, not 8");
    load_fails("{\"quern\":1,\"pipeline\":[{\"decode_image\":{}},{\"resize\":{\"size\":8}},{"
               "\"pixels\":{\"layout\":\"nhwc\"}},{\"run\":{}}]}",
               &image_sig, "gives 8 in dimension 1, not 3");
    load_fails("{\"quern\":1,\"pipeline\":[{\"tensor\":{}},{\"run\":{}}]}", &many_sig,
               "has 2 inputs: \"in\" must say");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_without_model_json),
                                       cmocka_unit_test(test_wrong_inputs_are_told),
                                       cmocka_unit_test(test_batch_fixed_at_one_takes_both_forms),
                                       cmocka_unit_test(test_several_inputs),
                                       cmocka_unit_test(test_answers),
                                       cmocka_unit_test(test_chain_of_runs),
                                       cmocka_unit_test(test_constants),
                                       cmocka_unit_test(test_rows_of_tables),
                                       cmocka_unit_test(test_golden_samples),
                                       cmocka_unit_test(test_mistakes_of_model_json)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
