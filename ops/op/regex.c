/* Regular expressions for RegexFullMatch. The operator's specification asks for RE2's syntax; what
 * matters to a worker is RE2's guarantee: time linear in the text for every pattern, which the C
 * library's matcher does not give.
 *
 *   parse     pattern -> a tree of nodes
 *   emit      tree -> a program for a nondeterministic automaton: one instruction a state (counted
 * repeats are written out), at most PROGRAM_MAX of them match     all states at once, one code
 * point of the text after the other; no captures, as nobody asks for them, and so greedy and lazy
 * repeats are the same
 *
 * Supported: literals, . [...] with ranges, negation and [:classes:], \d \D \s \S \w \W (ASCII, as
 * in RE2), \b \B \A \z ^ $, groups (capturing, named, (?:), flags i m s U), | * + ? {n} {n,} {n,m}
 * and their lazy forms, \t \n \r \f \v \a, \x7F \x{10FFFF}, octal \123, \Q...\E. Not supported, as
 * an error: \p classes, \C. */
#include "ops/op/regex.h"

#include <stdlib.h>
#include <string.h>

#include "ops/op/text.h"

#define DEPTH_MAX 200
#define REPEAT_MAX 1000 /* RE2's own limit */
#define NODES_MAX 100000
#define PROGRAM_MAX 20000
#define EMITS_MAX 200000 /* repeats of nothing emit no instruction */
#define CODE_MAX 0x10ffffu

struct range {
    uint32_t low, high;
};
struct set { /* of code points: `n` ranges from `first` in the pool of ranges */
    int first, n;
    bool negated, fold; /* fold: either case counts */
};

enum node_kind { EMPTY, SET, CAT, ALT, REPEAT, ASSERT };
enum assert_kind { TEXT_BEGIN, TEXT_END, LINE_BEGIN, LINE_END, WORD, NOT_WORD };

struct node {
    enum node_kind kind;
    int a, b;     /* children of CAT, ALT, REPEAT; the set of SET; the assert_kind */
    int min, max; /* of REPEAT; max -1: no end */
};

enum opcode { TAKE, SPLIT, CHECK, MATCH }; /* a set; to x and y; an assertion */
struct instr {
    enum opcode op;
    int arg, x, y; /* TAKE and CHECK go on at x */
};

struct op__regex {
    struct instr *prog;
    int n_prog;
    struct set *sets;
    int n_sets;
    struct range *ranges;
    int n_ranges;
};

struct parser {
    const char *s;
    size_t n, at;
    const char *why;
    int depth;
    bool fold, multi_line, dot_all, quoting; /* (?i) (?m) (?s), within \Q … \E */
    struct node *nodes;
    int n_nodes;
    int n_emits;
    struct op__regex *re;
};

static int fail(struct parser *p, const char *why) {
    if (!p->why) p->why = why;
    return -1;
}

/* Gives `array` room for one element more, doubling. */
static bool reserve(void **array, int n, size_t elem) {
    if (n & (n - 1)) return true;
    void *more = realloc(*array, (n ? 2 * (size_t)n : 1) * elem);
    if (more) *array = more;
    return more != NULL;
}

static int add_node(struct parser *p, struct node node) {
    if (p->why) return -1;
    if (p->n_nodes == NODES_MAX) return fail(p, "the pattern is too large");
    if (!reserve((void **)&p->nodes, p->n_nodes, sizeof node)) return fail(p, "out of memory");
    p->nodes[p->n_nodes] = node;
    return p->n_nodes++;
}

static void add_range(struct parser *p, uint32_t low, uint32_t high) {
    struct op__regex *re = p->re;
    if (p->why) return;
    if (!reserve((void **)&re->ranges, re->n_ranges, sizeof *re->ranges)) {
        fail(p, "out of memory");
        return;
    }
    re->ranges[re->n_ranges++] = (struct range){low, high};
}

/* A set of the ranges added since `first`. */
static int add_set(struct parser *p, int first, bool negated, bool fold) {
    struct op__regex *re = p->re;
    if (p->why) return -1;
    if (!reserve((void **)&re->sets, re->n_sets, sizeof *re->sets)) return fail(p, "out of memory");
    re->sets[re->n_sets] = (struct set){first, re->n_ranges - first, negated, fold};
    return add_node(p, (struct node){.kind = SET, .a = re->n_sets++});
}

