/* job.c: from an entry of a list to a struct q_job.
 *
 * The entry's bytes stay as they came; a job is one more allocation, which holds the struct and the
 * decoded short strings. The fields are a table: name, kind, place, limit. A new field is a new row
 * and a member of struct q_job. Known fields given twice are refused (two readers of one job must
 * not disagree about it); unknown fields are ignored, so that producers may be newer than workers.
 *
 * Thread: any; nothing here is shared. */
#include "queue/job.h"
#include "queue/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind {
    TEXT,   /* string, decoded; limit: bytes */
    ID,     /* the job's id */
    INT,    /* uint32_t; limit: greatest value */
    LONG,   /* int64_t; limit: greatest value */
    DELAY,  /* the same, in struct q_job_priv */
    REAL,   /* double >= 0 */
    FLAG,   /* true or false */
    RAW,    /* any JSON value, lent; limit: bytes, 0 none */
    REF,    /* a string or an object, lent */
    RETRY,  /* {"max","base_ms","cap_ms"} or a number: max */
    AFTER,  /* ids */
    VERSION /* 1 */
};

struct field {
    const char *name;
    enum kind kind;
    size_t at; /* in struct q_job, for DELAY in struct q_job_priv */
    int64_t limit;
};

#define AT(member) offsetof(struct q_job, member)
#define DAY ((int64_t)86400000)

static const struct field fields[] = {
    {"id", ID, AT(id), Q_ID_MAX},
    {"op", TEXT, AT(op), Q_OP_MAX},
    {"model", TEXT, AT(model), Q_MODEL_MAX},
    {"input", RAW, AT(input), 0},
    {"params", RAW, AT(params), 0},
    {"input_ref", REF, AT(input_ref), 4096},
    {"output_ref", REF, AT(output_ref), 4096},
    {"meta", RAW, AT(meta), Q_META_BYTES_MAX},
    {"tenant", TEXT, AT(tenant), 64},
    {"encoding", TEXT, AT(encoding), 16},
    {"traceparent", TEXT, AT(traceparent), 128},
    {"unique", TEXT, AT(unique), Q_KEY_MAX},
    {"reply_to", TEXT, AT(reply_to), Q_KEY_MAX},
    {"ttl_ms", INT, AT(ttl_ms), 30 * DAY},
    {"timeout_ms", INT, AT(timeout_ms), 30 * DAY},
    {"progress_ms", INT, AT(progress_ms), DAY},
    {"unique_ttl_ms", INT, AT(unique_ttl_ms), 30 * DAY},
    {"cost", REAL, AT(cost), 0},
    {"wait", FLAG, AT(wait), 0},
    {"status", FLAG, AT(status), 0},
    {"delay_ms", DELAY, offsetof(struct q_job_priv, delay_ms), 366 * DAY},
    {"at_ms", LONG, AT(at_ms), (int64_t)1 << 53},
    {"expire_ms", LONG, AT(expire_ms), (int64_t)1 << 53},
    {"queued_ms", LONG, AT(queued_ms), (int64_t)1 << 53},
    {"retry", RETRY, 0, 0},
    {"after", AFTER, 0, 0},
    {"v", VERSION, 0, 0},
};
_Static_assert(Q__COUNT(fields) <= 32, "the set of seen fields is 32 bits");

struct parse {
    struct q_job_priv *p;                        /* a scratch copy on the stack */
    struct q__json_value text[Q__COUNT(fields)]; /* TEXT fields, decoded at the end */
    struct q__json_value after[Q_AFTER_MAX];
    uint32_t seen;
    struct q_error *err;
};

bool q_id_valid(const char *id, size_t len) {
    if (len == 0 || len > Q_ID_MAX) return false;
    for (size_t i = 0; i < len; i++)
        if (id[i] < 0x21 || id[i] > 0x7e || strchr("\"\\{}", id[i])) return false;
    return true;
}

