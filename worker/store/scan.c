/* What lies in a store's folder, and what a model's name means in it. Blocks on the disk. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/nearest.h"
#include "worker/store/internal.h"

#define MODELS_MAX 100000 /* versions in a store */

bool w_model_name_valid(const char *text, size_t len) {
    if (len == 0 || len > W_MODEL_NAME_MAX || *text == '.' || *text == '-') return false;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '_' || c == '.' || c == '-'))
            return false;
    }
    return true;
}

/* A whole number from 1 in its plain form ("3", not "03"), or 0. */
static int64_t version_of(const char *text) {
    int64_t v = 0;
    size_t n = strlen(text);
    if (n == 0 || n > 15 || *text == '0') return 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') return 0;
        v = v * 10 + (text[i] - '0');
    }
    return v;
}

static int64_t ns_of(const struct stat *st) {
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

bool w__stamp_of(const char *onnx, const char *json, struct w__stamp *dst) {
    struct stat st;
    memset(dst, 0, sizeof *dst);
    if (stat(onnx, &st) != 0 || !S_ISREG(st.st_mode)) return false;
    dst->dev = (uint64_t)st.st_dev;
    dst->ino = (uint64_t)st.st_ino;
    dst->size = st.st_size;
    dst->mtime_ns = ns_of(&st);
    if (json && stat(json, &st) == 0) {
        dst->json_ino = (uint64_t)st.st_ino;
        dst->json_size = st.st_size;
        dst->json_mtime_ns = ns_of(&st);
    }
    return true;
}

/* --- the folder ------------------------------------------------------------------------------- */

static bool grow(void **items, size_t n, size_t item_bytes) {
    if (n >= MODELS_MAX) return false;
    if (n & (n - 1)) return true; /* room for the next power of two is there */
    void *grown = realloc(*items, (n ? 2 * n : 1) * item_bytes);
    if (!grown) return false;
    *items = grown;
    return true;
}

static void scan_versions(const char *folder, const char *name, struct w__scan *dst) {
    char dir[4096], onnx[4096], json[4096];
    if ((size_t)snprintf(dir, sizeof dir, "%s/%s", folder, name) >= sizeof dir - 64) return;
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        struct w__found f;
        f.version = version_of(e->d_name);
        if (f.version == 0) continue;
        if ((size_t)snprintf(onnx, sizeof onnx, "%s/%s/model.onnx", dir, e->d_name) >= sizeof onnx)
            continue;
        if ((size_t)snprintf(json, sizeof json, "%s/%s/model.json", dir, e->d_name) >= sizeof json)
            continue;
        if (!w__stamp_of(onnx, json, &f.stamp) ||
            !grow((void **)&dst->found, dst->n_found, sizeof f))
            continue;
        snprintf(f.name, sizeof f.name, "%s", name);
        dst->found[dst->n_found++] = f;
    }
    closedir(d);
}

static void scan_labels(const char *folder, const char *name, struct w__scan *dst) {
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/%s/labels.json", folder, name) >= sizeof path ||
        access(path, R_OK) != 0)
        return;
    json_t *o = json_load_file(path, 0, NULL), *v;
    const char *key;
    json_object_foreach(o, key, v) {
        if (!json_is_integer(v) || json_integer_value(v) < 1 ||
            strlen(key) >= sizeof dst->labels->label || version_of(key))
            continue;
        if (!grow((void **)&dst->labels, dst->n_labels, sizeof *dst->labels)) break;
        struct w__label *l = &dst->labels[dst->n_labels++];
        memset(l, 0, sizeof *l);
        snprintf(l->name, sizeof l->name, "%s", name);
        snprintf(l->label, sizeof l->label, "%s", key);
        l->version = json_integer_value(v);
    }
    json_decref(o);
}

static int by_name_and_version(const void *a, const void *b) {
    const struct w__found *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c ? c : (y->version > x->version) - (y->version < x->version);
}

bool w__scan(const char *folder, struct w__scan *dst, struct w_error *err) {
    memset(dst, 0, sizeof *dst);
    DIR *d = opendir(folder);
    if (!d) return w_fail(err, W_REF_NOT_FOUND, "model store %s: %s", folder, strerror(errno));
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (!w_model_name_valid(e->d_name, strlen(e->d_name))) continue;
        scan_versions(folder, e->d_name, dst);
        scan_labels(folder, e->d_name, dst);
    }
    closedir(d);
    if (dst->n_found) qsort(dst->found, dst->n_found, sizeof *dst->found, by_name_and_version);
    return true;
}

