/* Settings from defaults, files, environment and options into one struct. How it works: a key is a
 * row of W_CONFIG_MAP; rows[] holds its offset in struct w_config, so that one setter serves every
 * source. Values arrive as text (environment, options) or JSON (files); both end in set_text() or
 * set_list(), which check type and range. A file is read with jansson; the line of a bad key is
 * found again in the text, since jansson keeps no lines for values. Runs on the main thread before
 * anything else starts. */
#include "worker/daemon/config.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/daemon/log.h"
#include "worker/nearest.h"

#define FILE_BYTES_MAX (1 << 20)

enum type { STRING, PATH, ENUM, INT, BOOL, LIST };

static const struct row {
    const char *key;
    enum type type;
    const char *dflt;
    int64_t min, max;
    const char *unit;
    unsigned flags;
    const char *help;
    size_t offset;
} rows[] = {
#define X(k, t, d, lo, hi, u, f, h) {#k, t, d, lo, hi, u, f, h, offsetof(struct w_config, k)},
    W_CONFIG_MAP(X)
#undef X
};

static struct w_config the_config;

const struct w_config *w_config(void) {
    return &the_config;
}

static const char *row_name(void *user, size_t i) {
    (void)user;
    return i < W_N_KEYS ? rows[i].key : NULL;
}

static char *keep(struct w_config *c, const char *text, size_t len) {
    char **grown = realloc(c->strings, (c->n_strings + 1) * sizeof *grown);
    char *copy = malloc(len + 1);
    if (!grown || !copy) abort(); /* before the worker starts: nothing to save */
    memcpy(copy, text, len);
    copy[len] = 0;
    c->strings = grown;
    c->strings[c->n_strings++] = copy;
    return copy;
}

static int fail(char *err, size_t err_bytes, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(err, err_bytes, format, args);
    va_end(args);
    return -1;
}

/* --- setting one value ------------------------------------------------------------------------ */

static int parse_int(const struct row *r, const char *text, int64_t *dst, char *err,
                     size_t err_bytes) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno)
        return fail(err, err_bytes,
                    "%s is \"%.60s\", a whole number from %" PRId64 " to %" PRId64
                    " (%s) is expected",
                    r->key, text, r->min, r->max, r->unit);
    if (v < r->min || v > r->max)
        return fail(err, err_bytes, "%s is %lld, allowed are %" PRId64 " to %" PRId64 " (%s)",
                    r->key, v, r->min, r->max, r->unit);
    *dst = v;
    return 0;
}

