/* Tensors, types, half precision, the arena. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "ops/arena.h"
#include "ops/op.h"

static void test_count_refuses_what_overflows(void **state) {
    (void)state;
    struct op_tensor t = {.dtype = OP_F32, .rank = 3, .dims = {2, 3, 4}};
    assert_int_equal(op_tensor_count(&t), 24);
    assert_int_equal(op_tensor_bytes(&t), 96);
    t.dims[0] = INT64_MAX / 2;
    assert_int_equal(op_tensor_count(&t), -1);
    t.dims[2] = 0; /* no elements, but strides that overflow */
    assert_int_equal(op_tensor_count(&t), -1);
    t.dims[0] = 2;
    assert_int_equal(op_tensor_count(&t), 0);
    t.dims[1] = -1;
    assert_int_equal(op_tensor_count(&t), -1);
    t = (struct op_tensor){.dtype = OP_F64, .rank = 1, .dims = {INT64_MAX / 4}};
    assert_int_equal(op_tensor_count(&t), INT64_MAX / 4);
    assert_int_equal(op_tensor_bytes(&t), -1);
    t.rank = OP_RANK_MAX + 1;
    assert_int_equal(op_tensor_count(&t), -1);
    t.rank = 0;
    assert_int_equal(op_tensor_count(&t), 1);
}

static void test_describe_fits_any_room(void **state) {
    (void)state;
    char text[64];
    struct op_tensor t = {.dtype = OP_F32, .rank = 4, .dims = {1, 3, 224, -1}};
    assert_string_equal(op_tensor_describe(&t, text, sizeof text), "f32[1,3,224,?]");
    for (size_t room = 1; room < 16; room++) {
        memset(text, 'x', sizeof text);
        op_tensor_describe(&t, text, room);
        assert_true(strlen(text) < room);
        assert_memory_equal(text, "f32[1,3,224,?]", strlen(text));
        assert_int_equal(text[room], 'x');
    }
    t.rank = 0;
    assert_string_equal(op_tensor_describe(&t, text, sizeof text), "f32[]");
}

static void test_type_names_go_both_ways(void **state) {
    (void)state;
    for (int i = OP_F32; i <= OP_I2; i++) {
        assert_int_equal(op_type_parse(op_type_name((enum op_type)i)), i);
        assert_true(op_type_size((enum op_type)i) > 0);
    }
    assert_int_equal(op_type_parse("float"), OP_UNDEFINED);
    assert_int_equal(op_type_size(OP_UNDEFINED), 0);
}

/* Every half is the nearest of itself, and rounding agrees with arithmetic in double at all midpoints. */
static void test_half_converts_every_value(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = op__f16_to_f32((uint16_t)h);
        if (isnan(f)) {
            assert_true(isnan(op__f16_to_f32(op__f32_to_f16(f))));
            continue;
        }
        assert_int_equal(op__f32_to_f16(f), h);
        double want = (h >> 10 & 31) == 31 ? (double)INFINITY
                      : (h >> 10 & 31)     ? ldexp(1024 + (h & 1023), (int)(h >> 10 & 31) - 25)
                                           : ldexp(h & 1023, -24);
        assert_true((double)f == (h & 0x8000 ? -want : want));
        if ((h & 0x7fff) >= 0x7bff) continue;
        float up = op__f16_to_f32((uint16_t)(h + 1)), middle = (f + up) / 2; /* exact: a half has 11 bits, a float 24 */
        assert_int_equal(op__f32_to_f16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(op__f32_to_f16(nextafterf(middle, f)), h);
        assert_int_equal(op__f32_to_f16(nextafterf(middle, up)), h + 1);
    }
    assert_int_equal(op__f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(op__f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(op__f32_to_f16(-1e30f), 0xfc00);
}

static void test_bfloat_rounds_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = op__bf16_to_f32((uint16_t)h);
        if (isnan(f)) assert_true(isnan(op__bf16_to_f32(op__f32_to_bf16(f))));
        else assert_int_equal(op__f32_to_bf16(f), h);
    }
    assert_int_equal(op__f32_to_bf16(1.00390625f), 0x3f80); /* midway, even below */
    assert_int_equal(op__f32_to_bf16(1.01171875f), 0x3f82); /* midway, even above */
    assert_int_equal(op__f32_to_bf16(3.4e38f), 0x7f80);
}

