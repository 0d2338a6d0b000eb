/* quern model test: runs ONNX backend cases and compares.
 *
 * A case is a folder with model.onnx and test_data_set_N/{input,output}_K.pb; any folder above is
 * searched for cases. Cases run in this process, one after the other, so a thousand take seconds;
 * with --isolate each has a process of its own, and one that crashes is a failure like any other.
 * The comparison is the ONNX backend runner's: same type, same shape, and for numbers |got -
 * expected| <= atol + rtol |expected| with NaN equal to NaN; a case's data.json may widen rtol and
 * atol. Of a case that draws random numbers only types and shapes can be compared: ONNX names no
 * generator. */
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ops/ops.h"
#include "worker/cli/cli.h"

#define REASON_MAX 600
#define SETS_MAX 1000
#define FOLDER_DEPTH_MAX 8
#define ISOLATED_S_MAX 120
#define CUT_BFLOAT_RTOL (1.0 / 128) /* one unit of bfloat16's last place */

enum verdict { PASSED, FAILED, SKIPPED, NO_CASE };

struct outcome {
    enum verdict verdict;
    char reason[REASON_MAX];
};

/* Cases whose expected values are known to be off. */
static const struct {
    const char *name;
    double rtol;
} wider[] = {
    {"test_adam_multiple",
     1e-2}, /* computed with epsilon 0.01, which its node does not say; the default is 1e-6 */
};

struct totals {
    int n[3];
};

static bool reference, isolate;
static const char *cpu;
static int64_t n_threads = 1;
static struct w_option options[] = {
    {"reference", W_OPT_FLAG, &reference, NULL, "run every operator's plain form, without passes",
     0, 0},
    {"isolate", W_OPT_FLAG, &isolate, NULL, "run each case in a process of its own", 0, 0},
    {"cpu", W_OPT_STRING, &cpu, "LEVEL", "generic, avx2, avx512, vnni, amx or neon", 0, 0},
    {"threads", W_OPT_INT, &n_threads, "N", "threads of one run (1)", 1, 1024},
    {0}};

/* --- comparing -------------------------------------------------------------------------------- */

static bool near_enough(double got, double want, double rtol, double atol) {
    if (isnan(want) || isnan(got)) return isnan(want) && isnan(got);
    if (isinf(want) || isinf(got)) return got == want;
    return fabs(got - want) <= atol + rtol * fabs(want);
}

static bool same_strings(const struct op_tensor *got, const struct op_tensor *want, int64_t n,
                         char *reason) {
    const struct op_string *a = got->data, *b = want->data;
    for (int64_t i = 0; i < n; i++)
        if (a[i].len != b[i].len || memcmp(a[i].data, b[i].data, a[i].len) != 0) {
            snprintf(reason, REASON_MAX, "element %lld is \"%.*s\", expected \"%.*s\"",
                     (long long)i, (int)(a[i].len < 60 ? a[i].len : 60), a[i].data,
                     (int)(b[i].len < 60 ? b[i].len : 60), b[i].data);
            return false;
        }
    return true;
}

static bool same_numbers(const struct op_tensor *got, const struct op_tensor *want, int64_t n,
                         double rtol, double atol, char *reason) {
    int64_t n_bad = 0, first = 0;
    double worst = 0;
    if (got->dtype == OP_C64 || got->dtype == OP_C128) n *= 2;
    for (int64_t i = 0; i < n; i++) {
        double g = op_tensor_number(got, i), w = op_tensor_number(want, i), d = fabs(g - w);
        if (near_enough(g, w, rtol, atol)) continue;
        if (!n_bad++) first = i;
        if (d > worst) worst = d;
    }
    if (n_bad)
        snprintf(reason, REASON_MAX,
                 "%lld of %lld elements differ (by at most %.3g), the first is element %lld: %.9g, "
                 "expected %.9g",
                 (long long)n_bad, (long long)n, worst, (long long)first,
                 op_tensor_number(got, first), op_tensor_number(want, first));
    return n_bad == 0;
}

