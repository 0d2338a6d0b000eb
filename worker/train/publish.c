/* publish.c: a trained model becomes a new version in a store. The folder is written under a name
 * that no store reads (it begins with a dot), synced file by file, and renamed to the next number:
 * whoever looks sees all of it or nothing. train.json in it says where it comes from, so that a job
 * that died between publishing and saying so finds its own version, and does not make a second. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/store/store.h"
#include "worker/train/train.h"

#define PATH_BYTES 4300

static int64_t version_of(const char *name) {
    char *end;
    if (*name < '1' || *name > '9') return 0;
    long long v = strtoll(name, &end, 10);
    return *end || v < 1 ? 0 : v;
}

/* The highest version; *own: the one that this job has published, 0 where none. A job is known by
 * its id and when it was queued: ids may come again. */
static int64_t look(const char *folder, const struct w_publication *p, int64_t *own) {
    DIR *d = opendir(folder);
    int64_t highest = 0;
    *own = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[PATH_BYTES + 300];
        int64_t v = version_of(e->d_name);
        if (v > highest) highest = v;
        if (!v || !p->job) continue;
        snprintf(path, sizeof path, "%s/%s/train.json", folder, e->d_name);
        json_t *o = json_load_file(path, 0, NULL);
        const char *by = json_string_value(json_object_get(o, "job"));
        if (by && strcmp(by, p->job) == 0 &&
            json_integer_value(json_object_get(o, "queued_ms")) == p->queued_ms)
            *own = v;
        json_decref(o);
    }
    if (d) closedir(d);
    return highest;
}

static void remove_folder(const char *folder) {
    static const char *const names[] = {"model.onnx", "model.json", "metrics.json", "curve.svg",
                                        "train.json", "vocabulary.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[PATH_BYTES + 300];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

json_t *w_fit_origin(const struct w_fit *f) {
    return json_pack("{s:s, s:f, s:s, s:s, s:O*, s:O}", "data_sha256", f->data_hash, "seed",
                     f->spec->fit.seed, "isa", op_isa(), "build",
                     QUERN_VERSION " (" __VERSION__ ")", "test", f->test_results, "spec",
                     f->spec->json);
}

static bool put_origin(const struct w_publication *p, const char *folder, struct w_error *err) {
    char path[PATH_BYTES + 300];
    json_t *o = json_pack("{s:s*, s:I, s:I}", "job", p->job, "queued_ms", (json_int_t)p->queued_ms,
                          "token", (json_int_t)p->token);
    json_object_update(o, p->origin);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    snprintf(path, sizeof path, "%s/train.json", folder);
    bool ok = text ? w__fit_put(path, text, strlen(text), err)
                   : w_fail(err, W_NO_MEMORY, "out of memory");
    free(text);
    json_decref(o);
    return ok;
}

bool w_publish(const struct w_publication *p, int64_t *version, struct w_error *err) {
    char model[PATH_BYTES], fresh[PATH_BYTES + 64], final[PATH_BYTES + 64];
    const char *name = p->name, *store = p->store;
    int64_t own;
    if (!w_model_name_valid(name, strlen(name)))
        return w_fail(err, W_BAD_SPEC,
                      "publish.name \"%.60s\" is no model name: letters, digits, _ . - are allowed",
                      name);
    if (snprintf(model, sizeof model, "%s/%s", store, name) >= (int)sizeof model)
        return w_fail(err, W_OUTPUT_FAILED, "the store's path is too long");
    if ((mkdir(store, 0755) != 0 && errno != EEXIST) ||
        (mkdir(model, 0755) != 0 && errno != EEXIST))
        return w_fail(err, W_OUTPUT_FAILED, "the model \"%s\" has no folder in the store: %s", name,
                      strerror(errno));
    int64_t highest = look(model, p, &own);
    if (own) return *version = own, true;
    snprintf(fresh, sizeof fresh, "%s/.new-%ju-%d", model, (uintmax_t)p->token, (int)getpid());
    if (mkdir(fresh, 0755) != 0 && errno != EEXIST)
        return w_fail(err, W_OUTPUT_FAILED, "the store cannot be written: %s", strerror(errno));
    bool ok = p->write(p->user, fresh, err) && put_origin(p, fresh, err);
    for (int64_t v = highest + 1; ok; v++) {
        snprintf(final, sizeof final, "%s/%lld", model, (long long)v);
        if (rename(fresh, final) == 0) return *version = v, true;
        if (errno != EEXIST && errno != ENOTEMPTY)
            ok = w_fail(err, W_OUTPUT_FAILED, "version %lld of \"%s\" cannot be put in place: %s",
                        (long long)v, name, strerror(errno));
    }
    remove_folder(fresh);
    return false;
}