bool q_queue_name_valid(const char *name, size_t len) {
    if (len == 0 || len > Q_QUEUE_NAME_MAX) return false;
    for (size_t i = 0; i < len; i++)
        if (!((name[i] >= 'a' && name[i] <= 'z') || (name[i] >= 'A' && name[i] <= 'Z') ||
              (name[i] >= '0' && name[i] <= '9') || name[i] == '_' || name[i] == '.' ||
              name[i] == '-'))
            return false;
    return true;
}

size_t q_key(char *buf, size_t buf_len, const char *queue, const char *suffix) {
    int n = snprintf(buf, buf_len, "quern:{%s}:%s", queue, suffix);
    return n > 0 && (size_t)n < buf_len ? (size_t)n : 0;
}

void q_id_make(char id[Q_ID_MAX + 1]) {
    static const char set[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
    for (int half = 0; half < 2; half++) {
        uint64_t r = q__random_unique();
        for (int i = 0; i < 11; i++, r >>= 6) id[half * 11 + i] = set[r & (i == 10 ? 15 : 63)];
    }
    id[22] = 0;
}

/* --- header */

size_t q__header_parse(struct q__header *h, const char *entry, size_t len) {
    *h = (struct q__header){.ticket = -1};
    if (len == 0 || entry[0] != '~') return 0;
    uint64_t n[4];
    size_t i = 1;
    for (int k = 0; k < 4; k++) {
        size_t from = i;
        n[k] = 0;
        while (i < len && i - from < 16 && entry[i] >= '0' && entry[i] <= '9')
            n[k] = n[k] * 10 + (uint64_t)(entry[i++] - '0');
        if (i == from || i == len || entry[i] != ',') return SIZE_MAX;
        i++;
    }
    if (n[0] != 1 || n[1] > 1000000 || n[2] > 1000000) return SIZE_MAX;
    h->attempt = (uint32_t)n[1];
    h->crashes = (uint32_t)n[2];
    h->queued_ms = (int64_t)n[3];
    for (; i < len && entry[i] != '~'; i++) {
        if (entry[i] == 'h' || entry[i] == 'l')
            h->inbox = entry[i];
        else if (entry[i] == 'd')
            h->delayed = true;
        else if (entry[i] == 't' || entry[i] == 'g' || entry[i] == 'm') {
            char flag = entry[i];
            uint32_t k = 0;
            while (i + 1 < len && entry[i + 1] >= '0' && entry[i + 1] <= '9' && k < 400000000)
                k = k * 10 + (uint32_t)(entry[++i] - '0');
            if (flag == 't')
                h->ticket = k < Q_BULK_TICKETS_MAX ? (int32_t)k : -1;
            else
                *(flag == 'g' ? &h->signal : &h->rss_kb) = k;
        } else if (i >= Q__HEADER_MAX)
            return SIZE_MAX;
    }
    return i < len ? i + 1 : SIZE_MAX;
}

size_t q__header_write(const struct q__header *h, char out[Q__HEADER_MAX]) {
    char ticket[16] = "", inbox[2] = {h->inbox, 0}, death[2][16] = {"", ""};
    if (h->ticket >= 0) snprintf(ticket, sizeof ticket, "t%d", (int)h->ticket);
    if (h->signal) snprintf(death[0], sizeof death[0], "g%u", h->signal);
    if (h->rss_kb) snprintf(death[1], sizeof death[1], "m%u", h->rss_kb);
    return (size_t)snprintf(out, Q__HEADER_MAX, "~1,%u,%u,%lld,%s%s%s%s%s~", h->attempt, h->crashes,
                            (long long)h->queued_ms, inbox, h->delayed ? "d" : "", death[0],
                            death[1], ticket);
}

/* --- fields */

static bool bad(struct parse *s, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static bool bad(struct parse *s, const char *name, const char *fmt, ...) {
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    q__error(s->err, Q_BAD_JOB, "field \"%s\" %s", name, text);
    return false;
}

static bool take_number(struct parse *s, const struct field *f, const struct q__json_value *v) {
    int64_t n;
    char *base = f->kind == DELAY ? (char *)s->p : (char *)&s->p->job;
    if (f->kind == REAL) {
        double d;
        if (!q__json_real(v, &d) || d < 0) return bad(s, f->name, "must be a number of 0 or more");
        *(double *)(void *)(base + f->at) = d;
        return true;
    }
    if (v->type != Q__JSON_NUMBER)
        return bad(s, f->name, "is %s, must be an integer", q__json_type_name(v->type));
    if (!q__json_int(v, &n) || n < 0 || n > f->limit)
        return bad(s, f->name, "is %.*s, must be an integer from 0 to %lld",
                   (int)(v->span.len > 40 ? 40 : v->span.len), v->span.ptr, (long long)f->limit);
    if (f->kind == INT)
        *(uint32_t *)(void *)(base + f->at) = (uint32_t)n;
    else
        *(int64_t *)(void *)(base + f->at) = n;
    return true;
}

static bool take_retry_member(void *ctx, const struct q__json_value *key,
                              const struct q__json_value *v) {
    static const struct field members[] = {{"max", INT, AT(retry_max), 1000},
                                           {"base_ms", INT, AT(retry_base_ms), DAY},
                                           {"cap_ms", INT, AT(retry_cap_ms), 30 * DAY}};
    for (size_t i = 0; i < Q__COUNT(members); i++)
        if (q__json_key_is(key, members[i].name)) return take_number(ctx, &members[i], v);
    return true;
}

static bool take_retry(struct parse *s, const struct q__json_value *v) {
    static const struct field max = {"retry", INT, AT(retry_max), 1000};
    if (v->type == Q__JSON_NUMBER) return take_number(s, &max, v);
    if (v->type != Q__JSON_OBJECT)
        return bad(s, "retry", "is %s, must be {\"max\",\"base_ms\",\"cap_ms\"} or a number",
                   q__json_type_name(v->type));
    return q__json_object(v->span.ptr, v->span.len, 8, NULL, take_retry_member, s, s->err) == Q_OK;
}

/* Fields that become keys or headers carry no NUL and no control characters. */
static bool take_text(struct parse *s, const struct field *f, const struct q__json_value *v) {
    char tmp[Q_KEY_MAX + 1];
    if (v->type != Q__JSON_STRING)
        return bad(s, f->name, "is %s, must be a string", q__json_type_name(v->type));
    if (v->span.len > 6 * (size_t)f->limit || q__json_unescape(v, NULL) > (size_t)f->limit)
        return bad(s, f->name, "is longer than %lld bytes", (long long)f->limit);
    size_t len = q__json_unescape(v, tmp);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)tmp[i] < 0x20) return bad(s, f->name, "contains a control character");
    if (f->kind == ID && !q_id_valid(tmp, len))
        return bad(
            s, f->name,
            "must be 1 to %d printable ASCII characters without space, quote, backslash or brace",
            Q_ID_MAX);
    s->text[f - fields] = *v;
    return true;
}

