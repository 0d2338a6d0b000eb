/* cli.h: how a subcommand is written. A subcommand is one file in worker/cli/ that ends in
 * W_COMMAND(descriptor): nothing else is edited to add one; `quern --help`, `quern help NAME`, the
 * man page and "did you mean" know it then.
 *
 *   static const char *model;
 *   static struct w_option options[] = {{"model", W_OPT_STRING, &model, "M", "model name or path"},
 * {0}}; static int run(int argc, char **argv) { ... argv[0..argc) are the words that are not
 * options ... return W_EXIT_OK; } static const struct w_command score = {.name = "score", .args =
 * "--model M …", .summary = "…", .options = options, .run = run}; W_COMMAND(score);
 *
 * Results go to standard output, everything else to standard error. Errors are reported with
 * w_report(). */
#ifndef QUERN_WORKER_CLI_H
#define QUERN_WORKER_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum w_exit {
    W_EXIT_OK = 0,
    W_EXIT_FAILED = 1, /* the job, model or check failed */
    W_EXIT_USAGE = 2,
    W_EXIT_REDIS = 3, /* Redis cannot be reached */
    W_EXIT_NOT_FOUND = 4,
    W_EXIT_TIMEOUT = 5, /* timed out waiting */
    W_EXIT_REFUSED = 6, /* rights, or a confirmation is missing */
    W_EXIT_PARTIAL = 7, /* done, but rows failed */
    W_EXIT_CONFIG = 78,
    W_EXIT_INTERRUPTED = 130
};

enum w_option_kind {
    W_OPT_FLAG,   /* bool: --name */
    W_OPT_STRING, /* const char * */
    W_OPT_INT,    /* int64_t: base 10, with min and max */
    W_OPT_DOUBLE, /* double, with min and max */
    W_OPT_LIST    /* struct w_list: may be given several times */
};

struct w_list {
    const char **items;
    size_t n;
};

struct w_option {
    const char *name; /* without the dashes; NULL ends the table */
    enum w_option_kind kind;
    void *dst;
    const char *arg; /* the word of the help: "FILE" */
    const char *help;
    double min, max; /* of INT and DOUBLE; both 0: any */
};

struct w_command {
    const char *name;         /* "score", or two words: "model test" */
    const char *args;         /* of the usage line, after the name */
    const char *summary;      /* one line, no full stop */
    const char *help;         /* paragraphs after the options; NULL: none */
    struct w_option *options; /* NULL: none */
    bool takes_config;        /* every configuration key is an option too (the worker) */
    int (*run)(int argc, char **argv);
};

#define W_COMMAND(command)                                                                         \
    __attribute__((                                                                                \
        used,                                                                                      \
        section("quern_commands"))) static const struct w_command *const w__registered_##command = \
        &command

/* The global options, as given or from the configuration. */
struct w_globals {
    bool json;         /* --json */
    const char *queue; /* --queue, "default" */
    bool redis_given;  /* by option, environment or file; else the default address */
};
extern struct w_globals w_globals;

/* Reports on standard error: `quern: TEXT [code]`, then `  NEXT` (what to do; NULL: none); with
 * --json an object
 * {"error":{"code","message","next"}}. Returns exit_code, so that a command can end in `return
 * w_report(…)`. */
int w_report(int exit_code, const char *code, const char *next, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Progress on standard error: a bar on a terminal, a plain line every few seconds elsewhere,
 * nothing with --json unless asked by the command. done and total in the same unit; total 0:
 * unknown. Call w_progress_end once. */
void w_progress(const char *what, uint64_t done, uint64_t total, double per_second, double eta_s);
void w_progress_end(void);

/* Prints text to standard output with control characters escaped where that is a terminal. */
void w_print_safe(const char *text, size_t len);

int w_main(int argc, char **argv);

#endif