void w__scan_finish(struct w__scan *scan) {
    free(scan->found);
    free(scan->labels);
    memset(scan, 0, sizeof *scan);
}

/* --- names ------------------------------------------------------------------------------------ */

bool w__spec_parse(const char *spec, struct w__spec *dst, struct w_error *err) {
    size_t n = strcspn(spec, "@"), at = spec[n] ? strlen(spec + n + 1) : 0;
    memset(dst, 0, sizeof *dst);
    if (!*spec)
        return w_fail(err, "bad_job", "the job names no model: \"model\" is missing or empty");
    if (!w_model_name_valid(spec, n) || at >= sizeof dst->at || (spec[n] && at == 0))
        return w_fail(err, "unknown_model",
                      "\"%.100s\" is no model name: name, name@version or name@label is expected, "
                      "of letters, digits, _ . -",
                      spec);
    memcpy(dst->name, spec, n);
    if (at) memcpy(dst->at, spec + n + 1, at);
    dst->version = version_of(dst->at);
    return true;
}

int64_t w__label_version(const struct w__scan *scan, const struct w__spec *spec) {
    for (size_t i = 0; i < scan->n_labels; i++)
        if (strcmp(scan->labels[i].name, spec->name) == 0 &&
            strcmp(scan->labels[i].label, spec->at) == 0)
            return scan->labels[i].version;
    return 0;
}

static const char *found_name(void *user, size_t i) {
    const struct w__scan *scan = user;
    return i < scan->n_found ? scan->found[i].name : NULL;
}

bool w__fail_unknown(const struct w__scan *scan, const struct w__spec *spec, const char *store,
                     struct w_error *err) {
    char there[256] = "";
    size_t len = 0;
    for (size_t i = 0; i < scan->n_found && len < sizeof there - 32; i++)
        if (strcmp(scan->found[i].name, spec->name) == 0)
            len += (size_t)snprintf(there + len, sizeof there - len, "%s%" PRId64, len ? ", " : "",
                                    scan->found[i].version);
    for (size_t i = 0; len && i < scan->n_labels && len < sizeof there - 72; i++)
        if (strcmp(scan->labels[i].name, spec->name) == 0)
            len += (size_t)snprintf(there + len, sizeof there - len, ", %s", scan->labels[i].label);
    if (len)
        return w_fail(err, "unknown_model", "model \"%s\" has no %s \"%s\"; there are %s",
                      spec->name, spec->version ? "version" : "label", spec->at, there);
    const char *near = w__nearest(spec->name, found_name, (void *)scan);
    if (near)
        return w_fail(err, "unknown_model",
                      "there is no model \"%s\" in the store; did you mean \"%s\"?", spec->name,
                      near);
    if (!store || !*store)
        return w_fail(
            err, "unknown_model",
            "there is no model \"%s\": the worker was started without a store (--models DIR)",
            spec->name);
    return w_fail(err, "unknown_model", "there is no model \"%s\" in the store; it has %zu",
                  spec->name, scan->n_found);
}

/* --- for tools -------------------------------------------------------------------------------- */

static bool exists(const char *path, bool folder) {
    struct stat st;
    return stat(path, &st) == 0 && (folder ? S_ISDIR(st.st_mode) : S_ISREG(st.st_mode));
}

/* The name that a path gives its model: of its folder where the file is model.onnx, and of the
 * folder above that where it is a version's number. */
static void name_from_path(const char *path, struct w_model_place *dst) {
    char real[4096];
    char *copy = realpath(path, NULL);
    snprintf(real, sizeof real, "%s", copy ? copy : path);
    free(copy);
    for (int up = 0; up < 3; up++) {
        char *slash = strrchr(real, '/'), *last = slash ? slash + 1 : real;
        bool generic = strcmp(last, "model.onnx") == 0, version = up > 0 && version_of(last) > 0;
        if (version) dst->version = version_of(last);
        if ((generic || version) && slash) {
            *slash = 0;
            continue;
        }
        size_t n = strlen(last);
        if (n > 5 && strcmp(last + n - 5, ".onnx") == 0) n -= 5;
        snprintf(dst->name, sizeof dst->name, "%.*s",
                 (int)(n > W_MODEL_NAME_MAX ? W_MODEL_NAME_MAX : n), last);
        break;
    }
    for (char *p = dst->name; *p; p++)
        if (!w_model_name_valid(p, 1) && (p == dst->name || (*p != '.' && *p != '-'))) *p = '_';
    if (!*dst->name) snprintf(dst->name, sizeof dst->name, "model");
}

