/* ctl.h: the blocking client's insides, shared by ctl.c, ctl_job.c, ctl_list.c. */
#ifndef QUERN_QUEUE_CTL_H
#define QUERN_QUEUE_CTL_H

#include "queue/conn.h"
#include "queue/job.h"

struct q_ctl {
    uv_loop_t loop;
    struct q__endpoint endpoint;
    struct q__conn *conn;
    struct q__args args;
    struct q_error err;
    bool was_lost;
    int64_t offset_ms;    /* Redis' clock minus ours */
    struct q__slot *slot; /* replies of a pipeline, in order */
    size_t n_slots, cap_slots, n_sent, n_due;
};

struct q__slot {
    redisReply r; /* moved out of the library's reply */
    struct q_error err;
    bool lost;
};

int64_t q__ctl_now_ms(const struct q_ctl *c);
enum q_status q__ctl_set(struct q_ctl *c, const struct q_error *err);
/* Starts a pipeline; adds what stands in c->args (script < 0: a command) or words. */
void q__ctl_begin(struct q_ctl *c);
void q__ctl_add(struct q_ctl *c, int script, size_t n_keys);
void q__ctl_words(struct q_ctl *c, const char *command, const char *queue, const char *suffix,
                  const char *rest, const char *more);
/* Waits for all; Q_OK if every slot has a reply that is no error. */
enum q_status q__ctl_run(struct q_ctl *c);
const redisReply *q__ctl_reply(const struct q_ctl *c, size_t i);
/* A bounded look for a job among what workers own and what waits. */
enum q_status q__ctl_status(struct q_ctl *c, const char *queue, const char *id, bool deep,
                            struct q_ctl_status *out);

#endif