/* Whether the run has drawn random numbers: told by the nodes that it executed. */
static bool was_random;

static void on_node(void *user, const char *op_type, const char *name, uint64_t ns, double flops,
                    double bytes) {
    (void)user, (void)name, (void)ns, (void)flops, (void)bytes;
    was_random |= strncmp(op_type, "Random", 6) == 0 || strcmp(op_type, "Bernoulli") == 0 ||
                  strcmp(op_type, "Multinomial") == 0;
}

static bool same_value(const struct op_tensor *got, const struct op_tensor *want, double rtol,
                       double atol, char *reason) {
    char a[200], b[200];
    op_tensor_describe(got, a, sizeof a);
    op_tensor_describe(want, b, sizeof b);
    if (got->kind != want->kind || (got->kind != OP_KIND_TENSOR && got->n_items != want->n_items)) {
        snprintf(reason, REASON_MAX, "it is a %s, expected a %s", a, b);
        return false;
    }
    if (got->kind != OP_KIND_TENSOR) {
        for (int64_t i = 0; i < got->n_items; i++)
            if (!same_value(&got->items[i], &want->items[i], rtol, atol, reason)) return false;
        return true;
    }
    if (got->dtype != want->dtype || got->rank != want->rank ||
        (got->rank && memcmp(got->dims, want->dims, (size_t)got->rank * sizeof *got->dims) != 0)) {
        snprintf(reason, REASON_MAX, "it is %s, expected %s", a, b);
        return false;
    }
    int64_t n = was_random ? 0 : op_tensor_count(got);
    return got->dtype == OP_STRING ? same_strings(got, want, n, reason)
                                   : same_numbers(got, want, n, rtol, atol, reason);
}

/* --- one case --------------------------------------------------------------------------------- */

static void say_error(struct outcome *o, const struct op_error *err) {
    o->verdict = err->code == OP_UNSUPPORTED ? SKIPPED : FAILED;
    snprintf(o->reason, sizeof o->reason, "%s%s%s",
             err->code == OP_UNSUPPORTED ? "" : op_status_name(err->code),
             err->code == OP_UNSUPPORTED ? "" : ": ", err->text);
}

static void case_tolerance(const char *folder, double *rtol, double *atol) {
    char path[4096];
    const char *slash = strrchr(folder, '/'), *name = slash ? slash + 1 : folder;
    for (size_t i = 0; i < sizeof wider / sizeof *wider; i++)
        if (strcmp(wider[i].name, name) == 0) *rtol = wider[i].rtol;
    snprintf(path, sizeof path, "%s/data.json", folder);
    json_t *o = json_load_file(path, 0, NULL);
    if (json_is_number(json_object_get(o, "rtol")))
        *rtol = json_number_value(json_object_get(o, "rtol"));
    if (json_is_number(json_object_get(o, "atol")))
        *atol = json_number_value(json_object_get(o, "atol"));
    json_decref(o);
}

/* The suites of ONNX up to 1.14 write bfloat16 values as uint16 (numpy has no such type), and got
 * them by cutting bits off, not by rounding: true where t is one of those. */
static bool read_as(struct op_tensor *t, enum op_type wanted) {
    if (t->kind != OP_KIND_TENSOR || t->dtype != OP_U16 || wanted != OP_BF16) return false;
    t->dtype = OP_BF16;
    return true;
}

static bool read_inputs(const struct op_model *m, const char *folder, struct op_tensor *in,
                        int *n_in, struct outcome *o) {
    char path[4200];
    struct op_error err = {0};
    int n = op_model_n_inputs(m);
    *n_in = 0;
    for (int i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/input_%d.pb", folder, i);
        if (access(path, F_OK) != 0) continue; /* an optional input that is left out */
        if (op_tensor_read_pb(path, op_model_input(m, i)->kind, &in[i], &err) != OP_OK) {
            say_error(o, &err);
            return false;
        }
        read_as(&in[i], op_model_input(m, i)->dtype);
        *n_in = i + 1;
    }
    return true;
}

