/* Which paths jobs may open, and how many CPUs a cgroup allows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/daemon/cpus.h"
#include "worker/daemon/files.h"

static char base[64], root[96];

static void put(const char *path, const char *text) {
    char full[300];
    snprintf(full, sizeof full, "%s/%s", base, path);
    for (char *p = full + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = 0;
        mkdir(full, 0755);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int setup(void **state) {
    char path[200], other[200];
    (void)state;
    snprintf(base, sizeof base, "/tmp/quern-files-XXXXXX");
    assert_non_null(mkdtemp(base));
    snprintf(root, sizeof root, "%s/root", base);
    put("root/in/a.txt", "inside");
    put("secret.txt", "outside");
    put("rootless/b.txt", "a sibling whose name begins like the root's");
    snprintf(path, sizeof path, "%s/in/link.txt", root),
        snprintf(other, sizeof other, "%s/secret.txt", base);
    assert_int_equal(symlink(other, path), 0);
    snprintf(path, sizeof path, "%s/out", root);
    assert_int_equal(symlink(base, path), 0);
    return 0;
}

static int teardown(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", base);
    return system(command);
}

static const char *code_of(const struct w_files *f, const char *ref) {
    struct w_error err = {0};
    int fd = w_files_open(f, ref, false, NULL, &err);
    if (fd >= 0) close(fd);
    return fd >= 0 ? "ok" : err.code;
}

static void test_only_what_lies_beneath_a_root_is_opened(void **state) {
    const char *roots[] = {root};
    struct w_error err = {0};
    struct w_files *f = w_files_create(roots, 1, &err);
    char path[300];
    (void)state;
    assert_non_null(f);
    assert_string_equal(code_of(f, "file:in/a.txt"), "ok");
    assert_string_equal(code_of(f, "in/./a.txt"), "ok");
    snprintf(path, sizeof path, "file://%s/in/a.txt", root);
    assert_string_equal(code_of(f, path), "ok");
    snprintf(path, sizeof path, "file:%s/in/a.txt", root);
    assert_string_equal(code_of(f, path), "ok");
    assert_string_equal(code_of(f, "file:../secret.txt"), W_REF_DENIED);
    assert_string_equal(code_of(f, "file:in/../../secret.txt"), W_REF_DENIED);
    assert_string_equal(code_of(f, "file:in/link.txt"), W_REF_DENIED);
    assert_string_equal(code_of(f, "file:out/secret.txt"), W_REF_DENIED);
    assert_string_equal(code_of(f, "file:/etc/passwd"), W_REF_DENIED);
    snprintf(path, sizeof path, "file:%s/secret.txt", base);
    assert_string_equal(code_of(f, path), W_REF_DENIED);
    snprintf(path, sizeof path, "file:%s/rootless/b.txt", base);
    assert_string_equal(code_of(f, path), W_REF_DENIED);
    assert_string_equal(code_of(f, "file:in/none.txt"), W_REF_NOT_FOUND);
    assert_string_equal(code_of(f, "file:in"), W_REF_DENIED); /* a folder */
    assert_string_equal(code_of(f, "file:"), W_REF_DENIED);
    w_files_destroy(f);
}

static void test_without_roots_nothing_is_opened_and_the_option_is_named(void **state) {
    struct w_error err = {0};
    struct w_files *f = w_files_create(NULL, 0, &err);
    (void)state;
    assert_int_equal(w_files_open(f, "file:a", false, NULL, &err), -1);
    assert_string_equal(err.code, W_REF_DENIED);
    assert_non_null(strstr(err.text, "--files"));
    w_files_destroy(f);
}

static void test_outputs_are_named_beneath_a_root_only(void **state) {
    const char *roots[] = {root};
    struct w_error err = {0};
    struct w_files *f = w_files_create(roots, 1, &err);
    char name[256];
    (void)state;
    int fd = w_files_open_parent(f, "file:in/new.jsonl", name, &err);
    assert_true(fd >= 0);
    assert_string_equal(name, "new.jsonl");
    close(fd);
    static const char *const bad[] = {"file:../new.jsonl", "file:out/new.jsonl",
                                      "file:/tmp/new.jsonl", "file:in/..", "file:in/"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(w_files_open_parent(f, bad[i], name, &err), -1);
        assert_string_equal(err.code, W_REF_DENIED);
    }
    w_files_destroy(f);
}

static void test_a_file_is_read_whole(void **state) {
    const char *roots[] = {root};
    struct w_error err = {0};
    struct w_files *f = w_files_create(roots, 1, &err);
    struct w_arena arena;
    struct w_span span;
    (void)state;
    w_arena_init(&arena, 1 << 20);
    assert_true(w_files_read(f, "file:in/a.txt", &arena, &span, &err));
    assert_int_equal(span.len, 6);
    assert_memory_equal(span.ptr, "inside", 6);
    w_arena_finish(&arena);
    w_files_destroy(f);
}

static void test_the_tightest_cgroup_quota_counts(void **state) {
    char top[96];
    (void)state;
    snprintf(top, sizeof top, "%s/v2", base);
    put("v2/proc/self/cgroup", "0::/a/b\n");
    put("v2/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    assert_int_equal(w__cpus_quota(top), 0);
    put("v2/sys/fs/cgroup/a/cpu.max", "250000 100000\n");
    assert_int_equal(w__cpus_quota(top), 3);
    put("v2/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
    assert_int_equal(w__cpus_quota(top), 1);
    snprintf(top, sizeof top, "%s/v1", base);
    put("v1/proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n");
    put("v1/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "400000\n");
    put("v1/sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
    assert_int_equal(w__cpus_quota(top), 4);
    put("v1/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n");
    assert_int_equal(w__cpus_quota(top), 0);
    assert_true(w_cpus() >= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_what_lies_beneath_a_root_is_opened),
        cmocka_unit_test(test_without_roots_nothing_is_opened_and_the_option_is_named),
        cmocka_unit_test(test_outputs_are_named_beneath_a_root_only),
        cmocka_unit_test(test_a_file_is_read_whole),
        cmocka_unit_test(test_the_tightest_cgroup_quota_counts),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