static bool is_choice(const char *choices, const char *text) {
    size_t n = strlen(text);
    for (const char *p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (strncmp(p, text, n) == 0 && (p[n] == 0 || p[n] == '|')) return n > 0;
    return false;
}

static void append(struct w_config *c, struct w_list *list, const char *text, size_t len) {
    const char **grown = realloc(list->items, (list->n + 1) * sizeof *grown);
    if (!grown) abort();
    list->items = grown;
    list->items[list->n++] = keep(c, text, len);
}

/* Adds the comma-separated words of text. */
static void append_words(struct w_config *c, struct w_list *list, const char *text) {
    while (*text) {
        size_t n = strcspn(text, ",");
        if (n) append(c, list, text, n);
        text += n + (text[n] == ',');
    }
}

static int set_text(struct w_config *c, const struct row *r, const char *text, char *err,
                    size_t err_bytes) {
    char *at = (char *)c + r->offset;
    switch (r->type) {
    case STRING:
    case PATH:
        *(const char **)(void *)at = keep(c, text, strlen(text));
        return 0;
    case ENUM:
        if (!is_choice(r->unit, text))
            return fail(err, err_bytes, "%s is \"%.60s\", allowed are %s", r->key, text, r->unit);
        *(const char **)(void *)at = keep(c, text, strlen(text));
        return 0;
    case INT:
        return parse_int(r, text, (int64_t *)(void *)at, err, err_bytes);
    case BOOL:
        if (strcmp(text, "true") && strcmp(text, "false") && strcmp(text, "1") && strcmp(text, "0"))
            return fail(err, err_bytes, "%s is \"%.60s\", allowed are true and false", r->key,
                        text);
        *(bool *)at = text[0] == 't' || text[0] == '1';
        return 0;
    case LIST: {
        struct w_list *list = (struct w_list *)(void *)at;
        list->n = 0;
        append_words(c, list, text);
        return 0;
    }
    }
    return -1;
}

static int set_json(struct w_config *c, const struct row *r, json_t *v, char *err,
                    size_t err_bytes) {
    char text[64];
    if (json_is_string(v) && r->type != INT && r->type != BOOL && r->type != LIST)
        return set_text(c, r, json_string_value(v), err, err_bytes);
    if (json_is_integer(v) && r->type == INT) {
        snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        return set_text(c, r, text, err, err_bytes);
    }
    if (json_is_boolean(v) && r->type == BOOL)
        return set_text(c, r, json_is_true(v) ? "true" : "false", err, err_bytes);
    if (json_is_array(v) && r->type == LIST) {
        struct w_list *list = (struct w_list *)(void *)((char *)c + r->offset);
        list->n = 0;
        size_t i;
        json_t *item;
        json_array_foreach(v, i, item) {
            if (!json_is_string(item))
                return fail(err, err_bytes, "%s[%zu] must be a string", r->key, i);
            append(c, list, json_string_value(item), strlen(json_string_value(item)));
        }
        return 0;
    }
    static const char *const expected[] = {"a string",      "a string",
                                           "a string",      "a whole number",
                                           "true or false", "an array of strings"};
    static const char *const found[] = {
        "an object", "an array", "a string", "a whole number", "a number with a fraction",
        "true",      "false",    "null"};
    return fail(err, err_bytes, "%s is %s, %s is expected", r->key, found[json_typeof(v)],
                expected[r->type]);
}

/* --- files ------------------------------------------------------------------------------------ */

/* The line of `"key"` in text, for messages. */
static int line_of(const char *text, const char *key) {
    char quoted[80];
    snprintf(quoted, sizeof quoted, "\"%.70s\"", key);
    const char *at = strstr(text, quoted);
    int line = 1;
    for (const char *p = text; at && p < at; p++) line += *p == '\n';
    return line;
}

static char *read_whole(const char *path, char *err, size_t err_bytes) {
    FILE *f = fopen(path, "re");
    char *text = f ? malloc(FILE_BYTES_MAX + 1) : NULL;
    size_t n = text ? fread(text, 1, FILE_BYTES_MAX + 1, f) : 0;
    int failed = !f || !text || ferror(f);
    if (failed)
        fail(err, err_bytes, "%s: %s", path, strerror(errno));
    else if (n > FILE_BYTES_MAX)
        failed = 1, fail(err, err_bytes, "%s: larger than %d bytes", path, FILE_BYTES_MAX);
    if (f) fclose(f);
    if (failed) {
        free(text);
        return NULL;
    }
    text[n] = 0;
    return text;
}

static int load_file(struct w_config *c, const char *path, char *err, size_t err_bytes) {
    json_error_t je;
    char *text = read_whole(path, err, err_bytes), what[300];
    if (!text) return -1;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &je);
    int rc = 0;
    if (!root)
        rc = fail(err, err_bytes, "%s:%d: not JSON: %s", path, je.line, je.text);
    else if (!json_is_object(root))
        rc = fail(err, err_bytes, "%s:1: an object of settings is expected", path);
    const char *key;
    json_t *value, *object = root;
    if (rc == 0) json_object_foreach(object, key, value) {
            size_t i = 0;
            if (key[0] == '$' || key[0] == '#') continue; /* "$schema", "#" comments */
            while (i < W_N_KEYS && strcmp(rows[i].key, key)) i++;
            if (i == W_N_KEYS) {
                const char *near = w__nearest(key, row_name, NULL);
                rc = fail(err, err_bytes, "%s:%d: unknown key \"%.70s\"%s%s%s", path,
                          line_of(text, key), key, near ? "; did you mean \"" : "",
                          near ? near : "", near ? "\"?" : "");
            } else if (set_json(c, &rows[i], value, what, sizeof what) != 0) {
                rc = fail(err, err_bytes, "%s:%d: %s", path, line_of(text, key), what);
            } else {
                c->origin[i] = W_FROM_FILE;
                c->origin_file[i] = keep(c, path, strlen(path));
            }
            if (rc) break;
        }
    json_decref(root);
    free(text);
    return rc;
}