static int add_literal(struct parser *p, uint32_t cp) {
    int first = p->re->n_ranges;
    add_range(p, cp, cp);
    return add_set(p, first, false, p->fold);
}

/* --- parsing -------------------------------------------------------------------------------------
 */

static bool more(const struct parser *p) {
    return p->at < p->n && !p->why;
}
static bool looking_at(const struct parser *p, const char *text) {
    size_t len = strlen(text);
    return p->n - p->at >= len && memcmp(p->s + p->at, text, len) == 0;
}
static bool accept(struct parser *p, const char *text) {
    if (p->why || !looking_at(p, text)) return false;
    p->at += strlen(text);
    return true;
}

static uint32_t next_code(struct parser *p) {
    uint32_t cp = 0;
    if (p->at >= p->n) {
        fail(p, "the pattern ends too early");
        return 0;
    }
    int len = op__utf8_decode(p->s + p->at, p->n - p->at, &cp);
    if (!len) fail(p, "the pattern is not UTF-8");
    p->at += (size_t)len;
    return cp;
}

static int hex_digit(uint32_t c) {
    return c >= '0' && c <= '9'   ? (int)c - '0'
           : c >= 'a' && c <= 'f' ? (int)c - 'a' + 10
           : c >= 'A' && c <= 'F' ? (int)c - 'A' + 10
                                  : -1;
}

static uint32_t hex_escape(struct parser *p) { /* behind \x */
    uint32_t v = 0;
    bool braces = accept(p, "{");
    for (int i = 0; braces ? !accept(p, "}") : i < 2; i++) {
        int d = hex_digit(next_code(p));
        v = v * 16 + (uint32_t)d;
        if (d < 0 || v > CODE_MAX || p->why) {
            fail(p, "bad \\x escape");
            return 0;
        }
    }
    return v;
}

/* The ASCII class of a letter (d, s, w); false if it is none. */
static bool add_class(struct parser *p, uint32_t letter) {
    switch (letter) {
    case 'd':
        add_range(p, '0', '9');
        return true;
    case 's':
        add_range(p, '\t', '\n');
        add_range(p, '\f', '\r');
        add_range(p, ' ', ' ');
        return true;
    case 'w':
        add_range(p, '0', '9');
        add_range(p, 'A', 'Z');
        add_range(p, '_', '_');
        add_range(p, 'a', 'z');
        return true;
    default:
        return false;
    }
}

/* The ranges since `first` become those of the complement. They lie in any order. */
static int by_low(const void *a, const void *b) {
    const struct range *x = a, *y = b;
    return (x->low > y->low) - (x->low < y->low);
}
static void complement(struct parser *p, int first) {
    struct op__regex *re = p->re;
    if (p->why) return;
    int n = re->n_ranges - first;
    uint32_t from = 0;
    struct range *old = malloc(((size_t)n + 1) * sizeof *old);
    if (!old) {
        fail(p, "out of memory");
        return;
    }
    if (n) memcpy(old, re->ranges + first, (size_t)n * sizeof *old);
    qsort(old, (size_t)n, sizeof *old, by_low);
    re->n_ranges = first;
    for (int i = 0; i < n; i++) {
        if (old[i].low > from) add_range(p, from, old[i].low - 1);
        if (old[i].high + 1 > from) from = old[i].high + 1;
    }
    if (from <= CODE_MAX) add_range(p, from, CODE_MAX);
    free(old);
}

