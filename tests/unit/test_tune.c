/* Studies without a queue: spaces, grids, draws, TPE against random search, when to give up, the best. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "worker/tune/study.h"

#define SPEC                                                                                                                     \
    "\"model\":{\"input_shape\":[2],\"layers\":[{\"type\":\"Dense\",\"units\":4,\"name\":\"first\"},{\"type\":\"Dense\",\"units\":1}]}," \
    "\"data\":{\"train\":{\"x\":\"x.npy\",\"y\":\"y.npy\"}},\"compile\":{\"optimizer\":\"adam\",\"loss\":\"mse\"},\"fit\":{\"epochs\":27}"

static struct w_study *study(const char *tune) {
    char text[2000];
    struct w_error err = {0};
    snprintf(text, sizeof text, "{" SPEC ",\"tune\":%s}", tune);
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    struct w_study *s = w_study_create(json, &err);
    if (!s) fail_msg("%s", err.text);
    json_decref(json);
    return s;
}

static void refused(const char *tune, const char *word, const char *other) {
    char text[2000];
    struct w_error err = {0};
    snprintf(text, sizeof text, "{" SPEC ",\"tune\":%s}", tune);
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    if (w_study_create(json, &err)) fail_msg("%s is accepted", tune);
    assert_string_equal(err.code, W_BAD_SPEC);
    if (!strstr(err.text, word) || !strstr(err.text, other)) fail_msg("\"%s\" says neither %s nor %s", err.text, word, other);
    json_decref(json);
}

static void test_bad_studies_are_refused(void **state) {
    (void)state;
    refused("{}", "tune", "space");
    refused("{\"space\":[]}", "tune.space", "1 to");
    refused("{\"space\":[{\"path\":\"fit.batch_size\",\"choise\":[1]}]}", "tune.space[0]", "\"choice\"");
    refused("{\"space\":[{\"path\":\"fit.batch_size\"}]}", "tune.space[0]", "0 are there");
    refused("{\"space\":[{\"path\":\"fit.batch_size\",\"choice\":[1],\"int\":[1,2]}]}", "tune.space[0]", "2 are there");
    refused("{\"space\":[{\"path\":\"fit.batch_size\",\"int\":[5,1]}]}", "tune.space[0]", "[low, high]");
    refused("{\"space\":[{\"path\":\"fit.batch_size\",\"int\":[1.5,3]}]}", "tune.space[0]", "whole");
    refused("{\"space\":[{\"path\":\"compile.optimizer.learning_rate\",\"log_uniform\":[0,1]}]}", "log_uniform", "above 0");
    refused("{\"space\":[{\"path\":\"model.layers[7].units\",\"int\":[1,3]}]}", "model.layers[7].units", "leads nowhere");
    refused("{\"space\":[{\"path\":\"model.layers[0].unitz\",\"int\":[1,3]}]}", "model.layers[0]", "\"units\"");
    refused("{\"space\":[{\"path\":\"fit.epochs\",\"uniform\":[1,3]}],\"algorithm\":\"grid\"}", "tune.space[0]", "points");
    refused("{\"space\":[{\"path\":\"fit.epochs\",\"int\":[1,2000]}],\"algorithm\":\"grid\"}", "tune.space[0]", "points");
    refused("{\"space\":[{\"path\":\"fit.seed\",\"int\":[1,100]},{\"path\":\"fit.batch_size\",\"int\":[1,100]}],\"algorithm\":\"grid\"}", "1000", "max_trials");
    refused("{\"space\":[{\"path\":\"fit.seed\",\"int\":[1,9]}],\"algorithm\":\"bayes\"}", "algorithm", "tpe");
    refused("{\"space\":[{\"path\":\"fit.seed\",\"int\":[1,9]}],\"trials\":4}", "\"trials\"", "tune");
}

static void params_are(const struct w_study *s, int64_t trial, const char *expected) {
    json_t *params = w_study_suggest(s, trial, NULL, 0), *want = json_loads(expected, 0, NULL);
    if (!json_equal(params, want)) fail_msg("trial %d: %s, not %s", (int)trial, json_dumps(params, 0), expected);
    json_decref(params);
    json_decref(want);
}

static void test_a_grid_is_all_combinations(void **state) {
    (void)state;
    struct w_study *s = study("{\"algorithm\":\"grid\",\"space\":[{\"path\":\"fit.batch_size\",\"choice\":[8,16]},"
                              "{\"path\":\"model.layers.first.units\",\"int\":[2,6],\"step\":2},"
                              "{\"path\":\"compile.optimizer.learning_rate\",\"log_uniform\":[0.25,4],\"points\":3}]}");
    assert_int_equal(s->n_trials, 18);
    assert_string_equal(s->objective, "val_loss");
    assert_false(s->maximise);
    params_are(s, 0, "{\"fit.batch_size\":8,\"model.layers.first.units\":2,\"compile.optimizer.learning_rate\":0.25}");
    params_are(s, 1, "{\"fit.batch_size\":8,\"model.layers.first.units\":2,\"compile.optimizer.learning_rate\":1.0}");
    params_are(s, 5, "{\"fit.batch_size\":8,\"model.layers.first.units\":4,\"compile.optimizer.learning_rate\":4.0}");
    params_are(s, 17, "{\"fit.batch_size\":16,\"model.layers.first.units\":6,\"compile.optimizer.learning_rate\":4.0}");
    w_study_destroy(s);
    s = study("{\"algorithm\":\"grid\",\"max_trials\":4,\"space\":[{\"path\":\"fit.batch_size\",\"choice\":[8,16,32]},{\"path\":\"fit.seed\",\"int\":[1,1000]}]}");
    assert_int_equal(s->n_trials, 4);
    params_are(s, 3, "{\"fit.batch_size\":8,\"fit.seed\":4}");
    w_study_destroy(s);
}

static void test_values_stay_in_their_ranges_and_come_back(void **state) {
    (void)state;
    struct w_study *s = study("{\"algorithm\":\"random\",\"seed\":5,\"space\":[{\"path\":\"fit.seed\",\"int\":[3,9]},{\"path\":\"fit.validation_split\",\"uniform\":[0.1,0.5]},"
                              "{\"path\":\"compile.optimizer.learning_rate\",\"log_uniform\":[1e-5,1e-1]},{\"path\":\"compile.loss\",\"choice\":[\"mse\",\"mae\"]}]}");
    int seen[10] = {0}, n_mae = 0, n_small = 0;
    for (int i = 0; i < 1000; i++) {
        json_t *p = w_study_suggest(s, i, NULL, 0), *again = w_study_suggest(s, i, NULL, 0);
        assert_true(json_equal(p, again));
        json_int_t whole = json_integer_value(json_object_get(p, "fit.seed"));
        double part = json_real_value(json_object_get(p, "fit.validation_split")), rate = json_real_value(json_object_get(p, "compile.optimizer.learning_rate"));
        assert_in_range(whole, 3, 9);
        assert_true(part >= 0.1 && part < 0.5 && rate >= 1e-5 && rate < 0.1);
        seen[whole]++;
        n_small += rate < 1e-3;
        n_mae += strcmp(json_string_value(json_object_get(p, "compile.loss")), "mae") == 0;
        for (int k = 0; k < s->n_dims; k++) {
            json_t *v = json_object_get(p, s->dims[k].path), *back = w__dim_value(&s->dims[k], w__dim_unit(&s->dims[k], v));
            assert_true(json_is_real(v) ? fabs(json_real_value(back) / json_real_value(v) - 1) < 1e-9 : json_equal(back, v));
            json_decref(back);
        }
        json_decref(p);
        json_decref(again);
    }
    for (int i = 3; i <= 9; i++) assert_in_range(seen[i], 100, 190);
    assert_in_range(n_mae, 430, 570);
    assert_in_range(n_small, 430, 570);
    w_study_destroy(s);
}

static void test_values_go_into_the_spec(void **state) {
    (void)state;
    struct w_study *s = study("{\"space\":[{\"path\":\"fit.seed\",\"int\":[1,9]}]}");
    struct w_error err = {0};
    json_t *p = json_loads("{\"compile.optimizer.learning_rate\":0.5,\"model.layers[1].units\":7,\"model.layers.first.units\":8,\"fit.batch_size\":4,\"data.augment\":[]}", 0, NULL);
    json_t *spec = w_study_spec(s, p, &err);
    assert_non_null(spec);
    char *text = json_dumps(spec, JSON_COMPACT);
    assert_non_null(strstr(text, "\"optimizer\":{\"type\":\"adam\",\"learning_rate\":0.5}"));
    assert_non_null(strstr(text, "{\"type\":\"Dense\",\"units\":7}"));
    assert_non_null(strstr(text, "{\"type\":\"Dense\",\"units\":8,\"name\":\"first\"}"));
    assert_non_null(strstr(text, "\"epochs\":27,\"batch_size\":4"));
    assert_null(strstr(text, "tune"));
    free(text);
    text = json_dumps(s->spec, JSON_COMPACT); /* the study's own is as it was */
    assert_non_null(strstr(text, "\"optimizer\":\"adam\""));
    free(text);
    json_decref(spec);
    json_decref(p);
    p = json_loads("{\"fit.epochs.more\":1}", 0, NULL);
    assert_null(w_study_spec(s, p, &err));
    json_decref(p);
    w_study_destroy(s);
}

