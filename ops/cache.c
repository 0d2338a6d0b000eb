/* The packed-weight cache: one file a model, mapped and used in place, so that loading again reads no weights and packs none.
 *
 * FILES, in the folder that op_load_options.cache names:
 *   KEY.packed   a header, a table of pieces, the pieces as they lie in memory. KEY is a SHA-256 over what decides about them: the content of the model's
 *                files, the ISA level, the precision, the passes.
 *   ID.sha256    the content hash of a file, under its identity (device, inode, size, times): hashing 100 MB takes 50 ms, asking stat none. Not
 *                written for a file that has changed in the last seconds, whose times may not tell its next change.
 *
 * TRUST. A file is used if it is ours (owner, nobody else may write), of exactly the size that its header says, and the header is whole (its own
 * hash), of this key and of this very build of the program: packed forms have no version that somebody could forget to raise. Each piece must have
 * the label of the node that asks, in order, and its size. Whatever is wrong is ignored and written anew; the content of pieces is not hashed again,
 * since a file appears by rename after its data is on disk. A load never fails because of a cache, and writing one that fails leaves nothing behind.
 *
 * Thread: the one that loads. */
#include "ops/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "ops/model.h"

#define PAGE ((size_t)4096)
#define WORTH_BYTES ((size_t)64 << 10) /* of pieces: below, a file costs more than it saves */
#define SETTLED_NS INT64_C(2000000000)
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum { HASH = 32, HEX = 65, FORMAT = 1 };

struct head {
    char magic[8];
    uint32_t format, n;
    uint64_t bytes; /* of the file */
    uint8_t key[HASH], build[HASH];
    uint8_t hash[HASH]; /* of head and table, with zeros here */
};

struct entry {
    uint64_t label, offset, bytes;
};

static const char magic[8] = {'q', 'u', 'e', 'r', 'n', 'p', 'a', 'k'};

struct op_cache {
    char path[4096]; /* of the file */
    uint8_t key[HASH], build[HASH];
    const char *map; /* NULL: there is none yet */
    size_t bytes;
    const struct entry *table;
    uint32_t n;
};

/* --- who we are ---------------------------------------------------------------------------------- */

static int find_build(struct dl_phdr_info *info, size_t size, void *user) {
    uint8_t *build = user;
    const uintptr_t here = (uintptr_t)&magic;
    bool ours = false;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        ours |= p->p_type == PT_LOAD && here - (info->dlpi_addr + p->p_vaddr) < p->p_memsz;
    }
    for (int i = 0; ours && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_NOTE) continue;
        const char *at = (const char *)(info->dlpi_addr + p->p_vaddr), *end = at + p->p_memsz;
        while (end - at > (ptrdiff_t)sizeof(ElfW(Nhdr))) {
            ElfW(Nhdr) note;
            memcpy(&note, at, sizeof note);
            const char *name = at + sizeof note, *desc = name + ((note.n_namesz + 3u) & ~3u);
            if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && memcmp(name, "GNU", 4) == 0 && note.n_descsz >= 8 && note.n_descsz <= HASH) {
                memcpy(build, desc, note.n_descsz);
                return 1;
            }
            at = desc + ((note.n_descsz + 3u) & ~3u);
        }
    }
    return ours ? -1 : 0;
}

/* --- hashes ---------------------------------------------------------------------------------------- */

static bool digest(const struct iovec *parts, int n, uint8_t *dst) {
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    unsigned len = 0;
    bool good = ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;
    for (int i = 0; i < n && good; i++) good = EVP_DigestUpdate(ctx, parts[i].iov_base, parts[i].iov_len) == 1;
    good = good && EVP_DigestFinal_ex(ctx, dst, &len) == 1 && len == HASH;
    EVP_MD_CTX_free(ctx);
    return good;
}

static void to_hex(const uint8_t *bytes, size_t n, char *dst) {
    for (size_t i = 0; i < n; i++) snprintf(dst + 2 * i, 3, "%02x", bytes[i]);
}

/* --- files ------------------------------------------------------------------------------------------ */

