/* json.h: a single-pass JSON scanner that decodes nothing: see json.c. */
#ifndef QUERN_QUEUE_JSON_H
#define QUERN_QUEUE_JSON_H

#include "queue/internal.h"

enum q__json_type {
    Q__JSON_STRING,
    Q__JSON_NUMBER,
    Q__JSON_OBJECT,
    Q__JSON_ARRAY,
    Q__JSON_TRUE,
    Q__JSON_FALSE,
    Q__JSON_NULL
};

/* A value where it stands in the text. A string's span is without its quotes, still escaped. */
struct q__json_value {
    enum q__json_type type;
    struct q_span span;
    bool escaped; /* a string with at least one backslash */
};

/* Called for each member of the object (key: a STRING value) or element of the array (key NULL), in
 * order. Returns false to stop; the walk then reports what the callback put into err. */
typedef bool q__json_fn(void *ctx, const struct q__json_value *key,
                        const struct q__json_value *value);
/* Says of a key whether its value may be skimmed only. NULL: none. */
typedef bool q__json_skim_fn(const struct q__json_value *key);

/* Walks the members of the one object that text is. Q_BAD_JOB with err: not JSON (err says why and
 * at which byte), or stopped by fn. depth_max counts the outer object as 1. */
enum q_status q__json_object(const char *text, size_t len, unsigned depth_max,
                             q__json_skim_fn *skim, q__json_fn *fn, void *ctx, struct q_error *err);
/* The same for the elements of an array. */
enum q_status q__json_array(const char *text, size_t len, unsigned depth_max, q__json_fn *fn,
                            void *ctx, struct q_error *err);

/* Bytes of the string when decoded; dst (may be NULL) receives them, no NUL. Never more than
 * span.len. A \u0000 decodes to a NUL byte. */
size_t q__json_unescape(const struct q__json_value *v, char *dst);
bool q__json_key_is(const struct q__json_value *key, const char *name);
/* False if the number is not an integer or outside ±2^53. */
bool q__json_int(const struct q__json_value *v, int64_t *out);
bool q__json_real(const struct q__json_value *v, double *out);
const char *q__json_type_name(enum q__json_type t);

#endif
