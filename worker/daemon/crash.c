/* A signal that ends the process: the queue hears of it first (queue/last_words.c), then it takes
 * its course: default action, core file. Where a debugger or a sanitizer has a handler, that one
 * stays. */
#include <signal.h>
#include <stdatomic.h>

#include "worker/daemon/internal.h"

static _Atomic(struct q_worker *) queue;

/* The action is the default one again (SA_RESETHAND): coming back, a fault happens once more and
 * ends the process where it arose; a signal that was sent must be sent once more. */
static void on_crash(int number, siginfo_t *info, void *context) {
    (void)context;
    q_worker_last_words(atomic_load(&queue), number);
    if (info->si_code <= 0) raise(number);
}

void w__crash_watch(struct q_worker *w) {
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    atomic_store(&queue, w);
    for (size_t i = 0; w && i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction now,
            sa = {.sa_sigaction = on_crash, .sa_flags = (int)(SA_RESETHAND | SA_SIGINFO)};
        sigemptyset(&sa.sa_mask);
        if (sigaction(numbers[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL)
            sigaction(numbers[i], &sa, NULL);
    }
}
