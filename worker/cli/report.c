/* What a command says to a person on standard error: errors, progress; and text of others made safe
 * for a terminal. */
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker/cli/cli.h"

int w_report(int exit_code, const char *code, const char *next, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    w_progress_end();
    if (w_globals.json) {
        json_t *o = json_pack("{s:{s:s,s:s%,s:s*}}", "error", "code", code, "message", text,
                              strlen(text), "next", next);
        if (!o) o = json_pack("{s:{s:s,s:s}}", "error", "code", code, "message", "(not UTF-8)");
        char *line = o ? json_dumps(o, JSON_COMPACT) : NULL;
        fprintf(stderr, "%s\n", line ? line : "{\"error\":{}}");
        free(line);
        json_decref(o);
    } else {
        fprintf(stderr, "quern: %s [%s]\n", text, code);
        if (next) fprintf(stderr, "  %s\n", next);
    }
    return exit_code;
}

static bool bar_open;
static time_t last_line_s;

static void human_time(double s, char *dst, size_t n) {
    if (!(s >= 0) || s > 8640000)
        snprintf(dst, n, "--:--");
    else if (s >= 3600)
        snprintf(dst, n, "%d:%02d:%02d", (int)s / 3600, (int)s / 60 % 60, (int)s % 60);
    else
        snprintf(dst, n, "%d:%02d", (int)s / 60, (int)s % 60);
}

void w_progress(const char *what, uint64_t done, uint64_t total, double per_second, double eta_s) {
    enum { WIDTH = 30 };
    char eta[32], bar[WIDTH + 1];
    double part = total ? (double)done / (double)total : 0;
    if (part > 1) part = 1;
    human_time(eta_s, eta, sizeof eta);
    if (isatty(STDERR_FILENO)) {
        int full = (int)(part * WIDTH);
        memset(bar, '.', WIDTH);
        memset(bar, '#', (size_t)full);
        bar[WIDTH] = 0;
        fprintf(stderr, "\r%s [%s] %3.0f %% %llu/%llu %.0f/s ETA %s\033[K", what, bar, part * 100,
                (unsigned long long)done, (unsigned long long)total, per_second, eta);
        bar_open = true;
        return;
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (last_line_s && now.tv_sec - last_line_s < 3) return;
    last_line_s = now.tv_sec;
    fprintf(stderr, "%s: %llu of %llu (%.0f %%), %.0f/s, ETA %s\n", what, (unsigned long long)done,
            (unsigned long long)total, part * 100, per_second, eta);
}

void w_progress_end(void) {
    if (bar_open) fputc('\n', stderr);
    bar_open = false;
}

void w_print_safe(const char *text, size_t len) {
    bool terminal = isatty(STDOUT_FILENO);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (terminal && ((c < ' ' && c != '\n' && c != '\t') || c == 127))
            printf("\\x%02x", c);
        else
            putchar(c);
    }
}