static bool check_outputs(const struct op_model *m, const char *folder, const struct op_tensor *out,
                          double rtol, double atol, struct outcome *o) {
    char path[4200], why[REASON_MAX];
    struct op_error err = {0};
    int n_seen = 0;
    for (int i = 0; i < op_model_n_outputs(m); i++) {
        snprintf(path, sizeof path, "%s/output_%d.pb", folder, i);
        if (access(path, F_OK) != 0) continue;
        n_seen++;
        struct op_tensor want;
        if (op_tensor_read_pb(path, out[i].kind, &want, &err) != OP_OK) {
            say_error(o, &err);
            return false;
        }
        bool cut = read_as(&want, out[i].dtype);
        bool same = same_value(&out[i], &want,
                               cut && rtol < CUT_BFLOAT_RTOL ? CUT_BFLOAT_RTOL : rtol, atol, why);
        op_tensor_free(&want);
        if (same) continue;
        o->verdict = FAILED;
        snprintf(o->reason, sizeof o->reason, "output \"%.60s\": %.500s",
                 op_model_output(m, i)->name, why);
        return false;
    }
    if (!n_seen) {
        o->verdict = FAILED;
        snprintf(o->reason, sizeof o->reason, "%.300s holds no expected output", folder);
    }
    return n_seen > 0;
}

static void run_set(struct op_session *s, const struct op_model *m, const char *folder, double rtol,
                    double atol, struct outcome *o) {
    struct op_error err = {0};
    int n = op_model_n_inputs(m), n_in;
    struct op_tensor *in = calloc((size_t)n + 1, sizeof *in);
    const struct op_tensor *out;
    if (!in) {
        o->verdict = FAILED;
        snprintf(o->reason, sizeof o->reason, "out of memory");
        return;
    }
    was_random = false;
    if (read_inputs(m, folder, in, &n_in, o)) {
        if (op_session_run(s, in, n_in, &out, &err) != OP_OK)
            say_error(o, &err);
        else
            check_outputs(m, folder, out, rtol, atol, o);
    }
    for (int i = 0; i < n; i++) op_tensor_free(&in[i]);
    free(in);
}

static void run_case(const char *folder, struct outcome *o) {
    char path[4096];
    struct op_error err = {0};
    const struct op_load_options load = {.cpu = cpu, .reference = reference};
    const struct op_session_options how = {
        .n_threads = (int)n_threads,
        .any_shape = true,
        .on_node = on_node}; /* some official cases declare others than they send */
    double rtol = 1e-3, atol = 1e-7;
    *o = (struct outcome){.verdict = PASSED};
    snprintf(path, sizeof path, "%s/model.onnx", folder);
    struct op_model *m = op_model_load(path, &load, &err);
    struct op_session *s = m ? op_session_create(m, &how, &err) : NULL;
    if (!s) {
        say_error(o, &err);
        op_model_release(m);
        return;
    }
    case_tolerance(folder, &rtol, &atol);
    int n = 0;
    for (; n < SETS_MAX && o->verdict == PASSED; n++) {
        snprintf(path, sizeof path, "%s/test_data_set_%d", folder, n);
        if (access(path, F_OK) != 0) break;
        run_set(s, m, path, rtol, atol, o);
    }
    if (!n) {
        o->verdict = FAILED;
        snprintf(o->reason, sizeof o->reason, "it has no test_data_set_0");
    }
    op_session_destroy(s);
    op_model_release(m);
}

/* The same in a child; what it says comes back through a pipe. */
static void run_isolated(const char *folder, struct outcome *o) {
    int ends[2], status = 0;
    *o = (struct outcome){.verdict = FAILED, .reason = "no process for it"};
    fflush(stdout);
    if (pipe(ends) != 0) return;
    pid_t pid = fork();
    if (pid == 0) {
        alarm(ISOLATED_S_MAX);
        run_case(folder, o);
        ssize_t sent = write(ends[1], o, sizeof *o);
        _exit(sent == (ssize_t)sizeof *o ? 0 : 1);
    }
    close(ends[1]);
    if (pid > 0) {
        ssize_t got = read(ends[0], o, sizeof *o);
        waitpid(pid, &status, 0);
        if (got != (ssize_t)sizeof *o) {
            o->verdict = FAILED;
            if (WIFSIGNALED(status))
                snprintf(o->reason, sizeof o->reason, "the process ended by signal %d (%s)",
                         WTERMSIG(status), strsignal(WTERMSIG(status)));
            else
                snprintf(o->reason, sizeof o->reason, "the process ended with %d",
                         WEXITSTATUS(status));
        }
    }
    close(ends[0]);
}

