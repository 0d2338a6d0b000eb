#include "queue/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Copies len bytes with %XX decoded; false if it does not fit, an escape is bad, or a NUL comes
 * out. */
static bool decode(char *dst, size_t dst_len, const char *src, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        int c = (unsigned char)src[i];
        if (c == '%') {
            char hex[3] = {0}, *end;
            if (len - i < 3) return false;
            memcpy(hex, src + i + 1, 2);
            c = (int)strtol(hex, &end, 16);
            if (end != hex + 2 || hex[0] == '-' || hex[0] == '+' || hex[0] == ' ') return false;
            i += 2;
        }
        if (c == 0 || n + 1 >= dst_len) return false;
        dst[n++] = (char)c;
    }
    dst[n] = 0;
    return true;
}

static bool parse_uint(const char *p, size_t len, uint32_t max, uint32_t *out) {
    uint32_t n = 0;
    if (len == 0 || len > 9) return false;
    for (size_t i = 0; i < len; i++) {
        if (p[i] < '0' || p[i] > '9') return false;
        n = n * 10 + (uint32_t)(p[i] - '0');
    }
    *out = n;
    return n <= max;
}

static enum q_status parse_unix(struct q_url *url, const char *p, struct q_error *err) {
    url->scheme = Q_SCHEME_UNIX;
    if (strncmp(p, "//", 2) == 0) p += 2;
    size_t path_len = strcspn(p, "?");
    if (*p != '/' || !decode(url->host, 108, p, path_len))
        return q__error(err, Q_BAD_URL,
                        "Redis URL: unix:/path needs an absolute path of at most 107 bytes");
    p += path_len;
    if (*p && (strncmp(p, "?db=", 4) != 0 || !parse_uint(p + 4, strlen(p + 4), 1 << 20, &url->db)))
        return q__error(err, Q_BAD_URL,
                        "Redis URL: after the socket's path only ?db=N may follow, found \"%.40s\"",
                        p);
    return Q_OK;
}

static enum q_status parse_host(struct q_url *url, const char *p, size_t len, struct q_error *err) {
    const char *host = p, *host_end = p + len, *port = NULL;
    if (len && *p == '[') {
        host_end = memchr(p, ']', len);
        if (!host_end)
            return q__error(err, Q_BAD_URL, "Redis URL: an IPv6 address needs its closing ]");
        host = p + 1;
        if (host_end + 1 < p + len) {
            if (host_end[1] != ':')
                return q__error(err, Q_BAD_URL, "Redis URL: only :port may follow ]");
            port = host_end + 2;
        }
    } else {
        const char *colon = memchr(p, ':', len);
        if (colon) {
            host_end = colon;
            port = colon + 1;
        }
    }
    if (!decode(url->host, sizeof url->host, host, (size_t)(host_end - host)))
        return q__error(err, Q_BAD_URL,
                        "Redis URL: the host is longer than 255 bytes or has a bad %%XX");
    if (url->host[0] == 0) strcpy(url->host, "127.0.0.1");
    uint32_t n = 6379;
    if (port && (!parse_uint(port, (size_t)(p + len - port), 65535, &n) || n == 0))
        return q__error(err, Q_BAD_URL, "Redis URL: the port must be 1 to 65535, found \"%.*s\"",
                        (int)(p + len - port > 20 ? 20 : p + len - port), port);
    url->port = (uint16_t)n;
    return Q_OK;
}

static enum q_status parse_tcp(struct q_url *url, const char *p, struct q_error *err) {
    size_t len = strcspn(p, "/?#");
    const char *rest = p + len, *at = NULL;
    for (size_t i = 0; i < len; i++)
        if (p[i] == '@') at = p + i; /* the last one: a password may contain @ */
    if (at) {
        const char *colon = memchr(p, ':', (size_t)(at - p));
        const char *user_end = colon ? colon : at;
        if (!decode(url->user, sizeof url->user, p, (size_t)(user_end - p)) ||
            (colon &&
             !decode(url->password, sizeof url->password, colon + 1, (size_t)(at - colon - 1))))
            return q__error(err, Q_BAD_URL,
                            "Redis URL: user (127 bytes) or password (255 bytes) is too long or "
                            "has a bad %%XX");
        len -= (size_t)(at + 1 - p);
        p = at + 1;
    }
    enum q_status s = parse_host(url, p, len, err);
    if (s) return s;
    if (*rest == '/' && rest[1] && !parse_uint(rest + 1, strlen(rest + 1), 1 << 20, &url->db))
        return q__error(err, Q_BAD_URL,
                        "Redis URL: the path must be a database number, found \"%.40s\"", rest);
    if (*rest && *rest != '/')
        return q__error(err, Q_BAD_URL,
                        "Redis URL: \"%.40s\" is not understood; expected /db or nothing", rest);
    return Q_OK;
}

enum q_status q_url_parse(struct q_url *url, const char *text, struct q_error *err) {
    *url = (struct q_url){.port = 6379};
    if (strncmp(text, "unix:", 5) == 0) return parse_unix(url, text + 5, err);
    if (strncmp(text, "redis+sentinel://", 17) == 0)
        return q__error(
            err, Q_UNSUPPORTED,
            "redis+sentinel:// is not supported yet: give the primary's own redis:// URL");
    if (strncmp(text, "redis+cluster://", 16) == 0)
        return q__error(err, Q_UNSUPPORTED,
                        "redis+cluster:// is not supported yet: give one node's redis:// URL and a "
                        "queue whose slot it holds");
    if (strncmp(text, "redis://", 8) == 0) return parse_tcp(url, text + 8, err);
    if (strncmp(text, "rediss://", 9) == 0) {
        url->scheme = Q_SCHEME_TLS;
        return parse_tcp(url, text + 9, err);
    }
    size_t scheme = strcspn(text, ":");
    return q__error(err, Q_BAD_URL,
                    "Redis URL: scheme \"%.*s\" is not known; expected redis, rediss or unix",
                    (int)(scheme > 30 ? 30 : scheme), text);
}

char *q_url_redact(const struct q_url *url, char *buf, size_t buf_len) {
    const char *user = url->user[0] ? url->user : "",
               *at = url->user[0] || url->password[0] ? "@" : "";
    if (url->scheme == Q_SCHEME_UNIX)
        snprintf(buf, buf_len, "unix:%s%s%.0u", url->host, url->db ? "?db=" : "", url->db);
    else
        snprintf(buf, buf_len, strchr(url->host, ':') ? "%s%s%s[%s]:%u/%u" : "%s%s%s%s:%u/%u",
                 url->scheme == Q_SCHEME_TLS ? "rediss://" : "redis://", user, at, url->host,
                 url->port, url->db);
    return buf;
}
