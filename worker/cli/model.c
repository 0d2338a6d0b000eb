/* quern model list | show M | check M: what a store holds, what a model takes and gives, whether
 * its golden samples hold. `test`, `run` and `bench` are files of their own. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cli/cli.h"
#include "worker/daemon/config.h"
#include "worker/store/store.h"

static const char *models;
static bool explain;

static const char *store_folder(void) {
    return models ? models : w_config()->models;
}

static int failed(const struct w_error *err) {
    return w_report(strcmp(err->code, "unknown_model") ? W_EXIT_FAILED : W_EXIT_NOT_FOUND,
                    err->code, NULL, "%s", err->text);
}

static void print_json(json_t *o) {
    char *line = json_dumps(o, JSON_COMPACT);
    puts(line ? line : "{}");
    free(line);
    json_decref(o);
}

/* --- list ------------------------------------------------------------------------------------- */

static int run_list(int argc, char **argv) {
    struct w_listed *l;
    struct w_error err;
    size_t n;
    (void)argv;
    if (argc) return w_report(W_EXIT_USAGE, "usage", NULL, "model list takes no words");
    if (!*store_folder())
        return w_report(W_EXIT_USAGE, "usage", "--models DIR, or QUERN_MODELS",
                        "no model store is configured");
    if (!w_store_list(store_folder(), &l, &n, &err)) return failed(&err);
    if (!w_globals.json) printf("%-32s %9s  %-20s %12s\n", "MODEL", "VERSION", "LABELS", "BYTES");
    for (size_t i = 0; i < n; i++) {
        if (w_globals.json)
            print_json(json_pack("{s:s,s:I,s:s,s:I}", "model", l[i].name, "version",
                                 (json_int_t)l[i].version, "labels", l[i].labels, "bytes",
                                 (json_int_t)l[i].bytes));
        else
            printf("%-32s %9" PRId64 "  %-20s %12" PRIu64 "\n", l[i].name, l[i].version,
                   l[i].labels, l[i].bytes);
    }
    free(l);
    return W_EXIT_OK;
}

/* --- show ------------------------------------------------------------------------------------- */

/* "f32[N,3,224,224]" with the model's names for symbolic dimensions. */
static void describe_io(const struct op_io *io, char *dst, size_t n) {
    size_t at = (size_t)snprintf(dst, n, "%s%s[", io->kind == OP_KIND_SEQUENCE ? "sequence " : "",
                                 op_type_name(io->dtype));
    if (io->rank < 0) at += (size_t)snprintf(dst + at, n - at, "…");
    for (int d = 0; d < io->rank && at + 40 < n; d++) {
        if (d) dst[at++] = ',';
        if (io->dims[d] >= 0)
            at += (size_t)snprintf(dst + at, n - at, "%" PRId64, io->dims[d]);
        else
            at +=
                (size_t)snprintf(dst + at, n - at, "%.30s", io->symbols[d] ? io->symbols[d] : "?");
    }
    snprintf(dst + at, n - at, "]");
}

static json_t *io_json(const struct op_io *io) {
    char text[400];
    describe_io(io, text, sizeof text);
    return json_pack("{s:s,s:s,s:b}", "name", io->name, "type", text, "optional", io->optional);
}

static void show_json(const struct w_model *m) {
    json_t *inputs = json_array(), *outputs = json_array(), *steps = json_array();
    for (int i = 0; i < op_model_n_inputs(m->op); i++)
        json_array_append_new(inputs, io_json(op_model_input(m->op, i)));
    for (int i = 0; i < op_model_n_outputs(m->op); i++)
        json_array_append_new(outputs, io_json(op_model_output(m->op, i)));
    for (int i = 0; i < w_pipeline_n_steps(m->pipeline); i++)
        json_array_append_new(steps, json_string(w_pipeline_step_name(m->pipeline, i)));
    print_json(json_pack(
        "{s:s,s:I,s:s,s:s,s:I,s:I,s:s*,s:i,s:I,s:I,s:s,s:b,s:f,s:o,s:o,s:o,s:i}", "model", m->name,
        "version", (json_int_t)m->version, "path", m->path, "sha256", m->info.sha256, "ir_version",
        (json_int_t)m->info.ir_version, "opset", (json_int_t)m->info.opset, "producer",
        m->info.producer, "nodes", m->info.n_nodes, "weight_bytes",
        (json_int_t)m->info.weight_bytes, "packed_bytes", (json_int_t)m->info.packed_bytes, "isa",
        m->info.isa, "batchable", m->sig.batching == W_BATCH_ROWS, "load_ms", m->load_ms, "inputs",
        inputs, "outputs", outputs, "pipeline", steps, "golden", w_pipeline_n_golden(m->pipeline)));
}

