/* curve.c: the history as a picture: two panels of lines over the epochs, the loss on the left, the
 * first metric on the right; training and validation in each. SVG, since it is text. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/train/train.h"

enum { PANEL_W = 420, PANEL_H = 280, LEFT = 60, TOP = 34, GAP = 90, TICKS = 5 };

struct range {
    double low, high;
};

static double value_at(json_t *history, size_t i, const char *key) {
    json_t *v = json_object_get(json_array_get(history, i), key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static void widen(json_t *history, const char *key, struct range *r) {
    for (size_t i = 0; i < json_array_size(history); i++) {
        double v = value_at(history, i, key);
        if (!isfinite(v)) continue;
        if (v < r->low) r->low = v;
        if (v > r->high) r->high = v;
    }
}

static void line(FILE *f, json_t *history, const char *key, const char *color, int x0,
                 const struct range *r) {
    size_t n = json_array_size(history);
    fprintf(f, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" points=\"", color);
    for (size_t i = 0; i < n; i++) {
        double v = value_at(history, i, key);
        if (!isfinite(v)) continue;
        fprintf(f, "%.1f,%.1f ", x0 + (n > 1 ? (double)i / (double)(n - 1) : 0.5) * PANEL_W,
                TOP + PANEL_H * (1 - (v - r->low) / (r->high - r->low)));
    }
    fprintf(f, "\"/>\n");
}

static void panel(FILE *f, json_t *history, const char *key, int x0) {
    char val[96];
    struct range r = {INFINITY, -INFINITY};
    snprintf(val, sizeof val, "val_%s", key);
    widen(history, key, &r);
    widen(history, val, &r);
    if (!(r.low <= r.high)) return;
    double margin = r.high > r.low ? (r.high - r.low) * 0.05 : 0.5;
    r.low -= margin;
    r.high += margin;
    fprintf(f, "<text x=\"%d\" y=\"22\" font-weight=\"bold\">%s</text>\n", x0, key);
    for (int i = 0; i <= TICKS; i++) {
        double y = TOP + PANEL_H * (1 - (double)i / TICKS),
               v = r.low + (r.high - r.low) * i / TICKS;
        fprintf(f,
                "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                x0, x0 + PANEL_W, y, y, x0 - 6, y + 4, v);
    }
    fprintf(f,
            "<text x=\"%d\" y=\"%d\">epoch 1</text><text x=\"%d\" y=\"%d\" "
            "text-anchor=\"end\">%zu</text>\n",
            x0, TOP + PANEL_H + 18, x0 + PANEL_W, TOP + PANEL_H + 18, json_array_size(history));
    line(f, history, key, "#1f77b4", x0, &r);
    line(f, history, val, "#d62728", x0, &r);
}

bool w__fit_curve(const struct w_fit *fit, const char *path, struct w_error *err) {
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f) return w_fail(err, W_NO_MEMORY, "no memory for the curve");
    int width = 2 * (LEFT + PANEL_W) + GAP, height = TOP + PANEL_H + 56;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d "
            "%d\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" "
            "fill=\"white\"/>\n",
            width, height, width, height);
    panel(f, fit->history, "loss", LEFT);
    if (fit->metrics.n) panel(f, fit->history, fit->metrics.items[0].name, LEFT + PANEL_W + GAP);
    fprintf(f,
            "<text x=\"%d\" y=\"%d\" fill=\"#1f77b4\">training</text><text x=\"%d\" y=\"%d\" "
            "fill=\"#d62728\">validation</text>\n</svg>\n",
            LEFT, height - 12, LEFT + 70, height - 12);
    bool ok = fclose(f) == 0 && text && w__fit_put(path, text, len, err);
    free(text);
    return ok;
}