static void know(struct w_trial *t, uint32_t number, const char *note) {
    assert_true(w_trial_read(number, note, strlen(note), t));
}

static void test_halving_keeps_the_best_third_at_a_rung(void **state) {
    (void)state;
    struct w_study *s = study("{\"algorithm\":\"halving\",\"objective\":\"val_accuracy\",\"space\":[{\"path\":\"fit.seed\",\"int\":[1,9]}]}");
    struct w_trial known[8];
    char note[100];
    assert_true(s->maximise && s->prunes);
    assert_true(w_study_is_rung(s, 1) && w_study_is_rung(s, 3) && w_study_is_rung(s, 9));
    assert_false(w_study_is_rung(s, 2) || w_study_is_rung(s, 27)); /* the last epoch is the end */
    assert_false(w_study_gives_up(s, NULL, 0, 0, 1, 0.1));        /* nobody else is there */
    assert_true(w_study_gives_up(s, NULL, 0, 0, 1, NAN));
    for (uint32_t i = 0; i < 8; i++) { /* 0.0 … 0.7 at the first rung */
        snprintf(note, sizeof note, "{\"state\":\"running\",\"rungs\":{\"1\":%.1f}}", i / 10.0);
        know(&known[i], i, note);
    }
    assert_false(w_study_gives_up(s, known, 1, 9, 1, 0.05)); /* better than the only one */
    assert_true(w_study_gives_up(s, known, 2, 9, 1, 0.05));  /* one of three goes on */
    assert_false(w_study_gives_up(s, known, 8, 9, 1, 0.55)); /* three of nine: 0.7 0.6 0.55 */
    assert_true(w_study_gives_up(s, known, 8, 9, 1, 0.45));
    assert_false(w_study_gives_up(s, known, 8, 9, 3, 0.01)); /* first at that rung */
    assert_false(w_study_gives_up(s, known, 8, 9, 2, 0.01)); /* no rung */
    assert_false(w_study_gives_up(s, known, 8, 6, 1, 0.6));  /* not counted against itself */
    for (int i = 0; i < 8; i++) w_trial_finish(&known[i]);
    w_study_destroy(s);
}

