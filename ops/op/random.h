/* random.h: the generator of the random operators: MT19937 (Matsumoto and Nishimura, 1998), 53 bits
 * a number, in the conventions of numpy's RandomState, which the ONNX reference uses: with a seed
 * the numbers are the same as there. */
#ifndef QUERN_OP_RANDOM_H
#define QUERN_OP_RANDOM_H

#include "ops/op.h"

struct op_random {
    uint32_t state[624];
    int at;
    bool has_normal; /* the polar method makes them in pairs */
    double normal;
};

/* From the node's `seed`, a float or an int, else from the run's own random bits. The same seed
 * gives the same numbers in every run. */
void op__random_init(struct op_random *r, const struct op_ctx *ctx);
double op__random_uniform(struct op_random *r); /* in [0, 1) */
double op__random_normal(struct op_random *r);  /* mean 0, deviation 1 */

#endif
