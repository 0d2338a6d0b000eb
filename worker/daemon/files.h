/* files.h: the folders below which jobs may read and write, and nothing else. Any thread.
 *
 * A path of a job is resolved by the kernel (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS;
 * a walk with O_NOFOLLOW where there is no openat2), from the root's descriptor: `..`, absolute
 * paths elsewhere and symbolic links are refused, also when they are put there while we look. */
#ifndef QUERN_WORKER_FILES_H
#define QUERN_WORKER_FILES_H

#include "worker/pipeline/value.h"

struct w_files;

/* roots may be none: everything is denied then. NULL: a root cannot be opened. */
struct w_files *w_files_create(const char *const *roots, size_t n, struct w_error *err);
void w_files_destroy(struct w_files *f); /* accepts NULL */

/* Opens what ref names ("file:path", "file:///path", or the path) for reading. Returns a
 * descriptor, or -1 with ref_denied, ref_not_found, ref_failed. folder_ok: a folder too (*is_folder
 * says). */
int w_files_open(const struct w_files *f, const char *ref, bool folder_ok, bool *is_folder,
                 struct w_error *err);
/* The folder that an output lies in, as a descriptor, and the last name of its path in name (256
 * bytes). -1 with err. */
int w_files_open_parent(const struct w_files *f, const char *ref, char *name, struct w_error *err);
/* Reads a whole file into the arena. */
bool w_files_read(const struct w_files *f, const char *ref, struct w_arena *arena,
                  struct w_span *dst, struct w_error *err);

#endif
