/* batch.c: rows of a set as the tensors of a step. Rows are converted to f32 (or i64), rescaled and
 * augmented here, a batch at a time, so nothing is held twice. */
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

/* --- memory ------------------------------------------------------------------------------------
 */

static void *aligned(int64_t n, int64_t elements, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow((size_t)n, (size_t)elements * size, &bytes) || bytes >> 40)
        return NULL;
    return aligned_alloc(64, (bytes + 64 + 63) / 64 * 64);
}

bool w__fit_batch_init(const struct w_fit *f, struct w_fit_batch *b, struct w_error *err) {
    const struct w_train_model *m = &f->m;
    int64_t rows = f->spec->fit.batch_size, targets = 1, scratch = 8;
    bool ok = true;
    for (int i = 0; i < m->n_inputs; i++) {
        const struct w_train_input *in = &m->inputs[i];
        b->x[i] = (struct op_tensor){.dtype = in->dtype, .rank = in->rank + 1};
        memcpy(b->x[i].dims + 1, in->dims, (size_t)in->rank * sizeof *in->dims);
        ok &= (b->x[i].data = aligned(rows, in->elements, 8)) != NULL;
        if (in->elements > scratch) scratch = in->elements;
    }
    b->y = (struct op_tensor){.dtype = f->target == OP_TARGET_DENSE ? OP_F32 : OP_I64,
                              .rank = m->output_rank + (f->sparse ? 0 : 1)};
    if (f->target > OP_TARGET_CLASSES) b->y.rank = f->target == OP_TARGET_LABELS ? 2 : 1;
    for (int i = 1; i < b->y.rank; i++)
        targets *= b->y.dims[i] =
            f->target == OP_TARGET_LABELS ? f->whole.y.elements : m->output_dims[i - 1];
    if (f->whole.y.elements > scratch) scratch = f->whole.y.elements;
    b->weight = (struct op_tensor){.dtype = OP_F32, .rank = 1};
    b->y.data = aligned(rows, targets, 8);
    b->weight.data = aligned(rows, 1, 4);
    b->scratch = aligned(1, scratch, 8);
    if (f->augment && w_augment_mixes(f->augment)) {
        b->unmixed = aligned(rows, m->inputs[0].elements + targets, sizeof(float));
        ok &= b->unmixed != NULL;
    }
    return (ok && b->y.data && b->weight.data && b->scratch) ||
           w_fail(err, W_NO_MEMORY, "no memory for a batch of %lld rows", (long long)rows);
}

void w__fit_batch_finish(struct w_fit_batch *b) {
    for (int i = 0; i < W_TRAIN_INPUTS_MAX; i++) free(b->x[i].data);
    free(b->y.data);
    free(b->weight.data);
    free(b->scratch);
    free(b->unmixed);
    *b = (struct w_fit_batch){0};
}

/* --- a row -------------------------------------------------------------------------------------
 */

static void rescale(const struct w_front *front, float *dst, int64_t n) {
    const struct w_affine *a = &front->affine;
    if (a->n == 0 || front->inside) return;
    if (a->n == 1)
        for (int64_t i = 0; i < n; i++) dst[i] = dst[i] * a->scale[0] + a->offset[0];
    else
        for (int64_t i = 0; i < n; i++) dst[i] = dst[i] * a->scale[i % a->n] + a->offset[i % a->n];
}

static bool load_floats(const struct w_array *x, int64_t row, float *dst, void *scratch,
                        struct w_error *err) {
    const void *src = w__array_row(x, row, scratch, err);
    int64_t n = x->elements;
    if (!src) return false;
    switch (x->dtype) {
    case OP_U8:
        for (int64_t i = 0; i < n; i++) dst[i] = ((const uint8_t *)src)[i];
        break;
    case OP_I64:
        for (int64_t i = 0; i < n; i++) dst[i] = (float)((const int64_t *)src)[i];
        break;
    default:
        memcpy(dst, src, (size_t)n * sizeof *dst);
    }
    return true;
}

/* [h, w, c] → [c, h, w] */
static void channels_first(const struct w_array *x, float *row, float *scratch) {
    int64_t area = x->dims[0] * x->dims[1], c = x->dims[2];
    memcpy(scratch, row, (size_t)x->elements * sizeof *row);
    for (int64_t i = 0; i < area; i++)
        for (int64_t k = 0; k < c; k++) row[k * area + i] = scratch[i * c + k];
}

