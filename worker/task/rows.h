/* rows.h: rows through a model on a lane, stacked where they fit together. */
#ifndef QUERN_WORKER_TASK_ROWS_H
#define QUERN_WORKER_TASK_ROWS_H

#include "worker/daemon/lanes.h"

/* Row i is over: next is W_NEXT_DONE, or W_NEXT_FAILED with err. together: rows of the run that it
 * was in. What the row says of its outputs holds during the call. */
typedef void w_row_fn(void *ctx, size_t i, enum w_next next, int64_t together,
                      const struct w_error *err);

/* Runs rows[0..n), each of which stands at W_NEXT_RUN, to their ends, and calls done for each in
 * that order. Neighbours whose inputs have the same types and shapes run as one, up to rows_max
 * rows; a run that fails is tried again row by row, so that a bad one fails alone. A cancelled lane
 * fails the rest with "cancelled". */
void w_rows_run(struct w_lane *lane, struct w_model *model, struct w_row **rows, size_t n,
                int64_t rows_max, w_row_fn *done, void *ctx);
/* Whether the two could be stacked. */
bool w_rows_fit(const struct w_model *model, const struct w_row *a, const struct w_row *b);

#endif