/* A single escaped code point, the letter behind the backslash being c. */
static uint32_t escaped_code(struct parser *p, uint32_t c) {
    switch (c) {
    case 'n':
        return '\n';
    case 't':
        return '\t';
    case 'r':
        return '\r';
    case 'f':
        return '\f';
    case 'v':
        return '\v';
    case 'a':
        return '\a';
    case 'x':
        return hex_escape(p);
    default:
        break;
    }
    if (c >= '0' && c <= '7') {
        uint32_t v = c - '0';
        bool back_reference = c != '0' && !(more(p) && p->s[p->at] >= '0' && p->s[p->at] <= '7');
        if (back_reference) fail(p, "back references are not supported");
        for (int i = 0; i < 2 && more(p) && p->s[p->at] >= '0' && p->s[p->at] <= '7'; i++)
            v = v * 8 + (uint32_t)(p->s[p->at++] - '0');
        return v;
    }
    if (c < 0x80 && ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')))
        fail(p, "unknown escape");
    return c;
}

static bool posix_class(struct parser *p) { /* behind "[:" */
    static const struct {
        const char *name;
        struct range ranges[4];
    } classes[] = {
        {"alnum:]", {{'0', '9'}, {'A', 'Z'}, {'a', 'z'}}},
        {"alpha:]", {{'A', 'Z'}, {'a', 'z'}}},
        {"ascii:]", {{0, 0x7f}}},
        {"blank:]", {{'\t', '\t'}, {' ', ' '}}},
        {"cntrl:]", {{0, 0x1f}, {0x7f, 0x7f}}},
        {"digit:]", {{'0', '9'}}},
        {"graph:]", {{'!', '~'}}},
        {"lower:]", {{'a', 'z'}}},
        {"print:]", {{' ', '~'}}},
        {"punct:]", {{'!', '/'}, {':', '@'}, {'[', '`'}, {'{', '~'}}},
        {"space:]", {{'\t', '\r'}, {' ', ' '}}},
        {"upper:]", {{'A', 'Z'}}},
        {"word:]", {{'0', '9'}, {'A', 'Z'}, {'a', 'z'}, {'_', '_'}}},
        {"xdigit:]", {{'0', '9'}, {'A', 'F'}, {'a', 'f'}}},
    };
    bool negated = accept(p, "^");
    int first = p->re->n_ranges;
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        if (!accept(p, classes[i].name)) continue;
        for (int k = 0; k < 4 && classes[i].ranges[k].high; k++)
            add_range(p, classes[i].ranges[k].low, classes[i].ranges[k].high);
        if (negated) complement(p, first);
        return true;
    }
    return false;
}

static int parse_set(struct parser *p) { /* behind "[" */
    int first = p->re->n_ranges;
    bool negated = accept(p, "^"), any = false;
    while (more(p) && !(any && looking_at(p, "]"))) {
        any = true;
        if (accept(p, "[:")) {
            if (!posix_class(p)) return fail(p, "unknown class");
            continue;
        }
        uint32_t low = next_code(p), high;
        if (low == '\\') {
            uint32_t c = next_code(p);
            int before = p->re->n_ranges;
            bool upper = c == 'D' || c == 'S' || c == 'W';
            if (add_class(p, upper ? c + 32 : c)) {
                if (upper) complement(p, before);
                continue;
            }
            low = escaped_code(p, c);
        }
        high = low;
        if (looking_at(p, "-") && p->at + 1 < p->n && p->s[p->at + 1] != ']') {
            p->at++;
            high = next_code(p);
            if (high == '\\') high = escaped_code(p, next_code(p));
            if (high < low) return fail(p, "a range ends before it begins");
        }
        add_range(p, low, high);
    }
    if (!accept(p, "]")) return fail(p, "] is missing");
    return add_set(p, first, negated, p->fold);
}

static int parse_escape(struct parser *p) { /* behind the backslash */
    int first = p->re->n_ranges;
    uint32_t c = next_code(p);
    bool upper = c == 'D' || c == 'S' || c == 'W';
    switch (c) {
    case 'A':
        return add_node(p, (struct node){.kind = ASSERT, .a = TEXT_BEGIN});
    case 'z':
        return add_node(p, (struct node){.kind = ASSERT, .a = TEXT_END});
    case 'b':
        return add_node(p, (struct node){.kind = ASSERT, .a = WORD});
    case 'B':
        return add_node(p, (struct node){.kind = ASSERT, .a = NOT_WORD});
    case 'p':
    case 'P':
        return fail(p, "\\p classes are not supported");
    case 'C':
        return fail(p, "\\C is not supported");
    default:
        break;
    }
    if (add_class(p, upper ? c + 32 : c)) return add_set(p, first, upper, false);
    return add_literal(p, escaped_code(p, c));
}

static int parse_alternatives(struct parser *p);

/* Behind "(?": sets the flags. Returns whether a group follows (":" was read), false where ")"
 * ended it. */
