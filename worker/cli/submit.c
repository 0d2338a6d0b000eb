/* quern submit JSON | @FILE | -: pushes a job; with --wait or --follow prints its envelope when it
 * is final. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/cli/follow.h"

#define JOB_BYTES_MAX (512u << 20)

static bool wait_for_it, follow;
static const char *priority;
static double timeout_s;
static struct w_option options[] = {
    {"wait", W_OPT_FLAG, &wait_for_it, NULL, "wait until the job is final, print its envelope", 0,
     0},
    {"follow", W_OPT_FLAG, &follow, NULL, "the same, with progress on standard error", 0, 0},
    {"priority", W_OPT_STRING, &priority, "hi|lo",
     "into the inbox that is served before or after the ordinary one", 0, 0},
    {"timeout", W_OPT_DOUBLE, &timeout_s, "SECONDS", "how long to wait; 0: for ever [0]", 0, 4e6},
    {0},
};

/* The whole of a stream, from malloc; NULL with errno. */
static char *read_all(FILE *f, size_t *len) {
    size_t room = 1 << 16;
    char *text = malloc(room + 1), *grown;
    *len = 0;
    for (size_t n; text && (n = fread(text + *len, 1, room - *len, f)) > 0;) {
        *len += n;
        if (*len < room) continue;
        if (room > JOB_BYTES_MAX) {
            free(text);
            errno = EFBIG;
            return NULL;
        }
        grown = realloc(text, (room *= 2) + 1);
        if (!grown) free(text);
        text = grown;
    }
    if (text && ferror(f)) {
        free(text);
        text = NULL;
    }
    return text;
}

static char *job_text(const char *word, size_t *len) {
    if (word[0] != '@' && strcmp(word, "-")) {
        *len = strlen(word);
        return strdup(word);
    }
    FILE *f = word[0] == '@' ? fopen(word + 1, "re") : stdin;
    char *text = f ? read_all(f, len) : NULL;
    int saved = errno;
    if (f && f != stdin) fclose(f);
    errno = saved;
    return text;
}

static int run(int argc, char **argv) {
    int rc, lane = 0;
    size_t len;
    char id[Q_ID_MAX + 1];
    if (argc != 1)
        return w_report(W_EXIT_USAGE, "usage", "one job: JSON, @FILE or - for standard input",
                        "submit takes one job, %d words were given", argc);
    if (priority && strcmp(priority, "hi") && strcmp(priority, "lo"))
        return w_report(W_EXIT_USAGE, "usage", NULL,
                        "--priority is \"%.20s\", allowed are hi and lo", priority);
    if (priority) lane = priority[0] == 'h' ? 1 : -1;
    char *text = job_text(argv[0], &len);
    if (!text) return w_report(W_EXIT_FAILED, "input", NULL, "%s: %s", argv[0], strerror(errno));
    struct q_ctl *c = w_cli_redis(&rc);
    if (c && q_ctl_submit(c, w_globals.queue, text, len, lane, id) != Q_OK)
        rc = w_cli_failed(q_ctl_error(c), NULL);
    else if (c && (wait_for_it || follow))
        rc = w_cli_follow(c, id, timeout_s, follow);
    else if (c && w_globals.json)
        w_cli_print(json_pack("{s:s,s:s}", "id", id, "queue", w_globals.queue));
    else if (c)
        puts(id);
    q_ctl_close(c);
    free(text);
    return rc;
}

static const struct w_command submit = {
    .name = "submit",
    .args = "JSON | @FILE | - [--wait | --follow] [--priority hi|lo]",
    .summary = "Push a job onto a queue and print its id, or its envelope",
    .options = options,
    .help = "Any Redis client does the same: LPUSH quern:{default}:in '{\"op\":\"ping\"}'. With "
            "--wait and --follow the exit\n"
            "code is 0 for a job that is done, 1 for one that ended otherwise.",
    .run = run,
};
W_COMMAND(submit);