/* --- finding cases, telling ------------------------------------------------------------------- */

static void tell(const char *name, const struct outcome *o) {
    static const char *const words[] = {"ok", "FAIL", "skip"};
    if (w_globals.json) {
        json_t *line = json_pack("{s:s,s:s}", "name", name, "status",
                                 o->verdict == PASSED   ? "ok"
                                 : o->verdict == FAILED ? "fail"
                                                        : "skip");
        if (line && o->verdict != PASSED)
            json_object_set_new(line, "reason", json_string(o->reason));
        char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
        if (text) puts(text);
        free(text);
        json_decref(line);
    } else if (o->verdict == PASSED)
        printf("ok %s\n", name);
    else
        printf("%s %s: %s\n", words[o->verdict], name, o->reason);
}

static bool is_case(const char *folder) {
    char path[4200];
    struct stat info;
    snprintf(path, sizeof path, "%s/model.onnx", folder);
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

static int is_folder_entry(const struct dirent *e) {
    return e->d_name[0] != '.';
}

/* Returns the number of cases found. */
static int test_folder(const char *folder, int depth, struct totals *totals) {
    if (is_case(folder)) {
        struct outcome o;
        const char *slash = strrchr(folder, '/');
        if (isolate)
            run_isolated(folder, &o);
        else
            run_case(folder, &o);
        totals->n[o.verdict]++;
        tell(slash && slash[1] ? slash + 1 : folder, &o);
        return 1;
    }
    struct dirent **entries;
    int n = depth < FOLDER_DEPTH_MAX ? scandir(folder, &entries, is_folder_entry, alphasort) : -1,
        found = 0;
    for (int i = 0; i < n; i++) {
        char path[4096];
        struct stat info;
        int w = snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name);
        if (w > 0 && (size_t)w < sizeof path && stat(path, &info) == 0 && S_ISDIR(info.st_mode))
            found += test_folder(path, depth + 1, totals);
        free(entries[i]);
    }
    if (n >= 0) free(entries);
    return found;
}

static int run(int argc, char **argv) {
    struct totals totals = {{0}};
    if (!argc)
        return w_report(W_EXIT_USAGE, "usage", "quern model test DIR…",
                        "no folder of cases is given");
    for (int i = 0; i < argc; i++) {
        size_t len = strlen(argv[i]);
        while (len > 1 && argv[i][len - 1] == '/') argv[i][--len] = 0;
        if (!test_folder(argv[i], 0, &totals))
            return w_report(W_EXIT_FAILED, "not_found", "a case is a folder with model.onnx",
                            "\"%s\" holds no case", argv[i]);
    }
    if (w_globals.json)
        printf("{\"passed\":%d,\"failed\":%d,\"skipped\":%d}\n", totals.n[PASSED], totals.n[FAILED],
               totals.n[SKIPPED]);
    else
        printf("%d passed, %d failed, %d skipped\n", totals.n[PASSED], totals.n[FAILED],
               totals.n[SKIPPED]);
    return totals.n[FAILED] ? W_EXIT_FAILED : W_EXIT_OK;
}

static const struct w_command model_test = {
    .name = "model test",
    .args = "DIR…",
    .summary = "Run ONNX backend test cases and compare",
    .help = "DIR is a case (model.onnx and test_data_set_N/) or a folder of cases. A line a case: "
            "ok, FAIL or skip (only for what is not\n"
            "supported, named); the last line counts. Exit code 1 if any failed.",
    .options = options,
    .run = run,
};
W_COMMAND(model_test);
