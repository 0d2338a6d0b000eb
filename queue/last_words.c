/* last_words.c: a process that dies of a signal says so, if it still can: the number and its peak
 * memory go onto its card, where whoever takes over finds them and writes them into the entries
 * (reap.lua). A dead letter of `crashed` then says what killed the workers.
 *
 * In a signal handler nothing may be allocated or locked. So the words lie ready, all but two
 * numbers, and go out by write() on the command connection: at nearly every moment it stands
 * between two commands; where it does not, the server refuses what it cannot read and drops a
 * connection that is about to go anyway. Not over TLS. SIGKILL leaves no words; the memory of the
 * card's last heartbeat counts then. */
#include "queue/lease.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { RSS_DIGITS = 10, SIGNAL_DIGITS = 2 };

void q__last_words_ready(struct q_worker *w) {
    for (size_t i = 0; i < w->n_queues; i++) {
        struct q__queue *q = &w->queue[i];
        char key[Q_QUEUE_NAME_MAX + Q_WID_MAX + 16];
        int n = snprintf(key, sizeof key, "quern:{%s}:w:%s", q->name, q->wid);
        snprintf(q->last_words, sizeof q->last_words,
                 "*3\r\n$7\r\nPEXPIRE\r\n$%d\r\n%s\r\n$8\r\n86400000\r\n"
                 "*6\r\n$4\r\nHSET\r\n$%d\r\n%s\r\n$6\r\nrss_kb\r\n$%d\r\n%0*d\r\n"
                 "$6\r\nsignal\r\n$%d\r\n%0*d\r\n",
                 n, key, n, key, RSS_DIGITS, RSS_DIGITS, 0, SIGNAL_DIGITS, SIGNAL_DIGITS, 0);
    }
    w->last_words_fd = q__conn_fd(w->cmd);
}

/* The digits that end at `end`. */
static void put(char *end, unsigned digits, unsigned long value) {
    for (; digits-- > 0; value /= 10) *--end = (char)('0' + value % 10);
}

void q_worker_last_words(const struct q_worker *w, int signal_number) {
    struct rusage usage = {0};
    char text[sizeof w->queue->last_words];
    if (!w || w->last_words_fd < 0 || signal_number < 1 || signal_number > 99) return;
    getrusage(RUSAGE_SELF, &usage);
    unsigned long rss_kb = usage.ru_maxrss > 0 ? (unsigned long)usage.ru_maxrss : 0;
    for (size_t i = 0; i < w->n_queues; i++) {
        size_t n = 0;
        while (n + 1 < sizeof text && w->queue[i].last_words[n]) n++;
        if (n < 80) continue;
        memcpy(text, w->queue[i].last_words, n);
        put(text + n - 2, SIGNAL_DIGITS, (unsigned long)signal_number);
        static const char between[] = "\r\n$6\r\nsignal\r\n$2\r\n";
        put(text + n - 2 - SIGNAL_DIGITS - (sizeof between - 1), RSS_DIGITS, rss_kb);
        if (write(w->last_words_fd, text, n) < 0) return;
    }
}
