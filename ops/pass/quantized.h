/* quantized.h: what the passes on quantized models ask of a graph. Internal to ops/pass/. */
#ifndef QUERN_OPS_PASS_QUANTIZED_H
#define QUERN_OPS_PASS_QUANTIZED_H

#include "ops/pass/match.h"

/* A value in bytes and its parameters, values of the graph: constants, f32 and the bytes' type. */
struct op__bytes {
    int value, scale, zero;
    int axis;        /* of more than one scale */
    int64_t n_scales;
};

/* If v is made by DequantizeLinear of bytes (u8 or i8) with constant parameters: those. */
bool op__read_back(struct op_graph *g, const struct op__links *links, int v, struct op__bytes *dst);
/* If the only user of v is a QuantizeLinear to bytes with one constant scale: its output and parameters, its position. */
bool op__goes_to_bytes(struct op_graph *g, const struct op__links *links, int v, struct op__bytes *dst, int *at);
/* Whether both have one scale and zero point, and they are equal. */
bool op__same_bytes(const struct op_graph *g, const struct op__bytes *a, const struct op__bytes *b);
/* A node that reads v, which op__read_back has found, will read its bytes: DequantizeLinear goes where it was the last reader. */
void op__reads_bytes(struct op_graph *g, struct op__links *links, int v);
float op__bytes_scale(const struct op_graph *g, const struct op__bytes *b, int64_t i);

#endif
