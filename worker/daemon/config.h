/* config.h: every setting, in one table. A row makes the JSON key, the environment variable
 * QUERN_<KEY>, the option
 * --<key> (dashes for underscores), the lines of --help and --dump-config, configs/worker.json and
 * its reference page, so that they cannot disagree.
 *
 * Precedence: option > environment > --config FILE > the user's file
 * ($XDG_CONFIG_HOME/quern/worker.json) > /etc/quern/worker.json > default. A later source replaces
 * the whole value of a key.
 *
 * To add a setting: one row in W_CONFIG_MAP. */
#ifndef QUERN_WORKER_CONFIG_H
#define QUERN_WORKER_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "worker/cli/cli.h"

/* Whom a key concerns: G every command (a global option), W the worker. R: SIGHUP takes a new value
 * without a restart. */
#define W_CONFIG_G 1
#define W_CONFIG_W 2
#define W_CONFIG_R 4
#define W_CONFIG_SECRET 8

/* X(key, TYPE, default, min, max, unit or choices, flags, help)
 * TYPE: STRING, PATH, INT, BOOL, ENUM (choices "a|b|c"), LIST (of strings; in the environment and
 * on the command line separated by commas, an option may also be repeated). */
#define W_CONFIG_MAP(X)                                                                            \
    X(redis, STRING, "redis://127.0.0.1:6379/0", 0, 0, "URL", W_CONFIG_G | W_CONFIG_SECRET,        \
      "the Redis server: redis://[user:password@]host:port/db, rediss:// (TLS) or "                \
      "unix:/path/to.sock")                                                                        \
    X(redis_user, STRING, "", 0, 0, "", W_CONFIG_G, "ACL user; an URL's user goes before")         \
    X(redis_password_file, PATH, "", 0, 0, "FILE", W_CONFIG_G,                                     \
      "file that holds the password (its first line); default: "                                   \
      "$CREDENTIALS_DIRECTORY/redis-password where that exists")                                   \
    X(redis_ca, PATH, "", 0, 0, "FILE", W_CONFIG_G,                                                \
      "certificate authority for rediss:// (PEM); default: the system's")                          \
    X(redis_cert, PATH, "", 0, 0, "FILE", W_CONFIG_G, "client certificate for rediss:// (PEM)")    \
    X(redis_key, PATH, "", 0, 0, "FILE", W_CONFIG_G, "key of the client certificate (PEM)")        \
    X(queue, STRING, "default", 0, 0, "NAME", W_CONFIG_G,                                          \
      "the queue of a producer's command: letters, digits, _ . - up to 64")                        \
    X(queues, LIST, "default", 0, 0, "NAME[:WEIGHT]", W_CONFIG_W,                                  \
      "the queues that the worker serves, with weights")                                           \
    X(name, STRING, "", 0, 0, "", W_CONFIG_W,                                                      \
      "the worker's name in lists and logs; default: the host's name")                             \
    X(lanes, INT, "0", 0, 256, "threads", W_CONFIG_W,                                              \
      "compute lanes, each one thread that runs whole micro-batches; 0: the smaller of CPU "       \
      "affinity and cgroup quota")                                                                 \
    X(lane_threads, INT, "1", 1, 256, "threads", W_CONFIG_W,                                       \
      "threads inside a lane, for the latency of one large model")                                 \
    X(models, PATH, "", 0, 0, "DIR", W_CONFIG_W,                                                   \
      "model store: DIR/<name>/<version>/model.onnx with an optional model.json")                  \
    X(models_poll_ms, INT, "1000", 50, 3600000, "ms", W_CONFIG_W | W_CONFIG_R,                     \
      "how often the store is looked at for new versions")                                         \
    X(models_bytes_max, INT, "0", 0, 1LL << 50, "bytes", W_CONFIG_W | W_CONFIG_R,                  \
      "loaded models together; the longest unused is dropped beyond it; 0: half of the memory")    \
    X(cache, PATH, "", 0, 0, "DIR", W_CONFIG_W,                                                    \
      "folder for packed weights, so that a model that was loaded before is not packed again; "    \
      "made if it is not there; none: no cache")                                                   \
    X(preload, LIST, "", 0, 0, "MODEL", W_CONFIG_W,                                                \
      "models to load before the worker reports ready")                                            \
    X(files, LIST, "", 0, 0, "DIR", W_CONFIG_W,                                                    \
      "folders below which file: references may be read and written; none: such jobs fail with "   \
      "ref_denied")                                                                                \
    X(batch_rows_max, INT, "32", 1, 65536, "rows", W_CONFIG_W | W_CONFIG_R,                        \
      "rows of one micro-batch; a model's own limit goes before")                                  \
    X(batch_bytes_max, INT, "67108864", 1024, 1LL << 40, "bytes", W_CONFIG_W | W_CONFIG_R,         \
      "input bytes of one micro-batch")                                                            \
    X(batch_delay_ms, INT, "0", 0, 60000, "ms", W_CONFIG_W | W_CONFIG_R,                           \
      "how long a free lane waits for a fuller micro-batch; 0: it takes what waits")               \
    X(claim_max, INT, "64", 1, 64, "jobs", W_CONFIG_W,                                             \
      "jobs that are taken from Redis in one round trip")                                          \
    X(job_bytes_max, INT, "67108864", 1024, 536870912, "bytes", W_CONFIG_W, "one job's JSON")      \
    X(job_timeout_ms, INT, "3600000", 1, 1LL << 40, "ms", W_CONFIG_W | W_CONFIG_R,                 \
      "how long a job may run that sets no timeout_ms")                                            \
    X(result_ttl_ms, INT, "3600000", 1, 1LL << 40, "ms", W_CONFIG_W,                               \
      "how long a result stays that sets no ttl_ms")                                               \
    X(image_pixels_max, INT, "50000000", 1, 1LL << 32, "pixels", W_CONFIG_W,                       \
      "one decoded image, before memory is taken for it")                                          \
    X(run_bytes_max, INT, "8589934592", 1048576, 1LL << 50, "bytes", W_CONFIG_W,                   \
      "memory of one model run")                                                                   \
    X(lease_ms, INT, "15000", 100, 3600000, "ms", W_CONFIG_W,                                      \
      "a worker whose heartbeat stands still this long is taken for dead")                         \
    X(beat_ms, INT, "2000", 10, 600000, "ms", W_CONFIG_W, "time between heartbeats")               \
    X(lane_limit_ms, INT, "60000", 100, 1LL << 40, "ms", W_CONFIG_W | W_CONFIG_R,                  \
      "a lane that makes no progress this long is cancelled, and if it still stands the process "  \
      "restarts")                                                                                  \
    X(drain_ms, INT, "25000", 0, 3600000, "ms", W_CONFIG_W,                                        \
      "how long SIGTERM lets running jobs finish before they are handed back")                     \
    X(cpu, ENUM, "auto", 0, 0, "auto|generic|avx2|avx512|vnni|amx|neon", W_CONFIG_G,               \
      "highest instruction set that kernels use")                                                  \
    X(log_level, ENUM, "info", 0, 0, "error|warn|notice|info|debug", W_CONFIG_W | W_CONFIG_R,      \
      "least severe log line that is written")

