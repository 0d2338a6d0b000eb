/* cpus.h: how many CPUs and how much memory this process may use. */
#ifndef QUERN_WORKER_CPUS_H
#define QUERN_WORKER_CPUS_H

#include <stdint.h>

/* The smaller of CPU affinity and cgroup quota (rounded up), at least 1. */
int w_cpus(void);
/* The quota alone, by the files below root ("" in earnest): /proc/self/cgroup, /sys/fs/cgroup;
 * version 2 and 1, the group itself and those above it. 0: none. */
int w__cpus_quota(const char *root);
/* Bytes: the machine's memory, or the cgroup's limit where that is smaller. */
uint64_t w_memory(void);

#endif