static bool take_after_id(void *ctx, const struct q__json_value *key,
                          const struct q__json_value *v) {
    struct parse *s = ctx;
    char tmp[Q_ID_MAX * 6];
    (void)key;
    if (s->p->job.n_after == Q_AFTER_MAX)
        return bad(s, "after", "has more than %d ids", Q_AFTER_MAX);
    if (v->type != Q__JSON_STRING || v->span.len > sizeof tmp ||
        !q_id_valid(tmp, q__json_unescape(v, tmp)))
        return bad(s, "after", "must be an array of job ids");
    s->after[s->p->job.n_after++] = *v;
    return true;
}

static bool take_span(struct parse *s, const struct field *f, const struct q__json_value *v) {
    struct q_span *span = (struct q_span *)(void *)((char *)&s->p->job + f->at);
    if (f->kind == REF && v->type != Q__JSON_STRING && v->type != Q__JSON_OBJECT)
        return bad(s, f->name, "is %s, must be a string or an object", q__json_type_name(v->type));
    *span = v->span;
    if (v->type == Q__JSON_STRING) { /* raw JSON again: with its quotes */
        span->ptr--;
        span->len += 2;
    }
    if (f->limit && span->len > (size_t)f->limit)
        return bad(s, f->name, "has %zu bytes, at most %lld are allowed", span->len,
                   (long long)f->limit);
    return true;
}

