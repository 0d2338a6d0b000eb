/* The scanner against jansson, the fields of a job, URLs, envelopes, backoff, tables: without
 * Redis. */
#include "queue_testing.h"

#include "queue/job.h"
#include "queue/json.h"

#include <jansson.h>

static bool ignore(void *ctx, const struct q__json_value *key, const struct q__json_value *v) {
    (void)ctx;
    (void)key;
    (void)v;
    return true;
}

static bool ours(const char *text, size_t len) {
    struct q_error err;
    return q__json_object(text, len, 64, NULL, ignore, NULL, &err) == Q_OK;
}

static bool janssons(const char *text, size_t len) {
    json_error_t e;
    json_t *j = json_loadb(text, len, JSON_ALLOW_NUL, &e);
    bool ok = json_is_object(j);
    json_decref(j);
    return ok;
}

/* A raw NUL is never JSON; jansson overlooks one that follows a number. */
static void same(const char *text, size_t len) {
    if (memchr(text, 0, len)) {
        assert_false(ours(text, len));
        return;
    }
    bool a = ours(text, len), b = janssons(text, len);
    if (a != b) print_error("scanner %d, jansson %d: %.*s\n", a, b, (int)len, text);
    assert_int_equal(a, b);
}

static const char *const samples[] = {
    "{}",
    " { } ",
    "{\"a\":1}",
    "{\"a\":1,}",
    "{,}",
    "{\"a\"}",
    "{\"a\":}",
    "{a:1}",
    "{\"a\":1 \"b\":2}",
    "[]",
    "1",
    "",
    " ",
    "null",
    "{\"a\":[]}",
    "{\"a\":[1]}",
    "{\"a\":[1,]}",
    "{\"a\":[,1]}",
    "{\"a\":[1 2]}",
    "{\"a\":[[[]]]}",
    "{\"a\":[[[]]}",
    "{\"a\":{\"b\":{\"c\":[{}]}}}",
    "{\"a\":{\"b\"}}",
    "{\"a\":{\"b\":1,}}",
    "{\"a\":[}",
    "{\"a\":{]}",
    "{\"a\":0}",
    "{\"a\":-0}",
    "{\"a\":01}",
    "{\"a\":-}",
    "{\"a\":+1}",
    "{\"a\":1.}",
    "{\"a\":.5}",
    "{\"a\":1.5}",
    "{\"a\":1e5}",
    "{\"a\":1e}",
    "{\"a\":1e+}",
    "{\"a\":1E-2}",
    "{\"a\":1.5e+3}",
    "{\"a\":--1}",
    "{\"a\":0x1}",
    "{\"a\":true}",
    "{\"a\":tru}",
    "{\"a\":truee}",
    "{\"a\":false}",
    "{\"a\":nul}",
    "{\"a\":null}",
    "{\"a\":True}",
    "{\"a\":NaN}",
    "{\"a\":Infinity}",
    "{\"a\":\"\"}",
    "{\"a\":\"x}",
    "{\"a\":\"\\\"}",
    "{\"a\":\"\\\"\"}",
    "{\"a\":\"\\n\\t\\r\\b\\f\\/\\\\\"}",
    "{\"a\":\"\\x\"}",
    "{\"a\":\"\\u12\"}",
    "{\"a\":\"\\u0041\"}",
    "{\"a\":\"\\u00g1\"}",
    "{\"a\":\"\\ud83d\\ude00\"}",
    "{\"a\":\"\\ud83d\"}",
    "{\"a\":\"\\ude00\"}",
    "{\"a\":\"\\ud83d\\u0041\"}",
    "{\"a\":\"\\u0000\"}",
    "{\"a\":\"\x01\"}",
    "{\"a\":\"\n\"}",
    "{\"a\":\"\xc3\xa9\"}",
    "{\"a\":\"\xc3\"}",
    "{\"a\":\"\xc0\x80\"}",
    "{\"a\":\"\xe2\x82\xac\"}",
    "{\"a\":\"\xe2\x82\"}",
    "{\"a\":\"\xed\xa0\x80\"}",
    "{\"a\":\"\xf0\x9f\x98\x80\"}",
    "{\"a\":\"\xf4\x90\x80\x80\"}",
    "{\"a\":\"\xff\"}",
    "{\"a\":1}x",
    "{\"a\":1}{}",
    "{\"a\":1} \n\t\r",
    "{\"a\":1}\f",
    "// c\n{}",
    "{\"a\":'x'}",
    "{\"a\":1,\"a\":2}",
    "{\"\":1}",
    "{\"a\":{}}",
    "{\"a\":[{},{}]}",
    "{\"a\":[{}{}]}",
    "{\"a\":[\"x\",1,true,null,{\"b\":[]}]}",
    "{\"a\"::1}",
    "{\"a\":1,,\"b\":2}",
    "{{}}",
    "{\"a\":[[]",
    "}",
    "{",
    "{\"",
    "{\"a",
    "{\"a\"",
    "{\"a\":",
    "{\"a\":1",
    "{\"a\":1,",
};