static void test_narrow_floats_come_back(void **state) {
    (void)state;
    for (int type = OP_F8E4M3FN; type <= OP_F8E8M0; type++) {
        if (op__is_narrow_int((enum op_type)type)) continue;
        for (int code = 0; code < (type == OP_F4E2M1 ? 16 : 256); code++) {
            float f = op__narrow_to_f32((enum op_type)type, (uint8_t)code);
            uint8_t back = op__f32_to_narrow((enum op_type)type, f, false, OP_ROUND_UP);
            if (isnan(f)) assert_true(isnan(op__narrow_to_f32((enum op_type)type, back)));
            else assert_int_equal(back, code);
        }
    }
}

static void test_packing_keeps_every_element(void **state) {
    (void)state;
    static const enum op_type types[] = {OP_U4, OP_I4, OP_F4E2M1, OP_U2, OP_I2};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int n = 0; n < 20; n++) {
            uint8_t in[20], packed[10], out[20];
            const int bits = op__type_bits(types[t]);
            for (int i = 0; i < n; i++) {
                in[i] = (uint8_t)((i * 7 + 3) & ((1 << bits) - 1));
                if ((types[t] == OP_I4 || types[t] == OP_I2) && in[i] >> (bits - 1)) in[i] = (uint8_t)(in[i] - (1 << bits));
            }
            assert_int_equal(op__packed_bytes(types[t], n), (n * bits + 7) / 8);
            op__pack(types[t], packed, in, n);
            op__unpack(types[t], out, packed, n);
            assert_memory_equal(in, out, (size_t)n);
        }
}

static void test_broadcast_follows_numpy(void **state) {
    (void)state;
    int64_t dims[OP_RANK_MAX];
    int rank;
    assert_true(op__broadcast(3, (int64_t[]){2, 1, 4}, 2, (int64_t[]){3, 1}, &rank, dims));
    assert_int_equal(rank, 3);
    assert_memory_equal(dims, ((int64_t[]){2, 3, 4}), 3 * sizeof *dims);
    assert_true(op__broadcast(0, NULL, 1, (int64_t[]){0}, &rank, dims));
    assert_int_equal(dims[0], 0);
    assert_true(op__broadcast(1, (int64_t[]){1}, 1, (int64_t[]){0}, &rank, dims));
    assert_int_equal(dims[0], 0);
    assert_false(op__broadcast(1, (int64_t[]){2}, 1, (int64_t[]){3}, &rank, dims));
    assert_false(op__broadcast(1, (int64_t[]){2}, 1, (int64_t[]){0}, &rank, dims));
}

static void test_arena_keeps_its_cap(void **state) {
    (void)state;
    struct op_arena a = {.bytes_max = 200000};
    char *first = op__arena_alloc(&a, 100);
    assert_non_null(first);
    assert_int_equal((uintptr_t)first % 16, 0);
    for (int i = 0; i < 100; i++) assert_int_equal(first[i], 0);
    assert_null(op__arena_alloc(&a, 300000));
    assert_null(op__arena_array(&a, SIZE_MAX / 2, 16));
    assert_non_null(op__arena_alloc(&a, 100000));
    assert_null(op__arena_alloc(&a, 100000));
    assert_non_null(op__arena_alloc(&a, 100)); /* still room in the first chunk */
    op__arena_finish(&a);
    assert_int_equal(a.bytes, 0);
}

static void test_axis_counts_from_both_ends(void **state) {
    (void)state;
    assert_int_equal(op__axis(-1, 3), 2);
    assert_int_equal(op__axis(2, 3), 2);
    assert_int_equal(op__axis(3, 3), -1);
    assert_int_equal(op__axis(-4, 3), -1);
    assert_int_equal(op__axis(0, 0), -1);
    assert_int_equal(op__axis(INT64_MIN, 3), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_count_refuses_what_overflows), cmocka_unit_test(test_describe_fits_any_room),
        cmocka_unit_test(test_type_names_go_both_ways),      cmocka_unit_test(test_half_converts_every_value),
        cmocka_unit_test(test_bfloat_rounds_to_nearest_even), cmocka_unit_test(test_narrow_floats_come_back),
        cmocka_unit_test(test_packing_keeps_every_element), cmocka_unit_test(test_broadcast_follows_numpy),
        cmocka_unit_test(test_arena_keeps_its_cap),          cmocka_unit_test(test_axis_counts_from_both_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