static bool parse_flags(struct parser *p) {
    bool on = true;
    while (more(p)) {
        char c = p->s[p->at++];
        if (c == ':') return true;
        if (c == ')') return false;
        if (c == '-')
            on = false;
        else if (c == 'i')
            p->fold = on;
        else if (c == 'm')
            p->multi_line = on;
        else if (c == 's')
            p->dot_all = on;
        else if (c != 'U')
            break;
    }
    fail(p, "unknown group");
    return false;
}

static int parse_group(struct parser *p) { /* behind "(" */
    bool fold = p->fold, multi_line = p->multi_line, dot_all = p->dot_all;
    if (++p->depth > DEPTH_MAX) return fail(p, "groups are nested too deep");
    if (accept(p, "?P<") || accept(p, "?<")) {
        size_t begin = p->at;
        while (more(p) &&
               (p->s[p->at] == '_' || hex_digit((uint8_t)p->s[p->at]) >= 0 ||
                (op__lower((uint8_t)p->s[p->at]) >= 'g' && op__lower((uint8_t)p->s[p->at]) <= 'z')))
            p->at++;
        if (p->at == begin || !accept(p, ">")) return fail(p, "bad name of a group");
    } else if (accept(p, "?") && !parse_flags(p)) { /* flags for the rest of the enclosing group */
        p->depth--;
        return add_node(p, (struct node){.kind = EMPTY});
    }
    int body = parse_alternatives(p);
    if (!accept(p, ")")) return fail(p, ") is missing");
    p->fold = fold;
    p->multi_line = multi_line;
    p->dot_all = dot_all;
    p->depth--;
    return body;
}

static int parse_atom(struct parser *p) {
    if (accept(p, "(")) return parse_group(p);
    if (accept(p, "[")) return parse_set(p);
    if (accept(p, "\\")) return parse_escape(p);
    if (accept(p, "^"))
        return add_node(
            p, (struct node){.kind = ASSERT, .a = p->multi_line ? LINE_BEGIN : TEXT_BEGIN});
    if (accept(p, "$"))
        return add_node(p, (struct node){.kind = ASSERT, .a = p->multi_line ? LINE_END : TEXT_END});
    if (looking_at(p, "*") || looking_at(p, "+") || looking_at(p, "?"))
        return fail(p, "there is nothing to repeat");
    int first = p->re->n_ranges;
    if (!accept(p, ".")) return add_literal(p, next_code(p));
    if (!p->dot_all) add_range(p, '\n', '\n');
    return add_set(p, first, true, false);
}

static int number(struct parser *p) { /* -1 if there is none */
    int v = -1;
    while (p->at < p->n && p->s[p->at] >= '0' && p->s[p->at] <= '9' && v <= REPEAT_MAX)
        v = (v < 0 ? 0 : v) * 10 + (p->s[p->at++] - '0');
    return v;
}

/* A repeat behind an atom; false if there is none. A brace that begins no repeat is a literal. */
static bool parse_repeat(struct parser *p, int *min, int *max) {
    if (accept(p, "*"))
        *min = 0, *max = -1;
    else if (accept(p, "+"))
        *min = 1, *max = -1;
    else if (accept(p, "?"))
        *min = 0, *max = 1;
    else {
        size_t begin = p->at;
        if (!accept(p, "{")) return false;
        *min = *max = number(p);
        if (*min >= 0 && accept(p, ",")) *max = number(p);
        if (*min < 0 || !accept(p, "}")) {
            p->at = begin;
            return false;
        }
        if (*min > REPEAT_MAX || *max > REPEAT_MAX)
            fail(p, "a repeat counts at most to 1000");
        else if (*max >= 0 && *max < *min)
            fail(p, "a repeat ends before it begins");
    }
    accept(p, "?"); /* lazy: the same where all of the text must match */
    return true;
}

static int parse_sequence(struct parser *p) {
    int all = add_node(p, (struct node){.kind = EMPTY});
    while (more(p) && (p->quoting || (!looking_at(p, "|") && !looking_at(p, ")")))) {
        if (accept(p, p->quoting ? "\\E" : "\\Q")) {
            p->quoting = !p->quoting;
            continue;
        }
        int atom = p->quoting ? add_literal(p, next_code(p)) : parse_atom(p), min, max;
        if (p->quoting && accept(p, "\\E"))
            p->quoting = false; /* a repeat behind it is one of the last letter */
        if (!p->quoting && parse_repeat(p, &min, &max)) {
            atom = add_node(p, (struct node){.kind = REPEAT, .a = atom, .min = min, .max = max});
            if (parse_repeat(p, &min, &max)) return fail(p, "a repeat of a repeat needs a group");
        }
        all = add_node(p, (struct node){.kind = CAT, .a = all, .b = atom});
    }
    return all;
}

