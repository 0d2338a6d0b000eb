/* sink.c: results of a bulk job, written in parts by whoever has a range, joined in order by
 * whoever finishes last.
 *
 *   out.jsonl.parts/00000000000000004096.part      rows 4096 …, in the form of the format
 *   out.jsonl.parts/00000000000000004096.errors    of those, the ones that failed, a JSON object a
 * line
 *
 * A part is written under a name of its own and put in place by rename, so that two writers of the
 * same range (one of them lost its lease) leave one whole part. The joined file is written beside
 * the output, synced, renamed over it; then the parts go. A finaliser that dies before the rename
 * is followed by one that does all of it again; after it, by one that finds no parts and an output.
 */
#include "worker/data/sink.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern const struct w_sink_desc *const __start_quern_sinks[];
extern const struct w_sink_desc *const __stop_quern_sinks[];

static size_t n_sinks(void) {
    // cppcheck-suppress comparePointers ; both ends of one section
    return (size_t)(__stop_quern_sinks - __start_quern_sinks);
}

static const struct w_sink_desc *find(const char *name) {
    for (size_t i = 0; i < n_sinks(); i++)
        if (!strcmp(__start_quern_sinks[i]->name, name)) return __start_quern_sinks[i];
    return NULL;
}

const char *w_sink_format(const char *format, const char *path) {
    const char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');
    char extension[16] = "";
    const struct w_sink_desc *d = format ? find(format) : NULL;
    if (format) return d ? d->name : NULL;
    if (!dot || snprintf(extension, sizeof extension, " %s ", dot + 1) >= (int)sizeof extension)
        return NULL;
    for (size_t i = 0; i < n_sinks(); i++)
        if (strstr(__start_quern_sinks[i]->extensions, extension))
            return __start_quern_sinks[i]->name;
    return NULL;
}

bool w__write(FILE *f, const void *bytes, size_t n, struct w_error *err) {
    return n == 0 || fwrite(bytes, n, 1, f) == 1 ||
           w_fail(err, W_OUTPUT_FAILED, "the output cannot be written: %s", strerror(errno));
}

bool w__copy(FILE *to, FILE *from, struct w_error *err) {
    char buf[1 << 16];
    size_t n;
    while ((n = fread(buf, 1, sizeof buf, from)) > 0)
        if (!w__write(to, buf, n, err)) return false;
    return !ferror(from) ||
           w_fail(err, W_OUTPUT_FAILED, "a part cannot be read: %s", strerror(errno));
}

bool w__row_tensor(const struct w_row *row, struct op_tensor *dst, struct w_error *err) {
    if (row->value.type == W_TENSOR && row->value.tensor.dtype)
        return *dst = row->value.tensor, true;
    if (!row->n_outputs)
        return w_fail(err, W_UNSUPPORTED,
                      "the answer is %s, which is no array of numbers: write it as jsonl",
                      w_type_name(row->value.type));
    *dst = row->outputs[0];
    if (dst->rank > 0 && dst->dims[0] == 1)
        memmove(dst->dims, dst->dims + 1, (size_t)--dst->rank * sizeof *dst->dims);
    return true;
}

/* --- paths ------------------------------------------------------------------------------------ */

static bool path_of(const char *output, uint64_t first, const char *suffix, char *dst,
                    struct w_error *err) {
    return snprintf(dst, PATH_MAX, "%s.parts/%020" PRIu64 "%s", output, first, suffix) < PATH_MAX ||
           w_fail(err, W_OUTPUT_FAILED, "the path %.100s… is too long", output);
}

static FILE *create_tmp(const char *output, uint64_t first, const char *suffix, char **name,
                        struct w_error *err) {
    char path[PATH_MAX];
    if (!path_of(output, first, suffix, path, err)) return NULL;
    int fd = mkostemp(path, O_CLOEXEC);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
    if (f && (*name = strdup(path))) return f;
    w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %s", path, strerror(errno));
    if (f)
        fclose(f);
    else if (fd >= 0)
        close(fd);
    if (fd >= 0) unlink(path);
    return NULL;
}

/* Closes f with its bytes on the disk. */
static bool settle(FILE *f, const char *name, struct w_error *err) {
    bool good = !ferror(f) && !fflush(f) && !fdatasync(fileno(f));
    int why = errno;
    if (fclose(f)) good = false;
    return good || w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %s", name, strerror(why));
}

