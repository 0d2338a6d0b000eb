/* quern doctor: what this machine, this Redis and this configuration can do, and what is wrong,
 * each with what mends it. A check is a function; a line is ✓ good, ! worth knowing, ✗ wrong. Exit
 * code 1 where one is wrong. */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "ops/ops.h"
#include "worker/cli/redis.h"
#include "worker/daemon/config.h"
#include "worker/daemon/cpus.h"
#include "worker/daemon/redis.h"
#include "worker/store/store.h"

enum verdict { GOOD, WORTH, WRONG };
static int n_wrong;

/* Prints a line: subject, what was found, and (NULL: nothing) what mends it. */
static void say(enum verdict v, const char *subject, const char *mend, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void say(enum verdict v, const char *subject, const char *mend, const char *format, ...) {
    static const char *const marks[] = {"✓", "!", "✗"}, *const words[] = {"good", "note", "wrong"};
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    n_wrong += v == WRONG;
    if (w_globals.json) {
        w_cli_print(json_pack("{s:s,s:s,s:s,s:s*}", "check", subject, "verdict", words[v], "found",
                              text, "mend", mend));
        return;
    }
    printf("%s %-12s %s\n", marks[v], subject, text);
    if (mend) printf("  %-12s → %s\n", "", mend);
}

/* --- the host --------------------------------------------------------------------------------- */

static void check_host(void) {
    const struct w_config *c = w_config();
    int cpus = w_cpus(), quota = w__cpus_quota("");
    bool generic = strcmp(op_isa(), "generic") == 0;
    say(generic ? WORTH : GOOD, "processor",
        generic ? "models run several times faster with AVX2 or AVX-512" : NULL, "%s kernels",
        op_isa());
    int64_t lanes = c->lanes ? c->lanes : cpus;
    bool crowded = lanes * c->lane_threads > cpus;
    say(crowded ? WORTH : GOOD, "lanes", crowded ? "--lanes 0 takes what there is" : NULL,
        "%" PRId64 " of %" PRId64 " thread(s) on %d processor(s)%s", lanes, c->lane_threads, cpus,
        quota > 0 ? " under a cgroup quota" : "");

    struct sysinfo info;
    if (sysinfo(&info) == 0) {
        double total = (double)info.totalram * info.mem_unit / 1e9,
               free_now = (double)(info.freeram + info.bufferram) * info.mem_unit / 1e9;
        say(total < 1 ? WORTH : GOOD, "memory", NULL, "%.1f GB, %.1f GB free", total, free_now);
    }
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0)
        say(files.rlim_cur < 1024 ? WORTH : GOOD, "open files",
            files.rlim_cur < 1024 ? "ulimit -n 4096, or LimitNOFILE= in the unit" : NULL, "%llu",
            (unsigned long long)files.rlim_cur);
    const char *tmp = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    struct statvfs fs;
    if (statvfs(tmp, &fs) != 0 || access(tmp, W_OK) != 0)
        say(WRONG, "temporary", "set TMPDIR to a folder that can be written", "%s: %s", tmp,
            strerror(errno));
    else {
        double gb = (double)fs.f_bavail * (double)fs.f_frsize / 1e9;
        say(gb < 1 ? WORTH : GOOD, "temporary", NULL, "%s, %.1f GB free", tmp, gb);
    }
}

/* --- Redis ------------------------------------------------------------------------------------ */

static void check_rights(struct q_ctl *c) {
    static const char *const probes[][2] = {
        {"EVAL", "return 1"}, {"CLIENT", "LIST"}, {"TIME", NULL}};
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        const char *argv[4] = {probes[i][0], probes[i][1], "0", NULL};
        char *reply = NULL;
        size_t argc = i == 0 ? 3 : probes[i][1] ? 2 : 1, len;
        if (q_ctl_command(c, argc, argv, NULL, &reply, &len) != Q_OK &&
            strstr(q_ctl_error(c)->text, "NOPERM"))
            say(i == 1 ? WORTH : WRONG, "rights",
                i == 1
                    ? "without it a killed worker is noticed by its lease only (15 s instead of 3)"
                    : "queue/PROTOCOL.md lists a worker's rights",
                "this user may not %s", probes[i][0]);
        free(reply);
    }
}

