/* The command line: takes the global options out, loads the configuration, finds the subcommand,
 * parses its options, runs it. Subcommands register themselves (cli.h). */
#include <inttypes.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "queue/queue.h"
#include "ops/ops.h"
#include "worker/cli/cli.h"
#include "worker/daemon/config.h"
#include "worker/nearest.h"

extern const struct w_command *const __start_quern_commands[], *const __stop_quern_commands[];

struct w_globals w_globals;

static size_t n_commands(void) {
    // cppcheck-suppress comparePointers ; both ends of one section
    return (size_t)(__stop_quern_commands - __start_quern_commands);
}

static const char *command_name(void *user, size_t i) {
    (void)user;
    return i < n_commands() ? __start_quern_commands[i]->name : NULL;
}

/* The command that argv begins with; *n_words: of its name. Two words go before one. */
static const struct w_command *find(int argc, char **argv, int *n_words) {
    char two[80];
    for (*n_words = argc > 1 ? 2 : 1; *n_words > 0; --*n_words) {
        snprintf(two, sizeof two, *n_words == 2 ? "%s %s" : "%s", argv[0], argc > 1 ? argv[1] : "");
        for (size_t i = 0; i < n_commands(); i++)
            if (strcmp(__start_quern_commands[i]->name, two) == 0) return __start_quern_commands[i];
    }
    return NULL;
}

/* --- help ------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp((*(const struct w_command *const *)a)->name,
                  (*(const struct w_command *const *)b)->name);
}

/* Lists the commands that begin with prefix. */
static size_t list_commands(const char *prefix, FILE *to) {
    size_t n = n_commands(), shown = 0;
    const struct w_command **sorted = malloc((n + 1) * sizeof *sorted);
    if (!sorted) return 0;
    memcpy(sorted, __start_quern_commands, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, by_name);
    for (size_t i = 0; i < n; i++) {
        if (strncmp(sorted[i]->name, prefix, strlen(prefix))) continue;
        fprintf(to, "  %-16s %s\n", sorted[i]->name, sorted[i]->summary);
        shown++;
    }
    free(sorted);
    return shown;
}

static void help_all(FILE *to) {
    fputs("usage: quern COMMAND [options]\n\nA job-queue worker for asynchronous batch "
          "inference and training.\n\ncommands:\n",
          to);
    list_commands("", to);
    fputs("\noptions of every command:\n  --json\n        machine output, one object a line\n  "
          "--config FILE\n        settings as JSON (quern config reference)\n"
          "  --help, --version\n",
          to);
    w_config_help(false, to);
    fputs("\nexit codes: 0 done; 1 the job, model or check failed; 2 usage; 3 Redis cannot be "
          "reached; 4 not found; 5 timed out waiting;\n"
          "6 refused; 7 done, but rows failed; 78 bad configuration; 130 interrupted.   `quern "
          "help COMMAND` tells more,\n`quern help errors` explains the codes of errors.\n",
          to);
}

/* The codes of jobs' errors, from the queue's own table. */
static void help_errors(FILE *to) {
    fputs("codes of a job's error (in its envelope, and in brackets after a message):\n\n", to);
    for (int i = 0; i < Q_CODE_N; i++)
        fprintf(to, "  %-14s %s%s\n", q_code_name(i), q_code_meaning(i),
                q_code_retryable(i) ? " (tried again)" : "");
    fputs("\ncodes of a command itself: usage, config (what was given is wrong), redis (it cannot "
          "be reached or refuses), not_found, confirm (--yes is\n"
          "missing), interrupted, io (a local file cannot be read or written).\n",
          to);
}

static void help_command(const struct w_command *c, FILE *to) {
    fprintf(to, "usage: quern %s %s\n\n%s.\n", c->name, c->args ? c->args : "", c->summary);
    if (c->options && c->options[0].name) fputs("\noptions:\n", to);
    for (const struct w_option *o = c->options; o && o->name; o++)
        fprintf(to, "  --%s%s%s\n        %s\n", o->name, o->arg ? " " : "", o->arg ? o->arg : "",
                o->help);
    if (c->takes_config) {
        fputs("\nsettings (also as QUERN_* in the environment and in a configuration file):\n", to);
        w_config_help(true, to);
    }
    if (c->help) fprintf(to, "\n%s\n", c->help);
}