static void test_the_best_is_done_and_has_a_value(void **state) {
    (void)state;
    struct w_study *s = study("{\"space\":[{\"path\":\"fit.seed\",\"int\":[1,9]}]}");
    struct w_trial known[5];
    know(&known[0], 4, "{\"state\":\"pruned\",\"value\":0.1}");
    know(&known[1], 3, "{\"state\":\"done\",\"value\":0.5}");
    know(&known[2], 1, "{\"state\":\"done\",\"value\":0.3}");
    know(&known[3], 0, "{\"state\":\"done\",\"value\":0.3}");
    know(&known[4], 2, "{\"state\":\"failed\",\"error\":\"why\"}");
    assert_int_equal(w_study_best(s, known, 5), 3);
    assert_int_equal(w_study_best(s, known, 1), -1);
    json_t *report = w_study_report(s, known, 5);
    static const int order[] = {0, 1, 3, 4, 2};
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(json_integer_value(json_object_get(json_array_get(json_object_get(report, "trials"), i), "trial")), order[i]);
    assert_int_equal(json_integer_value(json_object_get(report, "pruned")), 1);
    json_decref(report);
    struct w_trial none;
    assert_false(w_trial_read(0, "{", 1, &none));
    assert_false(w_trial_read(0, "{\"state\":\"odd\"}", 15, &none));
    for (int i = 0; i < 5; i++) w_trial_finish(&known[i]);
    w_study_destroy(s);
}

