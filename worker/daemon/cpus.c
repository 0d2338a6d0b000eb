#include "worker/daemon/cpus.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Quota and period of one group; quota < 0: no limit. 0 CPUs: no limit. */
static int cpus_of(long long quota, long long period) {
    if (quota <= 0 || period <= 0) return 0;
    long long n = (quota + period - 1) / period;
    return n > 4096 ? 4096 : (int)n;
}

static int smaller(int a, int b) {
    return a == 0 || (b && b < a) ? b : a;
}

static long long read_number(const char *dir, const char *name) {
    char path[4400];
    long long v = -1;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%lld", &v) != 1) v = -1;
    if (f) fclose(f);
    return v;
}

static int quota_v2(const char *dir) {
    char path[4400];
    long long quota = -1, period = 0;
    snprintf(path, sizeof path, "%s/cpu.max", dir);
    FILE *f = fopen(path, "re"); /* "max 100000" or "150000 100000" */
    if (f && fscanf(f, "%lld %lld", &quota, &period) != 2) quota = -1;
    if (f) fclose(f);
    return cpus_of(quota, period);
}

static int quota_v1(const char *dir) {
    return cpus_of(read_number(dir, "cpu.cfs_quota_us"), read_number(dir, "cpu.cfs_period_us"));
}

/* The group and every one above it: the tightest limit holds. In a container the path may not be
 * there: then only its root counts. */
static int upwards(const char *mount, const char *group, int (*quota)(const char *dir)) {
    char dir[4352];
    int n = 0;
    snprintf(dir, sizeof dir, "%s%s", mount, strcmp(group, "/") ? group : "");
    for (;;) {
        n = smaller(n, quota(dir));
        char *slash = strrchr(dir, '/');
        if (strlen(dir) <= strlen(mount) || !slash) return n;
        *slash = 0;
    }
}

int w__cpus_quota(const char *root) {
    char path[512], mount[512], line[4096];
    int n = 0;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'),
             *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        controllers++;
        if (*controllers == 0) {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
            n = smaller(n, upwards(mount, group, quota_v2));
        } else if (strcmp(controllers, "cpu") == 0 || strncmp(controllers, "cpu,", 4) == 0 ||
                   strstr(controllers, ",cpu,") ||
                   (strlen(controllers) > 4 &&
                    strcmp(controllers + strlen(controllers) - 4, ",cpu") == 0)) {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/cpu", root);
            n = smaller(n, upwards(mount, group, quota_v1));
        }
    }
    fclose(f);
    return n;
}

int w_cpus(void) {
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    n = smaller(n, w__cpus_quota(""));
    return n > 0 ? n : 1;
}

uint64_t w_memory(void) {
    uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    static const char *const limits[] = {"/sys/fs/cgroup/memory.max",
                                         "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    for (size_t i = 0; i < 2; i++) {
        FILE *f = fopen(limits[i], "re");
        uint64_t v;
        if (f && fscanf(f, "%" SCNu64, &v) == 1 && v > 0 && v < bytes) bytes = v;
        if (f) fclose(f);
    }
    return bytes;
}