/* Text for troff: a backslash and a dash are written out, a line must not begin with a dot. */
static void put_troff(const char *text, FILE *to) {
    for (const char *p = text; *p; p++) {
        if (*p == '\\')
            fputs("\\\\", to);
        else if (*p == '-')
            fputs("\\-", to);
        else if (*p == '.' && (p == text || p[-1] == '\n'))
            fputs("\\&.", to);
        else
            fputc(*p, to);
    }
}

/* quern.1, made from the same descriptors as the help. */
static void help_man(FILE *to) {
    fputs(".TH QUERN 1 \"\" \"quern " QUERN_VERSION
          "\" \"User Commands\"\n.SH NAME\nquern \\- job\\-queue worker for asynchronous batch "
          "inference and training\n"
          ".SH SYNOPSIS\n.B quern\n.I COMMAND\n[options]\n.SH DESCRIPTION\nProducers push a JSON "
          "job onto a Redis list with any client; workers pull jobs, run them\n"
          "through one compute engine for ONNX models, and write progress and results back to "
          "Redis, where producers poll.\n.SH COMMANDS\n",
          to);
    const struct w_command **sorted = malloc((n_commands() + 1) * sizeof *sorted);
    if (!sorted) return;
    memcpy(sorted, __start_quern_commands, n_commands() * sizeof *sorted);
    qsort(sorted, n_commands(), sizeof *sorted, by_name);
    for (size_t i = 0; i < n_commands(); i++) {
        fprintf(to, ".SS quern %s ", sorted[i]->name);
        put_troff(sorted[i]->args ? sorted[i]->args : "", to);
        fputc('\n', to);
        put_troff(sorted[i]->summary, to);
        fputs(".\n", to);
        for (const struct w_option *o = sorted[i]->options; o && o->name; o++) {
            fputs(".TP\n\\fB\\-\\-", to);
            put_troff(o->name, to);
            fprintf(to, "\\fR %s\n", o->arg ? o->arg : "");
            put_troff(o->help, to);
            fputc('\n', to);
        }
        if (sorted[i]->help) {
            fputs(".PP\n", to);
            put_troff(sorted[i]->help, to);
            fputc('\n', to);
        }
    }
    free(sorted);
    fputs(".SH SETTINGS\nAs options of the worker, as QUERN_* in the environment, as keys of a "
          "configuration file.\n",
          to);
    w_config_man(to);
    fputs(".SH ERROR CODES\nOf jobs, in the envelope and in brackets after a message.\n", to);
    for (int i = 0; i < Q_CODE_N; i++)
        fprintf(to, ".TP\n\\fB%s\\fR\n%s%s\n", q_code_name(i), q_code_meaning(i),
                q_code_retryable(i) ? " (tried again)" : "");
    fputs(".SH EXIT STATUS\n0 done; 1 the job, model or check failed; 2 usage; 3 Redis cannot be "
          "reached; 4 not found; 5 timed out waiting;\n"
          "6 refused; 7 done, but rows failed; 78 bad configuration; 130 interrupted.\n.SH "
          "FILES\n/etc/quern/worker.json, $XDG_CONFIG_HOME/quern/worker.json\n",
          to);
}

/* --- options of a command --------------------------------------------------------------------- */

static const char *option_name(void *user, size_t i) {
    return ((const struct w_option *)user)[i].name;
}

static int bad_option(const struct w_command *c, const char *arg) {
    static const struct w_option none[] = {{0}};
    char word[64], next[160];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(arg + 2, "="), arg + 2);
    const char *near = w__nearest(word, option_name, (void *)(c->options ? c->options : none));
    if (near)
        snprintf(next, sizeof next, "did you mean --%s?", near);
    else
        snprintf(next, sizeof next, "see: quern help %s", c->name);
    return w_report(W_EXIT_USAGE, "usage", next, "%s has no option --%s", c->name, word);
}

