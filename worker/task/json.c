/* Looking into the raw JSON of a job's fields, which the queue has checked already. */
#include <stdlib.h>
#include <string.h>

#include "worker/pipeline/scan.h"
#include "worker/task/task.h"

struct q_span w_json_member(struct q_span object, const char *name) {
    struct w_scan s = {object.ptr, object.ptr + object.len};
    struct w_span key, value;
    bool first = true;
    size_t n = strlen(name);
    w__scan_blank(&s);
    if (!object.ptr || !w__scan_open(&s, '{')) return (struct q_span){0};
    while (w__scan_member(&s, &first, &key, &value) == 1)
        if (key.len == n + 2 && memcmp(key.ptr + 1, name, n) == 0)
            return (struct q_span){value.ptr, value.len};
    return (struct q_span){0};
}

bool w_json_is(struct q_span v, char kind) {
    if (!v.ptr || v.len == 0) return false;
    return kind == '0' ? (*v.ptr >= '0' && *v.ptr <= '9') || *v.ptr == '-' : *v.ptr == kind;
}

char *w_json_text(struct q_span v) {
    struct w_arena arena;
    size_t len;
    if (!w_json_is(v, '"')) return NULL;
    w_arena_init(&arena, v.len + 4096);
    char *text = w__scan_string((struct w_span){v.ptr, v.len}, &arena, false, &len),
         *copy = text ? strdup(text) : NULL;
    w_arena_finish(&arena);
    return copy;
}