static bool load_input(struct w_fit *f, struct w_fit_batch *b, int input, const struct w_set *s,
                       int64_t row, int64_t at, bool training, struct w_error *err) {
    const struct w_array *x = &s->x[input];
    int64_t n = x->elements;
    if (x->dtype == OP_STRING) {
        int64_t length = f->m.inputs[input].elements,
                *dst = (int64_t *)b->x[input].data + at * length;
        struct w_span text = w__array_text(x, row);
        memset(dst, 0, (size_t)length * sizeof *dst);
        w_vectorizer_encode(f->fronts[input].words, text.ptr, text.len, dst, length);
        return true;
    }
    if (f->m.inputs[input].dtype == OP_I64) {
        const void *src = w__array_row(x, row, b->scratch, err);
        if (src) memcpy((int64_t *)b->x[input].data + at * n, src, (size_t)n * sizeof(int64_t));
        return src != NULL;
    }
    float *dst = (float *)b->x[input].data + at * n;
    if (!load_floats(x, row, dst, b->scratch, err)) return false;
    rescale(&f->fronts[input], dst, n);
    if (training && f->augment)
        w_augment_apply(f->augment, dst,
                        w__train_mix(w__train_mix((uint64_t)f->spec->fit.seed + 0xa06) +
                                     (uint64_t)f->epoch * 0x100000001b3u + (uint64_t)row));
    return true;
}

static void load_target(const struct w_fit *f, struct w_fit_batch *b, const struct w_array *y,
                        const void *row, int64_t at) {
    int64_t n = y->elements, wanted = 1;
    if (f->target == OP_TARGET_NONE) {
        ((int64_t *)b->y.data)[at] = 0;
        return;
    }
    if (f->target != OP_TARGET_DENSE) {
        int64_t *dst = b->y.data;
        for (int64_t i = 0; i < n; i++) dst[at * n + i] = (int64_t)w__array_number(y, row, i);
        return;
    }
    float *dst = b->y.data;
    for (int i = 0; i < f->m.output_rank; i++) wanted *= f->m.output_dims[i];
    if (wanted == n) {
        for (int64_t i = 0; i < n; i++) dst[at * n + i] = (float)w__array_number(y, row, i);
        return;
    }
    memset(dst + at * wanted, 0, (size_t)wanted * sizeof *dst); /* a class number to one-hot */
    dst[at * wanted + (int64_t)w__array_number(y, row, 0)] = 1;
}

static void mix(const struct w_fit *f, struct w_fit_batch *b, int64_t first, int64_t n) {
    int64_t x = f->m.inputs[0].elements, y = 1;
    for (int i = 1; i < b->y.rank; i++) y *= b->y.dims[i];
    memcpy(b->unmixed, b->x[0].data, (size_t)(n * x) * sizeof(float));
    memcpy(b->unmixed + n * x, b->y.data, (size_t)(n * y) * sizeof(float));
    w_augment_mix(f->augment, b->x[0].data, b->y.data, b->unmixed, n, y,
                  w__train_mix(w__train_mix((uint64_t)f->spec->fit.seed + 0x317) +
                               (uint64_t)f->epoch * 0x100000001b3u + (uint64_t)first));
}

bool w__fit_batch(struct w_fit *f, struct w_fit_batch *b, const struct w_set *s,
                  const int64_t *rows, int64_t n, bool training, struct w_error *err) {
    for (int64_t i = 0; i < n; i++) {
        int64_t row = s->rows[rows[i]];
        for (int k = 0; k < f->m.n_inputs; k++)
            if (!load_input(f, b, k, s, row, i, training, err)) return false;
        const void *y = w__array_row(&s->y, row, b->scratch, err);
        load_target(f, b, &s->y, y, i);
        double weight =
            s->weight.data ? w__array_number(&s->weight, w__array_row(&s->weight, row, NULL, err), 0)
                           : 1;
        if (f->class_weights && training && s->y.elements == 1)
            weight = (double)((float)weight * f->class_weights[(int64_t)w__array_number(&s->y, y, 0)]);
        ((float *)b->weight.data)[i] = (float)weight;
    }
    if (training && b->unmixed) mix(f, b, rows[0], n);
    for (int64_t i = 0; f->flip_images && i < n; i++)
        channels_first(&s->x[0], (float *)b->x[0].data + i * s->x[0].elements, b->scratch);
    for (int k = 0; k < f->m.n_inputs; k++) b->x[k].dims[0] = n;
    b->y.dims[0] = b->weight.dims[0] = b->n = n;
    return true;
}