/* Writes a file under another name, syncs and renames it. */
static bool write_file(const char *path, const struct iovec *parts, int n) {
    char temporary[4200];
    snprintf(temporary, sizeof temporary, "%s.%ld.%lx", path, (long)getpid(), (unsigned long)(uintptr_t)parts);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return false;
    bool good = true;
    for (int i = 0; i < n && good; i++) {
        const char *at = parts[i].iov_base;
        for (size_t left = parts[i].iov_len; left && good;) {
            ssize_t w = write(fd, at, left);
            if (w < 0 && errno == EINTR) continue;
            good = w > 0;
            if (good) at += w, left -= (size_t)w;
        }
    }
    good = good && fdatasync(fd) == 0;
    good = close(fd) == 0 && good;
    good = good && rename(temporary, path) == 0;
    if (!good) unlink(temporary);
    return good;
}

/* A regular file that is ours and that nobody else may write; -1. */
static int open_own(const char *path, struct stat *info) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) return -1;
    if (fstat(fd, info) == 0 && S_ISREG(info->st_mode) && info->st_uid == geteuid() && !(info->st_mode & 022)) return fd;
    close(fd);
    return -1;
}

/* --- the key ---------------------------------------------------------------------------------------- */

static void id_path(const struct op_model *m, const struct op_file_id *id, char *dst, size_t room) {
    uint8_t hash[HASH] = {0};
    char hex[HEX];
    digest(&(struct iovec){(void *)(uintptr_t)id, sizeof *id}, 1, hash);
    to_hex(hash, 16, hex);
    snprintf(dst, room, "%s/%s.sha256", m->options.cache, hex);
}

static bool settled(const struct op_file_id *id) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    const int64_t now = t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
    return now - id->mtime_ns > SETTLED_NS && now - id->ctime_ns > SETTLED_NS;
}

/* The content hash of bytes in hex: looked up by the identity of the file they are of (NULL: none), else computed. */
static bool content_hash(const struct op_model *m, const char *bytes, size_t n, const struct op_file_id *id, char hex[HEX]) {
    char path[4200];
    struct stat info;
    if (id) {
        id_path(m, id, path, sizeof path);
        int fd = open_own(path, &info);
        bool found = fd >= 0 && info.st_size == HEX - 1 && read(fd, hex, HEX - 1) == HEX - 1;
        if (fd >= 0) close(fd);
        hex[HEX - 1] = 0;
        if (found && strspn(hex, "0123456789abcdef") == HEX - 1) return true;
    }
    if (!op__hash_mapped(m, bytes, n, hex)) return false;
    if (id && settled(id)) write_file(path, &(struct iovec){hex, HEX - 1}, 1);
    return true;
}

static bool make_key(struct op_model *m, uint8_t *key) {
    char line[256], hex[HEX];
    uint8_t files[HASH] = {0};
    const struct op_mapping *own = NULL;
    for (const struct op_mapping *f = m->mappings; f; f = f->next) {
        if (f->data == m->bytes) own = f;
        if (f->data == m->bytes) continue;
        if (!content_hash(m, f->data, f->bytes, f->id.ino ? &f->id : NULL, hex)) return false;
        const struct iovec parts[] = {{files, HASH}, {hex, HEX - 1}};
        if (!digest(parts, 2, files)) return false;
    }
    if (!m->sha256[0] && !content_hash(m, m->bytes, m->n_bytes, own && own->id.ino ? &own->id : NULL, m->sha256)) return false;
    snprintf(line, sizeof line, "%s %d %d %s", m->cpu, m->bf16, m->inputs_open, m->options.passes ? "passes " : "all");
    const struct iovec parts[] = {{files, HASH}, {m->sha256, HEX - 1}, {line, strlen(line)}, {(void *)(uintptr_t)m->options.passes, m->options.passes ? strlen(m->options.passes) : 0}};
    return digest(parts, 4, key);
}

/* --- reading ---------------------------------------------------------------------------------------- */

static bool head_hash(const struct head *h, const struct entry *table, uint8_t *dst) {
    struct head copy = *h;
    memset(copy.hash, 0, sizeof copy.hash);
    const struct iovec parts[] = {{&copy, sizeof copy}, {(void *)(uintptr_t)table, h->n * sizeof *table}};
    return digest(parts, 2, dst);
}

