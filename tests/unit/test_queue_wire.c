/* What is between us and Redis: TLS, passwords, rights, a full server, a server that evicts,
 * hostile replies. */
#include "queue_testing.h"

#include <arpa/inet.h>

static int setup(void **state) {
    (void)state;
    memset(&server, 0, sizeof server);
    server_init(&server);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    if (ctl) q_ctl_close(ctl);
    ctl = NULL;
    server_finish(&server);
    return 0;
}

static void serve_one(const struct q_conn_options *conn) {
    struct rig r;
    rig_init(&r, NULL);
    r.opt.conn = *conn;
    r.ctl = ctl;
    r.auto_done = true;
    rig_start(&r, 4);
    PUSH(ctl, "{\"id\":\"one\",\"op\":\"ping\",\"wait\":true,\"status\":true,\"reply_to\":\"quern:{"
              "t}:rep:1\",\"unique\":\"k\"}");
    r.id = "one";
    rig_until(&r, is_final);
    struct q_worker_stats s;
    do {
        rig_spin(&r, 10);
        q_worker_stats(r.w, &s);
    } while (s.beats == 0);
    rig_finish(&r);
}

/* --- TLS */

static void sh(const char *fmt, ...) {
    char cmd[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, args);
    va_end(args);
    assert_int_equal(system(cmd), 0);
}

static void make_certificates(const char *dir) {
    sh("cd %s && openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 "
       "-subj /CN=quern-test-ca 2>/dev/null",
       dir);
    for (int i = 0; i < 2; i++) {
        const char *who = i ? "client" : "server";
        sh("cd %s && openssl req -newkey rsa:2048 -nodes -keyout %s.key -out %s.csr -subj /CN=%s "
           "2>/dev/null && "
           "printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > ext && "
           "openssl x509 -req -in %s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out %s.crt "
           "-days 2 -extfile ext 2>/dev/null",
           dir, who, who, who, who, who);
    }
}

static int free_port(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    getsockname(fd, (struct sockaddr *)&a, &len);
    close(fd);
    return ntohs(a.sin_port);
}

static enum q_status try_open(const struct q_conn_options *opt, char text[512]) {
    struct q_error err = {.code = Q_OK};
    struct q_ctl *c = q_ctl_open(opt, &err);
    q_ctl_close(c);
    snprintf(text, 512, "%s", err.text);
    return err.code;
}

static void test_tls(void **state) {
    static char ca[128], crt[128], key[128], ccrt[128], ckey[128], port[16], url[64], text[512];
    (void)state;
    if (system(
            "ldd $(command -v redis-server) | grep -q libssl && command -v openssl >/dev/null") !=
        0)
        skip(); /* this redis-server was built without TLS */
    make_certificates(server.dir);
    snprintf(ca, sizeof ca, "%s/ca.crt", server.dir);
    snprintf(crt, sizeof crt, "%s/server.crt", server.dir);
    snprintf(key, sizeof key, "%s/server.key", server.dir);
    snprintf(ccrt, sizeof ccrt, "%s/client.crt", server.dir);
    snprintf(ckey, sizeof ckey, "%s/client.key", server.dir);
    int n = free_port();
    snprintf(port, sizeof port, "%d", n);
    char *args[] = {"--tls-port",
                    port,
                    "--tls-cert-file",
                    crt,
                    "--tls-key-file",
                    key,
                    "--tls-ca-cert-file",
                    ca,
                    "--requirepass",
                    "s3cret",
                    NULL};
    memcpy(server.args, args, sizeof args);
    server_start(&server);
    snprintf(url, sizeof url, "rediss://:s3cret@localhost:%d/2", n);
    struct q_conn_options opt = {.url = url, .tls_ca = ca, .tls_cert = ccrt, .tls_key = ckey};
    struct q_error err = {.code = Q_OK};
    ctl = q_ctl_open(&opt, &err);
    if (!ctl) print_error("%s\n", err.text);
    assert_non_null(ctl);
    serve_one(&opt);
    char *big = malloc(1 << 20); /* many records each way */
    memset(big, 'b', 1 << 20);
    const char *argv[] = {"ECHO", big};
    size_t len[] = {4, 1 << 20}, got;
    char *reply;
    assert_int_equal(q_ctl_command(ctl, 2, argv, len, &reply, &got), Q_OK);
    assert_int_equal(got, 1 << 20);
    assert_memory_equal(reply, big, got);
    free(reply);
    free(big);

    struct q_conn_options bad = opt; /* an authority that nobody knows */
    bad.tls_ca = NULL;
    assert_int_equal(try_open(&bad, text), Q_TLS);
    assert_non_null(strstr(text, "certificate is refused"));
    bad = opt; /* another name than the certificate's */
    bad.tls_name = "elsewhere.example";
    assert_int_equal(try_open(&bad, text), Q_TLS);
    assert_non_null(strstr(text, "certificate is refused"));
    bad = opt; /* no client certificate, though the server asks for one */
    bad.tls_cert = bad.tls_key = NULL;
    assert_int_not_equal(try_open(&bad, text), Q_OK);
    bad = opt; /* half of one */
    bad.tls_key = NULL;
    assert_int_equal(try_open(&bad, text), Q_BAD_OPTION);
    bad = opt;
    bad.tls_ca = "/nonexistent/ca.crt";
    assert_int_equal(try_open(&bad, text), Q_TLS);
    bad = opt;
    bad.tls_no_verify = true, bad.tls_ca = NULL, bad.tls_name = NULL;
    assert_int_equal(try_open(&bad, text), Q_OK);
    bad = opt;
    bad.password = "wrong";
    assert_int_equal(try_open(&bad, text), Q_AUTH);
}

