#include "queue/conn.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum q_status q__endpoint_init(struct q__endpoint *e, const struct q_conn_options *opt,
                               struct q_error *err) {
    *e = (struct q__endpoint){
        .connect_timeout_ms = opt->connect_timeout_ms ? opt->connect_timeout_ms : 5000,
        .reply_timeout_ms = opt->reply_timeout_ms ? opt->reply_timeout_ms : 10000};
    enum q_status s = q_url_parse(&e->url, opt->url ? opt->url : "redis://127.0.0.1:6379/0", err);
    if (s) return s;
    if ((opt->user && strlen(opt->user) >= sizeof e->url.user) ||
        (opt->password && strlen(opt->password) >= sizeof e->url.password))
        return q__error(err, Q_BAD_OPTION,
                        "the Redis user (127 bytes) or password (255 bytes) is too long");
    if (opt->user) strcpy(e->url.user, opt->user);
    if (opt->password) strcpy(e->url.password, opt->password);
    q_url_redact(&e->url, e->where, sizeof e->where);
    e->name = strdup(opt->name ? opt->name : "quern");
    e->tls_name = strdup(opt->tls_no_verify ? "" : opt->tls_name ? opt->tls_name : e->url.host);
    if (!e->name || !e->tls_name) {
        q__endpoint_finish(e);
        return q__error(err, Q_NO_MEMORY, "no memory for a connection");
    }
    if (e->url.scheme == Q_SCHEME_TLS && !(e->tls = q__tls_context(opt, err))) {
        q__endpoint_finish(e);
        return err ? err->code : Q_TLS;
    }
    return Q_OK;
}

void q__endpoint_finish(struct q__endpoint *e) {
    free(e->name);
    free(e->tls_name);
    if (e->tls) q__tls_context_free(e->tls);
    e->name = e->tls_name = NULL;
    e->tls = NULL;
}

/* A reader that refuses arrays larger than any that we ask for: hiredis would allocate whatever
 * size the peer announces before a single element came. */
enum { REPLY_ELEMENTS_MAX = 1 << 20 };
static redisReplyObjectFunctions reader_functions;
static void *(*create_array)(const redisReadTask *, int);
static pthread_once_t reader_once = PTHREAD_ONCE_INIT;

static void *create_small_array(const redisReadTask *task, int elements) {
    return elements > REPLY_ELEMENTS_MAX ? NULL : create_array(task, elements);
}

static void init_reader_functions(void) {
    redisReader *r = redisReaderCreate();
    q__assert(r);
    reader_functions = *r->fn;
    create_array = reader_functions.createArray;
    reader_functions.createArray = create_small_array;
    redisReaderFree(r);
}

redisReader *q__reader_create(void) {
    pthread_once(&reader_once, init_reader_functions);
    return redisReaderCreateWithFunctions(&reader_functions);
}