static bool find_path(const char *m, struct w_model_place *dst) {
    if (exists(m, false)) {
        snprintf(dst->path, sizeof dst->path, "%s", m);
        const char *slash = strrchr(m, '/'), *last = slash ? slash + 1 : m;
        if (strcmp(last, "model.onnx") == 0) /* the model.json beside it belongs to it */
            snprintf(dst->folder, sizeof dst->folder, "%.*s", slash ? (int)(slash - m) : 1,
                     slash ? m : ".");
    } else if (exists(m, true) &&
               (size_t)snprintf(dst->path, sizeof dst->path, "%s/model.onnx", m) <
                   sizeof dst->path &&
               exists(dst->path, false)) {
        snprintf(dst->folder, sizeof dst->folder, "%s", m);
    } else {
        return false;
    }
    name_from_path(dst->path, dst);
    return true;
}

bool w_model_find(const char *m, const char *store, struct w_model_place *dst,
                  struct w_error *err) {
    struct w__spec spec;
    struct w__scan scan = {0};
    memset(dst, 0, sizeof *dst);
    bool is_path = strchr(m, '/') || !store || !*store ||
                   (strlen(m) > 5 && strcmp(m + strlen(m) - 5, ".onnx") == 0);
    if (is_path)
        return find_path(m, dst) ||
               w_fail(err, "unknown_model",
                      "%s is neither an .onnx file nor a folder that holds a model.onnx%s", m,
                      store && *store ? "" : ", and no store is given (--models DIR)");
    if (!w__spec_parse(m, &spec, err) || !w__scan(store, &scan, err)) return false;
    int64_t version = spec.version ? spec.version : *spec.at ? w__label_version(&scan, &spec) : 0;
    bool ok = false;
    for (size_t i = 0; i < scan.n_found && !ok; i++) {
        if (strcmp(scan.found[i].name, spec.name) || (*spec.at && scan.found[i].version != version))
            continue;
        memcpy(dst->name, spec.name, sizeof dst->name);
        dst->version = scan.found[i].version;
        int n = snprintf(dst->folder, sizeof dst->folder, "%s/%s/%" PRId64, store, spec.name,
                         dst->version);
        ok = n > 0 && (size_t)n + 16 < sizeof dst->folder;
        if (ok)
            snprintf(dst->path, sizeof dst->path, "%.*s/model.onnx", (int)sizeof dst->path - 16,
                     dst->folder);
    }
    if (!ok && !(find_path(m, dst)))
        w__fail_unknown(&scan, &spec, store, err);
    else
        ok = true;
    w__scan_finish(&scan);
    return ok;
}

bool w_store_list(const char *folder, struct w_listed **out, size_t *n, struct w_error *err) {
    struct w__scan scan;
    if (!w__scan(folder, &scan, err)) return false;
    struct w_listed *list = calloc(scan.n_found + 1, sizeof *list);
    for (size_t i = 0; list && i < scan.n_found; i++) {
        memcpy(list[i].name, scan.found[i].name, sizeof list[i].name);
        list[i].version = scan.found[i].version;
        list[i].bytes = (uint64_t)scan.found[i].stamp.size;
        for (size_t k = 0, len = 0; k < scan.n_labels; k++)
            if (scan.labels[k].version == list[i].version &&
                strcmp(scan.labels[k].name, list[i].name) == 0 && len + 66 < sizeof list[i].labels)
                len += (size_t)snprintf(list[i].labels + len, sizeof list[i].labels - len, "%s%s",
                                        len ? "," : "", scan.labels[k].label);
    }
    *out = list;
    *n = list ? scan.n_found : 0;
    w__scan_finish(&scan);
    return list || w_fail(err, W_NO_MEMORY, "no memory to list the store");
}
