/* quern train: a training spec becomes a model.
 *
 * Paths in the spec are relative to the spec's folder. Everything goes into the output folder, also
 * the checkpoint: a run that is stopped (^C, a kill, a crash) goes on where it was when the same
 * command is given again, and ends in the same bytes. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/cli/train.h"

#define SPEC_BYTES_MAX (16 << 20)

static const char *output = "trained";
static int64_t n_threads;
static double checkpoint_s;
static bool fresh;
static const char *models;
static struct w_option options[] = {
    {"output", W_OPT_STRING, &output, "DIR",
     "model.onnx, model.json, metrics.json and curve.svg go there (trained)", 0, 0},
    {"threads", W_OPT_INT, &n_threads, "N",
     "threads of a step; default: as many as there are CPUs; the result does not depend on it", 1,
     1024},
    {"checkpoint-s", W_OPT_DOUBLE, &checkpoint_s, "S",
     "seconds between checkpoints; default: the spec's, or 30", 0.01, 1e6},
    {"models", W_OPT_STRING, &models, "DIR",
     "a model store: what the spec publishes goes there as a new version", 0, 0},
    {"fresh", W_OPT_FLAG, &fresh, NULL, "do not go on from a checkpoint in the output folder", 0,
     0},
    {0}};

static volatile bool cancel;

static void on_interrupt(int number) {
    if (cancel) signal(number, SIG_DFL); /* a third ends us at once */
    __atomic_store_n(&cancel, true, __ATOMIC_RELAXED);
}

/* --- files of the spec --------------------------------------------------------------------------
 */

