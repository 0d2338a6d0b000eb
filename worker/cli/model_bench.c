/* quern model bench: how fast a model runs.
 *
 * Each lane is a thread with a session of its own that runs the model again and again for the given
 * seconds. The ends of all runs, in order, are cut into windows of a tenth of the time (at least
 * one run each): the best window is what the machine can do when nobody else wants it, the median
 * what it did. Latencies are of all runs. */
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "worker/cli/model_input.h"
#include "worker/cli/profile.h"
#include "worker/cli/train.h"

#define ARENA_BYTES_MAX ((size_t)16 << 30)
#define WINDOWS 10
#define RUNS_MAX ((size_t)1 << 24) /* of one lane: 16 bytes each */
#define WARM_RUNS 2

static struct w_list inputs_given, shapes_given;
static int64_t batch = 1, n_threads = 1, n_lanes = 1;
static double seconds = 5;
static const char *cpu, *models, *cache, *precision = "fp32", *train_spec;
static bool want_profile;
static struct w_option options[] = {
    {"batch", W_OPT_INT, &batch, "B", "rows of one run (1)", 1, 1 << 20},
    {"threads", W_OPT_INT, &n_threads, "T", "threads within a run (1)", 1, 1024},
    {"lanes", W_OPT_INT, &n_lanes, "L", "independent runs at a time (1)", 1, 1024},
    {"seconds", W_OPT_DOUBLE, &seconds, "S", "how long (5)", 0.01, 86400},
    {"input", W_OPT_LIST, &inputs_given, "NAME=FILE.npy",
     "an input; random values of the model's types otherwise", 0, 0},
    {"shape", W_OPT_LIST, &shapes_given, "NAME=1x3x224x224", "the shape of a random input", 0, 0},
    {"precision", W_OPT_STRING, &precision, "P", "fp32, bf16, int8 (of a quantized model) or auto",
     0, 0},
    {"models", W_OPT_STRING, &models, "DIR", "the model store (the configured one)", 0, 0},
    {"cache", W_OPT_STRING, &cache, "DIR",
     "a folder for packed weights: the model loads without packing the next time", 0, 0},
    {"cpu", W_OPT_STRING, &cpu, "LEVEL", "generic, avx2, avx512, vnni, amx or neon", 0, 0},
    {"train", W_OPT_STRING, &train_spec, "SPEC.json",
     "measure training steps of a spec instead of a model", 0, 0},
    {"profile", W_OPT_FLAG, &want_profile, NULL, "a table of the nodes: time, GFLOP/s, share", 0,
     0},
    {0}};

struct moment {
    uint64_t end_ns, took_ns;
};

struct lane {
    pthread_t thread;
    struct op_session *session;
    const struct op_tensor *in;
    int n_in;
    struct moment *runs;
    size_t n_runs;
    struct op_error err;
    struct w_profile profile;
};

static _Atomic bool stop;
static uint64_t started_ns;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* --- lanes ------------------------------------------------------------------------------------ */

static void *lane_main(void *arg) {
    struct lane *l = arg;
    const struct op_tensor *out;
    size_t cap = 0;
    uint64_t start = now_ns();
    while (!atomic_load_explicit(&stop, memory_order_relaxed) && l->n_runs < RUNS_MAX) {
        if (op_session_run(l->session, l->in, l->n_in, &out, &l->err) != OP_OK) break;
        if (l->n_runs == cap) {
            cap = cap ? cap * 2 : 4096;
            struct moment *all = realloc(l->runs, cap * sizeof *all);
            if (!all) break;
            l->runs = all;
        }
        uint64_t end = now_ns();
        l->runs[l->n_runs++] = (struct moment){end, end - start};
        start = end;
    }
    return NULL;
}

/* Runs all lanes for the time; false and a report where one fails. */
static bool run_lanes(struct lane *lanes) {
    struct timespec rest = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    int n = 0;
    started_ns = now_ns();
    while (n < n_lanes && pthread_create(&lanes[n].thread, NULL, lane_main, &lanes[n]) == 0) n++;
    while (n == n_lanes && nanosleep(&rest, &rest) != 0) {
    }
    atomic_store(&stop, true);
    for (int i = 0; i < n; i++) pthread_join(lanes[i].thread, NULL);
    for (int i = 0; i < n_lanes; i++)
        if (i >= n || lanes[i].err.code != OP_OK || !lanes[i].n_runs) {
            w_report(W_EXIT_FAILED, op_status_name(lanes[i].err.code), NULL, "%s",
                     i >= n ? "a thread cannot be started" : lanes[i].err.text);
            return false;
        }
    return true;
}