static void show_text(const struct w_model *m) {
    char text[400];
    static const char *const batching[] = {"whole tensors only", "one row a run",
                                           "rows stack along the first dimension"};
    printf("%s%s%s\n  file      %s\n  sha256    %s\n  made by   %s (ir %" PRId64 ", opset %" PRId64
           "), %d nodes\n",
           m->name, m->version ? "@" : "", m->version_text, m->path, m->info.sha256,
           m->info.producer && *m->info.producer ? m->info.producer : "?", m->info.ir_version,
           m->info.opset, m->info.n_nodes);
    printf("  weights   %.2f MB, packed %.2f MB, loaded in %.0f ms for %s\n  batches   %s\n",
           (double)m->info.weight_bytes / 1e6, (double)m->info.packed_bytes / 1e6, m->load_ms,
           m->info.isa, batching[m->sig.batching]);
    for (int i = 0; i < op_model_n_inputs(m->op); i++) {
        const struct op_io *io = op_model_input(m->op, i);
        describe_io(io, text, sizeof text);
        if (!io->optional) printf("  input     %s  %s\n", io->name, text);
    }
    for (int i = 0; i < op_model_n_outputs(m->op); i++) {
        describe_io(op_model_output(m->op, i), text, sizeof text);
        printf("  output    %s  %s\n", op_model_output(m->op, i)->name, text);
    }
    if (w_pipeline_n_steps(m->pipeline)) fputs("  pipeline ", stdout);
    for (int i = 0; i < w_pipeline_n_steps(m->pipeline); i++)
        printf("%s %s", i ? " →" : "", w_pipeline_step_name(m->pipeline, i));
    if (w_pipeline_n_steps(m->pipeline))
        printf("\n  golden    %d\n", w_pipeline_n_golden(m->pipeline));
}

static struct w_model *open_model(int argc, char **argv, const char *command,
                                  const struct w_model_options *options, int *rc) {
    struct w_error err;
    if (argc != 1) {
        *rc = w_report(
            W_EXIT_USAGE, "usage", NULL,
            "%s takes one model: a name in the store, or the path of an .onnx file or model folder",
            command);
        return NULL;
    }
    struct w_model *m = w_model_open(argv[0], store_folder(), options, &err);
    *rc = m ? W_EXIT_OK : failed(&err);
    return m;
}

static int run_show(int argc, char **argv) {
    int rc;
    struct w_model *m =
        open_model(argc, argv, "model show", &(struct w_model_options){.no_golden = true}, &rc);
    if (!m) return rc;
    if (w_globals.json)
        show_json(m);
    else
        show_text(m);
    w_model_release(m);
    return rc;
}

/* --- check ------------------------------------------------------------------------------------ */

struct runner {
    const struct w_model *m;
    struct op_session *session;
};

static bool run_once(void *user, const struct op_tensor *inputs, int n_inputs,
                     const struct op_tensor **outputs, int *n_outputs, struct w_error *err) {
    struct runner *r = user;
    struct op_error op;
    if (op_session_run(r->session, inputs, n_inputs, outputs, &op) != OP_OK)
        return w_fail_op(err, &op, r->m->name);
    *n_outputs = op_model_n_outputs(r->m->op);
    return true;
}

static void print_step(void *user, int step, const char *name, const struct w_value *value) {
    char text[300];
    (void)user;
    printf("    %2d %-14s %s\n", step + 1, step < 0 ? "input" : name,
           w_value_summary(value, text, sizeof text));
}

static int run_check(int argc, char **argv) {
    int rc, n_failed = 0;
    struct op_error op;
    struct w_error err;
    struct w_model *m =
        open_model(argc, argv, "model check", &(struct w_model_options){.no_golden = true}, &rc);
    if (!m) return rc;
    struct runner r = {.m = m, .session = op_session_create(m->op, NULL, &op)};
    if (!r.session) {
        rc = w_report(W_EXIT_FAILED, "bad_model", NULL, "%s", op.text);
        w_model_release(m);
        return rc;
    }
    int n = w_pipeline_n_golden(m->pipeline);
    for (int i = 0; i < n; i++) {
        const char *name = w_pipeline_golden_name(m->pipeline, i);
        if (explain && !w_globals.json) printf("golden %d, %s:\n", i + 1, name);
        bool good = w_pipeline_golden(m->pipeline, i, run_once, &r,
                                      explain && !w_globals.json ? print_step : NULL, NULL, &err);
        n_failed += !good;
        if (w_globals.json)
            print_json(json_pack("{s:i,s:s,s:b,s:s*}", "golden", i + 1, "input", name, "ok", good,
                                 "message", good ? NULL : err.text));
        else
            printf("%s golden %d, %s%s%s\n", good ? "ok  " : "FAIL", i + 1, name, good ? "" : ": ",
                   good ? "" : err.text);
    }
    if (!w_globals.json)
        printf("%s loads; %d of %d golden samples hold\n", m->name, n - n_failed, n);
    op_session_destroy(r.session);
    w_model_release(m);
    return n_failed ? W_EXIT_FAILED : W_EXIT_OK;
}

static struct w_option store_options[] = {
    {"models", W_OPT_STRING, &models, "DIR", "the model store", 0, 0}, {0}};
static struct w_option check_options[] = {
    {"models", W_OPT_STRING, &models, "DIR", "the model store", 0, 0},
    {"explain", W_OPT_FLAG, &explain, NULL,
     "print what each step of the pipeline makes of each golden sample", 0, 0},
    {0},
};
static const struct w_command list_command = {
    .name = "model list",
    .args = "[--models DIR]",
    .summary = "List the models of a store with their versions and labels",
    .options = store_options,
    .run = run_list};
static const struct w_command show_command = {
    .name = "model show",
    .args = "M",
    .summary = "Say what a model takes and gives, how it batches, what its pipeline does",
    .options = store_options,
    .run = run_show};
static const struct w_command check_command = {
    .name = "model check",
    .args = "M [--explain]",
    .summary = "Load a model and its pipeline and run its golden samples",
    .options = check_options,
    .run = run_check};
W_COMMAND(list_command);
W_COMMAND(show_command);
W_COMMAND(check_command);
