/* value.c: the error slot, the arena, and the line that describes a value to people.
 *
 * The arena is a list of blocks, the newest first. A request that does not fit the newest block
 * opens a block of its own size or of the usual one, whichever is larger. Reset keeps blocks up to
 * KEEP_BYTES, newest (largest, as sizes double) first, so a lane that sees jobs of one kind stops
 * asking malloc. */
#include "worker/pipeline/value.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- errors ----------------------------------------------------------------------------------- */

bool w_fail(struct w_error *err, const char *code, const char *format, ...) {
    if (!err) return false;
    err->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    return false;
}

bool w_fail_in(struct w_error *err, const char *format, ...) {
    if (!err) return false;
    char text[sizeof err->text];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof text) return false;
    size_t room = sizeof text - (size_t)n - 1, len = strnlen(err->text, sizeof err->text);
    memcpy(text + n, err->text, len < room ? len : room);
    text[n + (len < room ? len : room)] = 0;
    memcpy(err->text, text, sizeof text);
    return false;
}

/* --- memory ----------------------------------------------------------------------------------- */

enum { ALIGN = 64, BLOCK_BYTES = 256 << 10, KEEP_BYTES = 16 << 20 };

struct w__block {
    struct w__block *next;
    size_t bytes, used; /* of data */
    _Alignas(ALIGN) unsigned char data[];
};

void w_arena_init(struct w_arena *a, size_t bytes_max) {
    *a = (struct w_arena){.bytes_max = bytes_max};
}

void *w_arena_alloc(struct w_arena *a, size_t bytes) {
    if (bytes > SIZE_MAX - ALIGN) return NULL;
    bytes = bytes ? (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1) : ALIGN;
    if (bytes > a->bytes_max || a->used_bytes > a->bytes_max - bytes) return NULL;
    struct w__block *b = a->blocks;
    /* The few kept blocks of earlier jobs stand in line behind the newest. */
    while (b && b->bytes - b->used < bytes) b = b->next;
    if (!b) {
        size_t size =
            a->blocks && a->blocks->bytes < KEEP_BYTES ? 2 * a->blocks->bytes : BLOCK_BYTES;
        if (size < bytes) size = bytes;
        if (size > a->bytes_max) size = bytes;
        b = aligned_alloc(ALIGN, sizeof *b + size);
        if (!b) return NULL;
        *b = (struct w__block){.next = a->blocks, .bytes = size};
        a->blocks = b;
    }
    void *p = b->data + b->used;
    b->used += bytes;
    a->used_bytes += bytes;
    return p;
}

void *w_arena_array(struct w_arena *a, size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) return NULL;
    return w_arena_alloc(a, bytes);
}

char *w_arena_text(struct w_arena *a, const char *text, size_t len) {
    char *p = len < SIZE_MAX ? w_arena_alloc(a, len + 1) : NULL;
    if (!p) return NULL;
    if (len) memcpy(p, text, len);
    p[len] = 0;
    return p;
}

void w_arena_reset(struct w_arena *a) {
    size_t kept = 0;
    struct w__block **link = &a->blocks, *b;
    while ((b = *link)) {
        if (kept + b->bytes <= KEEP_BYTES) {
            kept += b->bytes;
            b->used = 0;
            link = &b->next;
        } else {
            *link = b->next;
            free(b);
        }
    }
    a->used_bytes = 0;
}

void w_arena_finish(struct w_arena *a) {
    for (struct w__block *b = a->blocks, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    *a = (struct w_arena){.bytes_max = a->bytes_max};
}

/* --- describing ------------------------------------------------------------------------------- */

const char *w_type_name(enum w_type type) {
    static const char *const names[] = {
#define X(name, text) [W_##name] = text,
        W_TYPE_MAP(X)
#undef X
    };
    return (unsigned)type < W_TYPE_N ? names[type] : "?";
}

static void summary_text(const struct w_value *v, char *dst, size_t n) {
    int at = snprintf(dst, n, "%s, %zu bytes", w_type_name(v->type), v->span.len);
    if (v->type == W_BYTES || at < 0 || (size_t)at >= n) return;
    at += snprintf(dst + at, n - (size_t)at, ": ");
    for (size_t i = 0; i < v->span.len && i < 60 && (size_t)at + 4 < n; i++) {
        unsigned char c = (unsigned char)v->span.ptr[i];
        dst[at++] = c < 32 || c == 127 ? ' ' : (char)c;
    }
    dst[at] = 0;
}

static void summary_image(const struct w_image *im, char *dst, size_t n) {
    static const char *const colors[] = {"rgb", "bgr", "gray", "ycbcr"};
    uint64_t sum[3] = {0};
    int64_t n_pixels = (int64_t)im->w * im->h;
    for (int64_t i = 0; i < n_pixels; i++)
        for (int32_t c = 0; c < im->channels; c++) sum[c] += im->pixels[i * im->channels + c];
    int at = snprintf(dst, n, "image %d×%d %s, mean", im->w, im->h, colors[im->color]);
    for (int32_t c = 0; c < im->channels && at > 0 && (size_t)at < n; c++)
        at += snprintf(dst + at, n - (size_t)at, " %.2f",
                       n_pixels ? (double)sum[c] / (double)n_pixels : 0.0);
}

static void summary_tensor(const struct op_tensor *t, char *dst, size_t n) {
    char shape[128];
    op_tensor_describe(t, shape, sizeof shape);
    int at = snprintf(dst, n, "tensor %s", shape);
    int64_t count = op_tensor_count(t);
    if (t->dtype != OP_F32 || !t->data || count <= 0 || at < 0 || (size_t)at >= n) return;
    const float *x = t->data;
    double sum = 0, least = INFINITY, most = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        sum += x[i];
        if (x[i] < least) least = x[i];
        if (x[i] > most) most = x[i];
    }
    snprintf(dst + at, n - (size_t)at, " min %.5g mean %.5g max %.5g", least, sum / (double)count,
             most);
}

static void summary_labels(const struct w_value *v, char *dst, size_t n) {
    int at = snprintf(dst, n, "labels, %zu:", v->labels.n);
    for (size_t i = 0; i < v->labels.n && i < 3 && at > 0 && (size_t)at < n; i++) {
        const struct w_label *l = &v->labels.items[i];
        at += snprintf(dst + at, n - (size_t)at, "%s %s (%lld) %.4f", i ? "," : "",
                       l->label ? l->label : "class", (long long)l->index, l->score);
    }
}

char *w_value_summary(const struct w_value *v, char *dst, size_t dst_bytes) {
    if (!dst_bytes) return dst;
    switch (v->type) {
    case W_BYTES:
    case W_TEXT:
    case W_JSON:
        summary_text(v, dst, dst_bytes);
        break;
    case W_IMAGE:
        summary_image(&v->image, dst, dst_bytes);
        break;
    case W_AUDIO:
        snprintf(dst, dst_bytes, "audio, %lld samples, %d a second", (long long)v->audio.n,
                 v->audio.rate);
        break;
    case W_TENSOR:
        summary_tensor(&v->tensor, dst, dst_bytes);
        break;
    case W_LABELS:
        summary_labels(v, dst, dst_bytes);
        break;
    case W_LIST:
        snprintf(dst, dst_bytes, "list, %zu items", v->list.n);
        break;
    default:
        snprintf(dst, dst_bytes, "%s", w_type_name(v->type));
    }
    return dst;
}
