/* checkpoint.c: where a training stands, in one file: the trainer's own block (weights, optimiser,
 * random numbers, with a SHA-256), and inside it, as the caller's part, JSON (epoch, step, metrics,
 * callbacks, history) followed by the best weights so far. Written beside, synced, renamed: a kill
 * at any moment leaves the old one or the new one. A file that is of another spec or other data, or
 * is damaged, is passed over with a note: the run then starts anew and ends in the same bits. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/train/train.h"

#define CHECKPOINT_BYTES_MAX ((int64_t)64 << 30)

static bool sync_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    bool ok = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0) close(fd);
    free(folder);
    return ok;
}

bool w__fit_put(const char *path, const void *bytes, size_t len, struct w_error *err) {
    size_t room = strlen(path) + 8, done = 0;
    char *part = malloc(room);
    if (!part) return w_fail(err, W_NO_MEMORY, "out of memory");
    snprintf(part, room, "%s.tmp", path);
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    bool ok = fd >= 0;
    while (ok && done < len) {
        ssize_t n = write(fd, (const char *)bytes + done, len - done);
        if (n < 0 && errno == EINTR) continue;
        ok = n > 0;
        done += ok ? (size_t)n : 0;
    }
    ok = ok && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0) close(fd);
    if (ok) {
        ok = rename(part, path) == 0 && sync_folder(path);
        why = errno;
    }
    if (!ok) {
        unlink(part);
        w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %s", path, strerror(why));
    }
    free(part);
    return ok;
}

/* [bytes of JSON: u64][JSON][best weights] */
static char *pack(const struct w_fit *f, size_t *len) {
    json_t *o = json_pack("{s:s, s:i, s:I, s:f, s:f, s:b, s:O, s:o, s:o}", "hash", f->hash, "epoch",
                          f->epoch, "step", (json_int_t)f->step, "lr_scale", f->lr_scale, "seconds",
                          f->seconds + (w__fit_now() - f->started_s), "over", f->over, "history",
                          f->history, "metrics", w_metrics_save(&f->metrics), "callbacks",
                          w_callbacks_save(&f->callbacks));
    if (o) {
        json_object_set_new(o, "fold", json_integer(f->fold));
        json_object_set(o, "fold_results", f->fold_results);
    }
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    uint64_t n = text ? strlen(text) : 0;
    char *all = text ? malloc(sizeof n + n + f->best_bytes) : NULL;
    if (all) {
        memcpy(all, &n, sizeof n);
        memcpy(all + sizeof n, text, n);
        if (f->best) memcpy(all + sizeof n + n, f->best, f->best_bytes);
        *len = sizeof n + n + (f->best ? f->best_bytes : 0);
    }
    free(text);
    json_decref(o);
    return all;
}

bool w__fit_save(struct w_fit *f, struct w_error *err) {
    struct op_error why;
    size_t len = 0, n = 0;
    char *extra = pack(f, &len);
    if (!extra) return w_fail(err, W_NO_MEMORY, "no memory for a checkpoint");
    void *block = op_trainer_save(f->trainer, extra, len, &n, &why);
    free(extra);
    if (!block) return w_train_fail(err, &why);
    bool ok = w__fit_put(f->o.checkpoint, block, n, err);
    free(block);
    return ok;
}

/* --- and back ----------------------------------------------------------------------------------
 */

static char *read_whole(const char *path, size_t *len, struct w_error *err) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        if (errno != ENOENT)
            w_fail(err, W_REF_FAILED, "%s cannot be read: %s", path, strerror(errno));
        return NULL;
    }
    if (fstat(fd, &st) == 0 && st.st_size == 0) { /* an attempt that has kept nothing yet */
        close(fd);
        return NULL;
    }
    char *bytes = S_ISREG(st.st_mode) && st.st_size <= CHECKPOINT_BYTES_MAX
                      ? malloc((size_t)st.st_size + 1)
                      : NULL;
    size_t done = 0;
    while (bytes && done < (size_t)st.st_size) {
        ssize_t n = read(fd, bytes + done, (size_t)st.st_size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        done += (size_t)n;
    }
    close(fd);
    if (!bytes) w_fail(err, W_NO_MEMORY, "no memory for the checkpoint %s", path);
    *len = done;
    return bytes;
}

static json_t *unpack(struct w_fit *f, const char *extra, size_t len) {
    uint64_t n = 0;
    if (len < sizeof n) return NULL;
    memcpy(&n, extra, sizeof n);
    if (n > len - sizeof n) return NULL;
    json_t *o = json_loadb(extra + sizeof n, n, 0, NULL);
    const char *hash = json_string_value(json_object_get(o, "hash"));
    size_t rest = len - sizeof n - n;
    void *best = rest ? malloc(rest) : NULL;
    if (!hash || strcmp(hash, f->hash) || (rest && !best)) {
        free(best);
        json_decref(o);
        return NULL;
    }
    if (best) memcpy(best, extra + sizeof n + n, rest);
    free(f->best);
    f->best = best;
    f->best_bytes = rest;
    return o;
}

bool w__fit_load(struct w_fit *f, bool *resumed, struct w_error *err) {
    struct op_error why;
    size_t len = 0, extra_len = 0, n = 0;
    void *extra = NULL, *fresh = NULL;
    *resumed = false;
    err->code = NULL;
    char *bytes = read_whole(f->o.resume ? f->o.resume : f->o.checkpoint, &len, err);
    if (!bytes) return err->code == NULL;
    /* The block is loaded before it is known whose it is: the state of now is kept to go back to.
     */
    fresh = op_trainer_save(f->trainer, NULL, 0, &n, &why);
    if (!fresh) {
        free(bytes);
        return w_train_fail(err, &why);
    }
    bool ok = op_trainer_load(f->trainer, bytes, len, &extra, &extra_len, &why) == OP_OK;
    json_t *o = ok && extra ? unpack(f, extra, extra_len) : NULL;
    int fold = (int)json_integer_value(json_object_get(o, "fold"));
    if (o && fold != f->fold) { /* its rows are others: the trainer is made for them, then filled */
        f->fold = fold;
        if (!w__fit_set_up(f, err) ||
            (op_trainer_load(f->trainer, bytes, len, NULL, NULL, &why) != OP_OK &&
             !w_train_fail(err, &why))) {
            json_decref(o);
            free(extra);
            free(fresh);
            free(bytes);
            return false;
        }
    }
    if (o) {
        json_decref(f->fold_results);
        f->fold_results = json_incref(json_object_get(o, "fold_results"));
        f->epoch = (int)json_integer_value(json_object_get(o, "epoch"));
        f->step = json_integer_value(json_object_get(o, "step"));
        f->lr_scale = json_number_value(json_object_get(o, "lr_scale"));
        f->seconds = json_number_value(json_object_get(o, "seconds"));
        f->over = json_is_true(json_object_get(o, "over"));
        json_decref(f->history);
        f->history = json_incref(json_object_get(o, "history"));
        w_metrics_load(&f->metrics, json_object_get(o, "metrics"));
        w_callbacks_load(&f->callbacks, json_object_get(o, "callbacks"));
        *resumed = true;
    } else if (f->o.on_note) {
        f->o.on_note(f->o.user, ok ? "the checkpoint is of another spec or other data: started anew"
                                   : "the checkpoint is damaged or of another model: started anew");
    }
    json_decref(o);
    bool good = *resumed || op_trainer_load(f->trainer, fresh, n, NULL, NULL, &why) == OP_OK ||
                w_train_fail(err, &why);
    free(extra);
    free(fresh);
    free(bytes);
    return good;
}