static int by_end(const void *a, const void *b) {
    uint64_t x = ((const struct moment *)a)->end_ns, y = ((const struct moment *)b)->end_ns;
    return x < y ? -1 : x > y;
}

static int by_took(const void *a, const void *b) {
    uint64_t x = ((const struct moment *)a)->took_ns, y = ((const struct moment *)b)->took_ns;
    return x < y ? -1 : x > y;
}

static int by_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

struct result {
    double best, median, p50_ms, p99_ms;
    size_t n_runs;
};

static bool evaluate(struct lane *lanes, struct result *r) {
    *r = (struct result){0};
    for (int i = 0; i < n_lanes; i++) r->n_runs += lanes[i].n_runs;
    struct moment *all = malloc(r->n_runs * sizeof *all);
    double *rates = malloc(r->n_runs * sizeof *rates);
    if (!all || !rates) {
        free(all);
        free(rates);
        w_report(W_EXIT_FAILED, "no_memory", NULL, "out of memory");
        return false;
    }
    size_t at = 0, n_rates = 0, first = 0;
    for (int i = 0; i < n_lanes; i++) {
        memcpy(all + at, lanes[i].runs, lanes[i].n_runs * sizeof *all);
        at += lanes[i].n_runs;
    }
    qsort(all, r->n_runs, sizeof *all, by_end);
    uint64_t from = started_ns, window = (uint64_t)(seconds * 1e9 / WINDOWS);
    for (size_t i = 0; i < r->n_runs; i++) {
        if (all[i].end_ns - from < window && i - first + 1 < r->n_runs) continue;
        rates[n_rates++] =
            (double)(i - first + 1) * (double)batch * 1e9 / (double)(all[i].end_ns - from);
        from = all[i].end_ns;
        first = i + 1;
    }
    qsort(rates, n_rates, sizeof *rates, by_double);
    r->best = rates[n_rates - 1];
    r->median = rates[n_rates / 2];
    qsort(all, r->n_runs, sizeof *all, by_took);
    r->p50_ms = (double)all[r->n_runs / 2].took_ns / 1e6;
    r->p99_ms = (double)all[(r->n_runs * 99 + 99) / 100 - 1].took_ns / 1e6;
    free(all);
    free(rates);
    return true;
}

/* --- the command ------------------------------------------------------------------------------ */

static void print_result(struct op_model *m, const char *name, const struct result *r,
                         double load_ms, size_t peak, double flops) {
    struct op_model_info info;
    op_model_describe(m, &info);
    if (!w_globals.json) {
        printf("%s: %.1f items/s (median %.1f), p50 %.3f ms, p99 %.3f ms; batch %lld, %lld "
               "threads, %lld lanes, %s on %s\n",
               name, r->best, r->median, r->p50_ms, r->p99_ms, (long long)batch,
               (long long)n_threads, (long long)n_lanes, info.precision, info.isa);
        printf("load %.1f ms, %.3f GFLOP a run (%.1f GFLOP/s), %.1f MB of activations a lane, %.1f "
               "MB weights, %.1f MB packed\n",
               load_ms, flops / 1e9, flops * r->best / (double)batch / 1e9, (double)peak / 1e6,
               (double)info.weight_bytes / 1e6, (double)info.packed_bytes / 1e6);
        return;
    }
    json_t *o = json_pack(
        "{s:s,s:I,s:I,s:I,s:s,s:s,s:f,s:f,s:f,s:f,s:f,s:I,s:f,s:I,s:I,s:I}", "model", name, "batch",
        (json_int_t)batch, "threads", (json_int_t)n_threads, "lanes", (json_int_t)n_lanes,
        "precision", info.precision, "isa", info.isa, "items_per_s", r->best, "items_per_s_median",
        r->median, "p50_ms", r->p50_ms, "p99_ms", r->p99_ms, "load_ms", load_ms, "peak_bytes",
        (json_int_t)peak, "flops", flops, "runs", (json_int_t)r->n_runs, "weight_bytes",
        (json_int_t)info.weight_bytes, "packed_bytes", (json_int_t)info.packed_bytes);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    puts(text ? text : "{}");
    free(text);
    json_decref(o);
}

