/* notify.h: words to systemd: one datagram each to $NOTIFY_SOCKET; nothing where that is unset. */
#ifndef QUERN_WORKER_NOTIFY_H
#define QUERN_WORKER_NOTIFY_H

#include <stdint.h>

/* "READY=1", "STATUS=…", "WATCHDOG=1", "STOPPING=1"; several lines in one call are fine. */
void w_notify(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* RELOADING=1 with the time that systemd wants beside it; READY=1 ends it. */
void w_notify_reloading(void);
/* Half of what the unit's WatchdogSec asks for, in ms; 0: not asked. */
uint64_t w_notify_watchdog_ms(void);

#endif