static int set_number(const struct w_command *c, const struct w_option *o, const char *text) {
    char *end;
    errno = 0;
    double v = o->kind == W_OPT_INT ? (double)strtoll(text, &end, 10) : strtod(text, &end);
    bool bad = end == text || *end || errno || v != v ||
               ((o->min != 0 || o->max != 0) && (v < o->min || v > o->max));
    if (bad && (o->min != 0 || o->max != 0))
        return w_report(W_EXIT_USAGE, "usage", NULL,
                        "%s: --%s is \"%.60s\", a number from %.17g to %.17g is expected", c->name,
                        o->name, text, o->min, o->max);
    if (bad)
        return w_report(W_EXIT_USAGE, "usage", NULL, "%s: --%s is \"%.60s\", a number is expected",
                        c->name, o->name, text);
    if (o->kind == W_OPT_INT)
        *(int64_t *)o->dst = strtoll(text, NULL, 10);
    else
        *(double *)o->dst = v;
    return 0;
}

static int set_option(const struct w_command *c, const struct w_option *o, const char *text) {
    if (o->kind == W_OPT_STRING)
        *(const char **)o->dst = text;
    else if (o->kind == W_OPT_INT || o->kind == W_OPT_DOUBLE)
        return set_number(c, o, text);
    else if (o->kind == W_OPT_LIST) {
        struct w_list *list = o->dst;
        const char **grown = realloc(list->items, (list->n + 1) * sizeof *grown);
        if (!grown) abort();
        list->items = grown;
        list->items[list->n++] = text;
    }
    return 0;
}

/* Takes c's options out of argv; the rest are words. */
static int parse_options(const struct w_command *c, int *argc, char **argv) {
    int kept = 0;
    bool only_words = false;
    for (int a = 0; a < *argc; a++) {
        if (only_words || strncmp(argv[a], "--", 2) != 0) {
            argv[kept++] = argv[a];
            continue;
        }
        if (argv[a][2] == 0) {
            only_words = true;
            continue;
        }
        const char *equals = strchr(argv[a], '=');
        size_t n = equals ? (size_t)(equals - argv[a] - 2) : strlen(argv[a] + 2);
        const struct w_option *o = c->options;
        while (o && o->name && (strlen(o->name) != n || strncmp(o->name, argv[a] + 2, n) != 0)) o++;
        if (!o || !o->name) return bad_option(c, argv[a]);
        if (o->kind == W_OPT_FLAG) {
            if (equals)
                return w_report(W_EXIT_USAGE, "usage", NULL, "%s: --%s takes no value", c->name,
                                o->name);
            *(bool *)o->dst = true;
            continue;
        }
        const char *text = equals ? equals + 1 : a + 1 < *argc ? argv[++a] : NULL;
        if (!text)
            return w_report(W_EXIT_USAGE, "usage", NULL, "%s: --%s needs a value (%s)", c->name,
                            o->name, o->arg ? o->arg : "TEXT");
        int rc = set_option(c, o, text);
        if (rc) return rc;
    }
    argv[kept] = NULL;
    *argc = kept;
    return 0;
}

/* --- the entry -------------------------------------------------------------------------------- */

static int unknown_command(int argc, char **argv) {
    char next[160] = "see: quern --help", group[80];
    const char *near = w__nearest(argv[0], command_name, NULL);
    snprintf(group, sizeof group, "%s ", argv[0]);
    for (size_t i = 0; i < n_commands(); i++)
        if (strncmp(__start_quern_commands[i]->name, group, strlen(group)) == 0) {
            fprintf(stderr, "usage: quern %s COMMAND\n\ncommands:\n", argv[0]);
            list_commands(group, stderr);
            return argc > 1 && strcmp(argv[1], "--help") == 0 ? W_EXIT_OK : W_EXIT_USAGE;
        }
    if (near) snprintf(next, sizeof next, "did you mean: quern %s", near);
    return w_report(W_EXIT_USAGE, "usage", next, "there is no command \"%.60s\"", argv[0]);
}

