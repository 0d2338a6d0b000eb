/* log.h: structured logs on standard error: the event first, then key=value.
 *
 *   w_log(W_WARN, "redis_lost", "url=%s retry_ms=%d", url, ms);   →   redis_lost
 * url=unix:/run/redis.sock retry_ms=50
 *
 * Under systemd (JOURNAL_STREAM is set) a line starts with its journald level <N>, else with the
 * time (UTC) and the level's name. Values that may hold blanks go through w_log_quote. A line that
 * repeats is counted, not printed, for 10 s (by its event and level). Any thread may call. Secrets
 * never go in: URLs through w_log_url. */
#ifndef QUERN_WORKER_LOG_H
#define QUERN_WORKER_LOG_H

#include <stddef.h>

enum w_log_level {
    W_ERROR = 3,
    W_WARN = 4,
    W_NOTICE = 5,
    W_INFO = 6,
    W_DEBUG = 7
}; /* syslog's numbers */

void w_log_init(enum w_log_level max_level);
enum w_log_level
w_log_level_parse(const char *name); /* of the setting log_level; unknown: W_INFO */
void w_log(enum w_log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* text as "…" with blanks, quotes and control characters escaped (as it is where nothing needs it);
 * cut at dst_bytes. */
const char *w_log_quote(const char *text, char *dst, size_t dst_bytes);
/* url without its password. */
const char *w_log_url(const char *url, char *dst, size_t dst_bytes);

#endif
