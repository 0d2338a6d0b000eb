#include "queue/script.h"
#include "queue/internal.h"
#include "queue_scripts.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define ROW(name) {#name, q__lua_##name, sizeof q__lua_##name - 1},
static const struct {
    const char *name, *body;
    size_t len;
} scripts[] = {Q__SCRIPT_MAP(ROW)};

static char shas[Q__SCRIPT_N][41];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* The SHA-1 is the script's version: two versions of worker on one server do not meet. */
static void hash_all(void) {
    for (int i = 0; i < Q__SCRIPT_N; i++) {
        unsigned char md[EVP_MAX_MD_SIZE];
        unsigned n = 0;
        q__assert(EVP_Digest(scripts[i].body, scripts[i].len, md, &n, EVP_sha1(), NULL) == 1 &&
                  n == 20);
        for (unsigned k = 0; k < n; k++) snprintf(shas[i] + 2 * k, 3, "%02x", md[k]);
    }
}

const char *q__script_name(enum q__script s) {
    return scripts[s].name;
}

const char *q__script_body(enum q__script s, size_t *len) {
    *len = scripts[s].len;
    return scripts[s].body;
}

const char *q__script_sha(enum q__script s) {
    pthread_once(&once, hash_all);
    return shas[s];
}
