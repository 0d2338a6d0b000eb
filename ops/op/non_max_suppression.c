/* non_max_suppression.c: NonMaxSuppression: for each image and class, takes boxes by falling score and drops those that overlap one
 * already taken by more than iou_threshold.
 *
 * The number of boxes taken is known only afterwards, so the output's shape is dynamic. Equal scores keep the order of
 * the boxes. Boxes are two opposite corners in any order, or centre and size; arithmetic is single precision, as elsewhere, so
 * that a threshold falls the same way. */
#include "ops/op/nn.h"

#include <stdlib.h>

static enum op_status need_scalar(const struct op_ctx *ctx, int i, const char *name, enum op_type type) {
    if (!nn_in(ctx, i)) return OP_OK;
    enum op_status st = op__nn_like(ctx, i, name, type, -1);
    if (st != OP_OK) return st;
    int64_t n = op_tensor_count(ctx->in[i]);
    return n == 1 ? OP_OK : op__fail(ctx, OP_BAD_SHAPE, "input %d (%s) has %lld elements, expected 1", i, name, (long long)n);
}

static enum op_status infer(struct op_ctx *ctx) {
    enum op_status st;
    if ((st = op__nn_like(ctx, 0, "boxes", OP_F32, 3)) != OP_OK || (st = op__nn_like(ctx, 1, "scores", OP_F32, 3)) != OP_OK ||
        (st = need_scalar(ctx, 2, "max_output_boxes_per_class", OP_I64)) != OP_OK || (st = need_scalar(ctx, 3, "iou_threshold", OP_F32)) != OP_OK ||
        (st = need_scalar(ctx, 4, "score_threshold", OP_F32)) != OP_OK)
        return st;
    const int64_t *b = ctx->in[0]->dims, *s = ctx->in[1]->dims;
    if (b[0] != s[0] || b[1] != s[2] || b[2] != 4)
        return op__fail(ctx, OP_BAD_SHAPE, "boxes are [%lld,%lld,%lld] and scores [%lld,%lld,%lld], expected [N,S,4] and [N,C,S]", (long long)b[0],
                        (long long)b[1], (long long)b[2], (long long)s[0], (long long)s[1], (long long)s[2]);
    op__set(ctx, 0, OP_I64, 2, (int64_t[]){-1, 3});
    return OP_OK;
}

struct candidate {
    float score;
    int64_t box;
};

static int by_score(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->box < y->box ? -1 : x->box > y->box;
}

struct corners {
    float x1, y1, x2, y2;
};

static struct corners corners_of(const float *b, bool center) {
    if (center) return (struct corners){b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2};
    struct corners c = {b[1], b[0], b[3], b[2]};
    if (c.x1 > c.x2) c = (struct corners){c.x2, c.y1, c.x1, c.y2};
    if (c.y1 > c.y2) c = (struct corners){c.x1, c.y2, c.x2, c.y1};
    return c;
}

static bool overlap(struct corners a, struct corners b, float threshold) {
    float w = (a.x2 < b.x2 ? a.x2 : b.x2) - (a.x1 > b.x1 ? a.x1 : b.x1), h = (a.y2 < b.y2 ? a.y2 : b.y2) - (a.y1 > b.y1 ? a.y1 : b.y1);
    if (!(w > 0) || !(h > 0)) return false;
    float area_a = (a.x2 - a.x1) * (a.y2 - a.y1), area_b = (b.x2 - b.x1) * (b.y2 - b.y1), all = area_a + area_b - w * h;
    return area_a > 0 && area_b > 0 && all > 0 && w * h / all > threshold;
}

struct limits {
    int64_t most;
    float iou, score;
    bool has_score, center;
};

static void read_limits(const struct op_ctx *ctx, struct limits *l) {
    const struct op_tensor *most = nn_in(ctx, 2), *iou = nn_in(ctx, 3), *score = nn_in(ctx, 4);
    l->most = most ? *(const int64_t *)most->data : 0;
    l->iou = iou ? *(const float *)iou->data : 0;
    l->has_score = score != NULL;
    l->score = score ? *(const float *)score->data : 0;
    l->center = op__attr_int(ctx->node, "center_point_box", 0) != 0;
    int64_t boxes = ctx->in[0]->dims[1];
    if (l->most > boxes) l->most = boxes;
}

/* Boxes taken for one image and class, into `taken`; how many. `by` is room for all candidates. */
static int64_t select_class(const struct limits *l, const float *boxes, const float *scores, int64_t n_boxes, struct candidate *by, int64_t *taken) {
    int64_t n = 0, n_taken = 0;
    for (int64_t i = 0; i < n_boxes; i++)
        if (scores[i] == scores[i] && (!l->has_score || scores[i] > l->score)) by[n++] = (struct candidate){scores[i], i};
    qsort(by, (size_t)n, sizeof *by, by_score);
    for (int64_t i = 0; i < n && n_taken < l->most; i++) {
        struct corners box = corners_of(boxes + 4 * by[i].box, l->center);
        bool free_of = true;
        for (int64_t k = 0; k < n_taken && free_of; k++) free_of = !overlap(box, corners_of(boxes + 4 * taken[k], l->center), l->iou);
        if (free_of) taken[n_taken++] = by[i].box;
    }
    return n_taken;
}

static enum op_status run(struct op_ctx *ctx) {
    int64_t images = ctx->in[0]->dims[0], n_boxes = ctx->in[0]->dims[1], classes = ctx->in[1]->dims[1], total = 0;
    struct limits l;
    read_limits(ctx, &l);
    size_t one = (size_t)n_boxes * (sizeof(struct candidate) + sizeof(int64_t)), list = 0;
    if (l.most > 0 && op_tensor_count(ctx->in[1]) > 0) list = (size_t)(images * classes) * (size_t)l.most * 3 * sizeof(int64_t);
    if (!list) return op__output(ctx, 0, OP_I64, 2, (int64_t[]){0, 3});
    struct candidate *by = op__run_alloc(ctx, one);
    int64_t *selected = op__run_alloc(ctx, list);
    if (!by || !selected) return OP_NOMEM;
    int64_t *taken = (int64_t *)(by + n_boxes);
    for (int64_t i = 0; i < images * classes; i++) {
        const float *boxes = (const float *)ctx->in[0]->data + i / classes * n_boxes * 4;
        int64_t n = select_class(&l, boxes, (const float *)ctx->in[1]->data + i * n_boxes, n_boxes, by, taken);
        for (int64_t k = 0; k < n; k++, total++) {
            selected[3 * total] = i / classes;
            selected[3 * total + 1] = i % classes;
            selected[3 * total + 2] = taken[k];
        }
    }
    enum op_status st = op__output(ctx, 0, OP_I64, 2, (int64_t[]){total, 3});
    if (st != OP_OK) return st;
    for (int64_t k = 0; k < 3 * total; k++) ((int64_t *)ctx->out[0]->data)[k] = selected[k];
    return OP_OK;
}

static const struct op_desc non_max_suppression = {
    .name = "NonMaxSuppression",
    .domain = "",
    .since = 10,
    .in_min = 2,
    .in_max = 5,
    .out_min = 1,
    .out_max = 1,
    .flags = OP_F_DYNAMIC,
    .infer = infer,
    .run = run,
};
OP_REGISTER(non_max_suppression);
