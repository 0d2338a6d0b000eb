/* hash.c: what a training is made from, as two SHA-256: of its rows (data_hash, which goes with the
 * model), and of spec and rows (hash, by which a checkpoint is known for its own). */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

/* The shape and the rows, or the files that they are made of. */
static bool hash_array(EVP_MD_CTX *c, const struct w_array *a, struct w_error *err) {
    if (a->dtype == OP_STRING) {
        EVP_DigestUpdate(c, a->offsets, (size_t)(a->n + 1) * sizeof *a->offsets);
        EVP_DigestUpdate(c, a->data, (size_t)a->offsets[a->n]);
        return true;
    }
    size_t row = (size_t)a->elements * op_type_size(a->dtype);
    EVP_DigestUpdate(c, a->dims, sizeof a->dims);
    EVP_DigestUpdate(c, &a->n, sizeof a->n);
    if (a->digest[0]) {
        EVP_DigestUpdate(c, a->digest, 64);
        return true;
    }
    void *scratch = a->reader ? malloc(row + 1) : NULL;
    bool ok = scratch || !a->reader || w_fail(err, W_NO_MEMORY, "out of memory");
    for (int64_t i = 0; ok && i < a->n && (a->data || a->reader); i++) {
        const void *bytes = w__array_row(a, i, scratch, err);
        ok = bytes != NULL;
        if (ok) EVP_DigestUpdate(c, bytes, row);
    }
    free(scratch);
    return ok;
}

static bool hash_set(EVP_MD_CTX *c, const struct w_set *s, struct w_error *err) {
    for (int i = 0; i < s->n_x; i++)
        if (!hash_array(c, &s->x[i], err)) return false;
    return hash_array(c, &s->y, err);
}

static void hex(EVP_MD_CTX *c, char *dst) {
    uint8_t sum[EVP_MAX_MD_SIZE];
    EVP_DigestFinal_ex(c, sum, NULL);
    for (int i = 0; i < 32; i++) snprintf(dst + 2 * i, 3, "%02x", sum[i]);
}

/* What a run's bits follow from: the spec without where its data lie (they are hashed themselves),
 * where the model goes, and when checkpoints are made. */
static char *essence(const struct w_spec_train *s) {
    static const char *const root[] = {"publish", "description"},
                             *const data[] = {"train", "validation", "test"},
                             *const fit[] = {"checkpoint_s", "checkpoint_steps"};
    json_t *o = json_deep_copy(s->json);
    for (size_t i = 0; i < 2; i++) json_object_del(o, root[i]);
    for (size_t i = 0; i < 3; i++) json_object_del(json_object_get(o, "data"), data[i]);
    for (size_t i = 0; i < 2; i++) json_object_del(json_object_get(o, "fit"), fit[i]);
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_decref(o);
    return text;
}

bool w__fit_hash(struct w_fit *f, struct w_error *err) {
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    char *text = essence(f->spec);
    bool ok = c && text && EVP_DigestInit_ex(c, EVP_sha256(), NULL);
    if (!ok) w_fail(err, W_NO_MEMORY, "out of memory");
    ok = ok && hash_set(c, &f->whole, err) && (!f->extra.n || hash_set(c, &f->extra, err));
    if (ok) {
        hex(c, f->data_hash);
        EVP_DigestInit_ex(c, EVP_sha256(), NULL);
        EVP_DigestUpdate(c, text, strlen(text));
        EVP_DigestUpdate(c, f->data_hash, 64);
        hex(c, f->hash);
    }
    free(text);
    EVP_MD_CTX_free(c);
    return ok;
}
