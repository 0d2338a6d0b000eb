/* quern pipeline apply: applies the steps of a model.json, without a model, to one file: for
 * finding out what a step makes of an input, and for comparing it with other libraries. */
#include "worker/cli/cli.h"

#include "worker/data/data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *input, *output;
static bool explain;

static struct w_option options[] = {{.name = "input",
                                     .kind = W_OPT_STRING,
                                     .dst = &input,
                                     .arg = "FILE",
                                     .help = "an image, an .npy file, or .json with a job's input"},
                                    {.name = "output",
                                     .kind = W_OPT_STRING,
                                     .dst = &output,
                                     .arg = "FILE",
                                     .help = "where the result goes, as .npy (images: [h, w, "
                                             "channels], u8) or .json; none: standard output"},
                                    {.name = "explain",
                                     .kind = W_OPT_FLAG,
                                     .dst = &explain,
                                     .help = "a line for each step: what it made"},
                                    {0}};

enum { FILE_BYTES_MAX = 1 << 30 };

static bool read_whole(const char *path, struct w_arena *arena, struct w_span *bytes,
                       struct w_error *err) {
    FILE *f = fopen(path, "rbe");
    if (!f) return w_fail(err, W_REF_NOT_FOUND, "%s cannot be opened: %m", path);
    long size = fseek(f, 0, SEEK_END) ? -1 : ftell(f);
    char *data = size >= 0 && size < FILE_BYTES_MAX ? w_arena_alloc(arena, (size_t)size) : NULL;
    bool good = data && !fseek(f, 0, SEEK_SET) && fread(data, 1, (size_t)size, f) == (size_t)size;
    fclose(f);
    *bytes = (struct w_span){data, good ? (size_t)size : 0};
    return good || w_fail(err, W_REF_FAILED, "%s cannot be read, or is larger than %d bytes", path,
                          FILE_BYTES_MAX);
}

static void print_step(void *user, int step, const char *name, const struct w_value *value) {
    char summary[400];
    (void)user;
    fprintf(stderr, "%3d %-14s %s\n", step + 1, name,
            w_value_summary(value, summary, sizeof summary));
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static bool write_result(const struct w_row *row, struct w_error *err) {
    if (!output || !ends_with(output, ".npy")) {
        FILE *f = output ? fopen(output, "wbe") : stdout;
        if (!f) return w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %m", output);
        fwrite(row->result.ptr, 1, row->result.len, f);
        fputc('\n', f);
        bool good = !fflush(f);
        if (output && fclose(f)) good = false;
        return good || w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %m",
                              output ? output : "standard output");
    }
    const struct w_value *v = &row->value;
    struct op_tensor t = v->tensor;
    if (v->type == W_IMAGE)
        t = (struct op_tensor){.dtype = OP_U8,
                               .rank = 3,
                               .dims = {v->image.h, v->image.w, v->image.channels},
                               .data = v->image.pixels};
    else if (v->type != W_TENSOR)
        return w_fail(
            err, W_UNSUPPORTED,
            "the answer is %s, which has no NPY form; an --output without .npy takes it as JSON",
            w_type_name(v->type));
    return w_npy_write(output, &t, err);
}

static bool apply(const char *steps, struct w_error *err) {
    struct w_row *row = w_row_create((size_t)2 << 30);
    struct w_arena files;
    struct w_pipeline *p = NULL;
    struct w_span json = {steps, strlen(steps)};
    struct w_value value = {.type = ends_with(input, ".json") ? W_JSON : W_BYTES};
    char *folder = strdup("."), *wrapped = NULL;
    bool good = row && folder;
    w_arena_init(&files, FILE_BYTES_MAX);
    if (*steps != '[' && *steps != '{') {
        const char *slash = strrchr(steps, '/');
        if (slash && slash != steps) free(folder), folder = strndup(steps, (size_t)(slash - steps));
        good = folder && read_whole(steps, &files, &json, err);
    } else if (*steps == '[' && asprintf(&wrapped, "{\"quern\":1,\"pipeline\":%s}", steps) >= 0) {
        json = (struct w_span){wrapped, strlen(wrapped)};
    }
    good = good && read_whole(input, &files, &value.span, err) &&
           (p = w_pipeline_parse(json.ptr, json.len, folder, NULL, err));
    if (good) {
        struct w_input in = {.kind = W_INPUT_VALUE, .value = &value};
        if (explain) row->trace = print_step;
        good = w_pipeline_before(p, row, &in, err) == W_NEXT_DONE && write_result(row, err);
    }
    w_pipeline_destroy(p);
    w_arena_finish(&files);
    w_row_destroy(row);
    free(folder);
    free(wrapped);
    return good;
}

static int run(int argc, char **argv) {
    struct w_error err = {W_NO_MEMORY, "out of memory"};
    if (argc != 1)
        return w_report(W_EXIT_USAGE, "usage", NULL,
                        "one model.json, or a list of steps as JSON, is expected");
    if (!input) return w_report(W_EXIT_USAGE, "usage", NULL, "--input FILE is missing");
    return apply(argv[0], &err) ? W_EXIT_OK
                                : w_report(W_EXIT_FAILED, err.code, NULL, "%s", err.text);
}

static const struct w_command command = {
    .name = "pipeline apply",
    .args = "MODEL.json | '[STEPS]' --input FILE [--output FILE]",
    .summary = "Apply a pipeline's steps to one file, without a model",
    .options = options,
    .run = run};
W_COMMAND(command);
