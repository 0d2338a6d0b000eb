/* vectorizer.h: text → numbers of tokens, by Keras's words. The step `vectorize` and training share
 * it, so a model is given at inference what it was given when it learned.
 *
 *   struct w_vectorizer *v = w_vectorizer_create(&options, &err);
 *   for (…) w_vectorizer_count(v, text, len, &err);        // the training rows
 *   w_vectorizer_adapt(v, max_tokens, &err);               // or w_vectorizer_read of a file
 *   n = w_vectorizer_encode(v, text, len, dst, room);
 *
 * Numbers: 0 pads, 1 is any token that is not in the vocabulary, 2 and more are the vocabulary, the
 * most frequent first (equal ones in the order of their bytes). Bytes have no vocabulary: a byte's
 * number is its value.
 *
 * Text is UTF-8; a byte that is not part of it is read as Latin-1. Lower case: ASCII, Latin-1,
 * Greek and Cyrillic letters. Punctuation: ASCII's. Words are what stands between blanks.
 *
 * Threads: once adapted or read, any number of threads encode at once. */
#ifndef QUERN_WORKER_VECTORIZER_H
#define QUERN_WORKER_VECTORIZER_H

#include "worker/pipeline/value.h"

#define W_VECTORIZER_TOKENS_MAX (1 << 24)

enum w_split { W_SPLIT_WHITESPACE, W_SPLIT_CHARACTER, W_SPLIT_BYTE };
#define W_SPLIT_CHOICES "whitespace character byte"
enum w_standardize { W_STANDARD_LOWER_STRIP, W_STANDARD_LOWER, W_STANDARD_STRIP, W_STANDARD_NONE };
#define W_STANDARDIZE_CHOICES "lower_and_strip_punctuation lower strip_punctuation none"

struct w_vectorizer;
struct w_vectorizer *w_vectorizer_create(enum w_split split, enum w_standardize standardize,
                                         struct w_error *err);
void w_vectorizer_destroy(struct w_vectorizer *v); /* accepts NULL */
bool w_vectorizer_count(struct w_vectorizer *v, const char *text, size_t len, struct w_error *err);
/* max_tokens 0: all; else the numbers 0 and 1 are among them. */
bool w_vectorizer_adapt(struct w_vectorizer *v, int64_t max_tokens, struct w_error *err);
bool w_vectorizer_adapted(const struct w_vectorizer *v);
/* The tokens of text as numbers, at most room of them written; how many there are. */
int64_t w_vectorizer_encode(const struct w_vectorizer *v, const char *text, size_t len,
                            int64_t *dst, int64_t room);
int64_t w_vectorizer_size(const struct w_vectorizer *v); /* numbers are below this */
/* The vocabulary as a JSON list ["", "[UNK]", …], from malloc, and back. NULL with err. */
char *w_vectorizer_write(const struct w_vectorizer *v, struct w_error *err);
bool w_vectorizer_read(struct w_vectorizer *v, const char *path, struct w_error *err);

#endif