/* --- environment and options ------------------------------------------------------------------ */

static int load_environment(struct w_config *c, char *err, size_t err_bytes) {
    char name[80], what[300];
    for (size_t i = 0; i < W_N_KEYS; i++) {
        size_t n = (size_t)snprintf(name, sizeof name, "QUERN_%s", rows[i].key);
        for (size_t j = 0; j < n; j++)
            if (name[j] >= 'a' && name[j] <= 'z') name[j] = (char)(name[j] - 32);
        const char *text = getenv(name);
        if (!text || !*text) continue;
        if (set_text(c, &rows[i], text, what, sizeof what))
            return fail(err, err_bytes, "environment variable %s: %s", name, what);
        c->origin[i] = W_FROM_ENVIRONMENT;
    }
    return 0;
}

/* Whether arg is --key or --key=value of row r; *value: behind the '='. */
static bool is_option(const struct row *r, const char *arg, const char **value) {
    if (strncmp(arg, "--", 2)) return false;
    arg += 2;
    const char *k = r->key;
    for (; *k; k++, arg++)
        if (*arg != (*k == '_' ? '-' : *k)) return false;
    *value = *arg == '=' ? arg + 1 : NULL;
    return *arg == 0 || *arg == '=';
}

static int take_option(struct w_config *c, size_t i, const char *value, char *err,
                       size_t err_bytes) {
    char what[300];
    if (rows[i].type == LIST && c->origin[i] == W_FROM_OPTION)
        append_words(c, (struct w_list *)(void *)((char *)c + rows[i].offset), value);
    else if (set_text(c, &rows[i], value, what, sizeof what))
        return fail(err, err_bytes, "--%s: %s", rows[i].key, what);
    c->origin[i] = W_FROM_OPTION;
    return 0;
}

/* A password on the command line can be read by every user of the machine: say so, and wipe it. */
static void hide_password(char *value) {
    char *scheme = strstr(value, "://"), *at = scheme ? strrchr(scheme + 3, '@') : NULL;
    char *colon = at ? memchr(scheme + 3, ':', (size_t)(at - scheme - 3)) : NULL;
    if (!colon || colon + 1 == at) return;
    w_log(W_WARN, "password_in_argv",
          "advice=\"use redis_password_file, QUERN_REDIS or a credential instead\"");
    memset(colon + 1, '*', (size_t)(at - colon - 1));
}

static int load_options(struct w_config *c, int *argc, char **argv, bool all, char *err,
                        size_t err_bytes) {
    int kept = 0, n = *argc, rc = 0;
    bool only_words = false;
    for (int a = 0; a < n && rc == 0; a++) {
        size_t i = 0;
        const char *value = NULL;
        only_words |= strcmp(argv[a], "--") == 0;
        while (i < W_N_KEYS && (only_words || !(all || rows[i].flags & W_CONFIG_G) ||
                                !is_option(&rows[i], argv[a], &value)))
            i++;
        if (i == W_N_KEYS) {
            argv[kept++] = argv[a];
            continue;
        }
        char *given = value ? argv[a] + (value - argv[a]) : a + 1 < n ? argv[++a] : NULL;
        if (!given && rows[i].type == BOOL) given = (char[]){"true"};
        if (!given)
            return fail(err, err_bytes, "--%s needs a value (%s)", rows[i].key, rows[i].unit);
        rc = take_option(c, i, given, err, err_bytes);
        if (rows[i].flags & W_CONFIG_SECRET) hide_password(given);
    }
    *argc = kept;
    return rc;
}

/* --- the whole -------------------------------------------------------------------------------- */

static int load_known_file(struct w_config *c, const char *path, char *err, size_t err_bytes) {
    return access(path, F_OK) == 0 ? load_file(c, path, err, err_bytes) : 0;
}

static void set_defaults(struct w_config *dst) {
    char ignored[64];
    memset(dst, 0, sizeof *dst);
    for (size_t i = 0; i < W_N_KEYS; i++)
        set_text(dst, &rows[i], rows[i].dflt, ignored, sizeof ignored);
}

