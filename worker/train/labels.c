/* labels.c: what the name of a file says of it. Without a pattern the label is the first folder on
 * the way to it; with "label_pattern": "{label}_{speaker}_{n}.wav" the fields are cut out of the
 * file's own name, and "only" and "except" ({"n": [0, 1]}) choose by them: so a split that others
 * have published is written down in the spec. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "worker/train/train.h"

#define FIELDS_MAX 16

struct field {
    struct w_span name, value;
};

/* Cuts the name by the pattern; the number of fields, −1 where it does not fit. */
static int cut(const char *pattern, const char *name, struct field *fields) {
    int n = 0;
    while (*pattern) {
        if (*pattern != '{') {
            if (*pattern++ != *name++) return -1;
            continue;
        }
        const char *close = strchr(pattern, '}');
        if (!close || n == FIELDS_MAX) return -1;
        const char *after = close + 1;
        size_t literal = strcspn(after, "{");
        const char *end = name + strlen(name);
        if (literal) /* the last field before the end takes all of it */
            for (end = name; *end && strncmp(end, after, literal); end++) {}
        if (literal && !*end) return -1;
        fields[n++] = (struct field){{pattern + 1, (size_t)(close - pattern - 1)},
                                     {name, (size_t)(end - name)}};
        name = end;
        pattern = after;
    }
    return *name ? -1 : n;
}

static const struct field *find(const struct field *fields, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (fields[i].name.len == strlen(name) && !memcmp(fields[i].name.ptr, name, strlen(name)))
            return &fields[i];
    return NULL;
}

static bool is_one_of(json_t *list, struct w_span value) {
    size_t i, n = json_is_array(list) ? json_array_size(list) : 1;
    for (i = 0; i < n; i++) {
        json_t *item = json_is_array(list) ? json_array_get(list, i) : list;
        char number[32];
        const char *text = json_string_value(item);
        if (json_is_integer(item)) {
            snprintf(number, sizeof number, "%lld", (long long)json_integer_value(item));
            text = number;
        }
        if (text && strlen(text) == value.len && !memcmp(text, value.ptr, value.len)) return true;
    }
    return false;
}

/* Whether the fields pass "only" and "except"; −1 with err. */
static int chosen(const struct w_table *t, const struct field *fields, int n, struct w_error *err) {
    static const char *const keys[] = {"only", "except"};
    for (int k = 0; k < 2; k++) {
        json_t *rule = json_object_get(t->json, keys[k]), *list;
        const char *name;
        if (rule && !json_is_object(rule))
            return w_fail(err, W_BAD_SPEC, "%s.%s must be {field: [values]}", t->where, keys[k]), -1;
        json_object_foreach(rule, name, list) {
            const struct field *f = find(fields, n, name);
            if (!f)
                return w_fail(err, W_BAD_SPEC, "%s.%s: label_pattern has no field \"%.40s\"", t->where,
                              keys[k], name),
                       -1;
            if (is_one_of(list, f->value) != (k == 0)) return 0;
        }
    }
    return 1;
}

int w__train_label(const struct w_table *t, const char *name, struct w_words *words,
                   struct w_error *err) {
    json_t *json = json_object_get(t->json, "label_pattern");
    const char *pattern = json_string_value(json), *slash = strrchr(name, '/');
    struct field fields[FIELDS_MAX];
    if (json && !pattern)
        return w_fail(err, W_BAD_SPEC, "%s.label_pattern must be such as \"{label}_{n}.wav\"", t->where),
               -1;
    if (!pattern) {
        slash = strchr(name, '/');
        if (slash) return w__train_words_add(words, name, (size_t)(slash - name), err) ? 1 : -1;
        return w_fail(err, W_BAD_INPUT,
                      "%s (%s): %.100s lies in no folder that would be its label; a name that holds "
                      "it wants \"label_pattern\"",
                      t->where, t->path, name),
               -1;
    }
    int n = cut(pattern, slash ? slash + 1 : name, fields);
    const struct field *label = n < 0 ? NULL : find(fields, n, "label");
    if (!label)
        return w_fail(err, W_BAD_INPUT, "%s (%s): the name %.100s does not fit \"%.60s\"%s", t->where,
                      t->path, name, pattern, n < 0 ? "" : ", which has no {label}"),
               -1;
    int take = chosen(t, fields, n, err);
    if (take < 1) return take;
    return w__train_words_add(words, label->value.ptr, label->value.len, err) ? 1 : -1;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

bool w__train_no_folder_is_empty(const struct w_table *t, const char *folder,
                                 const struct w_words *words, struct w_error *err) {
    if (json_object_get(t->json, "label_pattern")) return true;
    char **sorted = malloc((size_t)(words->n + 1) * sizeof *sorted);
    DIR *d = sorted ? opendir(folder) : NULL;
    bool ok = d || w_fail(err, W_NO_MEMORY, "no memory to look through %s", t->path);
    if (ok) memcpy(sorted, words->items, (size_t)words->n * sizeof *sorted);
    if (ok) qsort(sorted, (size_t)words->n, sizeof *sorted, by_name);
    for (struct dirent *e; ok && (e = readdir(d));) {
        struct stat st;
        const char *name = e->d_name;
        if (*name == '.' || fstatat(dirfd(d), name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISDIR(st.st_mode))
            continue;
        if (!bsearch(&name, sorted, (size_t)words->n, sizeof *sorted, by_name))
            ok = w_fail(err, W_BAD_INPUT, "%s: the folder \"%.100s\" of a class holds no row",
                        t->path, name);
    }
    if (d) closedir(d);
    free(sorted);
    return ok;
}
