#include "worker/daemon/private_redis.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define START_MS 10000
#define STEP_MS 2

static bool fail(char *err, size_t err_bytes, const char *what, int error) {
    snprintf(err, err_bytes, "a private redis-server cannot be started: %s%s%s", what,
             error ? ": " : "", error ? strerror(error) : "");
    return false;
}

static void exec_server(const char *folder, pid_t parent, int report) {
    char socket_path[160];
    sigset_t none;
    snprintf(socket_path, sizeof socket_path, "%s/redis.sock", folder);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1); /* it died before we could ask to die with it */
    setpgid(0, 0); /* a ^C at the terminal is for us, who still need it to finish */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(null, 1);
    dup2(null, 2);
    execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", socket_path,
           "--unixsocketperm", "700", "--save", "", "--appendonly", "no", "--dir", folder,
           "--daemonize", "no", "--loglevel", "warning", "--maxmemory-policy", "noeviction",
           "--databases", "1", (char *)NULL);
    int error = errno;
    (void)!write(report, &error, sizeof error);
    _exit(127);
}

/* Whether it takes connections and says PONG (a connection alone may come before it serves). */
static bool answers(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char reply[8] = "";
    snprintf(to.sun_path, sizeof to.sun_path, "%.*s", (int)sizeof to.sun_path - 1, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0 &&
              write(fd, "PING\r\n", 6) == 6 && read(fd, reply, sizeof reply) == 7 &&
              memcmp(reply, "+PONG", 5) == 0;
    if (fd >= 0) close(fd);
    return ok;
}

bool w_private_redis_start(struct w_private_redis *r, char *err, size_t err_bytes) {
    const char *tmp = getenv("TMPDIR");
    char path[160];
    int report[2], error = 0;
    memset(r, 0, sizeof *r);
    if (!tmp || strlen(tmp) > 60)
        tmp = "/tmp"; /* a Unix socket's path has 107 characters at most */
    snprintf(r->folder, sizeof r->folder, "%s/quern-XXXXXX", tmp);
    if (!mkdtemp(r->folder)) return fail(err, err_bytes, r->folder, errno);
    if (pipe2(report, O_CLOEXEC) != 0) {
        error = errno;
        rmdir(r->folder);
        return fail(err, err_bytes, "pipe", error);
    }
    pid_t parent = getpid();
    r->pid = fork();
    if (r->pid == 0) exec_server(r->folder, parent, report[1]);
    close(report[1]);
    bool lost =
        r->pid < 0 || read(report[0], &error, sizeof error) > 0; /* end of file: exec went well */
    close(report[0]);
    if (lost) {
        if (r->pid > 0) waitpid(r->pid, NULL, 0);
        r->pid = 0;
        rmdir(r->folder);
        return fail(err, err_bytes, "redis-server (package redis-server)", error ? error : EAGAIN);
    }
    snprintf(path, sizeof path, "%s/redis.sock", r->folder);
    snprintf(r->url, sizeof r->url, "unix:%s", path);
    for (int ms = 0; ms < START_MS; ms += STEP_MS) {
        if (answers(path)) return true;
        if (waitpid(r->pid, NULL, WNOHANG) == r->pid) {
            r->pid = 0;
            break;
        }
        nanosleep(&(struct timespec){0, STEP_MS * 1000000L}, NULL);
    }
    w_private_redis_stop(r);
    return fail(err, err_bytes, "it ended or did not answer within 10 s", 0);
}

void w_private_redis_stop(struct w_private_redis *r) {
    char path[160];
    if (r->pid > 0) {
        kill(r->pid, SIGKILL); /* there is nothing to save */
        waitpid(r->pid, NULL, 0);
    }
    if (*r->folder) {
        snprintf(path, sizeof path, "%s/redis.sock", r->folder);
        unlink(path);
        rmdir(r->folder);
    }
    memset(r, 0, sizeof *r);
}
