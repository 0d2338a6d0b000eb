#include "worker/daemon/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 2048
#define REPEAT_S 10
#define N_EVENTS 32

/* The limiter: the last events, the oldest is replaced. */
static struct event_seen {
    char event[40];
    enum w_log_level level;
    time_t since_s;
    unsigned n_in_window, n_dropped;
} seen[N_EVENTS];
#define BURST 20 /* lines of one event in REPEAT_S that are printed */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static enum w_log_level level_max = W_INFO;
static int journald = -1;

void w_log_init(enum w_log_level max_level) {
    pthread_mutex_lock(&mutex);
    level_max = max_level;
    journald = getenv("JOURNAL_STREAM") != NULL;
    pthread_mutex_unlock(&mutex);
}

static const char *level_name(enum w_log_level level) {
    return level <= W_ERROR    ? "error"
           : level == W_WARN   ? "warn"
           : level == W_NOTICE ? "notice"
           : level == W_INFO   ? "info"
                               : "debug";
}

enum w_log_level w_log_level_parse(const char *name) {
    for (enum w_log_level l = W_ERROR; l <= W_DEBUG; l++)
        if (strcmp(level_name(l), name) == 0) return l;
    return W_INFO;
}

/* Whether a line of this event may be printed now; *n_dropped: how many were not, to be said with
 * this one. */
static int allowed(const char *event, enum w_log_level level, time_t now_s, unsigned *n_dropped) {
    struct event_seen *slot = &seen[0];
    *n_dropped = 0;
    for (int i = 0; i < N_EVENTS; i++) {
        if (seen[i].level == level &&
            strncmp(seen[i].event, event, sizeof seen[i].event - 1) == 0) {
            slot = &seen[i];
            break;
        }
        if (seen[i].since_s < slot->since_s) slot = &seen[i];
    }
    if (strncmp(slot->event, event, sizeof slot->event - 1) != 0 || slot->level != level) {
        memset(slot, 0, sizeof *slot);
        snprintf(slot->event, sizeof slot->event, "%s", event);
        slot->level = level;
        slot->since_s = now_s;
    }
    if (now_s - slot->since_s >= REPEAT_S) {
        *n_dropped = slot->n_dropped;
        slot->n_in_window = slot->n_dropped = 0;
        slot->since_s = now_s;
    }
    if (slot->n_in_window >= BURST) {
        slot->n_dropped++;
        return 0;
    }
    slot->n_in_window++;
    return 1;
}

void w_log(enum w_log_level level, const char *event, const char *format, ...) {
    char line[LINE_MAX_BYTES];
    size_t n = 0;
    struct timespec now;
    unsigned n_dropped;
    pthread_mutex_lock(&mutex);
    if (journald < 0) journald = getenv("JOURNAL_STREAM") != NULL;
    clock_gettime(CLOCK_REALTIME, &now);
    if (level > level_max || !allowed(event, level, now.tv_sec, &n_dropped)) {
        pthread_mutex_unlock(&mutex);
        return;
    }
    if (journald) {
        n = (size_t)snprintf(line, sizeof line, "<%d>%s ", (int)level, event);
    } else {
        struct tm utc;
        gmtime_r(&now.tv_sec, &utc);
        n = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &utc);
        n += (size_t)snprintf(line + n, sizeof line - n, ".%03ldZ %s %s ", now.tv_nsec / 1000000,
                              level_name(level), event);
    }
    va_list args;
    va_start(args, format);
    int wrote = vsnprintf(line + n, sizeof line - n - 32, format, args);
    va_end(args);
    if (wrote > 0) n += (size_t)wrote < sizeof line - n - 33 ? (size_t)wrote : sizeof line - n - 33;
    if (n_dropped) n += (size_t)snprintf(line + n, 32, " repeated=%u", n_dropped);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)line[i] < ' ')
            line[i] = ' '; /* one event, one line, whatever a job's text holds */
    line[n++] = '\n';
    for (size_t off = 0; off < n;) {
        ssize_t put = write(STDERR_FILENO, line + off, n - off);
        if (put <= 0) break;
        off += (size_t)put;
    }
    pthread_mutex_unlock(&mutex);
}

const char *w_log_quote(const char *text, char *dst, size_t dst_bytes) {
    size_t n = 0;
    int plain = text[0] != 0;
    for (const char *p = text; *p && plain; p++)
        plain = *p > ' ' && *p != '"' && *p != '\\' && *p != 127 && *p != '=';
    if (plain) {
        snprintf(dst, dst_bytes, "%s", text);
        return dst;
    }
    dst[n++] = '"';
    for (const char *p = text; *p && n + 6 < dst_bytes; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\') {
            dst[n++] = '\\';
            dst[n++] = (char)c;
        } else if (c < ' ' || c == 127) {
            n += (size_t)snprintf(dst + n, dst_bytes - n, "\\x%02x", c);
        } else {
            dst[n++] = (char)c;
        }
    }
    dst[n++] = '"';
    dst[n] = 0;
    return dst;
}

const char *w_log_url(const char *url, char *dst, size_t dst_bytes) {
    const char *scheme = strstr(url, "://"), *at = scheme ? strrchr(scheme + 3, '@') : NULL;
    const char *colon = at ? memchr(scheme + 3, ':', (size_t)(at - scheme - 3)) : NULL;
    if (colon)
        snprintf(dst, dst_bytes, "%.*s:«redacted»%s", (int)(colon - url), url, at);
    else
        snprintf(dst, dst_bytes, "%s", url);
    return dst;
}
