/* quern model bench --train: how fast a training step is. Steps run over the spec's own rows,
 * batches made as in training, for the given seconds; the time is cut into tenths, the best of
 * which is what the machine can do when nobody else wants it, and the median what it did. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/cli/profile.h"
#include "worker/cli/train.h"
#include "worker/cli/training.h"
#include "worker/train/train.h"

#define DATA_BYTES_MAX ((size_t)16 << 30)
#define WINDOWS 10
#define WARM_STEPS 3

static int by_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int failed(const struct w_error *err) {
    return w_report(W_EXIT_FAILED, err->code ? err->code : W_INTERNAL, NULL, "%s", err->text);
}

static void print(const struct w_fit *f, const char *path, int n_threads, double best,
                  double median, int64_t steps) {
    json_t *o = json_pack("{s:s,s:i,s:i,s:s,s:f,s:f,s:I,s:I}", "spec", path, "batch",
                          (int)f->spec->fit.batch_size, "threads", n_threads, "isa", op_isa(),
                          "samples_per_s", best, "samples_per_s_median", median, "peak_bytes",
                          (json_int_t)f->peak_bytes, "steps", (json_int_t)steps);
    char *text = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(10)) : NULL;
    if (w_globals.json)
        puts(text ? text : "{}");
    else
        printf("%s: %.1f samples/s (median %.1f), batch %d, %d threads, %.1f MB, on %s\n", path,
               best, median, (int)f->spec->fit.batch_size, n_threads, (double)f->peak_bytes / 1e6,
               op_isa());
    free(text);
    json_decref(o);
}

static int measure(struct w_fit *f, const char *path, int n_threads, double seconds) {
    double rates[WINDOWS + 1];
    int64_t rows, step = 0;
    int n = 0;
    struct w_error err = {0};
    for (; step < WARM_STEPS; step++)
        if (!w_fit_step(f, step, &rows, &err)) return failed(&err);
    double began = w__fit_now(), from = began, now = began;
    for (int64_t seen = 0; n < WINDOWS && (now - began < seconds || n == 0); step++) {
        if (!w_fit_step(f, step, &rows, &err)) return failed(&err);
        seen += rows;
        now = w__fit_now();
        if (now - from < seconds / WINDOWS) continue;
        rates[n++] = (double)seen / (now - from);
        from = now;
        seen = 0;
    }
    qsort(rates, (size_t)n, sizeof *rates, by_double);
    if (f->o.node_user) w__profile_print(f->o.node_user, (size_t)step);
    print(f, path, n_threads, rates[n - 1], rates[n / 2], step - WARM_STEPS);
    return W_EXIT_OK;
}

/* References are absolute by now, where there is something. */
static int open_ref(void *user, const char *path, bool *is_folder, struct w_error *err) {
    struct stat st;
    (void)user;
    if (strncmp(path, "file:", 5) == 0) path += 5;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return w_fail(err, errno == ENOENT ? W_REF_NOT_FOUND : W_REF_FAILED,
                      "%.300s cannot be opened: %s", path, strerror(errno)),
               -1;
    *is_folder = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    return fd;
}

int w__train_bench(const char *path, int n_threads, double seconds, bool profile) {
    struct w_profile nodes = {0};
    struct w_error err = {0};
    int rc;
    json_t *json = w_cli_json_read(path, &rc);
    if (!json) return rc;
    w_cli_spec_paths(json, path);
    struct w_spec_train *spec = w_train_spec_from(json, &err);
    const struct w_fit_options o = {.files = {.open = open_ref, .bytes_max = DATA_BYTES_MAX},
                                    .n_threads = n_threads,
                                    .on_node = profile ? w__profile_node : NULL,
                                    .node_user = profile ? &nodes : NULL};
    struct w_fit *f = spec ? w_fit_create(spec, &o, &err) : NULL;
    rc = f ? measure(f, path, n_threads, seconds) : failed(&err);
    w_fit_destroy(f);
    w__profile_finish(&nodes);
    w_train_spec_destroy(spec);
    json_decref(json);
    return rc;
}