/* --- parts ------------------------------------------------------------------------------------ */

static void part_free(struct w_part *part) {
    w_arena_finish(&part->arena);
    free(part->output);
    free(part->out_tmp);
    free(part->errors_tmp);
    free(part);
}

struct w_part *w_part_open(const char *output, const char *format, uint64_t first,
                           struct w_error *err) {
    const struct w_sink_desc *desc = format ? find(format) : NULL;
    char folder[PATH_MAX];
    if (!desc)
        return w_fail(err, W_UNSUPPORTED,
                      "results cannot be written as \"%s\"; jsonl, csv and npy are known",
                      format ? format : ""),
               NULL;
    if (snprintf(folder, sizeof folder, "%s.parts", output) >= (int)sizeof folder)
        return w_fail(err, W_OUTPUT_FAILED, "the path %.100s… is too long", output), NULL;
    if (mkdir(folder, 0777) && errno != EEXIST)
        return w_fail(err, W_OUTPUT_FAILED, "%s cannot be made: %s", folder, strerror(errno)), NULL;
    struct w_part *part = calloc(1, sizeof *part);
    if (!part || !(part->output = strdup(output)))
        return free(part), w_fail(err, W_NO_MEMORY, "out of memory"), NULL;
    part->desc = desc;
    part->first = first;
    w_arena_init(&part->arena, (size_t)1 << 30);
    part->out = create_tmp(output, first, ".part.XXXXXX", &part->out_tmp, err);
    if (part->out) return part;
    part_free(part);
    return NULL;
}

bool w_part_row(struct w_part *part, const struct w_record *rec, const struct w_pipeline *p,
                const struct w_row *row, struct w_error *err) {
    w_arena_reset(&part->arena);
    if (!part->desc->row(part, rec, p, row, err)) return false;
    part->rows++;
    return true;
}

bool w_part_error(struct w_part *part, const struct w_record *rec, const struct w_error *why,
                  struct w_error *err) {
    w_arena_reset(&part->arena);
    struct w_text t = {.arena = &part->arena};
    if (!part->errors && !(part->errors = create_tmp(part->output, part->first, ".errors.XXXXXX",
                                                     &part->errors_tmp, err)))
        return false;
    w_text_printf(&t, "{\"row\":%" PRIu64, rec->row);
    if (rec->line) w_text_printf(&t, ",\"line\":%" PRIu64, rec->line);
    if (rec->name) {
        w_text_puts(&t, ",\"file\":");
        w_text_string(&t, rec->name, strlen(rec->name));
    }
    w_text_printf(&t, ",\"code\":\"%s\",\"message\":", why->code ? why->code : W_INTERNAL);
    w_text_string(&t, why->text, strlen(why->text));
    w_text_puts(&t, "}\n");
    if (t.failed) return w_fail(err, W_NO_MEMORY, "out of memory");
    part->failed++;
    return w__write(part->errors, t.ptr, t.len, err) &&
           (!part->desc->failed || part->desc->failed(part, err));
}

bool w_part_commit(struct w_part *part, struct w_error *err) {
    char path[PATH_MAX];
    FILE *out = part->out, *errors = part->errors;
    bool closed = !part->desc->close || part->desc->close(part, err);
    part->out = part->errors = NULL;
    bool good = settle(out, part->out_tmp, closed ? err : NULL) && closed;
    if (errors) good = settle(errors, part->errors_tmp, err) && good;
    if (good && errors && path_of(part->output, part->first, ".errors", path, err) &&
        rename(part->errors_tmp, path))
        good = w_fail(err, W_OUTPUT_FAILED, "%s cannot be put in place: %s", path, strerror(errno));
    /* The part itself comes last: where it is, its errors are. A part written again without errors
     * leaves none behind. */
    if (good && path_of(part->output, part->first, ".errors", path, err) && !errors) unlink(path);
    if (good && path_of(part->output, part->first, ".part", path, err) &&
        rename(part->out_tmp, path))
        good = w_fail(err, W_OUTPUT_FAILED, "%s cannot be put in place: %s", path, strerror(errno));
    if (!good)
        w_part_abort(part);
    else
        part_free(part);
    return good;
}

void w_part_abort(struct w_part *part) {
    if (!part) return;
    if (part->out) fclose(part->out);
    if (part->errors) fclose(part->errors);
    if (part->out_tmp) unlink(part->out_tmp);
    if (part->errors_tmp) unlink(part->errors_tmp);
    part_free(part);
}

