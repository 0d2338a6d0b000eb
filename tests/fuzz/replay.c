/* Runs a fuzz target without a fuzzer: every file of the folders named, as it is and, with -m N, N times with a few
 * bytes changed (the same changes each time: the generator is seeded from the file's bytes). So `make check` replays
 * the corpora and a little more with any compiler and any sanitizer. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t state;

static uint64_t next_random(void) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1DULL;
}

static size_t mutate(uint8_t *bytes, size_t n) {
    static const uint8_t special[] = {0, 1, 0x7f, 0x80, 0xff, '"', '\\', '{', '[', ',', '\n', '-', '9', 'e', '.'};
    for (uint64_t k = 1 + next_random() % 4; k > 0 && n > 0; k--) {
        size_t at = next_random() % n;
        switch (next_random() % 5) {
        case 0: bytes[at] = (uint8_t)next_random(); break;
        case 1: bytes[at] = special[next_random() % sizeof special]; break;
        case 2: bytes[at] ^= (uint8_t)(1u << (next_random() % 8)); break;
        case 3: n = at; break;
        case 4: memmove(bytes + at, bytes + at / 2, n - at); break;
        }
    }
    return n;
}

static int run_file(const char *path, long n_mutations) {
    FILE *f = fopen(path, "rb");
    if (!f) return perror(path), 1;
    size_t n = 0, room = 1 << 16;
    uint8_t *bytes = malloc(room);
    for (size_t got; bytes && (got = fread(bytes + n, 1, room - n, f)) > 0;) {
        n += got;
        if (n == room) bytes = realloc(bytes, room *= 2);
    }
    fclose(f);
    if (!bytes) return 1;
    uint8_t *exact = malloc(n ? n : 1); /* so that a sanitizer sees a read behind the end */
    memcpy(exact, bytes, n);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    state = 0x9E3779B97F4A7C15ULL + n;
    for (size_t i = 0; i < n; i++) state = state * 31 + bytes[i] + 1;
    for (long i = 0; i < n_mutations; i++) {
        uint8_t *changed = malloc(n ? n : 1);
        memcpy(changed, bytes, n);
        size_t m = mutate(changed, n);
        uint8_t *cut = malloc(m ? m : 1);
        memcpy(cut, changed, m);
        free(changed);
        LLVMFuzzerTestOneInput(cut, m);
        free(cut);
    }
    free(bytes);
    return 0;
}

int main(int argc, char **argv) {
    long n_mutations = 0, n_files = 0;
    int rc = 0;
    for (int a = 1; a < argc; a++) {
        if (strcmp(argv[a], "-m") == 0 && a + 1 < argc) {
            n_mutations = atol(argv[++a]);
            continue;
        }
        struct dirent **names;
        int n = scandir(argv[a], &names, NULL, alphasort);
        if (n < 0) return perror(argv[a]), 1;
        for (int i = 0; i < n; i++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[a], names[i]->d_name);
            if (names[i]->d_name[0] != '.') {
                rc |= run_file(path, n_mutations);
                n_files++;
            }
            free(names[i]);
        }
        free(names);
    }
    printf("%ld files, %ld mutations each\n", n_files, n_mutations);
    return rc || n_files == 0;
}
