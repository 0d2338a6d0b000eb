/* internal.h: what the files of the store share. */
#ifndef QUERN_WORKER_STORE_INTERNAL_H
#define QUERN_WORKER_STORE_INTERNAL_H

#include "worker/store/store.h"

/* What tells one state of a version's files from another. */
struct w__stamp {
    uint64_t dev, ino, json_ino;
    int64_t size, json_size, mtime_ns, json_mtime_ns;
};

/* One version on disk. */
struct w__found {
    char name[W_MODEL_NAME_MAX + 1];
    int64_t version;
    struct w__stamp stamp;
};

struct w__label {
    char name[W_MODEL_NAME_MAX + 1];
    char label[64];
    int64_t version;
};

/* What a scan of the folder saw: found by name ascending, version descending; labels in no order.
 */
struct w__scan {
    struct w__found *found;
    size_t n_found;
    struct w__label *labels;
    size_t n_labels;
};

/* False: the folder itself cannot be read. A model whose parts are malformed is left out. */
bool w__scan(const char *folder, struct w__scan *dst, struct w_error *err);
void w__scan_finish(struct w__scan *scan);
bool w__stamp_of(const char *onnx, const char *json,
                 struct w__stamp *dst); /* json may be missing */

/* A spec taken apart: name, and what stands behind the @ ("": nothing). False: malformed,
 * unknown_model. */
struct w__spec {
    char name[W_MODEL_NAME_MAX + 1];
    char at[64];
    int64_t version; /* of `at`, where it is a number; else 0 */
};
bool w__spec_parse(const char *spec, struct w__spec *dst, struct w_error *err);
/* unknown_model: names what was asked for, the nearest name or the versions that are there. */
bool w__fail_unknown(const struct w__scan *scan, const struct w__spec *spec, const char *store,
                     struct w_error *err);
int64_t w__label_version(const struct w__scan *scan,
                         const struct w__spec *spec); /* 0: no such label */

#endif