#define W_CONFIG_C_STRING const char *
#define W_CONFIG_C_PATH const char *
#define W_CONFIG_C_ENUM const char *
#define W_CONFIG_C_INT int64_t
#define W_CONFIG_C_BOOL bool
#define W_CONFIG_C_LIST struct w_list

enum w_config_origin { W_FROM_DEFAULT, W_FROM_FILE, W_FROM_ENVIRONMENT, W_FROM_OPTION };

enum w_config_key {
#define X(key, type, dflt, min, max, unit, flags, help) W_KEY_##key,
    W_CONFIG_MAP(X)
#undef X
        W_N_KEYS
};

/* A field for each key, named as the key. Strings live as long as the struct: w_config_finish. */
struct w_config {
#define X(key, type, dflt, min, max, unit, flags, help) W_CONFIG_C_##type key;
    W_CONFIG_MAP(X)
#undef X
    enum w_config_origin origin[W_N_KEYS];
    const char *origin_file[W_N_KEYS]; /* of W_FROM_FILE */
    const char *config_file;           /* --config; NULL: none */
    char **strings;                    /* what it owns */
    size_t n_strings;
};

/* Fills dst from all sources. Takes the options that are configuration keys out of argv (those of
 * every command; all keys where `all` is set). Returns W_EXIT_OK; else W_EXIT_CONFIG or
 * W_EXIT_USAGE with a text in err that names the file and line, the key, the nearest known name or
 * the allowed range. */
int w_config_load(struct w_config *dst, const char *config_file, int *argc, char **argv, bool all,
                  char *err, size_t err_bytes);
void w_config_finish(struct w_config *c);
/* Reads files and environment again into fresh (to be finished in any case), keeping the numbers
 * and choices that options gave to `now`. say hears of each key whose value differs, and whether it
 * is one that reloads. Returns as w_config_load. */
int w_config_reload(const struct w_config *now, struct w_config *fresh,
                    void (*say)(void *ctx, const char *key, bool reloads), void *ctx, char *err,
                    size_t err_bytes);

/* The configuration as JSON, every key; secrets in URLs are redacted. */
void w_config_dump(const struct w_config *c, FILE *to);
void w_config_dump_defaults(FILE *to);
/* Each key, its value and where that comes from. */
void w_config_show_origin(const struct w_config *c, FILE *to);
/* The options' help; of all keys or those of every command. */
void w_config_help(bool all, FILE *to);
/* The same as entries of a man page (troff). */
void w_config_man(FILE *to);
/* The reference page (Markdown): key, type, unit, default, range, environment variable, option,
 * help. */
void w_config_reference(FILE *to);

struct w_config *w__config_instance(void); /* for w_main */
/* The process's configuration, set by w_main before a command runs and not changed after. */
const struct w_config *w_config(void);

#endif