static int bench(struct op_model *m, struct lane *lanes, const char *name, double load_ms,
                 struct w_arena *arena) {
    int n = op_model_n_inputs(m);
    struct op_error err = {0};
    struct op_tensor *in = w_arena_array(arena, (size_t)n + 1, sizeof *in);
    if (!in) return w_report(W_EXIT_FAILED, "no_memory", NULL, "out of memory");
    memset(in, 0, ((size_t)n + 1) * sizeof *in);
    int rc = w__model_read_inputs(m, &inputs_given, arena, in);
    if (rc == W_EXIT_OK) rc = w__model_random_inputs(m, &shapes_given, batch, arena, in);
    if (rc != W_EXIT_OK) return rc;
    size_t peak = 0;
    double flops = 0;
    for (int i = 0; i < n_lanes; i++) {
        const struct op_session_options how = {.n_threads = (int)n_threads,
                                               .on_node = want_profile ? w__profile_node : NULL,
                                               .user = &lanes[i].profile};
        const struct op_tensor *out;
        lanes[i].in = in;
        lanes[i].n_in = n;
        lanes[i].session = op_session_create(m, &how, &err);
        if (!lanes[i].session)
            return w_report(W_EXIT_FAILED, op_status_name(err.code), NULL, "%s", err.text);
        for (int k = 0; k < WARM_RUNS; k++)
            if (op_session_run(lanes[i].session, in, n, &out, &err) != OP_OK)
                return w_report(W_EXIT_FAILED, op_status_name(err.code), NULL, "%s", err.text);
        lanes[i].profile.n = 0;
        /* after the runs, so that the peak knows what depends on data */
        if (op_session_plan(lanes[i].session, in, n, &peak, &flops, &err) != OP_OK)
            return w_report(W_EXIT_FAILED, op_status_name(err.code), NULL, "%s", err.text);
    }
    struct result r;
    if (!run_lanes(lanes) || !evaluate(lanes, &r)) return W_EXIT_FAILED;
    if (want_profile) w__profile_print(&lanes[0].profile, lanes[0].n_runs);
    print_result(m, name, &r, load_ms, peak, flops);
    return W_EXIT_OK;
}

static int run(int argc, char **argv) {
    char path[4096];
    struct op_error err = {0};
    if (train_spec && argc == 0)
        return w__train_bench(train_spec, (int)n_threads, seconds, want_profile);
    if (argc != 1)
        return w_report(W_EXIT_USAGE, "usage",
                        "quern model bench M --batch B --threads T --seconds S",
                        "one model is expected");
    int found = w__model_file(argv[0], models, path, sizeof path);
    if (found != W_EXIT_OK) return found;
    precision = w__model_precision(argv[0], models, precision);
    const struct op_load_options load = {.cpu = cpu, .precision = precision, .cache = cache};
    uint64_t start = now_ns();
    struct op_model *m = op_model_load(path, &load, &err);
    double load_ms = (double)(now_ns() - start) / 1e6;
    if (!m) return w_report(W_EXIT_FAILED, op_status_name(err.code), NULL, "%s", err.text);
    struct w_arena arena;
    w_arena_init(&arena, ARENA_BYTES_MAX);
    struct lane *lanes = calloc((size_t)n_lanes, sizeof *lanes);
    int rc = lanes ? bench(m, lanes, argv[0], load_ms, &arena)
                   : w_report(W_EXIT_FAILED, "no_memory", NULL, "out of memory");
    for (int i = 0; lanes && i < n_lanes; i++) {
        op_session_destroy(lanes[i].session);
        free(lanes[i].runs);
        w__profile_finish(&lanes[i].profile);
    }
    free(lanes);
    w_arena_finish(&arena);
    op_model_release(m);
    return rc;
}

static const struct w_command model_bench = {
    .name = "model bench",
    .args = "M [--batch B] [--threads T] [--lanes L] [--seconds S]",
    .summary = "Measure how fast a model runs",
    .help = "items_per_s is the best tenth of the time, items_per_s_median the median tenth; flops "
            "are of one run, peak_bytes is the memory\n"
            "that a run takes in one lane: activations and scratch.",
    .options = options,
    .run = run,
};
W_COMMAND(model_bench);
