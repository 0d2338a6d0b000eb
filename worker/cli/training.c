/* A job of training and its user: submitting, following, interrupting.
 *
 * The live display comes from T:s:<id>, the lines of the epochs from the stream T:m:<id>, read on
 * with every look at the status and once more at the end: so each epoch is printed once, also where
 * epochs are quicker than the looks.
 *
 * ^C cancels a job of the worker in this process, whose checkpoint stays beside the output; the job
 * of a queue's workers goes on. A second ^C ends us at once. */
#include "worker/cli/training.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/daemon/cpus.h"
#include "worker/daemon/redis.h"

#define PRIVATE_BEAT_MS 100
#define CANCEL_WAIT_MS 60000
#define POINTS_A_LOOK "500"

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number) {
    if (interrupted) signal(number, SIG_DFL);
    interrupted = 1;
}

/* --- specs ------------------------------------------------------------------------------------ */

json_t *w_cli_json_read(const char *path, int *rc) {
    json_error_t why;
    FILE *f = fopen(path, "rbe");
    if (!f) {
        *rc = w_report(errno == ENOENT ? W_EXIT_NOT_FOUND : W_EXIT_FAILED, "ref_not_found", NULL,
                       "%s cannot be opened: %s", path, strerror(errno));
        return NULL;
    }
    json_t *o = json_loadf(f, JSON_REJECT_DUPLICATES, &why);
    fclose(f);
    if (!o)
        *rc = w_report(W_EXIT_FAILED, "bad_job", NULL, "%s is no JSON: line %d, column %d: %s",
                       path, why.line, why.column, why.text);
    else if (!json_is_object(o))
        *rc = w_report(W_EXIT_FAILED, "bad_job", NULL, "%s holds no object { … }", path);
    if (json_is_object(o)) return o;
    json_decref(o);
    return NULL;
}

/* The member as an absolute reference, where it names something. */
static void make_absolute(json_t *o, const char *key, const char *spec_path) {
    char path[PATH_MAX], real[PATH_MAX], ref[PATH_MAX + 8];
    const char *given = json_string_value(json_object_get(o, key)),
               *slash = strrchr(spec_path, '/');
    if (!given) return;
    if (strncmp(given, "file:", 5) == 0) given += 5;
    int folder = *given == '/' || !slash ? 0 : (int)(slash - spec_path + 1);
    if (snprintf(path, sizeof path, "%.*s%s", folder, spec_path, given) >= (int)sizeof path ||
        !realpath(path, real))
        return;
    snprintf(ref, sizeof ref, "file:%s", real);
    json_object_set_new(o, key, json_string(ref));
}

void w_cli_set_paths(json_t *set, const char *spec_path) {
    static const char *const words[] = {"target",  "fields",    "header",
                                        "columns", "delimiter", "format"};
    json_t *value;
    const char *key;
    void *next;
    json_object_foreach_safe(set, next, key, value) {
        bool is_word = false;
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            is_word |= strcmp(key, words[i]) == 0;
        if (is_word) continue;
        if (json_is_string(value))
            make_absolute(set, key, spec_path); /* puts another in its place */
        else
            w_cli_set_paths(value, spec_path);
    }
}

void w_cli_spec_paths(json_t *spec, const char *spec_path) {
    static const char *const sets[] = {"train", "validation", "test"};
    json_t *data = json_object_get(spec, "data");
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        w_cli_set_paths(json_object_get(data, sets[i]), spec_path);
    make_absolute(json_object_get(spec, "model"), "onnx", spec_path);
}

bool w_cli_output(const char *output, char *dst, size_t size, int *rc) {
    char real[PATH_MAX];
    if ((mkdir(output, 0755) != 0 && errno != EEXIST) || !realpath(output, real)) {
        *rc = w_report(W_EXIT_FAILED, "output_failed", NULL, "--output %s cannot be made: %s",
                       output, strerror(errno));
        return false;
    }
    snprintf(dst, size, "%s", real);
    return true;
}

bool w_cli_spec_output(json_t *spec, const char **output, const char *dflt, char *dst, size_t size,
                       int *rc) {
    bool publishes = json_object_get(spec, "publish") != NULL;
    if (!w_globals.redis_given && publishes && !*w_config()->models) {
        json_object_del(spec, "publish"); /* here, the output folder is the place */
        publishes = false;
    }
    if (!*output && !(w_globals.redis_given && publishes)) *output = dflt;
    return !*output || w_cli_output(*output, dst, size, rc);
}

int w_cli_spec_run(int argc, char **argv, const char *usage, const char *expected,
                   int (*fn)(json_t *spec)) {
    int rc;
    if (argc != 1) return w_report(W_EXIT_USAGE, "usage", usage, "%s", expected);
    json_t *spec = w_cli_json_read(argv[0], &rc);
    if (!spec) return rc;
    w_cli_spec_paths(spec, argv[0]);
    rc = fn(spec);
    json_decref(spec);
    return rc;
}