/* --- rights */

static void acl(const char *user, const char *rules) {
    char text[2048], *words[64];
    const char *argv[64] = {"ACL", "SETUSER", user, "on", ">pw"};
    size_t n = 5, len;
    char *reply;
    snprintf(text, sizeof text, "%s", rules);
    for (char *p = text; *p;) { /* words, but a parenthesis is one word */
        char end = *p == '(' ? ')' : ' ';
        words[n] = p;
        p += strcspn(p, end == ')' ? ")" : " ");
        p += end == ')';
        argv[n] = words[n];
        n++;
        if (*p) *p++ = 0;
    }
    argv[n] = NULL;
    if (q_ctl_command(ctl, n, argv, NULL, &reply, &len) != Q_OK)
        print_error("%s\n", q_ctl_error(ctl)->text);
    else
        free(reply);
    assert_int_equal(q_ctl_error(ctl)->code, Q_OK);
}

/* The rules of PROTOCOL.md, read from there: what it prints works. */
static void acl_from_page(const char *user) {
    char line[2048], prefix[32];
    FILE *f = fopen("queue/PROTOCOL.md", "r");
    if (!f) skip();
    snprintf(prefix, sizeof prefix, "%s ", user);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, prefix, strlen(prefix)) == 0 && strstr(line, "resetkeys")) {
            char rules[2048], *p = strstr(line, "resetkeys");
            size_t n = 0;
            p[strcspn(p, "\n")] = 0;
            for (; *p && n < sizeof rules - 4; p++) /* the page's queue is img, ours t */
                if (strncmp(p, "{img}", 5) == 0)
                    n += (size_t)sprintf(rules + n, "{t}"), p += 4;
                else
                    rules[n++] = *p;
            rules[n] = 0;
            acl(user, rules);
            fclose(f);
            return;
        }
    fclose(f);
    fail_msg("PROTOCOL.md has no rule for %s", user);
}

static void test_least_rights(void **state) {
    (void)state;
    server_start(&server);
    ctl = ctl_open(server.url);
    char *version = command(ctl, "INFO", "server");
    bool seven = strstr(version, "redis_version:6") == NULL;
    free(version);
    if (!seven) skip(); /* no selectors */
    acl_from_page("worker");
    acl_from_page("producer");
    acl_from_page("viewer");
    struct q_conn_options worker = {.url = server.url, .user = "worker", .password = "pw"};
    serve_one(&worker);
    char *log = command(ctl, "ACL", "LOG");
    if (log[0]) print_error("%s\n", log);
    assert_string_equal(log, ""); /* the worker asked for nothing that it may not have */
    free(log);

    struct q_error err;
    struct q_conn_options producer = {.url = server.url, .user = "producer", .password = "pw"};
    struct q_ctl *p = q_ctl_open(&producer, &err);
    assert_non_null(p);
    command_says(p, "1", "LPUSH", "quern:{t}:in", "{\"op\":\"ping\"}");
    char *envelope = command(p, "GET", "quern:{t}:r:one");
    assert_non_null(strstr(envelope, "\"state\":\"done\""));
    free(envelope);
    const char *denied[] = {"LPUSH", "quern:{t}:redo", "x"};
    char *reply;
    size_t len;
    assert_int_equal(q_ctl_command(p, 3, denied, NULL, &reply, &len), Q_DENIED);
    q_ctl_close(p);

    struct q_conn_options viewer = {.url = server.url, .user = "viewer", .password = "pw"};
    p = q_ctl_open(&viewer, &err);
    assert_non_null(p);
    struct q_ctl_queue *q;
    assert_int_equal(q_ctl_queues(p, NULL, &q, &len), Q_OK);
    assert_int_equal(q->waiting, 1);
    free(q);
    struct q_ctl_worker *w;
    assert_int_equal(q_ctl_workers(p, NULL, &w, &len), Q_OK);
    q_ctl_workers_free(w, len);
    q_ctl_close(p);
}

/* --- a full server */

