/* scan.h: walking through raw JSON text without building a tree, for inputs that may hold 100 MB of
 * numbers or base64. A scanner checks brackets, strings, separators and depth of what it passes
 * over; numbers are checked by whoever reads them (w_tensor_from_json), and by w__scan_value where
 * they stand alone. */
#ifndef QUERN_WORKER_SCAN_H
#define QUERN_WORKER_SCAN_H

#include "worker/pipeline/pipeline.h"

#define W_SCAN_DEPTH_MAX 64

struct w_scan {
    const char *p, *end;
};

static inline void w__scan_blank(struct w_scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t'))
        s->p++;
}

/* Passes over one value and gives its text; false: malformed. */
bool w__scan_value(struct w_scan *s, struct w_span *value);
/* Steps through an object or array. Call with *first true after the opening bracket has been passed
 * by w__scan_open; gives the raw text of the key (with quotes) and of the value. 1: a member, 0:
 * the closing bracket was passed, -1: malformed. */
bool w__scan_open(struct w_scan *s, char bracket);
int w__scan_member(struct w_scan *s, bool *first, struct w_span *key, struct w_span *value);
int w__scan_item(struct w_scan *s, bool *first, struct w_span *value);

/* A raw JSON string (with quotes) → its UTF-8 in the arena, NUL-terminated. Refuses what is not
 * UTF-8, lone surrogates, control characters; and NUL (\u0000) where nul_ok is false. NULL:
 * malformed, or no memory. */
char *w__scan_string(struct w_span raw, struct w_arena *arena, bool nul_ok, size_t *len);

/* Reads the number at the start of [p, end). Returns where it ends, NULL if there is none (JSON's
 * grammar, strictly). is_int: it has neither fraction nor exponent and its magnitude fits 64 bits;
 * then magnitude and negative hold it. value is the nearest double (infinite when out of range). */
struct w_number {
    double value;
    uint64_t magnitude;
    bool negative, is_int;
};
const char *w__number_read(const char *p, const char *end, struct w_number *dst);

/* binary16 and bfloat16, round to nearest even. */
uint16_t w__f16(float f);
static inline uint16_t w__bf16(float f) {
    union {
        float f;
        uint32_t u;
    } v = {f};
    if (f != f) return (uint16_t)((v.u >> 16) | 0x40);
    return (uint16_t)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16);
}
static inline float w__bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

/* Element i of t as a double (not strings, not complex). */
double w__element(const struct op_tensor *t, int64_t i);
/* Stores value as dtype at dst[i]; false where the type cannot hold it (not whole, out of range).
 */
bool w__store(enum op_type dtype, void *dst, int64_t i, const struct w_number *value);

#endif
