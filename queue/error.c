#include "queue/internal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(name, code, text) [Q_##name] = text,
static const char *const status_texts[] = {Q_STATUS_MAP(TEXT)};
#define NAME(name, code, text) [Q_##name] = code,
static const char *const status_names[] = {Q_STATUS_MAP(NAME)};

#define CODE_NAME(name, retryable, meaning) [Q_CODE_##name] = #name,
static const char *const code_names[] = {Q_CODE_MAP(CODE_NAME)};
#define CODE_MEANING(name, retryable, meaning) [Q_CODE_##name] = meaning,
static const char *const code_meanings[] = {Q_CODE_MAP(CODE_MEANING)};
#define CODE_RETRY(name, retryable, meaning) [Q_CODE_##name] = retryable,
static const bool code_retryable[] = {Q_CODE_MAP(CODE_RETRY)};

const char *q_status_text(enum q_status s) {
    return (unsigned)s < Q_STATUS_N ? status_texts[s] : "unknown status";
}

const char *q_status_name(enum q_status s) {
    return (unsigned)s < Q_STATUS_N ? status_names[s] : "unknown";
}

const char *q_code_name(enum q_code code) {
    return (unsigned)code < Q_CODE_N ? code_names[code] : "internal";
}

const char *q_code_meaning(enum q_code code) {
    return (unsigned)code < Q_CODE_N ? code_meanings[code] : "unknown code";
}

bool q_code_retryable(enum q_code code) {
    return (unsigned)code < Q_CODE_N && code_retryable[code];
}

enum q_code q_code_from_name(const char *name) {
    for (unsigned i = 0; i < Q_CODE_N; i++)
        if (strcmp(code_names[i], name) == 0) return (enum q_code)i;
    return Q_CODE_N;
}

enum q_status q__error(struct q_error *err, enum q_status code, const char *fmt, ...) {
    if (err) {
        va_list args;
        va_start(args, fmt);
        err->code = code;
        vsnprintf(err->text, sizeof err->text, fmt, args);
        va_end(args);
    }
    return code;
}

void q__bug(const char *file, int line, const char *what) {
    fprintf(stderr, "quern: a bug: %s:%d: %s does not hold\n", file, line, what);
    abort();
}

void q__ignore_sigpipe(void) {
    struct sigaction now;
    if (sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
}