/* --- joining ---------------------------------------------------------------------------------- */

static uint64_t count_lines(FILE *f) {
    uint64_t n = 0;
    for (int c; (c = getc(f)) != EOF;) n += c == '\n';
    rewind(f);
    return n;
}

static bool join_parts(struct w_join *join, const struct w_sink_desc *desc, FILE *errors,
                       const uint64_t *firsts, size_t n, struct w_sink_sum *sum,
                       struct w_error *err) {
    char path[PATH_MAX];
    for (size_t i = 0; i < n; i++) {
        if (!path_of(join->output, firsts[i], ".part", path, err)) return false;
        FILE *part = fopen(path, "rbe");
        if (!part)
            return w_fail(err, W_OUTPUT_FAILED, "the part %s is missing: %s", path,
                          strerror(errno));
        bool good = desc->join(join, part, err);
        fclose(part);
        if (!good) return w_fail_in(err, "%s: ", path);
        path_of(join->output, firsts[i], ".errors", path, err);
        if (!(part = fopen(path, "rbe"))) continue;
        sum->failed += count_lines(part);
        good = w__copy(errors, part, err);
        fclose(part);
        if (!good) return false;
    }
    return !desc->end || desc->end(join, err);
}

static void remove_parts(const char *output, const uint64_t *firsts, size_t n) {
    static const char *const suffixes[] = {".part", ".errors"};
    char path[PATH_MAX];
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < 2; k++)
            if (path_of(output, firsts[i], suffixes[k], path, NULL)) unlink(path);
    if (snprintf(path, sizeof path, "%s.parts", output) < (int)sizeof path)
        rmdir(path); /* what a lost writer left keeps it */
}

static bool already(const char *output, size_t n) {
    char path[PATH_MAX];
    struct stat st;
    return n && snprintf(path, sizeof path, "%s.parts", output) < (int)sizeof path &&
           stat(path, &st) && errno == ENOENT && !stat(output, &st);
}

bool w_sink_assemble(const char *output, const char *format, const uint64_t *firsts, size_t n,
                     struct w_sink_sum *sum, struct w_error *err) {
    const struct w_sink_desc *desc = find(format);
    char tmp[PATH_MAX], errors_tmp[PATH_MAX], errors_path[PATH_MAX];
    struct stat st;
    *sum = (struct w_sink_sum){0};
    if (!desc) return w_fail(err, W_UNSUPPORTED, "results cannot be written as \"%s\"", format);
    if (already(output, n)) return true;
    if (snprintf(tmp, sizeof tmp, "%s.tmp", output) >= (int)sizeof tmp ||
        snprintf(errors_path, sizeof errors_path, "%s.errors.jsonl", output) >=
            (int)sizeof errors_path ||
        snprintf(errors_tmp, sizeof errors_tmp, "%s.errors.jsonl.tmp", output) >=
            (int)sizeof errors_tmp)
        return w_fail(err, W_OUTPUT_FAILED, "the path %.100s… is too long", output);
    struct w_join join = {.out = fopen(tmp, "wbe"), .output = output};
    FILE *errors = fopen(errors_tmp, "wbe");
    bool good = join.out && errors;
    if (!good)
        w_fail(err, W_OUTPUT_FAILED, "%s cannot be written: %s", join.out ? errors_tmp : tmp,
               strerror(errno));
    good = good && (!desc->begin || desc->begin(&join, err)) &&
           join_parts(&join, desc, errors, firsts, n, sum, err);
    if (join.out) good = settle(join.out, tmp, good ? err : NULL) && good;
    if (errors) good = settle(errors, errors_tmp, good ? err : NULL) && good;
    free(join.line);
    if (good && (sum->failed ? rename(errors_tmp, errors_path) : unlink(errors_tmp)))
        good = w_fail(err, W_OUTPUT_FAILED, "%s: %s", errors_path, strerror(errno));
    if (good && !sum->failed) unlink(errors_path);
    if (good && rename(tmp, output))
        good =
            w_fail(err, W_OUTPUT_FAILED, "%s cannot be put in place: %s", output, strerror(errno));
    if (!good) {
        unlink(tmp);
        unlink(errors_tmp);
        return false;
    }
    sum->rows = join.rows;
    sum->bytes = stat(output, &st) ? 0 : (uint64_t)st.st_size;
    remove_parts(output, firsts, n);
    return true;
}