int w_config_load(struct w_config *dst, const char *config_file, int *argc, char **argv, bool all,
                  char *err, size_t err_bytes) {
    char path[4096];
    set_defaults(dst);
    const char *xdg = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    if (xdg && *xdg)
        snprintf(path, sizeof path, "%s/quern/worker.json", xdg);
    else
        snprintf(path, sizeof path, "%s/.config/quern/worker.json",
                 home && *home ? home : "/nonexistent");
    if (load_known_file(dst, "/etc/quern/worker.json", err, err_bytes) ||
        load_known_file(dst, path, err, err_bytes))
        return W_EXIT_CONFIG;
    if (config_file && load_file(dst, config_file, err, err_bytes)) return W_EXIT_CONFIG;
    if (config_file) dst->config_file = keep(dst, config_file, strlen(config_file));
    if (load_environment(dst, err, err_bytes)) return W_EXIT_CONFIG;
    if (load_options(dst, argc, argv, all, err, err_bytes)) return W_EXIT_USAGE;
    return W_EXIT_OK;
}

void w_config_finish(struct w_config *c) {
    for (size_t i = 0; i < c->n_strings; i++) free(c->strings[i]);
    for (size_t i = 0; i < W_N_KEYS; i++)
        if (rows[i].type == LIST)
            free(((struct w_list *)(void *)((char *)c + rows[i].offset))->items);
    free(c->strings);
    memset(c, 0, sizeof *c);
}

static bool same_value(const struct row *r, const struct w_config *a, const struct w_config *b) {
    const void *x = (const char *)a + r->offset, *y = (const char *)b + r->offset;
    if (r->type == INT) return *(const int64_t *)x == *(const int64_t *)y;
    if (r->type == BOOL) return *(const bool *)x == *(const bool *)y;
    if (r->type != LIST) return strcmp(*(const char *const *)x, *(const char *const *)y) == 0;
    const struct w_list *l = x, *m = y;
    for (size_t i = 0; i < l->n && i < m->n; i++)
        if (strcmp(l->items[i], m->items[i]) != 0) return false;
    return l->n == m->n;
}

int w_config_reload(const struct w_config *now, struct w_config *fresh,
                    void (*say)(void *ctx, const char *key, bool reloads), void *ctx, char *err,
                    size_t err_bytes) {
    char *no_arguments[1] = {NULL};
    int argc = 0,
        rc = w_config_load(fresh, now->config_file, &argc, no_arguments, true, err, err_bytes);
    if (rc) return rc;
    for (size_t i = 0; i < W_N_KEYS; i++) {
        const struct row *r = &rows[i];
        void *to = (char *)fresh + r->offset;
        const void *from = (const char *)now + r->offset;
        if (now->origin[i] != W_FROM_OPTION) {
            if (!same_value(r, now, fresh)) say(ctx, r->key, (r->flags & W_CONFIG_R) != 0);
            continue;
        }
        fresh->origin[i] = W_FROM_OPTION;
        if (r->type == INT)
            *(int64_t *)to = *(const int64_t *)from;
        else if (r->type == BOOL)
            *(bool *)to = *(const bool *)from;
        else if (r->type != LIST)
            *(const char **)to =
                keep(fresh, *(const char *const *)from, strlen(*(const char *const *)from));
    }
    return W_EXIT_OK;
}

/* --- printing --------------------------------------------------------------------------------- */

static json_t *value_json(const struct w_config *c, const struct row *r) {
    const char *at = (const char *)c + r->offset;
    char url[1024];
    if (r->type == INT) return json_integer(*(const int64_t *)(const void *)at);
    if (r->type == BOOL) return json_boolean(*(const bool *)at);
    if (r->type == LIST) {
        const struct w_list *list = (const struct w_list *)(const void *)at;
        json_t *array = json_array();
        for (size_t i = 0; i < list->n; i++)
            json_array_append_new(array, json_string(list->items[i]));
        return array;
    }
    const char *text = *(const char *const *)(const void *)at;
    return json_string(r->flags & W_CONFIG_SECRET ? w_log_url(text, url, sizeof url) : text);
}