static bool check(const struct op_cache *c, const char *map, size_t bytes, const struct entry **table, uint32_t *n) {
    struct head h;
    uint8_t hash[HASH];
    memcpy(&h, map, sizeof h);
    if (memcmp(h.magic, magic, sizeof magic) != 0 || h.format != FORMAT || h.bytes != bytes || memcmp(h.key, c->key, HASH) != 0 ||
        memcmp(h.build, c->build, HASH) != 0 || h.n > (bytes - sizeof h) / sizeof **table)
        return false;
    *table = (const struct entry *)(const void *)(map + sizeof h);
    *n = h.n;
    if (!head_hash(&h, *table, hash) || memcmp(hash, h.hash, HASH) != 0) return false;
    for (uint32_t i = 0; i < h.n; i++)
        if ((*table)[i].offset % 64 || (*table)[i].offset > bytes || (*table)[i].bytes > bytes - (*table)[i].offset) return false;
    return true;
}

struct op_cache *op__cache_open(struct op_model *m) {
    struct stat info;
    char hex[HEX];
    if (!m->options.cache || !*m->options.cache || m->options.reference || m->transform) return NULL;
    struct op_cache *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    if ((mkdir(m->options.cache, 0700) != 0 && errno != EEXIST) || dl_iterate_phdr(find_build, c->build) != 1 || !make_key(m, c->key)) {
        free(c);
        return NULL;
    }
    to_hex(c->key, 16, hex);
    if ((size_t)snprintf(c->path, sizeof c->path, "%s/%s.packed", m->options.cache, hex) >= sizeof c->path) {
        free(c);
        return NULL;
    }
    int fd = open_own(c->path, &info);
    if (fd >= 0 && (size_t)info.st_size >= sizeof(struct head)) {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map != MAP_FAILED && check(c, map, (size_t)info.st_size, &c->table, &c->n)) {
            c->map = map;
            c->bytes = (size_t)info.st_size;
            if (madvise(map, c->bytes, MADV_POPULATE_READ) != 0) madvise(map, c->bytes, MADV_WILLNEED);
        } else if (map != MAP_FAILED) munmap(map, (size_t)info.st_size);
    }
    if (fd >= 0) close(fd);
    return c;
}

void op__cache_close(struct op_cache *c) {
    if (c && c->map) munmap((void *)(uintptr_t)c->map, c->bytes);
    free(c);
}

void *op__cache_piece(const struct op_cache *c, int i, uint64_t label, size_t bytes) {
    if (!c->map || (uint32_t)i >= c->n || c->table[i].label != label || c->table[i].bytes != bytes) return NULL;
    return (void *)(uintptr_t)(c->map + c->table[i].offset);
}

/* --- writing ---------------------------------------------------------------------------------------- */

void op__cache_write(struct op_model *m) {
    static const char zeros[4096];
    const struct op_packs *packs = &m->packs;
    const struct op_cache *c = m->cache;
    const size_t n = (size_t)packs->n;
    if (!c || !n || (packs->complete && n == c->n)) return;
    size_t total = 0;
    for (size_t i = 0; i < n; i++) total += packs->list[i].bytes;
    if (total < WORTH_BYTES) return;
    struct head h = {.format = FORMAT, .n = (uint32_t)n};
    struct entry *table = calloc(n, sizeof *table);
    struct iovec *parts = calloc(n + 3, sizeof *parts);
    size_t at = sizeof h + n * sizeof *table, pad = (PAGE - at % PAGE) % PAGE;
    if (table && parts) {
        parts[0] = (struct iovec){&h, sizeof h};
        parts[1] = (struct iovec){table, n * sizeof *table};
        parts[2] = (struct iovec){(void *)(uintptr_t)zeros, pad};
        at += pad;
        for (size_t i = 0; i < n; at += packs->list[i++].bytes) {
            table[i] = (struct entry){packs->list[i].label, at, packs->list[i].bytes};
            parts[3 + i] = (struct iovec){packs->list[i].data, packs->list[i].bytes};
        }
        memcpy(h.magic, magic, sizeof magic);
        memcpy(h.key, c->key, HASH);
        memcpy(h.build, c->build, HASH);
        h.bytes = at;
        if (head_hash(&h, table, h.hash)) write_file(c->path, parts, (int)n + 3);
    }
    free(table);
    free(parts);
}
