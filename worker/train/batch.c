/* batch.c: rows of a set as the tensors of a step. Rows are converted to f32 (or i64), rescaled and
 * augmented here, a batch at a time, so nothing is held twice. */
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

static void load_row(const struct w_fit *f, const struct w_array *x, int64_t row, float *dst) {
    const struct w_affine *a = &f->affine;
    int64_t n = x->elements, first = row * n;
    switch (x->dtype) {
    case OP_U8:
        for (int64_t i = 0; i < n; i++) dst[i] = ((const uint8_t *)x->data)[first + i];
        break;
    case OP_I64:
        for (int64_t i = 0; i < n; i++) dst[i] = (float)((const int64_t *)x->data)[first + i];
        break;
    default:
        memcpy(dst, (const float *)x->data + first, (size_t)n * sizeof *dst);
    }
    if (a->n == 0 || f->affine_inside) return;
    if (a->n == 1)
        for (int64_t i = 0; i < n; i++) dst[i] = dst[i] * a->scale[0] + a->offset[0];
    else
        for (int64_t i = 0; i < n; i++) dst[i] = dst[i] * a->scale[i % a->n] + a->offset[i % a->n];
}

/* [h, w, c] → [c, h, w] */
static void channels_first(const struct w_array *x, float *row, float *scratch) {
    int64_t area = x->dims[0] * x->dims[1], c = x->dims[2];
    memcpy(scratch, row, (size_t)x->elements * sizeof *row);
    for (int64_t i = 0; i < area; i++)
        for (int64_t k = 0; k < c; k++) row[k * area + i] = scratch[i * c + k];
}

static double target_number(const struct w_array *y, int64_t i) {
    return y->dtype == OP_F64   ? ((const double *)y->data)[i]
           : y->dtype == OP_F32 ? (double)((const float *)y->data)[i]
           : y->dtype == OP_U8  ? ((const uint8_t *)y->data)[i]
                                : (double)((const int64_t *)y->data)[i];
}

static void load_target(const struct w_fit *f, const struct w_array *y, int64_t row, int64_t at) {
    int64_t n = y->elements;
    if (f->sparse) {
        for (int64_t i = 0; i < n; i++)
            ((int64_t *)f->y.data)[at * n + i] = (int64_t)target_number(y, row * n + i);
        return;
    }
    float *dst = f->y.data;
    int64_t wanted = 1;
    for (int i = 0; i < f->m.output_rank; i++) wanted *= f->m.output_dims[i];
    if (wanted == n) {
        for (int64_t i = 0; i < n; i++) dst[at * n + i] = (float)target_number(y, row * n + i);
        return;
    }
    memset(dst + at * wanted, 0, (size_t)wanted * sizeof *dst); /* a class number to one-hot */
    dst[at * wanted + (int64_t)target_number(y, row)] = 1;
}

bool w__fit_batch(struct w_fit *f, const struct w_set *s, const int64_t *rows, int64_t n,
                  bool training, struct w_error *err) {
    int64_t elements = s->x.elements;
    (void)err;
    for (int64_t i = 0; i < n; i++) {
        if (f->m.input_dtype == OP_I64) {
            memcpy((int64_t *)f->x.data + i * elements,
                   (const int64_t *)s->x.data + rows[i] * elements,
                   (size_t)elements * sizeof(int64_t));
        } else {
            float *dst = (float *)f->x.data + i * elements;
            load_row(f, &s->x, rows[i], dst);
            if (training && f->augment)
                w_augment_apply(f->augment, dst,
                                w__train_mix(w__train_mix((uint64_t)f->spec->fit.seed + 0xa06) +
                                             (uint64_t)f->epoch * 0x100000001b3u +
                                             (uint64_t)rows[i]));
            if (f->flip_images)
                channels_first(&s->x, dst, (float *)f->x.data + f->spec->fit.batch_size * elements);
        }
        load_target(f, &s->y, rows[i], i);
        float weight = s->weight.data ? (float)target_number(&s->weight, rows[i]) : 1;
        if (f->class_weights && training && s->y.elements == 1)
            weight *= f->class_weights[(int64_t)target_number(&s->y, rows[i])];
        ((float *)f->weight.data)[i] = weight;
    }
    f->x.dims[0] = f->y.dims[0] = f->weight.dims[0] = n;
    return true;
}