static bool take_value(struct parse *s, const struct field *f, const struct q__json_value *v) {
    int64_t n;
    switch (f->kind) {
    case TEXT:
    case ID:
        return take_text(s, f, v);
    case INT:
    case LONG:
    case DELAY:
    case REAL:
        return take_number(s, f, v);
    case RAW:
    case REF:
        return take_span(s, f, v);
    case RETRY:
        return take_retry(s, v);
    case FLAG:
        if (v->type != Q__JSON_TRUE && v->type != Q__JSON_FALSE)
            return bad(s, f->name, "is %s, must be true or false", q__json_type_name(v->type));
        *(bool *)((char *)&s->p->job + f->at) = v->type == Q__JSON_TRUE;
        return true;
    case AFTER:
        if (v->type != Q__JSON_ARRAY)
            return bad(s, "after", "is %s, must be an array of job ids",
                       q__json_type_name(v->type));
        return q__json_array(v->span.ptr, v->span.len, 1, take_after_id, s, s->err) == Q_OK;
    case VERSION:
        if (!q__json_int(v, &n) || n != 1)
            return bad(s, "v", "is %.*s; this worker speaks protocol version 1",
                       (int)(v->span.len > 20 ? 20 : v->span.len), v->span.ptr);
        return true;
    }
    return true;
}

static bool take_member(void *ctx, const struct q__json_value *key, const struct q__json_value *v) {
    struct parse *s = ctx;
    for (size_t i = 0; i < Q__COUNT(fields); i++) {
        if (!q__json_key_is(key, fields[i].name)) continue;
        if (s->seen & 1u << i) return bad(s, fields[i].name, "is given twice");
        s->seen |= 1u << i;
        if (v->type == Q__JSON_NULL && fields[i].kind != RAW) return true; /* null: as if absent */
        return take_value(s, &fields[i], v);
    }
    return true;
}

static bool may_skim(const struct q__json_value *key) {
    return q__json_key_is(key, "input");
}

enum { SKIM_ABOVE = 64 * 1024 };

/* --- the job */

/* One allocation for the struct and its strings; the scratch copy's members move into it. */
static struct q_job *assemble(struct parse *s, const char *queue) {
    size_t bytes =
        sizeof(struct q_job_priv) + Q_AFTER_MAX * sizeof(char *) * (s->p->job.n_after > 0);
    size_t text = strlen(queue) + 1 + Q_ID_MAX + 1;
    for (size_t i = 0; i < Q__COUNT(fields); i++)
        text += s->text[i].span.ptr ? s->text[i].span.len + 1 : 0;
    for (uint32_t i = 0; i < s->p->job.n_after; i++) text += s->after[i].span.len + 1;
    char *block = malloc(bytes + text);
    if (!block) return NULL;
    struct q_job_priv *p = (struct q_job_priv *)(void *)block;
    *p = *s->p;
    struct q_job *job = &p->job;
    const char **after = (const char **)(void *)(p + 1);
    char *pool = block + bytes;
    job->priv = p;
    job->queue = strcpy(pool, queue);
    pool += strlen(queue) + 1;
    job->id = pool; /* room for one made later */
    pool[0] = 0;
    pool += Q_ID_MAX + 1;
    job->op = job->model = job->tenant = job->encoding = job->traceparent = job->unique =
        job->reply_to = "";
    for (size_t i = 0; i < Q__COUNT(fields); i++) {
        if (!s->text[i].span.ptr) continue;
        size_t n = q__json_unescape(&s->text[i], pool);
        pool[n] = 0;
        *(const char **)(void *)((char *)job + fields[i].at) = pool;
        pool += n + 1;
        p->has_id |= fields[i].kind == ID;
    }
    job->after = job->n_after ? after : NULL;
    for (uint32_t i = 0; i < job->n_after; i++) {
        size_t n = q__json_unescape(&s->after[i], pool);
        pool[n] = 0;
        after[i] = pool;
        pool += n + 1;
    }
    return job;
}