static void check_server(struct q_ctl *c) {
    struct q_ctl_server s;
    if (q_ctl_server(c, &s) != Q_OK) {
        say(WORTH, "server", "allow +info", "%s", q_ctl_error(c)->text);
        return;
    }
    int major = 0, minor = 0;
    sscanf(s.version, "%d.%d", &major, &minor);
    bool old = major < 6 || (major == 6 && minor < 2);
    say(old ? WRONG : GOOD, "server", old ? "6.2 or newer is needed" : NULL,
        "%s %s, %s, round trip %" PRIu32 " µs", *s.software ? s.software : "redis", s.version,
        s.role, s.round_trip_us);
    if (strcmp(s.role, "master") != 0)
        say(WRONG, "role", "name the primary's address", "this server is a %s: it refuses writes",
            s.role);
    bool evicts = *s.policy && strcmp(s.policy, "noeviction") != 0;
    say(evicts ? WRONG : GOOD, "eviction",
        evicts ? "CONFIG SET maxmemory-policy noeviction: an evicting server silently loses jobs"
               : NULL,
        "maxmemory-policy %s", *s.policy ? s.policy : "not shown");
    if (s.max_bytes) {
        double share = (double)s.used_bytes / (double)s.max_bytes;
        say(share > 0.9 ? WORTH : GOOD, "headroom",
            share > 0.9 ? "raise maxmemory, or shorten ttl_ms" : NULL,
            "%.0f of %.0f MB used (%.0f %%)", (double)s.used_bytes / 1e6, (double)s.max_bytes / 1e6,
            share * 100);
    } else
        say(GOOD, "headroom", NULL, "%.0f MB used, no maxmemory", (double)s.used_bytes / 1e6);
    say(s.aof ? GOOD : WORTH, "persistence", s.aof ? NULL : "appendonly yes, appendfsync everysec",
        "%s", s.persistence);
}

static void check_redis(void) {
    struct q_conn_options options;
    struct q_error err;
    struct q_ctl *c = w_redis_options(&options, &err) ? q_ctl_open(&options, &err) : NULL;
    if (!c) {
        const char *mend =
            err.code == Q_UNREACHABLE
                ? "start one (apt-get install redis-server), or name it: --redis URL, QUERN_REDIS"
                : NULL;
        say(w_globals.redis_given ? WRONG : WORTH, "redis", mend, "%s", err.text);
        return;
    }
    check_server(c);
    check_rights(c);
    q_ctl_close(c);
}

/* --- the store -------------------------------------------------------------------------------- */

static void check_store(void) {
    const char *folder = w_config()->models;
    struct w_listed *l;
    struct w_error err;
    size_t n;
    char spec[W_MODEL_NAME_MAX + 32];
    if (!*folder) {
        say(WORTH, "store", "--models DIR, or QUERN_MODELS: DIR/<name>/<version>/model.onnx",
            "no model store is configured: infer jobs will fail with unknown_model");
        return;
    }
    if (!w_store_list(folder, &l, &n, &err)) {
        say(WRONG, "store", NULL, "%s", err.text);
        return;
    }
    if (n == 0) say(WORTH, "store", "DIR/<name>/<version>/model.onnx", "%s holds no model", folder);
    for (size_t i = 0; i < n; i++) {
        if (i && strcmp(l[i].name, l[i - 1].name) == 0) continue; /* the latest of each */
        snprintf(spec, sizeof spec, "%s@%" PRId64, l[i].name, l[i].version);
        struct w_model *m = w_model_open(spec, folder, NULL, &err);
        if (!m)
            say(WRONG, "model", "quern model check M --explain", "%s: %s", spec, err.text);
        else
            say(GOOD, "model", NULL, "%s loads in %.0f ms, %d golden sample(s) hold", spec,
                m->load_ms, w_pipeline_n_golden(m->pipeline));
        w_model_release(m);
    }
    free(l);
}

static void check_files(void) {
    const struct w_list *files = &w_config()->files;
    for (size_t i = 0; i < files->n; i++) {
        bool good = access(files->items[i], R_OK | X_OK) == 0;
        say(good ? GOOD : WRONG, "files", NULL, "%s: %s", files->items[i],
            good ? (access(files->items[i], W_OK) ? "can be read" : "can be read and written")
                 : strerror(errno));
    }
}

static int run(int argc, char **argv) {
    (void)argv;
    if (argc) return w_report(W_EXIT_USAGE, "usage", NULL, "doctor takes no words");
    check_host();
    check_redis();
    check_store();
    check_files();
    return n_wrong ? W_EXIT_FAILED : W_EXIT_OK;
}

static const struct w_command doctor = {
    .name = "doctor",
    .args = "[settings]",
    .summary = "Check this machine, this Redis, this store and this configuration",
    .takes_config = true,
    .run = run,
};
W_COMMAND(doctor);