static void test_scanner_agrees_with_jansson(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++)
        same(samples[i], strlen(samples[i]));
}

/* Every sample with every byte changed to every one of a few interesting ones, and cut everywhere;
 * at several distances from a 16-byte boundary. */
static void test_scanner_agrees_on_mutations(void **state) {
    static const char bytes[] = "\"\\{}[]:,0-.eEtu \n\x01\x7f\x80\xc3\xe2\xff";
    char text[256];
    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        size_t len = strlen(samples[i]);
        for (size_t at = 0; at < len; at++) {
            same(samples[i], at);
            for (size_t b = 0; b < sizeof bytes; b++) { /* the NUL too */
                memcpy(text, samples[i], len);
                text[at] = bytes[b];
                same(text, len);
            }
        }
    }
    for (size_t pad = 0; pad < 40; pad++)
        for (size_t b = 0; b < sizeof bytes; b++) {
            int n = snprintf(text, sizeof text, "{\"a\":\"%*s\",\"b\":2}", (int)pad, "");
            text[6 + pad / 2] = bytes[b];
            same(text, (size_t)n);
        }
}

static void test_scanner_limits_depth(void **state) {
    char text[300];
    (void)state;
    for (int depth = 60; depth < 70; depth++) {
        char *p = text;
        p += sprintf(p, "{\"a\":");
        for (int i = 1; i < depth; i++) *p++ = '[';
        for (int i = 1; i < depth; i++) *p++ = ']';
        *p++ = '}';
        assert_int_equal(ours(text, (size_t)(p - text)), depth <= 64);
    }
    char *deep = malloc(2000000);
    memset(deep, '[', 2000000);
    memcpy(deep, "{\"a\":", 5);
    assert_false(ours(deep, 2000000));
    free(deep);
}

static bool skim_a(const struct q__json_value *key) {
    return q__json_key_is(key, "a");
}