static void test_a_full_server_drains(void **state) {
    enum { N = 2000 };
    struct rig r;
    (void)state;
    server_start(&server);
    ctl = ctl_open(server.url);
    char json[300];
    for (int i = 0; i < N; i++) {
        snprintf(json, sizeof json,
                 "{\"id\":\"f%d\",\"op\":\"ping\",\"retry\":{\"max\":1,\"base_ms\":1},\"params\":"
                 "\"%0*d\"}",
                 i, 150, 0);
        PUSH(ctl, json);
    }
    char *used = command(ctl, "INFO", "memory");
    free(used);
    free(command(ctl, "CONFIG", "SET", "maxmemory", "100000")); /* far below what is used */
    const char *push[] = {"LPUSH", "quern:{t}:in", "{\"op\":\"ping\"}"};
    char *reply;
    size_t len;
    assert_int_equal(q_ctl_command(ctl, 3, push, NULL, &reply, &len), Q_FULL);
    rig_init(&r, server.url);
    r.ctl = ctl;
    r.auto_done = true;
    rig_start(&r, 64);
    r.id = "f1999"; /* the last one in */
    rig_until(&r, is_final);
    rig_until(&r, nothing_pending);
    assert_int_equal(r.n_came, N);
    /* idle on a full server: blocking reads are refused, polling goes on; room again: at once */
    rig_spin(&r, 100);
    free(command(ctl, "CONFIG", "SET", "maxmemory", "0"));
    PUSH(ctl, "{\"id\":\"after\",\"op\":\"ping\"}");
    r.id = "after";
    rig_until(&r, is_final);
    rig_finish(&r);
}

static bool was_lost(struct rig *r) {
    return r->n_lost > 0;
}

static void test_an_evicting_server_is_refused(void **state) {
    struct rig r;
    char *args[] = {"--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru", NULL};
    (void)state;
    memcpy(server.args, args, sizeof args);
    server_start(&server);
    ctl = ctl_open(server.url);
    rig_init(&r, server.url);
    rig_start(&r, 1);
    rig_until(&r, was_lost);
    assert_non_null(strstr(r.last_lost, "maxmemory-policy is allkeys-lru, expected noeviction"));
    assert_int_equal(r.n_connected, 0);
    rig_finish(&r);
    struct q_conn_options opt = {.url = server.url};
    rig_init(&r, NULL);
    r.opt.conn = opt;
    r.opt.allow_eviction = true;
    rig_start(&r, 1);
    rig_until(&r, is_connected);
    rig_finish(&r);
}

/* --- nobody there, or not Redis */

static void test_unreachable_is_said_and_tried_again(void **state) {
    struct rig r;
    char text[512];
    (void)state;
    struct q_conn_options opt = {.url = server.url};
    assert_int_equal(try_open(&opt, text), Q_UNREACHABLE);
    assert_non_null(strstr(text, server.sock));
    opt.url = "redis://no-such-host.invalid";
    assert_int_equal(try_open(&opt, text), Q_UNREACHABLE);
    rig_init(&r, server.url);
    rig_start(&r, 1);
    rig_until(&r, was_lost);
    server_start(&server);
    rig_until(&r, is_connected);
    rig_finish(&r);
}

static void test_garbage_is_a_protocol_error(void **state) {
    static const char *const says[] = {"HTTP/1.1 400 Bad Request\r\n\r\n",
                                       "*1\r\n*-5\r\n",
                                       "$99999999999999999999\r\n",
                                       "*2147483647\r\n*2147483647\r\n",
                                       "+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n",
                                       ":x\r\n"};
    char text[512];
    (void)state;
    for (size_t i = 0; i < sizeof says / sizeof *says; i++) {
        struct sockaddr_un addr = {.sun_family = AF_UNIX};
        strcpy(addr.sun_path, server.sock);
        unlink(server.sock);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
        assert_int_equal(listen(fd, 4), 0);
        pid_t pid = fork();
        if (pid == 0) {
            int one = accept(fd, NULL, NULL);
            char sink[4096];
            (void)!read(one, sink, sizeof sink);
            (void)!write(one, says[i], strlen(says[i]));
            (void)!read(one, sink, sizeof sink);
            _exit(0);
        }
        struct q_conn_options opt = {.url = server.url, .reply_timeout_ms = 2000};
        enum q_status s = try_open(&opt, text);
        if (s != Q_PROTOCOL && s != Q_TIMEOUT && s != Q_REDIS && s != Q_UNREACHABLE)
            print_error("%zu: %s %s\n", i, q_status_name(s), text);
        assert_true(s == Q_PROTOCOL || s == Q_TIMEOUT || s == Q_REDIS || s == Q_UNREACHABLE);
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        close(fd);
    }
}

int main(void) {
    if (!have_redis()) {
        printf("ok 1 - queue wire # SKIP redis-server is not installed\n");
        return 0;
    }
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_tls),
        T(test_least_rights),
        T(test_a_full_server_drains),
        T(test_an_evicting_server_is_refused),
        T(test_unreachable_is_said_and_tried_again),
        T(test_garbage_is_a_protocol_error),
    };
    return cmocka_run_group_tests_name("queue_wire", tests, NULL, NULL);
}
