/* Sources and sinks: NPY, CSV, JSONL, folders; shards that begin anywhere; parts joined in order;
 * hostile files. */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/data/data.h"

static char folder[] = "/tmp/quern-data-XXXXXX", path_buf[4][256];
static struct w_arena arena;

static int setup(void **unused) {
    (void)unused;
    w_arena_init(&arena, 256 << 20);
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **unused) {
    char command[64];
    (void)unused;
    w_arena_finish(&arena);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static const char *path(const char *name) {
    static int turn;
    char *p = path_buf[turn++ % 4];
    snprintf(p, sizeof path_buf[0], "%s/%s", folder, name);
    return p;
}

static const char *put(const char *name, const void *bytes, size_t n) {
    const char *p = path(name);
    FILE *f = fopen(p, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
    return p;
}

static const char *put_text(const char *name, const char *text) {
    return put(name, text, strlen(text));
}

static struct w_source *source(const char *file, const struct w_source_options *o) {
    struct w_error err;
    struct w_source *s = w_source_open(file, o, &err);
    if (!s) fail_msg("%s: %s", file, err.text);
    return s;
}

static void refuses(const char *file, const struct w_source_options *o, const char *text) {
    struct w_error err;
    struct w_source *s = w_source_open(file, o, &err);
    if (s) fail_msg("%s was opened", file);
    if (!strstr(err.text, text)) fail_msg("%s: %s", file, err.text);
}

/* Reads row n; the record's data is in the arena. */
static enum w_read row_at(const struct w_source *s, uint64_t n, struct w_record *rec,
                          struct w_error *err) {
    struct w_cursor *c = w_cursor_open(s, n, err);
    assert_non_null(c);
    enum w_read read = w_cursor_next(c, &arena, rec, err);
    w_cursor_close(c);
    return read;
}

static void json_is(const struct w_source *s, uint64_t n, const char *json) {
    struct w_record rec;
    struct w_error err;
    if (row_at(s, n, &rec, &err) != W_READ_ROW) fail_msg("row %d: %s", (int)n, err.text);
    assert_int_equal(rec.value.type, W_JSON);
    if (strlen(json) != rec.value.span.len || memcmp(json, rec.value.span.ptr, rec.value.span.len))
        fail_msg("row %d is %.*s", (int)n, (int)rec.value.span.len, rec.value.span.ptr);
}

/* --- NPY -------------------------------------------------------------------------------------- */

static size_t npy(char *dst, int version, const char *dict, const void *data, size_t n) {
    size_t len = strlen(dict), at = version == 1 ? 10 : 12;
    memcpy(dst, "\x93NUMPY", 6);
    dst[6] = (char)version;
    dst[7] = 0;
    memset(dst + 8, 0, 4);
    dst[8] = (char)len;
    dst[9] = (char)(len >> 8);
    memcpy(dst + at, dict, len);
    memcpy(dst + at + len, data, n);
    return at + len + n;
}

static void test_npy_orders_and_versions(void **unused) {
    static const float c_order[6] = {1, 2, 3, 4, 5, 6}, f_order[6] = {1, 4, 2, 5, 3, 6};
    static const uint8_t big[] = {0x3f, 0x80, 0, 0, 0x40, 0, 0, 0};
    char bytes[256];
    struct op_tensor t;
    struct w_error err;
    (void)unused;
    for (int version = 1; version <= 3; version++) {
        size_t n =
            npy(bytes, version, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
                c_order, sizeof c_order);
        assert_true(w_npy_parse(bytes, n, &arena, &t, &err));
        assert_int_equal(t.rank, 2);
        assert_memory_equal(t.data, c_order, sizeof c_order);
        n = npy(bytes, version, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
                f_order, sizeof f_order);
        assert_true(w_npy_parse(bytes, n, &arena, &t, &err));
        assert_memory_equal(t.data, c_order, sizeof c_order);
    }
    size_t n = npy(bytes, 1, "{'shape': (2,), \"descr\": \">f4\", 'fortran_order': False}", big,
                   sizeof big);
    assert_true(w_npy_parse(bytes, n, &arena, &t, &err));
    assert_true(((float *)t.data)[0] == 1 && ((float *)t.data)[1] == 2);
    n = npy(bytes, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': ()}", big, 4);
    assert_true(w_npy_parse(bytes, n, &arena, &t, &err));
    assert_int_equal(t.rank, 0);
}

static void test_npy_mistakes(void **unused) {
    static const struct {
        const char *dict, *text;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", "cut off"},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", "is of <c8"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "are supported"},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "structured"},
        {"{'descr': '<f4', 'fortran_order': False}", "no shape"},
        {"{'descr': '<f4', 'shape': (1,)}", "fortran_order"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,", "no end"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "0x2d"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
         "beyond 2^63"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
         "beyond 2^63"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", "more than 8"},
        {"{'descr': '|b1', 'fortran_order': False, 'shape': (4,)}", "truth values"}};
    char bytes[256];
    struct op_tensor t;
    struct w_error err;
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = npy(bytes, 1, cases[i].dict, "\1\2\3\4", 4);
        if (w_npy_parse(bytes, n, &arena, &t, &err)) fail_msg("%s was taken", cases[i].dict);
        if (!strstr(err.text, cases[i].text)) fail_msg("%s: %s", cases[i].dict, err.text);
    }
    bytes[6] = 9;
    assert_false(w_npy_parse(bytes, 100, &arena, &t, &err));
    assert_false(w_npy_parse("\x93NUMPY\1\0\xff\xff", 10, &arena, &t, &err));
    assert_false(w_npy_parse("", 0, &arena, &t, &err));
}

static void test_npy_rows(void **unused) {
    int16_t data[30];
    struct w_error err;
    struct w_record rec;
    struct op_tensor t = {.dtype = OP_I16, .rank = 3, .dims = {5, 2, 3}, .data = data}, back;
    const char *file = path("rows.npy");
    (void)unused;
    for (int i = 0; i < 30; i++) data[i] = (int16_t)(i * 7 - 50);
    assert_true(w_npy_write(file, &t, &err));
    assert_true(w_npy_read_file(file, &arena, &back, &err));
    assert_memory_equal(back.data, data, sizeof data);
    struct w_source *s = source(file, NULL);
    assert_string_equal(w_source_format(s), "npy");
    assert_int_equal(w_source_rows(s), 5);
    assert_int_equal(row_at(s, 3, &rec, &err), W_READ_ROW);
    assert_int_equal(rec.value.tensor.rank, 2);
    assert_memory_equal(rec.value.tensor.data, data + 18, 12);
    assert_int_equal(row_at(s, 5, &rec, &err), W_READ_END);
    assert_null(w_cursor_open(s, 6, &err));
    assert_int_equal(truncate(file, 150), 0);
    assert_int_equal(row_at(s, 4, &rec, &err), W_READ_FAILED);
    w_source_close(s);
    refuses(file, NULL, "cut off");
}

/* --- CSV -------------------------------------------------------------------------------------- */

static void test_csv_numbers(void **unused) {
    const char *file =
        put_text("n.csv", "a,b,label\r\n1,2.5,3\r\n-1e3,,4\r\n\r\n.5, +7 ,NA\r\n1,x,2\r\n1,2\r\n");
    struct w_source_options o = {.header = -1, .target = "label"};
    struct w_record rec;
    struct w_error err;
    (void)unused;
    struct w_source *s = source(put_text("m.csv", "1;2\n3;4\n"), NULL);
    assert_int_equal(w_source_rows(s), 2);
    assert_int_equal(row_at(s, 1, &rec, &err), W_READ_ROW);
    assert_true(rec.value.flat && rec.value.tensor.dims[0] == 2);
    assert_true(((double *)rec.value.tensor.data)[1] == 4);
    w_source_close(s);
    refuses(file, &(struct w_source_options){.header = -1, .target = "labl"},
            "did you mean \"label\"");
    s = source(put_text("o.csv", "a,b,label\r\n1,2.5,3\r\n-1e3,,4\r\n\r\n.5, +7 ,NA\r\n1,2\r\n"),
               &o);
    assert_int_equal(w_source_rows(s), 4);
    assert_int_equal(row_at(s, 2, &rec, &err), W_READ_ROW);
    assert_int_equal(rec.line, 5);
    assert_int_equal(rec.value.tensor.dims[0], 2);
    assert_true(((double *)rec.value.tensor.data)[0] == 0.5 &&
                ((double *)rec.value.tensor.data)[1] == 7);
    assert_int_equal(row_at(s, 1, &rec, &err), W_READ_ROW);
    assert_true(isnan(((double *)rec.value.tensor.data)[1]));
    assert_int_equal(row_at(s, 3, &rec, &err), W_READ_BAD);
    assert_non_null(strstr(err.text, "2 fields, the table has 3 columns"));
    w_source_close(s);
    s = source(file, &(struct w_source_options){
                         .header = -1, .columns = (const char *const[]){"2", "a"}, .n_columns = 2});
    assert_int_equal(row_at(s, 0, &rec, &err), W_READ_ROW);
    assert_true(((double *)rec.value.tensor.data)[0] == 3 &&
                ((double *)rec.value.tensor.data)[1] == 1);
    w_source_close(s);
}

static void test_csv_text(void **unused) {
    struct w_record rec;
    struct w_error err;
    (void)unused;
    struct w_source *s =
        source(put_text("t.csv", "\xef\xbb\xbfid,text\n1,\"a, "
                                 "\"\"b\"\"\nc\"\n2,\"\"\n3,\"un\"quoted\n4,plain \"q\"\n5,\xff\n"),
               NULL);
    assert_int_equal(w_source_rows(s), 5);
    json_is(s, 0, "{\"id\":1,\"text\":\"a, \\\"b\\\"\\nc\"}");
    json_is(s, 1, "{\"id\":2,\"text\":\"\"}");
    assert_int_equal(row_at(s, 2, &rec, &err), W_READ_BAD);
    assert_int_equal(rec.line, 5); /* row 0 took two lines */
    json_is(s, 3, "{\"id\":4,\"text\":\"plain \\\"q\\\"\"}");
    json_is(s, 4, "{\"id\":5,\"text\":\"\xef\xbf\xbd\"}");
    w_source_close(s);
    s = source(put_text("u.csv", "id,text\n1,x\n"),
               &(struct w_source_options){
                   .header = 1, .columns = (const char *const[]){"text"}, .n_columns = 1});
    json_is(s, 0, "\"x\"");
    w_source_close(s);
    s = source(put_text("h.csv", "only,a,header\n"), NULL);
    assert_int_equal(w_source_rows(s), 0);
    w_source_close(s);
    refuses(put_text("e.csv", ""), NULL, "is empty");
    refuses(put_text("q.csv", "\"a\"b,c\n"), NULL, "quote is out of place");
}

static void test_shards_begin_anywhere(void **unused) {
    enum { ROWS = 5000 };
    char *text = malloc(ROWS * 64), *p = text;
    struct w_record rec;
    struct w_error err;
    (void)unused;
    for (int i = 0; i < ROWS; i++) p += sprintf(p, i % 7 ? "%d,word\n" : "%d,\"two\nlines\"\n", i);
    struct w_source *s =
        source(put("big.csv", text, (size_t)(p - text)), &(struct w_source_options){.header = 0});
    assert_int_equal(w_source_rows(s), ROWS);
    for (int first = 0; first < ROWS; first += 337) {
        struct w_cursor *c = w_cursor_open(s, (uint64_t)first, &err);
        for (int i = first; i < first + 400 && i < ROWS; i++) {
            assert_int_equal(w_cursor_next(c, &arena, &rec, &err), W_READ_ROW);
            assert_int_equal(rec.row, i);
            assert_int_equal(rec.line, i + (i + 6) / 7 + 1);
            assert_int_equal(atoi(rec.value.span.ptr + strlen("{\"0\":")), i);
        }
        w_cursor_close(c);
        w_arena_reset(&arena);
    }
    w_source_close(s);
    free(text);
}

/* --- JSONL and folders ------------------------------------------------------------------------ */

static void test_jsonl(void **unused) {
    struct w_record rec;
    struct w_error err;
    (void)unused;
    struct w_source *s = source(
        put_text("a.jsonl", "{\"x\":[1,2]}\n\n  [3] \n{\"x\":}\n{\"x\":1} 2\n\"last\""), NULL);
    assert_int_equal(w_source_rows(s), 5);
    json_is(s, 0, "{\"x\":[1,2]}");
    json_is(s, 1, "[3]");
    assert_int_equal(row_at(s, 2, &rec, &err), W_READ_BAD);
    assert_int_equal(rec.line, 4);
    assert_int_equal(row_at(s, 3, &rec, &err), W_READ_BAD);
    json_is(s, 4, "\"last\"");
    w_source_close(s);
    struct w_source_options o = {
        .columns = (const char *const[]){"x"}, .n_columns = 1, .line_bytes_max = 64};
    char text[200] = "{\"y\":0,\"x\":{\"ref\":\"a\"}}\n{\"y\":1}\n\"";
    memset(text + strlen(text), 'z', 100);
    strcat(text, "\"\n{\"x\":9}\n");
    s = source(put_text("b.jsonl", text), &o);
    assert_int_equal(w_source_rows(s), 4);
    json_is(s, 0, "{\"ref\":\"a\"}");
    assert_int_equal(row_at(s, 1, &rec, &err), W_READ_BAD);
    assert_non_null(strstr(err.text, "no member \"x\""));
    assert_int_equal(row_at(s, 2, &rec, &err), W_READ_BAD);
    assert_non_null(strstr(err.text, "longer than the limit of 64 bytes"));
    json_is(s, 3, "9");
    w_source_close(s);
    refuses(path("none.jsonl"), NULL, "cannot be opened");
    refuses(put_text("what", "hello"), NULL, "neither the name nor the content");
    refuses(path("a.jsonl"), &(struct w_source_options){.format = "jsnol"},
            "did you mean \"jsonl\"");
    refuses("/dev/zero", &(struct w_source_options){.format = "csv"},
            "neither a file nor a folder");
}

static void test_folder_of_pictures(void **unused) {
    struct w_record rec;
    struct w_error err;
    (void)unused;
    mkdir(path("pics"), 0777);
    mkdir(path("pics/b"), 0777);
    mkdir(path("pics/.hidden"), 0777);
    put_text("pics/c.JPG", "c");
    put_text("pics/b/2.png", "b2");
    put_text("pics/b/10.jpeg", "b10");
    put_text("pics/b/notes.txt", "no");
    put_text("pics/.hidden/x.png", "no");
    assert_int_equal(symlink("/etc/passwd", path("pics/a.png")), 0);
    struct w_source *s = source(path("pics/"), NULL);
    assert_string_equal(w_source_format(s), "images");
    assert_int_equal(w_source_rows(s), 3);
    assert_int_equal(row_at(s, 0, &rec, &err), W_READ_ROW);
    assert_string_equal(rec.name, "b/10.jpeg");
    assert_int_equal(rec.value.span.len, 3);
    assert_int_equal(row_at(s, 2, &rec, &err), W_READ_ROW);
    assert_string_equal(rec.name, "c.JPG");
    assert_int_equal(symlink(path("pics"), path("by-link")), 0);
    struct w_source *linked =
        source(path("by-link"), &(struct w_source_options){.name = "pictures", .header = -1});
    assert_int_equal(w_source_rows(linked), 3);
    w_source_close(linked);
    refuses(path("by-no-link"), &(struct w_source_options){.name = "what people know"},
            "what people know cannot be opened");
    unlink(path("pics/c.JPG"));
    assert_int_equal(row_at(s, 2, &rec, &err), W_READ_BAD);
    w_source_close(s);
}

/* --- sinks ------------------------------------------------------------------------------------ */

static const struct op_io io = {.name = "y,z", .dtype = OP_F32, .rank = 2, .dims = {-1, 2}};
static const struct w_signature sig = {.model = "m",
                                       .batching = W_BATCH_ROWS,
                                       .n_inputs = 1,
                                       .n_outputs = 1,
                                       .inputs = {&io},
                                       .outputs = {&io}};

/* Writes rows first … first+n-1 as a part; every third fails. */
static void write_part(const char *output, const char *format, uint64_t first, uint64_t n) {
    struct w_error err, why = {W_BAD_INPUT, "it is \"bad\""};
    struct w_pipeline *p = w_pipeline_load(NULL, &sig, &err);
    struct w_row *row = w_row_create(1 << 20);
    struct w_part *part = w_part_open(output, format, first, &err);
    if (!part) fail_msg("%s", err.text);
    for (uint64_t i = first; i < first + n; i++) {
        float y[2] = {(float)i, 0.5f};
        struct op_tensor t = {.dtype = OP_F32, .rank = 2, .dims = {1, 2}, .data = y};
        struct w_record rec = {.row = i, .name = i == 1 ? "a,b.png" : NULL, .line = i + 1};
        struct w_value v = {.type = W_TENSOR,
                            .tensor = {.dtype = OP_F32, .rank = 1, .dims = {2}, .data = y}};
        struct w_input input = {.kind = W_INPUT_VALUE, .value = &v};
        w_row_reset(row);
        if (i % 3 == 0) {
            assert_true(w_part_error(part, &rec, &why, &err));
            continue;
        }
        assert_int_equal(w_pipeline_before(p, row, &input, &err), W_NEXT_RUN);
        assert_int_equal(w_pipeline_after(p, row, &t, 1, &err), W_NEXT_DONE);
        if (strcmp(format, "csv") == 0) rec.name = NULL;
        if (!w_part_row(part, &rec, p, row, &err)) fail_msg("%s", err.text);
    }
    if (!w_part_commit(part, &err)) fail_msg("%s", err.text);
    w_row_destroy(row);
    w_pipeline_destroy(p);
}

static char *whole(const char *file, size_t *n) {
    static char text[8192];
    FILE *f = fopen(file, "rb");
    if (!f) fail_msg("%s is not there", file);
    *n = fread(text, 1, sizeof text - 1, f);
    text[*n] = 0;
    fclose(f);
    return text;
}

static void text_is(const char *file, const char *text) {
    size_t n;
    char *found = whole(file, &n);
    if (strcmp(found, text)) fail_msg("%s holds:\n%s", file, found);
}

static void assemble(const char *output, const char *format, struct w_sink_sum *sum) {
    static const uint64_t firsts[] = {0, 3, 4};
    struct w_error err;
    /* parts come in any order, and one twice */
    write_part(output, format, 4, 2);
    write_part(output, format, 0, 3);
    write_part(output, format, 3, 1);
    write_part(output, format, 0, 3);
    struct w_part *lost = w_part_open(output, format, 4, &err);
    w_part_abort(lost);
    if (!w_sink_assemble(output, format, firsts, 3, sum, &err)) fail_msg("%s", err.text);
}

static void test_jsonl_parts(void **unused) {
    struct w_sink_sum sum;
    struct w_error err;
    struct stat st;
    (void)unused;
    assemble(path("out.jsonl"), "jsonl", &sum);
    assert_int_equal(sum.rows, 4);
    assert_int_equal(sum.failed, 2);
    text_is(
        path("out.jsonl"),
        "{\"row\":1,\"file\":\"a,b.png\",\"outputs\":{\"y,z\":{\"dtype\":\"f32\",\"shape\":[1,2],"
        "\"data\":[1,0.5]}}}\n"
        "{\"row\":2,\"outputs\":{\"y,z\":{\"dtype\":\"f32\",\"shape\":[1,2],\"data\":[2,0.5]}}}\n"
        "{\"row\":4,\"outputs\":{\"y,z\":{\"dtype\":\"f32\",\"shape\":[1,2],\"data\":[4,0.5]}}}\n"
        "{\"row\":5,\"outputs\":{\"y,z\":{\"dtype\":\"f32\",\"shape\":[1,2],\"data\":[5,0.5]}}}\n");
    text_is(path("out.jsonl.errors.jsonl"),
            "{\"row\":0,\"line\":1,\"code\":\"bad_input\",\"message\":\"it is \\\"bad\\\"\"}\n"
            "{\"row\":3,\"line\":4,\"code\":\"bad_input\",\"message\":\"it is \\\"bad\\\"\"}\n");
    assert_int_equal(stat(path("out.jsonl.parts"), &st), -1);
    /* a finaliser that comes after the first has ended finds nothing to do */
    assert_true(
        w_sink_assemble(path("out.jsonl"), "jsonl", (const uint64_t[]){0, 3, 4}, 3, &sum, &err));
    assert_false(
        w_sink_assemble(path("never.jsonl"), "jsonl", (const uint64_t[]){0}, 1, &sum, &err));
    assert_int_equal(stat(path("never.jsonl"), &st), -1);
}

static void test_csv_parts(void **unused) {
    struct w_sink_sum sum;
    (void)unused;
    assemble(path("out.csv"), "csv", &sum);
    assert_int_equal(sum.rows, 4);
    text_is(path("out.csv"), "row,\"y,z_0\",\"y,z_1\"\n1,1,0.5\n2,2,0.5\n4,4,0.5\n5,5,0.5\n");
}

static void test_npy_parts_keep_places(void **unused) {
    struct w_sink_sum sum;
    struct op_tensor t;
    struct w_error err;
    (void)unused;
    assemble(path("out.npy"), "npy", &sum);
    assert_int_equal(sum.rows, 6);
    assert_true(w_npy_read_file(path("out.npy"), &arena, &t, &err));
    assert_int_equal(t.rank, 2);
    assert_int_equal(t.dims[0], 6);
    for (int i = 0; i < 6; i++) {
        float v = ((float *)t.data)[2 * i];
        if (i % 3)
            assert_true(v == (float)i);
        else
            assert_true(isnan(v));
    }
}

static void test_output_that_cannot_be_written(void **unused) {
    struct w_error err;
    struct w_sink_sum sum;
    (void)unused;
    assert_null(w_part_open(path("no/such/folder/out.jsonl"), "jsonl", 0, &err));
    assert_string_equal(err.code, W_OUTPUT_FAILED);
    assert_null(w_part_open(path("x"), "xml", 0, &err));
    assert_false(w_sink_assemble(path("no/such/out.jsonl"), "jsonl", NULL, 0, &sum, &err));
    assert_string_equal(err.code, W_OUTPUT_FAILED);
    assert_string_equal(w_sink_format(NULL, "a/b.csv"), "csv");
    assert_null(w_sink_format(NULL, "a.b/c"));
    assert_null(w_sink_format("xml", "a.csv"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_npy_orders_and_versions),
                                       cmocka_unit_test(test_npy_mistakes),
                                       cmocka_unit_test(test_npy_rows),
                                       cmocka_unit_test(test_csv_numbers),
                                       cmocka_unit_test(test_csv_text),
                                       cmocka_unit_test(test_shards_begin_anywhere),
                                       cmocka_unit_test(test_jsonl),
                                       cmocka_unit_test(test_folder_of_pictures),
                                       cmocka_unit_test(test_jsonl_parts),
                                       cmocka_unit_test(test_csv_parts),
                                       cmocka_unit_test(test_npy_parts_keep_places),
                                       cmocka_unit_test(test_output_that_cannot_be_written)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
