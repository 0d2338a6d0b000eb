#include "queue/conn.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* TLS over two memory BIOs: OpenSSL never sees a socket, libuv never sees plain text. */
struct q__tls {
    SSL *ssl;
    BIO *in, *out; /* owned by ssl */
};

static enum q_status fail(struct q_error *err, const char *what, const char *file) {
    char text[160] = "no detail";
    unsigned long e = ERR_peek_last_error();
    if (e) ERR_error_string_n(e, text, sizeof text);
    ERR_clear_error();
    return q__error(err, Q_TLS, "TLS: %s%s%s: %s", what, file ? " " : "", file ? file : "", text);
}

static bool load(SSL_CTX *ctx, const struct q_conn_options *opt, struct q_error *err) {
    if (!opt->tls_cert != !opt->tls_key)
        return q__error(err, Q_BAD_OPTION,
                        "TLS: a client certificate and its key go together, one is missing"),
               false;
    if (opt->tls_cert && SSL_CTX_use_certificate_chain_file(ctx, opt->tls_cert) != 1)
        return fail(err, "cannot read certificate", opt->tls_cert), false;
    if (opt->tls_key && SSL_CTX_use_PrivateKey_file(ctx, opt->tls_key, SSL_FILETYPE_PEM) != 1)
        return fail(err, "cannot use key", opt->tls_key), false;
    if (opt->tls_no_verify) return true;
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    struct stat st;
    bool folder = opt->tls_ca && stat(opt->tls_ca, &st) == 0 && S_ISDIR(st.st_mode);
    if (!opt->tls_ca ? SSL_CTX_set_default_verify_paths(ctx) != 1
                     : SSL_CTX_load_verify_locations(ctx, folder ? NULL : opt->tls_ca,
                                                     folder ? opt->tls_ca : NULL) != 1)
        return fail(err, "cannot read authority", opt->tls_ca), false;
    return true;
}

void *q__tls_context(const struct q_conn_options *opt, struct q_error *err) {
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    if (!ctx) {
        q__error(err, Q_NO_MEMORY, "TLS: no memory");
        return NULL;
    }
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    if (!load(ctx, opt, err)) {
        SSL_CTX_free(ctx);
        return NULL;
    }
    return ctx;
}

void q__tls_context_free(void *ctx) {
    SSL_CTX_free(ctx);
}

struct q__tls *q__tls_create(void *ctx, const char *name) {
    struct q__tls *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    unsigned char ip[16];
    bool is_ip = inet_pton(AF_INET, name, ip) == 1 || inet_pton(AF_INET6, name, ip) == 1;
    t->ssl = SSL_new(ctx);
    t->in = BIO_new(BIO_s_mem());
    t->out = BIO_new(BIO_s_mem());
    if (!t->ssl || !t->in || !t->out) goto fail;
    SSL_set_bio(t->ssl, t->in, t->out);
    SSL_set_connect_state(t->ssl);
    if (name[0] && is_ip && X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(t->ssl), name) != 1)
        goto fail;
    if (name[0] && !is_ip &&
        (SSL_set1_host(t->ssl, name) != 1 || SSL_set_tlsext_host_name(t->ssl, name) != 1))
        goto fail;
    return t;
fail:
    if (t->ssl && SSL_get_rbio(t->ssl)) {
        t->in = t->out = NULL; /* ssl owns them */
    }
    BIO_free(t->in);
    BIO_free(t->out);
    SSL_free(t->ssl);
    free(t);
    return NULL;
}

void q__tls_free(struct q__tls *t) {
    if (!t) return;
    SSL_free(t->ssl);
    free(t);
}

void q__tls_feed(struct q__tls *t, const char *data, size_t len) {
    if (len) BIO_write(t->in, data, (int)len);
}

int q__tls_handshake(struct q__tls *t) {
    int rc = SSL_do_handshake(t->ssl);
    if (rc == 1) return 1;
    rc = SSL_get_error(t->ssl, rc);
    return rc == SSL_ERROR_WANT_READ || rc == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

int q__tls_read(struct q__tls *t, char *buf, size_t len) {
    int n = SSL_read(t->ssl, buf, (int)len);
    if (n > 0) return n;
    n = SSL_get_error(t->ssl, n);
    return n == SSL_ERROR_WANT_READ || n == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

bool q__tls_write(struct q__tls *t, const char *data, size_t len) {
    while (len > 0) { /* a memory BIO takes everything; partial writes are a record each */
        int n = SSL_write(t->ssl, data, len > (1 << 30) ? 1 << 30 : (int)len);
        if (n <= 0) return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

char *q__tls_take(struct q__tls *t, size_t *len) {
    size_t n = BIO_ctrl_pending(t->out);
    char *buf = n ? malloc(n) : NULL;
    if (!buf) return NULL;
    int got = BIO_read(t->out, buf, n > (1 << 30) ? 1 << 30 : (int)n);
    *len = got > 0 ? (size_t)got : 0;
    return buf;
}

const char *q__tls_why(struct q__tls *t, char *buf, size_t len) {
    long verify = SSL_get_verify_result(t->ssl);
    unsigned long e = ERR_peek_last_error();
    if (verify != X509_V_OK)
        snprintf(buf, len, "the server's certificate is refused: %s",
                 X509_verify_cert_error_string(verify));
    else if (e)
        ERR_error_string_n(e, buf, len);
    else
        snprintf(buf, len, "the server closed the connection");
    ERR_clear_error();
    return buf;
}