static enum q_status check(struct parse *s, const char *queue, struct q_job *job) {
    char prefix[Q_QUEUE_NAME_MAX + 24];
    size_t len = q_key(prefix, sizeof prefix, queue, "rep:");
    if (job->op[0] == 0) return q__error(s->err, Q_BAD_JOB, "field \"op\" is missing");
    if (job->reply_to[0] && (len == 0 || strncmp(job->reply_to, prefix, len) != 0))
        return q__error(s->err, Q_BAD_JOB,
                        "field \"reply_to\" is \"%.60s\", must begin with \"%s\"", job->reply_to,
                        prefix);
    if (job->encoding[0] && strcmp(job->encoding, "json") != 0 && strcmp(job->encoding, "b64") != 0)
        return q__error(s->err, Q_BAD_JOB, "field \"encoding\" is \"%s\", must be json or b64",
                        job->encoding);
    return Q_OK;
}

enum q_status q__job_parse(struct q_job **out, const char *queue, char *entry, size_t len,
                           size_t max, enum q_code *code, struct q_error *err) {
    struct q_job_priv scratch = {.entry = entry};
    struct parse s = {.p = &scratch, .err = err};
    struct q_job *job = &scratch.job;
    size_t header = q__header_parse(&scratch.header, entry, len);
    enum q_status status = Q_OK;
    *code = Q_CODE_bad_json;
    job->retry_max = 3;
    job->retry_base_ms = 1000;
    job->retry_cap_ms = 300000;
    job->ttl_ms = UINT32_MAX; /* not said */
    if (header == SIZE_MAX)
        header = 0,
        status = q__error(err, Q_BAD_JOB, "the entry starts with ~ but has no valid header");
    job->raw = entry + header;
    job->raw_len = len - header;
    if (status == Q_OK && len > max) {
        *code = Q_CODE_too_large;
        status =
            q__error(err, Q_BAD_JOB, "the entry has %zu bytes, at most %zu are allowed", len, max);
    }
    if (status == Q_OK) {
        status = q__json_object(job->raw, job->raw_len, Q_DEPTH_MAX,
                                job->raw_len > SKIM_ABOVE ? may_skim : NULL, take_member, &s, err);
        if (status == Q_BAD_JOB) *code = Q_CODE_bad_job;
    }
    int64_t said_ms = job->queued_ms;
    job = assemble(&s, queue);
    *out = job;
    if (!job) {
        free(entry);
        return q__error(err, Q_NO_MEMORY, "no memory for a job");
    }
    struct q__header *h = &job->priv->header;
    job->attempt = h->attempt + 1;
    job->crashes = h->crashes;
    job->ticket = h->ticket;
    job->queued_ms = said_ms ? said_ms : h->queued_ms;
    if (status == Q_OK && check(&s, queue, job) != Q_OK) {
        *code = Q_CODE_bad_job;
        status = Q_BAD_JOB;
    }
    job->priv->parsed = status == Q_OK;
    return status == Q_OK ? Q_OK : Q_BAD_JOB;
}

void q__job_free(struct q_job *job) {
    if (!job) return;
    free(job->priv->entry);
    free(job->priv->progress);
    q__buf_free(&job->priv->points);
    free(job->priv);
}

enum q_status q_job_parse(struct q_job **job, const char *queue, const char *entry, size_t len,
                          enum q_code *code, struct q_error *err) {
    char *copy = malloc(len + 1);
    *job = NULL;
    *code = Q_CODE_internal;
    if (!copy) return q__error(err, Q_NO_MEMORY, "no memory for an entry of %zu bytes", len);
    if (len) memcpy(copy, entry, len);
    copy[len] = 0;
    enum q_status s = q__job_parse(job, queue, copy, len, SIZE_MAX, code, err);
    if (s != Q_OK) {
        q__job_free(*job);
        *job = NULL;
    } else if ((*job)->ttl_ms == UINT32_MAX)
        (*job)->ttl_ms = 3600000;
    return s;
}

void q_job_free(struct q_job *job) {
    q__assert(!job || !job->priv->queue);
    q__job_free(job);
}
