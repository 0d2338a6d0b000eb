#include "queue/conn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void q__args_init(struct q__args *a) {
    *a = (struct q__args){0};
    q__buf_init(&a->scratch, SIZE_MAX / 2);
}

void q__args_reset(struct q__args *a) {
    a->n = 0;
    a->scratch.len = 0;
    a->failed = false;
}

void q__args_finish(struct q__args *a) {
    free(a->arg);
    q__buf_free(&a->scratch);
    *a = (struct q__args){0};
}

static struct q__arg *push(struct q__args *a) {
    if (a->n == a->cap) {
        size_t cap = a->cap ? a->cap * 2 : 64;
        void *arg = realloc(a->arg, cap * sizeof *a->arg);
        if (!arg) {
            a->failed = true;
            return NULL;
        }
        a->arg = arg;
        a->cap = cap;
    }
    a->arg[a->n] = (struct q__arg){0};
    return &a->arg[a->n++];
}

void q__args_bytes(struct q__args *a, const void *ptr, size_t len) {
    struct q__arg *arg = push(a);
    if (arg) *arg = (struct q__arg){ptr ? ptr : "", 0, len};
}

void q__args_text(struct q__args *a, const char *text) {
    q__args_bytes(a, text, strlen(text));
}

void q__args_copy(struct q__args *a, const void *ptr, size_t len) {
    struct q__arg *arg = push(a);
    if (arg) *arg = (struct q__arg){NULL, a->scratch.len, len};
    q__buf_add(&a->scratch, ptr, len);
}

void q__args_int(struct q__args *a, int64_t n) {
    char tmp[24];
    size_t len = q__digits(tmp, n);
    q__args_copy(a, tmp, len);
}

void q__args_key(struct q__args *a, const char *queue, const char *suffix, const char *rest) {
    size_t off = a->scratch.len;
    struct q__arg *arg = push(a);
    q__buf_add(&a->scratch, "quern:{", 7);
    q__buf_str(&a->scratch, queue);
    q__buf_add(&a->scratch, "}:", 2);
    q__buf_str(&a->scratch, suffix);
    if (rest) q__buf_str(&a->scratch, rest);
    if (arg) *arg = (struct q__arg){NULL, off, a->scratch.len - off};
}

/* --- replies */

int64_t q__reply_int(const redisReply *r, int64_t otherwise) {
    if (!r) return otherwise;
    if (r->type == REDIS_REPLY_INTEGER) return r->integer;
    if (!q__reply_text(r) || r->len == 0) return otherwise;
    char *end;
    long long n = strtoll(r->str, &end, 10);
    return *end == 0 ? n : otherwise;
}

const redisReply *q__reply_at(const redisReply *r, size_t i) {
    return r && r->type == REDIS_REPLY_ARRAY && i < r->elements ? r->element[i] : NULL;
}

void q__info_field(const char *info, const char *name, char *out, size_t out_len) {
    size_t len = strlen(name);
    out[0] = 0;
    for (const char *p = info; p && *p; p = strchr(p, '\n'), p += p != NULL)
        if (strncmp(p, name, len) == 0 && p[len] == ':') {
            snprintf(out, out_len, "%.*s", (int)strcspn(p + len + 1, "\r\n"), p + len + 1);
            return;
        }
}

bool q__reply_is(const redisReply *r, const char *text) {
    return q__reply_text(r) && strcmp(r->str, text) == 0;
}
