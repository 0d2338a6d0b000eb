/* A producer's entry: the scanner, the fields, the header, the envelope. What the scanner takes,
 * jansson must take too (but for what decoding means: see queue/json.c), and an envelope is always
 * JSON. */
#include "queue/job.h"
#include "queue/json.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check_span(const struct q_job *job, struct q_span s) {
    if (s.ptr &&
        (s.ptr < job->raw || s.len > job->raw_len || s.ptr + s.len > job->raw + job->raw_len))
        abort();
}

static void check_envelope(const struct q_job *job, enum q_code code, const char *message) {
    struct q__envelope e = {.job = job,
                            .state = "dead",
                            .worker = "w",
                            .ended_ms = 1,
                            .run_ms = -1,
                            .code = code,
                            .message = message};
    size_t n;
    json_error_t err;
    char *text = q__envelope_make(&e, &n);
    json_t *root = text ? json_loadb(text, n, JSON_ALLOW_NUL, &err) : NULL;
    if (text && !root && !strstr(err.text, "too big") && !strstr(err.text, "real number")) abort();
    json_decref(root);
    free(text);
}

static bool skim_all(const struct q__json_value *key) {
    (void)key;
    return true;
}

static bool ignore(void *ctx, const struct q__json_value *key, const struct q__json_value *v) {
    (void)ctx;
    (void)key;
    (void)v;
    return true;
}

/* Skimming accepts more than checking, never less. */
static void check_skim(const char *text, size_t len) {
    struct q_error err;
    bool full = q__json_object(text, len, 64, NULL, ignore, NULL, &err) == Q_OK;
    bool skim = q__json_object(text, len, 64, skim_all, ignore, NULL, &err) == Q_OK;
    if (full && !skim) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    struct q_job *job;
    enum q_code code;
    struct q_error err = {.code = Q_OK};
    char *copy = malloc(len + 1);
    if (!copy) return 0;
    if (len) memcpy(copy, data, len);
    copy[len] = 0;
    check_skim(copy, len);
    enum q_status s = q__job_parse(&job, "q", copy, len, 1 << 20, &code, &err);
    if (!job) return 0;
    check_span(job, job->input);
    check_span(job, job->params);
    check_span(job, job->meta);
    check_span(job, job->input_ref);
    check_span(job, job->output_ref);
    char header[Q__HEADER_MAX];
    struct q__header h;
    size_t n = q__header_write(&job->priv->header, header);
    if (s == Q_OK && q__header_parse(&h, header, n) != n) abort();
    if (s == Q_OK && job->raw_len <= 64 * 1024) {
        json_error_t e;
        json_t *root = json_loadb(job->raw, job->raw_len, JSON_ALLOW_NUL, &e);
        if (!json_is_object(root) && !strstr(e.text, "too big") && !strstr(e.text, "real number"))
            abort();
        json_decref(root);
    }
    check_envelope(job, s == Q_OK ? Q_CODE_internal : code, s == Q_OK ? "" : err.text);
    q__job_free(job);
    return 0;
}