void w_config_dump(const struct w_config *c, FILE *to) {
    json_t *root = json_object();
    for (size_t i = 0; i < W_N_KEYS; i++)
        json_object_set_new(root, rows[i].key, value_json(c, &rows[i]));
    json_dumpf(root, to, JSON_INDENT(2));
    fputc('\n', to);
    json_decref(root);
}

void w_config_dump_defaults(FILE *to) {
    struct w_config c;
    set_defaults(&c);
    w_config_dump(&c, to);
    w_config_finish(&c);
}

void w_config_show_origin(const struct w_config *c, FILE *to) {
    static const char *const names[] = {"default", "file", "environment", "option"};
    for (size_t i = 0; i < W_N_KEYS; i++) {
        json_t *v = value_json(c, &rows[i]);
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        fprintf(to, "%-20s %-32s %s\n", rows[i].key, text ? text : "",
                c->origin[i] == W_FROM_FILE ? c->origin_file[i] : names[c->origin[i]]);
        free(text);
        json_decref(v);
    }
}

/* The word after an option in its help: the unit (THREADS, MS) in capitals, an enumeration's
 * choices as they are. */
static void print_option_value(const struct row *r, FILE *to) {
    if (r->type == BOOL) return;
    if (r->type == ENUM)
        fputs(r->unit, to);
    else
        for (const char *u = *r->unit ? r->unit : "TEXT"; *u; u++)
            fputc(*u >= 'a' && *u <= 'z' ? *u - 32 : *u, to);
}

static void print_option_name(const char *key, FILE *to) {
    for (; *key; key++) fputc(*key == '_' ? '-' : *key, to);
}

void w_config_help(bool all, FILE *to) {
    for (size_t i = 0; i < W_N_KEYS; i++) {
        const struct row *r = &rows[i];
        if (!all && !(r->flags & W_CONFIG_G)) continue;
        fputs("  --", to);
        print_option_name(r->key, to);
        fputc(' ', to);
        print_option_value(r, to);
        fprintf(to, "\n        %s", r->help);
        if (*r->dflt) fprintf(to, " [%s]", r->dflt);
        fputc('\n', to);
    }
}

void w_config_man(FILE *to) {
    for (size_t i = 0; i < W_N_KEYS; i++) {
        fputs(".TP\n\\fB\\-\\-", to);
        for (const char *k = rows[i].key; *k; k++) *k == '_' ? fputs("\\-", to) : fputc(*k, to);
        fputs("\\fR ", to);
        print_option_value(&rows[i], to);
        fprintf(to, "\n%s", rows[i].help);
        if (*rows[i].dflt) fprintf(to, " [%s]", rows[i].dflt);
        fputc('\n', to);
    }
}

void w_config_reference(FILE *to) {
    static const char *const types[] = {"string",  "path",    "one of",
                                        "integer", "boolean", "list of strings"};
    fputs("# Settings\n\nMade by `quern config reference` from the table in "
          "`worker/daemon/config.h`. Precedence: option, environment, `--config FILE`,\n"
          "`$XDG_CONFIG_HOME/quern/worker.json`, `/etc/quern/worker.json`, default.\n\n"
          "| key | option | environment | type | default | range | SIGHUP | meaning |\n| --- | --- "
          "| --- | --- | --- | --- | --- | --- |\n",
          to);
    for (size_t i = 0; i < W_N_KEYS; i++) {
        const struct row *r = &rows[i];
        fprintf(to, "| `%s` | `--", r->key);
        print_option_name(r->key, to);
        fputs("` | `QUERN_", to);
        for (const char *k = r->key; *k; k++) fputc(*k >= 'a' && *k <= 'z' ? *k - 32 : *k, to);
        fprintf(to, "` | %s | `%s` | ", types[r->type], r->dflt);
        if (r->type == INT) fprintf(to, "%" PRId64 " to %" PRId64 " %s", r->min, r->max, r->unit);
        for (const char *u = r->type == ENUM ? r->unit : ""; *u; u++)
            *u == '|' ? fputs(", ", to) : fputc(*u, to);
        fprintf(to, " | %s | %s |\n",
                r->flags & W_CONFIG_R   ? "reloads"
                : r->flags & W_CONFIG_W ? "restart"
                                        : "",
                r->help);
    }
}

/* For w_main, which fills the one instance once. */

struct w_config *w__config_instance(void) {
    return &the_config;
}