static int parse_alternatives(struct parser *p) {
    int all = parse_sequence(p);
    while (accept(p, "|"))
        all = add_node(p, (struct node){.kind = ALT, .a = all, .b = parse_sequence(p)});
    return all;
}

/* --- the program ---------------------------------------------------------------------------------
 */

static int add_instr(struct parser *p, struct instr i) {
    struct op__regex *re = p->re;
    if (p->why) return -1;
    if (re->n_prog == PROGRAM_MAX) return fail(p, "the pattern is too large");
    if (!reserve((void **)&re->prog, re->n_prog, sizeof i)) return fail(p, "out of memory");
    re->prog[re->n_prog] = i;
    return re->n_prog++;
}

/* Emits node `at` so that it goes on at instruction `next`; returns where it begins. Programs are
 * written from the end to the beginning, so that every target but a loop's is known. CAT leans to
 * the left: its spine is a loop. */
static int emit(struct parser *p, int at, int next) {
    if (p->why || ++p->n_emits > EMITS_MAX) return fail(p, "the pattern is too large");
    while (p->nodes[at].kind == CAT) {
        next = emit(p, p->nodes[at].b, next);
        at = p->nodes[at].a;
        if (p->why) return -1;
    }
    const struct node n = p->nodes[at];
    switch (n.kind) {
    case SET:
        return add_instr(p, (struct instr){TAKE, n.a, next, -1});
    case ASSERT:
        return add_instr(p, (struct instr){CHECK, n.a, next, -1});
    case ALT: { /* leans to the left, too */
        int rest = emit(p, n.b, next);
        for (at = n.a; !p->why && p->nodes[at].kind == ALT; at = p->nodes[at].a)
            rest = add_instr(p, (struct instr){SPLIT, 0, emit(p, p->nodes[at].b, next), rest});
        return add_instr(p, (struct instr){SPLIT, 0, emit(p, at, next), rest});
    }
    case REPEAT:
        if (n.max < 0) { /* x* goes in at the split, x+ at the x before it */
            int loop = add_instr(p, (struct instr){SPLIT, 0, -1, next}), body = emit(p, n.a, loop);
            if (p->why) return -1;
            p->re->prog[loop].x = body;
            next = n.min ? body : loop;
        }
        for (int i = n.min, out = next; i < n.max;
             i++) { /* any of the optional ones may be the last: x{0,2} is (x(x)?)? */
            int body = emit(p, n.a, next);
            next = add_instr(p, (struct instr){SPLIT, 0, body, out});
            if (p->why) return -1;
        }
        for (int i = n.max < 0; i < n.min && !p->why; i++) next = emit(p, n.a, next);
        return next;
    default:
        return next;
    }
}

struct op__regex *op__regex_compile(const char *pattern, size_t n, const char **why, size_t *at) {
    struct op__regex *re = calloc(1, sizeof *re);
    struct parser p = {.s = pattern, .n = n, .re = re};
    *why = "out of memory";
    *at = 0;
    if (!re) return NULL;
    int root = parse_alternatives(&p);
    if (more(&p)) fail(&p, "unexpected )");
    int end = add_instr(&p, (struct instr){MATCH, 0, -1, -1}),
        begin = p.why ? -1 : emit(&p, root, end);
    if (!p.why)
        add_instr(&p, (struct instr){SPLIT, 0, begin,
                                     begin}); /* the last instruction is where it starts */
    free(p.nodes);
    if (!p.why) return re;
    *why = p.why;
    *at = p.at;
    op__regex_free(re);
    return NULL;
}

void op__regex_free(struct op__regex *re) {
    if (!re) return;
    free(re->prog);
    free(re->sets);
    free(re->ranges);
    free(re);
}

/* --- matching ------------------------------------------------------------------------------------
 */