/* Takes --json and --config FILE out of argv. Returns the file or NULL; *bad: --config without a
 * value. */
static const char *take_globals(int *argc, char **argv, bool *bad) {
    const char *file = NULL;
    int kept = 0;
    for (int a = 0; a < *argc; a++) {
        if (strcmp(argv[a], "--") == 0) {
            while (a < *argc) argv[kept++] = argv[a++];
            break;
        }
        if (strcmp(argv[a], "--json") == 0)
            w_globals.json = true;
        else if (strncmp(argv[a], "--config=", 9) == 0)
            file = argv[a] + 9;
        else if (strcmp(argv[a], "--config") != 0)
            argv[kept++] = argv[a];
        else if (a + 1 < *argc)
            file = argv[++a];
        else
            *bad = true;
    }
    argv[kept] = NULL;
    *argc = kept;
    return file;
}

static bool wants(int argc, char **argv, const char *option) {
    for (int a = 0; a < argc && strcmp(argv[a], "--") != 0; a++)
        if (strcmp(argv[a], option) == 0) return true;
    return false;
}

int w_main(int argc, char **argv) {
    char err[600];
    bool bad = false;
    int n_words;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file over a limit is an error of write, as a full disk is */
    argc--, argv++;
    const char *file = take_globals(&argc, argv, &bad);
    if (bad) return w_report(W_EXIT_USAGE, "usage", NULL, "--config needs a file");
    if (argc == 0) {
        help_all(stderr);
        return W_EXIT_USAGE;
    }
    if (strcmp(argv[0], "--version") == 0) return puts("quern " QUERN_VERSION) < 0;
    if (strcmp(argv[0], "--help") == 0 || (strcmp(argv[0], "help") == 0 && argc == 1))
        return help_all(stdout), W_EXIT_OK;
    if (strcmp(argv[0], "help") == 0 && strcmp(argv[1], "--man") == 0)
        return help_man(stdout), W_EXIT_OK;
    if (strcmp(argv[0], "help") == 0 && strcmp(argv[1], "errors") == 0)
        return help_errors(stdout), W_EXIT_OK;
    bool help = strcmp(argv[0], "help") == 0 && find(1, argv, &n_words) == NULL;
    if (help) argc--, argv++;

    /* Options may stand before the command: quern --redis URL submit …: so the configuration goes
     * first. */
    const struct w_command *c = find(argc, argv, &n_words);
    int rc = w_config_load(w__config_instance(), file, &argc, argv, c && c->takes_config, err,
                           sizeof err);
    argv[argc] = NULL;
    if (!c && argc > 0) c = find(argc, argv, &n_words);
    if (c && (help || wants(argc, argv, "--help"))) return help_command(c, stdout), W_EXIT_OK;
    if (rc) return w_report(rc, rc == W_EXIT_USAGE ? "usage" : "config", NULL, "%s", err);
    if (argc == 0)
        return w_report(W_EXIT_USAGE, "usage", "see: quern --help", "a command is missing");
    if (!c) return unknown_command(argc, argv);
    w_globals.queue = w_config()->queue;
    w_globals.redis_given = w_config()->origin[W_KEY_redis] != W_FROM_DEFAULT;
    if (*w_config()->cpu && strcmp(w_config()->cpu, "auto") && !op_isa_force(w_config()->cpu))
        return w_report(W_EXIT_CONFIG, "config", NULL,
                        "this machine has no ISA level \"%s\": the best is \"%s\"", w_config()->cpu,
                        op_isa());
    argc -= n_words, argv += n_words;
    rc = parse_options(c, &argc, argv);
    if (rc == 0) rc = c->run(argc, argv);
    if (fflush(stdout) != 0 && rc == 0)
        rc = w_report(W_EXIT_FAILED, "output_failed", NULL, "standard output: %s", strerror(errno));
    return rc;
}