int w__train_open_beside(void *user, const char *path, bool *is_folder, struct w_error *err) {
    const char *folder = user;
    char full[PATH_MAX];
    if (strncmp(path, "file:", 5) == 0) path += 5;
    if ((path[0] == '/' ? snprintf(full, sizeof full, "%s", path)
                        : snprintf(full, sizeof full, "%s/%s", folder, path)) >= (int)sizeof full)
        return w_fail(err, W_REF_FAILED, "the path %.100s… is too long", path), -1;
    int fd = open(full, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return w_fail(err, errno == ENOENT ? W_REF_NOT_FOUND : W_REF_FAILED,
                      "%.300s cannot be opened: %s", full, strerror(errno)),
               -1;
    struct stat st;
    *is_folder = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    return fd;
}

struct w_spec_train *w__train_read_spec(const char *path, char *folder, size_t size,
                                        struct w_error *err) {
    FILE *f = fopen(path, "rbe");
    char *text = f ? malloc(SPEC_BYTES_MAX + 1) : NULL;
    size_t len = text ? fread(text, 1, SPEC_BYTES_MAX + 1, f) : 0;
    struct w_spec_train *s = NULL;
    if (!f)
        w_fail(err, W_REF_NOT_FOUND, "%.300s cannot be opened: %s", path, strerror(errno));
    else if (!text || ferror(f) || len > SPEC_BYTES_MAX)
        w_fail(err, W_REF_FAILED, "%.300s cannot be read, or is larger than %d bytes", path,
               SPEC_BYTES_MAX);
    else
        s = w_train_spec_parse(text, len, err);
    free(text);
    if (f) fclose(f);
    const char *slash = strrchr(path, '/');
    snprintf(folder, size, "%.*s", slash ? (int)(slash - path + (slash == path)) : 1,
             slash ? path : ".");
    return s;
}

/* --- telling ------------------------------------------------------------------------------------
 */

static double shown_s;

static void on_step(void *user, const struct w_fit_status *s) {
    char what[120];
    size_t n;
    double now = w__fit_now();
    (void)user;
    if (w_globals.json || (now - shown_s < 0.1 && s->step < s->steps)) return;
    shown_s = now;
    n = (size_t)snprintf(what, sizeof what, "epoch %d/%d loss %.4f", s->epoch, s->epochs, s->loss);
    if (s->metrics->n)
        snprintf(what + n, sizeof what - n, " %s %.4f", s->metrics->items[0].name,
                 w_metric_value(&s->metrics->items[0]));
    w_progress(what, (uint64_t)s->step, (uint64_t)s->steps, s->samples_per_s, s->eta_s);
}

static void on_epoch(void *user, json_t *results) {
    json_t *value;
    const char *key;
    (void)user;
    if (w_globals.json) {
        char *line = json_dumps(results, JSON_COMPACT | JSON_REAL_PRECISION(10));
        puts(line ? line : "{}");
        free(line);
        fflush(stdout);
        return;
    }
    w_progress_end();
    printf("epoch %lld:", (long long)json_integer_value(json_object_get(results, "epoch")));
    json_object_foreach(results, key, value) if (strcmp(key, "epoch"))
        printf(" %s %.5g", key, json_number_value(value));
    putchar('\n');
    fflush(stdout);
}

static void on_note(void *user, const char *text) {
    (void)user;
    w_progress_end();
    if (!w_globals.json) fprintf(stderr, "%s\n", text);
}

static void summary(const struct w_fit *f) {
    json_t *value;
    const char *key;
    if (w_globals.json)
        return; /* the lines of the epochs are the output; metrics.json has the rest */
    printf("%lld rows, %zu epochs in %.1f s", (long long)f->train.n, json_array_size(f->history),
           f->seconds);
    json_object_foreach(f->test_results, key, value) {
        printf("%s %s %.5g", strcmp(key, "loss") ? "," : "; test:", key, json_number_value(value));
    }
    printf(" → %s/model.onnx\n", output);
}

/* --- the command --------------------------------------------------------------------------------
 */

static int failed(const struct w_error *err) {
    bool absent = err->code && strcmp(err->code, W_REF_NOT_FOUND) == 0;
    return w_report(absent ? W_EXIT_NOT_FOUND : W_EXIT_FAILED, err->code ? err->code : W_INTERNAL,
                    NULL, "%s", err->text);
}

static int fit(struct w_spec_train *spec, char *folder) {
    char checkpoint[PATH_MAX];
    struct w_error err = {0};
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (mkdir(output, 0755) != 0 && errno != EEXIST)
        return w_report(W_EXIT_FAILED, "output_failed", NULL, "--output %s cannot be made: %s",
                        output, strerror(errno));
    if (snprintf(checkpoint, sizeof checkpoint, "%s/checkpoint", output) >= (int)sizeof checkpoint)
        return w_report(W_EXIT_FAILED, "output_failed", NULL, "--output is too long");
    if (checkpoint_s > 0) spec->fit.checkpoint_s = checkpoint_s;
    if (fresh && unlink(checkpoint) != 0 && errno != ENOENT)
        return w_report(W_EXIT_FAILED, "output_failed", NULL, "%s cannot be removed: %s",
                        checkpoint, strerror(errno));
    const struct w_fit_options o = {.files = {.open = w__train_open_beside,
                                              .user = folder,
                                              .bytes_max = W_TRAIN_DATA_BYTES_MAX,
                                              .cancel = &cancel},
                                    .n_threads = n_threads  ? (int)n_threads
                                                 : cpus > 0 ? (int)cpus
                                                            : 1,
                                    .cancel = &cancel,
                                    .checkpoint = checkpoint,
                                    .on_step = on_step,
                                    .on_epoch = on_epoch,
                                    .on_note = on_note};
    struct w_fit *f = w_fit_create(spec, &o, &err);
    if (!f && cancel)
        return w_report(W_EXIT_INTERRUPTED, "interrupted", NULL,
                        "interrupted before the first step");
    if (!f) return failed(&err);
    enum w_fit_end end = w_fit_run(f, &err);
    w_progress_end();
    int rc = W_EXIT_OK;
    int64_t version = 0;
    if (end == W_FIT_CANCELLED)
        rc = w_report(W_EXIT_INTERRUPTED, "interrupted", "the same command goes on from there",
                      "interrupted at epoch %d; the state is in %s", f->epoch + 1, checkpoint);
    else if (end == W_FIT_FAILED || !w_fit_write(f, output, &err))
        rc = failed(&err);
    else if (models && spec->publish &&
             !w_fit_publish(f, models, spec->publish, NULL, 0, &version, &err))
        rc = failed(&err);
    else {
        unlink(checkpoint);
        summary(f);
        if (version && !w_globals.json)
            printf("published as %s@%lld\n", spec->publish, (long long)version);
    }
    w_fit_destroy(f);
    return rc;
}

static int run(int argc, char **argv) {
    char folder[PATH_MAX];
    struct w_error err = {0};
    if (argc != 1)
        return w_report(W_EXIT_USAGE, "usage", "quern train SPEC.json --output DIR",
                        "one training spec is expected");
    struct w_spec_train *spec = w__train_read_spec(argv[0], folder, sizeof folder, &err);
    if (!spec) return failed(&err);
    struct sigaction sa = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    int rc = fit(spec, folder);
    w_train_spec_destroy(spec);
    return rc;
}

static const struct w_command train = {
    .name = "train",
    .args = "SPEC.json [--output DIR]",
    .summary = "Train a model from a spec in Keras's words",
    .help = "The spec names model, data, compile and fit; paths in it are relative to its folder. "
            "With --json a line an\n"
            "epoch goes to standard output. A run that was stopped goes on when the same command "
            "is given again.",
    .options = options,
    .run = run,
};
W_COMMAND(train);