/* --- following -------------------------------------------------------------------------------- */

struct following {
    const struct w_cli_training *t;
    struct q_ctl *c;
    const char *id;
    char last[48]; /* entry of the stream */
    size_t n_notes;
    json_t *seen; /* the newest progress */
};

static bool is_entry_id(const char *line) {
    size_t n = strspn(line, "0123456789");
    return n && line[n] == '-' && line[n + 1] &&
           line[n + 1 + strspn(line + n + 1, "0123456789")] == 0;
}

static json_t *number_of(const char *text) {
    char *end;
    long long whole = strtoll(text, &end, 10);
    return *text && !*end ? json_integer(whole) : json_real(strtod(text, NULL));
}

/* Entries come as lines: id, name, value, name, value, … */
static bool read_points(struct following *f) {
    char key[160], from[64], *reply = NULL, *rest, *line;
    char name[Q_METRIC_NAME_MAX + 8];
    json_t *point = NULL;
    bool any = false;
    snprintf(name, sizeof name, "m:%.64s", f->id);
    q_key(key, sizeof key, w_globals.queue, name);
    snprintf(from, sizeof from, "(%s", *f->last ? f->last : "0-0");
    const char *argv[] = {"XRANGE", key, from, "+", "COUNT", POINTS_A_LOOK};
    if (q_ctl_command(f->c, 6, argv, NULL, &reply, NULL) != Q_OK) return false;
    for (line = strtok_r(reply, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (!is_entry_id(line)) {
            char *value = strtok_r(NULL, "\n", &rest);
            if (point && value) json_object_set_new(point, line, number_of(value));
            continue;
        }
        if (point) f->t->point(point);
        json_decref(point);
        point = json_object();
        snprintf(f->last, sizeof f->last, "%s", line);
        any = true;
    }
    if (point) f->t->point(point);
    json_decref(point);
    free(reply);
    return any;
}

static void print_notes(struct following *f, json_t *notes) {
    for (; f->n_notes < json_array_size(notes); f->n_notes++) {
        w_progress_end();
        if (!w_globals.json)
            fprintf(stderr, "%s\n", json_string_value(json_array_get(notes, f->n_notes)));
    }
}

static bool on_status(void *ctx, const struct q_ctl_status *s) {
    struct following *f = ctx;
    json_t *o = s->json ? json_loads(s->json, 0, NULL) : NULL, *p = json_object_get(o, "progress");
    print_notes(f, json_object_get(p, "notes"));
    if (json_is_object(p)) {
        while (f->t->point && read_points(f)) {
        }
        json_decref(f->seen);
        f->seen = json_incref(p);
        if (f->t->progress) f->t->progress(p);
    }
    json_decref(o);
    return !interrupted;
}

static int report_end(struct following *f, const char *text) {
    json_t *e = json_loads(text, 0, NULL), *result = json_object_get(e, "result"),
           *error = json_object_get(e, "error");
    const char *state = json_string_value(json_object_get(e, "state"));
    int rc;
    while (f->t->point && read_points(f)) {
    }
    print_notes(f, json_object_get(result, "notes"));
    w_progress_end();
    if (state && strcmp(state, "done") == 0) {
        rc = f->t->done(result, e);
    } else {
        const char *message = json_string_value(json_object_get(error, "message")),
                   *code = json_string_value(json_object_get(error, "code"));
        rc = w_report(code && strcmp(code, "ref_not_found") == 0 ? W_EXIT_NOT_FOUND : W_EXIT_FAILED,
                      code ? code : "failed", NULL, "%s",
                      message ? message : "the job ended without a reason");
    }
    json_decref(e);
    return rc;
}

/* The job of our own worker is cancelled, and leaves its state. */
static int interrupt(struct following *f) {
    char *envelope = NULL;
    size_t len;
    if (w_globals.redis_given)
        return w_report(W_EXIT_INTERRUPTED, "interrupted", NULL,
                        "interrupted; the job goes on: quern wait %s, or quern cancel %s", f->id,
                        f->id);
    q_ctl_cancel(f->c, w_globals.queue, f->id);
    enum q_status rc =
        q_ctl_wait(f->c, w_globals.queue, f->id, CANCEL_WAIT_MS, NULL, NULL, &envelope, &len);
    bool done = rc == Q_OK && strstr(envelope, "\"state\":\"done\"");
    int code = W_EXIT_INTERRUPTED;
    if (done)
        code = report_end(f, envelope);
    else if (!f->t->output)
        w_report(code, "interrupted", NULL, "interrupted");
    else if (!f->seen)
        w_report(code, "interrupted", NULL, "interrupted before the first step");
    else
        w_report(code, "interrupted", "the same command goes on from there",
                 "interrupted at epoch %lld; the state is in %s",
                 json_integer_value(json_object_get(f->seen, "epoch")), f->t->output);
    free(envelope);
    return code;
}

static int follow(struct following *f) {
    char *envelope = NULL;
    size_t len;
    enum q_status rc = q_ctl_wait(f->c, w_globals.queue, f->id, 0, on_status, f, &envelope, &len);
    if (rc == Q_CLOSED && interrupted) return interrupt(f);
    if (rc != Q_OK) return w_cli_failed(q_ctl_error(f->c), f->id);
    int code = report_end(f, envelope);
    free(envelope);
    return code;
}

/* --- the job ---------------------------------------------------------------------------------- */

static char *make_job(const struct w_cli_training *t) {
    char out[PATH_MAX + 8];
    json_t *job = json_pack("{s:s, s:O, s:b, s:b, s:i}", "op", t->op, "params", t->params, "wait",
                            1, "status", 1, "progress_ms", w_globals.redis_given ? 500 : 100);
    if (t->model) json_object_set_new(job, "model", json_string(t->model));
    if (t->output) {
        snprintf(out, sizeof out, "file:%s", t->output);
        json_object_set_new(job, "output_ref", json_string(out));
    }
    if (!w_globals.redis_given) { /* the key of its checkpoints, and no waiting for better times */
        json_object_set_new(job, "id", json_string(t->op));
        json_object_set_new(job, "retry", json_integer(0));
    }
    char *text = job ? json_dumps(job, JSON_COMPACT) : NULL;
    json_decref(job);
    return text;
}

static int submit(const struct w_cli_training *t, const struct q_conn_options *conn) {
    struct q_error qe;
    char id[Q_ID_MAX + 1];
    struct following f = {.t = t, .c = q_ctl_open(conn, &qe), .id = id};
    if (!f.c) return w_cli_failed(&qe, t->op);
    char *job = make_job(t);
    int rc;
    if (!job)
        rc = w_report(W_EXIT_FAILED, "no_memory", NULL, "no memory for the job");
    else if (q_ctl_submit(f.c, w_globals.queue, job, strlen(job), 0, id) != Q_OK)
        rc = w_cli_failed(q_ctl_error(f.c), "the job");
    else if (t->no_wait)
        rc = printf(w_globals.json ? "{\"id\":\"%s\"}\n" : "%s\n", id) < 0;
    else
        rc = follow(&f);
    free(job);
    json_decref(f.seen);
    q_ctl_close(f.c);
    return rc;
}

static int run_private(const struct w_cli_training *t) {
    static const char *roots[] = {"/"}; /* nobody else can push here */
    struct w_cli_private p;
    w_cli_private_init(&p);
    p.config.files = (struct w_list){roots, 1};
    if (p.config.origin[W_KEY_lanes] == W_FROM_DEFAULT) p.config.lanes = t->lanes ? t->lanes : 1;
    if (t->threads)
        p.config.lane_threads = t->threads;
    else if (p.config.origin[W_KEY_lane_threads] == W_FROM_DEFAULT)
        p.config.lane_threads = t->lanes > 1 ? 1 : w_cpus();
    if (p.config.origin[W_KEY_beat_ms] == W_FROM_DEFAULT) p.config.beat_ms = PRIVATE_BEAT_MS;
    if (t->alias)
        p.config.models = ""; /* it is there under a name of its own */
    else if (*p.config.models)
        mkdir(p.config.models, 0755); /* what is wrong with it, the worker says */
    int rc = w_cli_private_start(&p, t->alias, t->alias != NULL);
    if (rc == W_EXIT_OK) rc = submit(t, &p.conn);
    w_cli_private_stop(&p);
    return rc;
}

int w_cli_training(const struct w_cli_training *t) {
    struct q_conn_options conn;
    struct q_error qe;
    struct sigaction sa = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    if (!w_globals.redis_given) return run_private(t);
    if (!w_redis_options(&conn, &qe)) return w_report(W_EXIT_CONFIG, "config", NULL, "%s", qe.text);
    return submit(t, &conn);
}

void w_cli_epoch(json_t *point) {
    json_t *value;
    const char *key;
    if (w_globals.json) {
        char *line = json_dumps(point, JSON_COMPACT | JSON_REAL_PRECISION(10));
        puts(line ? line : "{}");
        free(line);
    } else {
        w_progress_end();
        printf("epoch %lld:", json_integer_value(json_object_get(point, "epoch")));
        json_object_foreach(point, key, value) if (strcmp(key, "epoch"))
            printf(" %s %.5g", key, json_number_value(value));
        putchar('\n');
    }
    fflush(stdout);
}