/* The states at a place of the text; `seen[pc]` is the place's number where pc is among them. */
struct states {
    int *list, n;
};
struct matcher {
    const struct op__regex *re;
    uint32_t *seen, mark;
    int *stack;             /* of states still to be followed: each is pushed once a place */
    uint32_t before, after; /* the code points around the place; NONE at the ends */
};
#define NONE UINT32_MAX

size_t op__regex_scratch_bytes(const struct op__regex *re) {
    return (size_t)re->n_prog * (3 * sizeof(int) + sizeof(uint32_t)) + 3 * sizeof(int);
}

static bool is_word(uint32_t c) {
    return c != NONE &&
           ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_');
}

static bool holds(const struct matcher *m, int kind) {
    switch (kind) {
    case TEXT_BEGIN:
        return m->before == NONE;
    case TEXT_END:
        return m->after == NONE;
    case LINE_BEGIN:
        return m->before == NONE || m->before == '\n';
    case LINE_END:
        return m->after == NONE || m->after == '\n';
    case WORD:
        return is_word(m->before) != is_word(m->after);
    default:
        return is_word(m->before) == is_word(m->after);
    }
}

static bool in_ranges(const struct op__regex *re, const struct set *s, uint32_t cp) {
    for (int i = s->first; i < s->first + s->n; i++)
        if (cp >= re->ranges[i].low && cp <= re->ranges[i].high) return true;
    return false;
}

static bool takes(const struct op__regex *re, const struct set *s, uint32_t cp) {
    bool in = in_ranges(re, s, cp) ||
              (s->fold && (in_ranges(re, s, op__lower(cp)) || in_ranges(re, s, op__upper(cp))));
    return in != s->negated;
}

/* Adds pc and all that it leads to without reading; each state at most once, so a loop of nothing
 * ends. */
static void follow(struct matcher *m, int pc, struct states *to) {
    int depth = 0;
    if (m->seen[pc] == m->mark) return;
    m->seen[pc] = m->mark;
    m->stack[depth++] = pc;
    while (depth) {
        const struct instr *i = &m->re->prog[pc = m->stack[--depth]];
        if (i->op == TAKE || i->op == MATCH) {
            to->list[to->n++] = pc;
            continue;
        }
        if (i->op == CHECK && !holds(m, i->arg)) continue;
        int next[2] = {i->x, i->op == SPLIT ? i->y : i->x};
        for (int k = 0; k < 2; k++) {
            if (m->seen[next[k]] == m->mark) continue;
            m->seen[next[k]] = m->mark;
            m->stack[depth++] = next[k];
        }
    }
}

/* The code point at s, a byte that is no UTF-8 counting as U+FFFD; returns its bytes. */
static size_t read_code(const char *s, size_t n, uint32_t *cp) {
    if (!n) {
        *cp = NONE;
        return 0;
    }
    int len = op__utf8_decode(s, n, cp);
    if (!len) *cp = 0xfffd;
    return len ? (size_t)len : 1;
}

bool op__regex_full_match(const struct op__regex *re, const char *s, size_t n, void *scratch) {
    int *memory = scratch;
    struct states now = {memory, 0}, next = {memory + re->n_prog, 0};
    struct matcher m = {.re = re,
                        .seen = (uint32_t *)(memory + 2 * re->n_prog),
                        .stack = memory + 3 * re->n_prog,
                        .mark = 1,
                        .before = NONE};
    memset(m.seen, 0, (size_t)re->n_prog * sizeof *m.seen);
    size_t len = read_code(s, n, &m.after);
    follow(&m, re->n_prog - 1, &now);
    while (len && now.n) {
        uint32_t cp = m.after;
        s += len;
        n -= len;
        m.before = cp;
        len = read_code(s, n, &m.after);
        if (++m.mark == 0) { /* after 2^32 places */
            memset(m.seen, 0, (size_t)re->n_prog * sizeof *m.seen);
            m.mark = 1;
        }
        next.n = 0;
        for (int k = 0; k < now.n; k++) {
            const struct instr *i = &re->prog[now.list[k]];
            if (i->op == TAKE && takes(re, &re->sets[i->arg], cp)) follow(&m, i->x, &next);
        }
        struct states t = now;
        now = next;
        next = t;
    }
    for (int k = 0; k < now.n && !len; k++)
        if (re->prog[now.list[k]].op == MATCH) return true;
    return false;
}