/* (x - 0.3)² + (log10 rate + 3)² / 10 + 0.2 with the wrong choice */
static double valley(json_t *p) {
    double x = json_real_value(json_object_get(p, "fit.validation_split")) - 0.3, r = log10(json_real_value(json_object_get(p, "compile.optimizer.learning_rate"))) + 3;
    return x * x + r * r / 10 + (strcmp(json_string_value(json_object_get(p, "compile.loss")), "mae") ? 0.2 : 0);
}

static double best_of(const char *algorithm, int seed) {
    char tune[400], note[400];
    static struct w_trial known[60];
    double best = INFINITY;
    snprintf(tune, sizeof tune, "{\"algorithm\":\"%s\",\"seed\":%d,\"space\":[{\"path\":\"fit.validation_split\",\"uniform\":[0,0.9]},"
             "{\"path\":\"compile.optimizer.learning_rate\",\"log_uniform\":[1e-6,1]},{\"path\":\"compile.loss\",\"choice\":[\"mse\",\"huber\",\"mae\"]}]}", algorithm, seed);
    struct w_study *s = study(tune);
    for (uint32_t i = 0; i < 60; i++) {
        json_t *p = w_study_suggest(s, i, known, i);
        double v = valley(p);
        char *text = json_dumps(p, JSON_COMPACT);
        snprintf(note, sizeof note, "{\"state\":\"done\",\"value\":%.9g,\"params\":%s}", v, text);
        know(&known[i], i, note);
        if (v < best) best = v;
        free(text);
        json_decref(p);
    }
    for (int i = 0; i < 60; i++) w_trial_finish(&known[i]);
    w_study_destroy(s);
    return best;
}

static void test_tpe_finds_the_valley_sooner_than_chance(void **state) {
    (void)state;
    double tpe = 0, chance = 0;
    int wins = 0;
    for (int seed = 1; seed <= 20; seed++) {
        double a = best_of("tpe", seed), b = best_of("random", seed);
        tpe += a;
        chance += b;
        wins += a < b;
    }
    print_message("best of 60, mean over 20 seeds: tpe %.5f, random %.5f, better %d times\n", tpe / 20, chance / 20, wins);
    assert_true(tpe < chance / 2);
    assert_in_range(wins, 14, 20);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_studies_are_refused),
        cmocka_unit_test(test_a_grid_is_all_combinations),
        cmocka_unit_test(test_values_stay_in_their_ranges_and_come_back),
        cmocka_unit_test(test_values_go_into_the_spec),
        cmocka_unit_test(test_halving_keeps_the_best_third_at_a_rung),
        cmocka_unit_test(test_the_best_is_done_and_has_a_value),
        cmocka_unit_test(test_tpe_finds_the_valley_sooner_than_chance),
    };
    return cmocka_run_group_tests_name("tune", tests, NULL, NULL);
}