static void test_skim_checks_brackets_and_strings(void **state) {
    static const struct {
        const char *text;
        bool ok;
    } cases[] = {{"{\"a\":[[1,2],[3,4]],\"b\":1}", true},
                 {"{\"a\":[[1,2],[3,4],\"b\":1}", false},
                 {"{\"a\":[1,2},\"b\":1}", false},
                 {"{\"a\":{\"x\":\"]}\"},\"b\":1}", true},
                 {"{\"a\":[\"\\\"]\"],\"b\":1}", true},
                 {"{\"a\":[\"\\x\"],\"b\":1}", false},
                 {"{\"a\":[1 2],\"b\":1}", true /* left to who decodes it */},
                 {"{\"a\":[1,2],\"b\":[1 2]}", false}};
    struct q_error err;
    char text[400];
    (void)state;
    for (int pad = 0; pad < 40; pad++) { /* every place in a vector */
        int n = snprintf(text, sizeof text, "{\"a\":[[%*d],{\"k\":\"[%*s{\"},[]],\"b\":1}", pad, 1,
                         pad, "");
        assert_int_equal(q__json_object(text, (size_t)n, 64, skim_a, ignore, NULL, &err), Q_OK);
        for (int cut = 1; cut < n; cut++)
            assert_int_not_equal(q__json_object(text, (size_t)cut, 64, skim_a, ignore, NULL, &err),
                                 Q_OK);
        char *p = strstr(text, "}]") ? strstr(text, "}]") : strstr(text, "},[");
        *p = ']';
        assert_int_not_equal(q__json_object(text, (size_t)n, 64, skim_a, ignore, NULL, &err), Q_OK);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(q__json_object(cases[i].text, strlen(cases[i].text), 64, skim_a, ignore,
                                        NULL, &err) == Q_OK,
                         cases[i].ok);
}

/* --- jobs */

static struct q_job *good(const char *json) {
    struct q_job *job;
    enum q_code code;
    struct q_error err = {.code = Q_OK};
    if (q_job_parse(&job, "t", json, strlen(json), &code, &err) != Q_OK)
        print_error("%s: %s\n", json, err.text);
    assert_non_null(job);
    return job;
}

static void bad(const char *json, size_t len, enum q_code want, const char *says) {
    struct q_job *job;
    enum q_code code;
    struct q_error err = {.code = Q_OK};
    assert_int_equal(q_job_parse(&job, "t", json, len, &code, &err), Q_BAD_JOB);
    assert_null(job);
    if (code != want || !strstr(err.text, says))
        print_error("%.80s: %s: %s\n", json, q_code_name(code), err.text);
    assert_int_equal(code, want);
    assert_non_null(strstr(err.text, says));
}

static bool span_is(struct q_span s, const char *text) {
    return s.len == strlen(text) && memcmp(s.ptr, text, s.len) == 0;
}

static void test_job_fields(void **state) {
    (void)state;
    struct q_job *j = good(
        "{\"v\":1,\"id\":\"a\\u0031\",\"op\":\"infer\",\"model\":\"d\\u00e9j\\u00e0@2\",\"input\":["
        "[1,2]],"
        "\"params\":{\"k\":5},\"input_ref\":\"file:x\",\"output_ref\":{\"a\":1},\"meta\":\"m\","
        "\"tenant\":\"T\","
        "\"retry\":{\"max\":7,\"base_ms\":10,\"cap_ms\":20},\"ttl_ms\":5,\"wait\":true,\"status\":"
        "false,"
        "\"timeout_ms\":9,\"progress_ms\":8,\"unique\":\"u\",\"unique_ttl_ms\":3,\"expire_ms\":4,"
        "\"at_ms\":6,"
        "\"after\":[\"x\",\"y\"],\"encoding\":\"b64\",\"reply_to\":\"quern:{t}:rep:me\",\"cost\":1."
        "5,"
        "\"traceparent\":\"00-ab\",\"queued_ms\":77,\"new_field\":{\"z\":[]},\"delay_ms\":null}");
    assert_string_equal(j->id, "a1");
    assert_string_equal(j->op, "infer");
    assert_string_equal(j->model, "d\xc3\xa9j\xc3\xa0@2");
    assert_true(span_is(j->input, "[[1,2]]"));
    assert_true(span_is(j->params, "{\"k\":5}"));
    assert_true(span_is(j->input_ref, "\"file:x\""));
    assert_true(span_is(j->output_ref, "{\"a\":1}"));
    assert_true(span_is(j->meta, "\"m\""));
    assert_int_equal(j->retry_max, 7);
    assert_int_equal(j->retry_base_ms, 10);
    assert_int_equal(j->retry_cap_ms, 20);
    assert_int_equal(j->ttl_ms, 5);
    assert_true(j->wait);
    assert_false(j->status);
    assert_int_equal(j->n_after, 2);
    assert_string_equal(j->after[1], "y");
    assert_string_equal(j->reply_to, "quern:{t}:rep:me");
    assert_true(j->cost == 1.5);
    assert_int_equal(j->queued_ms, 77);
    assert_int_equal(j->attempt, 1);
    assert_int_equal(j->ticket, -1);
    q_job_free(j);

    j = good("~1,2,1,1700000000000,hdt7~{\"op\":\"ping\"}");
    assert_int_equal(j->attempt, 3);
    assert_int_equal(j->crashes, 1);
    assert_int_equal(j->queued_ms, 1700000000000);
    assert_int_equal(j->ticket, 7);
    assert_string_equal(j->id, "");
    assert_int_equal(j->ttl_ms, 3600000);
    assert_int_equal(j->retry_max, 3);
    assert_true(span_is((struct q_span){j->raw, j->raw_len}, "{\"op\":\"ping\"}"));
    q_job_free(j);
}

static void test_job_refusals(void **state) {
    static const struct {
        const char *json;
        enum q_code code;
        const char *says;
    } cases[] = {
        {"", Q_CODE_bad_json, "not a JSON object"},
        {"[1]", Q_CODE_bad_json, "not a JSON object"},
        {"{\"op\":\"x\"", Q_CODE_bad_json, "at byte 9 of 9"},
        {"~1,2~{}", Q_CODE_bad_json, "no valid header"},
        {"~2,0,0,0,~{\"op\":\"x\"}", Q_CODE_bad_json, "no valid header"},
        {"{}", Q_CODE_bad_job, "\"op\" is missing"},
        {"{\"op\":5}", Q_CODE_bad_job, "\"op\" is a number, must be a string"},
        {"{\"op\":\"x\",\"op\":\"y\"}", Q_CODE_bad_job, "\"op\" is given twice"},
        {"{\"op\":\"x\",\"\\u006fp\":\"y\"}", Q_CODE_bad_job, "\"op\" is given twice"},
        {"{\"op\":\"x\",\"id\":\"a b\"}", Q_CODE_bad_job, "printable ASCII"},
        {"{\"op\":\"x\",\"id\":\"\"}", Q_CODE_bad_job, "printable ASCII"},
        {"{\"op\":\"x\",\"id\":\"a\\u0000b\"}", Q_CODE_bad_job, "control character"},
        {"{\"op\":\"x\",\"model\":\"a\\nb\"}", Q_CODE_bad_job, "control character"},
        {"{\"op\":\"x\",\"ttl_ms\":-1}", Q_CODE_bad_job, "is -1, must be an integer from 0"},
        {"{\"op\":\"x\",\"ttl_ms\":1.5}", Q_CODE_bad_job, "is 1.5, must be an integer"},
        {"{\"op\":\"x\",\"ttl_ms\":1e400}", Q_CODE_bad_job, "must be an integer"},
        {"{\"op\":\"x\",\"ttl_ms\":123456789012345678901234567890}", Q_CODE_bad_job,
         "must be an integer"},
        {"{\"op\":\"x\",\"ttl_ms\":\"5\"}", Q_CODE_bad_job, "is a string, must be an integer"},
        {"{\"op\":\"x\",\"wait\":1}", Q_CODE_bad_job, "must be true or false"},
        {"{\"op\":\"x\",\"reply_to\":\"quern:{other}:in\"}", Q_CODE_bad_job,
         "must begin with \"quern:{t}:rep:\""},
        {"{\"op\":\"x\",\"retry\":\"no\"}", Q_CODE_bad_job, "\"retry\" is a string"},
        {"{\"op\":\"x\",\"retry\":{\"max\":1001}}", Q_CODE_bad_job, "\"max\" is 1001"},
        {"{\"op\":\"x\",\"after\":\"y\"}", Q_CODE_bad_job, "\"after\" is a string"},
        {"{\"op\":\"x\",\"after\":[1]}", Q_CODE_bad_job, "array of job ids"},
        {"{\"op\":\"x\",\"v\":2}", Q_CODE_bad_job, "protocol version 1"},
        {"{\"op\":\"x\",\"input_ref\":5}", Q_CODE_bad_job, "must be a string or an object"},
        {"{\"op\":\"x\",\"encoding\":\"hex\"}", Q_CODE_bad_job, "must be json or b64"},
        {"{\"op\":\"0123456789012345678901234567890123456789\"}", Q_CODE_bad_job,
         "longer than 32 bytes"},
        {"{\"op\":\"x\",\"cost\":-1}", Q_CODE_bad_job, "0 or more"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        bad(cases[i].json, strlen(cases[i].json), cases[i].code, cases[i].says);
    bad("{\"op\":\"x\0\"}", 11, Q_CODE_bad_json, "control character");
    bad("\0", 1, Q_CODE_bad_json, "not a JSON object");

    char *big = malloc(6000);
    int n = sprintf(big, "{\"op\":\"x\",\"meta\":\"");
    memset(big + n, 'm', 5000);
    strcpy(big + n + 5000, "\"}");
    bad(big, strlen(big), Q_CODE_bad_job, "at most 4096 are allowed");
    n = sprintf(big, "{\"op\":\"x\",\"after\":[\"0\"");
    for (int i = 1; i < 33; i++) n += sprintf(big + n, ",\"%d\"", i);
    strcpy(big + n, "]}");
    bad(big, strlen(big), Q_CODE_bad_job, "more than 32 ids");
    free(big);
}

/* Large entries go fast: a value of input that is only skimmed may be wrong inside, brackets never.
 */
static void test_job_large_input(void **state) {
    (void)state;
    size_t len = 1 << 20;
    char *big = malloc(len + 200);
    int n = sprintf(big, "{\"op\":\"infer\",\"input\":{\"b64\":\"");
    memset(big + n, 'A', len);
    strcpy(big + n + len, "\"},\"id\":\"big\"}");
    struct q_job *j = good(big);
    assert_string_equal(j->id, "big");
    assert_int_equal(j->input.len, len + 10);
    q_job_free(j);
    big[n + len / 2] = 1;
    bad(big, strlen(big), Q_CODE_bad_json, "control character");
    memset(big + n, '[', len);
    big[n - 1] = '[';
    bad(big, strlen(big), Q_CODE_bad_json, "nested too deeply");
    free(big);
}

static void test_header_round_trip(void **state) {
    static const struct q__header headers[] = {{0, 0, 0, 0, false, -1, 0, 0},
                                               {1, 3, 1700000000000, 'h', true, 7, 11, 4000000},
                                               {3, 2, 1700000000000, 'h', true, -1, 0, 0},
                                               {1, 0, 5, 'l', false, 0, 0, 5},
                                               {0, 9, 1, 0, true, 255, 9, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        char text[Q__HEADER_MAX];
        struct q__header h;
        size_t n = q__header_write(&headers[i], text);
        assert_int_equal(q__header_parse(&h, text, n), n);
        assert_memory_equal(&h.attempt, &headers[i].attempt, sizeof h.attempt);
        assert_int_equal(h.crashes, headers[i].crashes);
        assert_int_equal(h.queued_ms, headers[i].queued_ms);
        assert_int_equal(h.inbox, headers[i].inbox);
        assert_int_equal(h.delayed, headers[i].delayed);
        assert_int_equal(h.ticket, headers[i].ticket);
        assert_int_equal(h.signal, headers[i].signal);
        assert_int_equal(h.rss_kb, headers[i].rss_kb);
        for (size_t cut = 1; cut < n; cut++)
            assert_int_equal(q__header_parse(&h, text, cut), SIZE_MAX);
    }
}

/* --- envelope */

static void test_envelope_is_json(void **state) {
    (void)state;
    struct q_job *j = good("{\"op\":\"infer\",\"id\":\"e1\",\"model\":\"a\\\"b\",\"meta\":{\"k\":["
                           "1]},\"queued_ms\":100}");
    j->token = 42;
    j->priv->started_ms = 150;
    struct q__envelope e = {.job = j,
                            .state = "done",
                            .worker = "w\x01",
                            .ended_ms = 200,
                            .run_ms = 49.5,
                            .attempts = 1,
                            .batch = 8,
                            .version = "3",
                            .manifest = "{\"isa\":\"avx2\"}",
                            .result = "{\"x\":1}",
                            .result_len = 7,
                            .code = Q_CODE_N};
    size_t len;
    char *text = q__envelope_make(&e, &len);
    assert_int_equal(strlen(text), len);
    json_t *root = json_loadb(text, len, 0, NULL);
    assert_non_null(root);
    assert_string_equal(json_string_value(json_object_get(root, "id")), "e1");
    assert_string_equal(json_string_value(json_object_get(root, "state")), "done");
    assert_int_equal(json_integer_value(json_object_get(root, "token")), 42);
    assert_int_equal(json_integer_value(json_object_get(root, "queue_ms")), 50);
    assert_string_equal(json_string_value(json_object_get(root, "model")), "a\"b");
    assert_true(json_is_object(json_object_get(root, "manifest")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "result"), "x")), 1);
    assert_null(json_object_get(root, "error"));
    json_decref(root);
    free(text);

    e.state = "failed", e.code = Q_CODE_bad_shape, e.message = "say \"what\"\n\xff", e.run_ms = -1;
    text = q__envelope_make(&e, &len);
    root = json_loadb(text, len, 0, NULL);
    assert_non_null(root);
    json_t *error = json_object_get(root, "error");
    assert_string_equal(json_string_value(json_object_get(error, "code")), "bad_shape");
    assert_string_equal(json_string_value(json_object_get(error, "message")),
                        "say \"what\"\n\xef\xbf\xbd");
    assert_true(json_is_false(json_object_get(error, "retryable")));
    assert_null(json_object_get(root, "result"));
    assert_null(json_object_get(root, "started_ms"));
    json_decref(root);
    free(text);
    q_job_free(j);
}

/* --- URLs */

static void test_urls(void **state) {
    static const struct {
        const char *text;
        enum q_status status;
        enum q_scheme scheme;
        const char *host, *user, *password, *shown;
        unsigned port, db;
    } cases[] = {
        {"redis://h", Q_OK, Q_SCHEME_TCP, "h", "", "", "redis://h:6379/0", 6379, 0},
        {"redis://", Q_OK, Q_SCHEME_TCP, "127.0.0.1", "", "", "redis://127.0.0.1:6379/0", 6379, 0},
        {"redis://u:p@h:7000/3", Q_OK, Q_SCHEME_TCP, "h", "u", "p", "redis://u@h:7000/3", 7000, 3},
        {"redis://:p%40ss@w@h/", Q_OK, Q_SCHEME_TCP, "h", "", "p@ss@w", "redis://@h:6379/0", 6379,
         0},
        {"rediss://[::1]:6380", Q_OK, Q_SCHEME_TLS, "::1", "", "", "rediss://[::1]:6380/0", 6380,
         0},
        {"unix:/run/r.sock", Q_OK, Q_SCHEME_UNIX, "/run/r.sock", "", "", "unix:/run/r.sock", 6379,
         0},
        {"unix:///run/r.sock?db=2", Q_OK, Q_SCHEME_UNIX, "/run/r.sock", "", "",
         "unix:/run/r.sock?db=2", 6379, 2},
        {"redis+sentinel://a:1,b:2/m", Q_UNSUPPORTED, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"redis+cluster://a:1", Q_UNSUPPORTED, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"http://h", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"redis://h:0", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"redis://h:65536", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"redis://h:x", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"redis://h/x", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"redis://h/0?x=1", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"redis://a%zz@h", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"redis://a%00b@h", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"rediss://[::1", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"unix:relative", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
        {"", Q_BAD_URL, 0, NULL, NULL, NULL, NULL, 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct q_url url;
        struct q_error err = {.code = Q_OK};
        char shown[400];
        if (q_url_parse(&url, cases[i].text, &err) != cases[i].status)
            print_error("%s: %s\n", cases[i].text, err.text);
        assert_int_equal(q_url_parse(&url, cases[i].text, &err), cases[i].status);
        if (cases[i].status) {
            assert_true(strlen(err.text) > 10);
            continue;
        }
        assert_int_equal(url.scheme, cases[i].scheme);
        assert_string_equal(url.host, cases[i].host);
        assert_string_equal(url.user, cases[i].user);
        assert_string_equal(url.password, cases[i].password);
        assert_int_equal(url.port, cases[i].port);
        assert_int_equal(url.db, cases[i].db);
        assert_string_equal(q_url_redact(&url, shown, sizeof shown), cases[i].shown);
    }
}

/* --- backoff */

static void test_backoff_stays_in_bounds(void **state) {
    uint32_t last = 0, greatest = 0;
    (void)state;
    for (int i = 0; i < 10000; i++) {
        last = q__backoff_reconnect(last, 50, 5000);
        assert_in_range(last, 50, 5000);
        greatest = last > greatest ? last : greatest;
    }
    assert_true(greatest > 2500); /* it does grow */
    assert_in_range(q__backoff_reconnect(0, 50, 5000), 50, 150);
    for (uint32_t attempt = 1; attempt < 70; attempt++)
        for (int i = 0; i < 200; i++) {
            uint64_t high = attempt > 20 ? 60000 : 1000u << (attempt - 1);
            assert_in_range(q__backoff_retry(attempt, 1000, 60000), 0, high < 60000 ? high : 60000);
        }
    uint64_t sum = 0;
    for (int i = 0; i < 4000; i++) sum += q__backoff_retry(3, 1000, 300000);
    assert_in_range(sum / 4000, 1700, 2300); /* full jitter: half of 4000 on average */
}

/* --- tables */

static void test_codes_have_names(void **state) {
    (void)state;
    for (unsigned i = 0; i < Q_CODE_N; i++) {
        assert_int_equal(q_code_from_name(q_code_name((enum q_code)i)), i);
        assert_true(strlen(q_code_meaning((enum q_code)i)) > 5);
    }
    assert_int_equal(q_code_from_name("nonsense"), Q_CODE_N);
    for (unsigned i = 0; i < Q_STATUS_N; i++)
        assert_true(strlen(q_status_text((enum q_status)i)) > 1);
}

static void test_protocol_lists_every_code(void **state) {
    char text[200000], row[400];
    (void)state;
    FILE *f = fopen("queue/PROTOCOL.md", "r");
    if (!f) skip(); /* run from elsewhere than the repository's root */
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    for (unsigned i = 0; i < Q_CODE_N; i++) {
        enum q_code code = (enum q_code)i;
        snprintf(row, sizeof row, "| `%s` | %s | %s |", q_code_name(code),
                 q_code_retryable(code) ? "yes" : "no", q_code_meaning(code));
        if (!strstr(text, row)) print_error("queue/PROTOCOL.md lacks the row: %s\n", row);
        assert_non_null(strstr(text, row));
    }
}

static void test_ids_are_valid_and_differ(void **state) {
    char a[Q_ID_MAX + 1], b[Q_ID_MAX + 1], key[64];
    (void)state;
    for (int i = 0; i < 1000; i++) {
        q_id_make(a);
        q_id_make(b);
        assert_true(q_id_valid(a, strlen(a)));
        assert_string_not_equal(a, b);
    }
    assert_int_equal(q_key(key, sizeof key, "img", "in"), 14);
    assert_string_equal(key, "quern:{img}:in");
    assert_int_equal(q_key(key, 14, "img", "in"), 0);
    assert_false(q_queue_name_valid("a:b", 3));
    assert_false(q_queue_name_valid("", 0));
    assert_false(q_queue_name_valid("{}", 2));
    assert_true(q_queue_name_valid("A-z_0.9", 7));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scanner_agrees_with_jansson),
        cmocka_unit_test(test_scanner_agrees_on_mutations),
        cmocka_unit_test(test_scanner_limits_depth),
        cmocka_unit_test(test_skim_checks_brackets_and_strings),
        cmocka_unit_test(test_job_fields),
        cmocka_unit_test(test_job_refusals),
        cmocka_unit_test(test_job_large_input),
        cmocka_unit_test(test_header_round_trip),
        cmocka_unit_test(test_envelope_is_json),
        cmocka_unit_test(test_urls),
        cmocka_unit_test(test_backoff_stays_in_bounds),
        cmocka_unit_test(test_codes_have_names),
        cmocka_unit_test(test_protocol_lists_every_code),
        cmocka_unit_test(test_ids_are_valid_and_differ),
    };
    return cmocka_run_group_tests_name("queue_parse", tests, NULL, NULL);
}
