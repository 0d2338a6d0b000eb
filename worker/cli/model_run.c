/* quern model run: one run of a model on NPY files, its outputs as NPY files. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "worker/cli/model_input.h"
#include "worker/data/data.h"

#define ARENA_BYTES_MAX ((size_t)16 << 30)

static struct w_list inputs_given;
static const char *output = ".", *cpu, *models, *cache, *passes, *precision = "fp32";
static int64_t n_threads = 1;
static bool reference;
static struct w_option options[] = {
    {"input", W_OPT_LIST, &inputs_given, "NAME=FILE.npy",
     "an input; several times for several; NAME= may be left out if there is one", 0, 0},
    {"output", W_OPT_STRING, &output, "DIR", "folder for the outputs, made if it is not there (.)",
     0, 0},
    {"threads", W_OPT_INT, &n_threads, "N", "threads (1)", 1, 1024},
    {"precision", W_OPT_STRING, &precision, "P", "fp32, bf16, int8 (of a quantized model) or auto",
     0, 0},
    {"models", W_OPT_STRING, &models, "DIR", "the model store (the configured one)", 0, 0},
    {"cache", W_OPT_STRING, &cache, "DIR",
     "a folder for packed weights: the model loads without packing the next time", 0, 0},
    {"cpu", W_OPT_STRING, &cpu, "LEVEL", "generic, avx2, avx512, vnni, amx or neon", 0, 0},
    {"passes", W_OPT_STRING, &passes, "A,B,…", "only these rewriting passes; an empty list: none",
     0, 0},
    {"reference", W_OPT_FLAG, &reference, NULL, "every operator's plain form, without passes", 0,
     0},
    {0}};

static int write_output(const char *name, const struct op_tensor *t) {
    char path[4096], file[256];
    struct w_error err;
    size_t n = 0;
    for (; n < sizeof file - 1 && name[n]; n++)
        file[n] =
            strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-", name[n])
                ? name[n]
                : '_';
    file[n] = 0;
    snprintf(path, sizeof path, "%s/%s.npy", output, file);
    if (t->kind != OP_KIND_TENSOR || t->dtype == OP_STRING || t->dtype == OP_C64 ||
        t->dtype == OP_C128) {
        char text[200];
        return w_report(W_EXIT_FAILED, "unsupported", NULL,
                        "output \"%.100s\" is %s, which has no NPY form here", name,
                        op_tensor_describe(t, text, sizeof text));
    }
    if (!w_npy_write(path, t, &err)) return w_report(W_EXIT_FAILED, err.code, NULL, "%s", err.text);
    char text[200];
    printf("%s %s\n", path, op_tensor_describe(t, text, sizeof text));
    return W_EXIT_OK;
}

static int run_session(struct op_model *m, struct op_session *s, struct w_arena *arena) {
    struct op_error err = {0};
    const struct op_tensor *out;
    int n = op_model_n_inputs(m);
    struct op_tensor *in = calloc((size_t)n + 1, sizeof *in);
    int rc = in ? w__model_read_inputs(m, &inputs_given, arena, in)
                : w_report(W_EXIT_FAILED, "no_memory", NULL, "out of memory");
    if (rc == W_EXIT_OK && op_session_run(s, in, n, &out, &err) != OP_OK)
        rc = w_report(W_EXIT_FAILED, op_status_name(err.code), NULL, "%s", err.text);
    if (rc == W_EXIT_OK && mkdir(output, 0777) != 0 && errno != EEXIST)
        rc = w_report(W_EXIT_FAILED, "io", NULL, "\"%s\" cannot be made: %s", output,
                      strerror(errno));
    for (int i = 0; i < op_model_n_outputs(m) && rc == W_EXIT_OK; i++)
        rc = write_output(op_model_output(m, i)->name, &out[i]);
    free(in);
    return rc;
}

static int run(int argc, char **argv) {
    char path[4096];
    struct op_error err = {0};
    if (argc != 1)
        return w_report(W_EXIT_USAGE, "usage",
                        "quern model run M --input NAME=FILE.npy --output DIR",
                        "one model is expected");
    int found = w__model_file(argv[0], models, path, sizeof path);
    if (found != W_EXIT_OK) return found;
    precision = w__model_precision(argv[0], models, precision);
    const struct op_load_options load = {.cpu = cpu,
                                         .reference = reference,
                                         .passes = passes,
                                         .cache = cache,
                                         .precision = precision};
    const struct op_session_options how = {.n_threads = (int)n_threads};
    struct op_model *m = op_model_load(path, &load, &err);
    struct op_session *s = m ? op_session_create(m, &how, &err) : NULL;
    struct w_arena arena;
    w_arena_init(&arena, ARENA_BYTES_MAX);
    int rc = s ? run_session(m, s, &arena)
               : w_report(W_EXIT_FAILED, op_status_name(err.code), NULL, "%s", err.text);
    w_arena_finish(&arena);
    op_session_destroy(s);
    op_model_release(m);
    return rc;
}

static const struct w_command model_run = {
    .name = "model run",
    .args = "M --input NAME=FILE.npy … --output DIR",
    .summary = "Run a model once on NPY files",
    .help =
        "Writes DIR/<output name>.npy for each output; characters outside [A-Za-z0-9_.-] become _.",
    .options = options,
    .run = run,
};
W_COMMAND(model_run);
