/* onnx_tensor.h: TensorProto and its kin, from bytes in memory. Internal to ops/. */
#ifndef QUERN_OPS_ONNX_TENSOR_H
#define QUERN_OPS_ONNX_TENSOR_H

#include "ops/model.h"
#include "ops/wire.h"

struct op_proto_tensor {
    const char *name; /* in the bytes, not zero-terminated */
    size_t name_len;
    struct op_tensor t;
    bool owned;         /* t.data is to be freed; else it lies in the bytes (or an external file) */
    bool lazy;          /* t.data is NULL: to be copied from `mapped` when it is wanted */
    const char *mapped; /* where the raw bytes lie, NULL if there were none */
    size_t mapped_bytes;
};

enum op_proto_data { OP__PROTO_COPY, OP__PROTO_BORROW, OP__PROTO_LAZY };
/* Parses a TensorProto. Raw data stays where it is if it may be borrowed and is aligned to its element, else t.data is a copy; with
 * OP__PROTO_LAZY the copy of a large one is left for later.
 * `m` gives external data its folder; NULL: refused. On failure nothing is owned. */
enum op_status op__onnx_tensor(const void *bytes, size_t n, struct op_model *m, enum op_proto_data how, struct op_proto_tensor *dst, struct op_error *err);
/* Parses a SparseTensorProto into a dense tensor, always owned. */
enum op_status op__onnx_sparse_tensor(const void *bytes, size_t n, struct op_model *m, struct op_proto_tensor *dst, struct op_error *err);
/* The name of a TensorProto.DataType, also of those that the engine does not know. */
const char *op__onnx_type_name(int64_t data_type);

#endif
