/* onnx_write.h: protobuf's wire format, written: a growing buffer and the fields of ONNX messages. Internal to ops/. */
#ifndef QUERN_OPS_ONNX_WRITE_H
#define QUERN_OPS_ONNX_WRITE_H

#include "ops/ops.h"

struct op_out { /* zeroed: empty. `failed` sticks: no memory */
    uint8_t *data;
    size_t n, cap;
    bool failed;
};

void op__out_finish(struct op_out *o);
void op__out_raw(struct op_out *o, const void *bytes, size_t n);
void op__out_int(struct op_out *o, uint32_t field, int64_t value); /* a varint field */
void op__out_float(struct op_out *o, uint32_t field, float value);
void op__out_bytes(struct op_out *o, uint32_t field, const void *bytes, size_t n); /* also strings and messages */
void op__out_string(struct op_out *o, uint32_t field, const char *text);
void op__out_message(struct op_out *o, uint32_t field, struct op_out *message); /* and finishes message */

struct wire_field;
void op__out_field(struct op_out *o, const struct wire_field *f); /* a field as it was read */

/* TensorProto: name, dims, dtype and raw data (string_data for strings). */
void op__out_tensor(struct op_out *o, uint32_t field, const char *name, const struct op_tensor *t);
/* ValueInfoProto; rank -1: no shape. A symbol may be NULL where the dimension is -1. */
void op__out_value_info(struct op_out *o, uint32_t field, const char *name, enum op_type dtype, int rank, const int64_t *dims, const char *const *symbols);

#endif
