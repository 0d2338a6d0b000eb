# quern: one graph, non-recursive. `make help` lists what it makes.
#
# A build variant is a folder below build/: release (the default), address,undefined
# (SAN=address,undefined), thread (SAN=thread), fuzz (clang, libFuzzer). Objects mirror the tree.

SAN      ?=
CC       := $(if $(filter default,$(origin CC)),gcc,$(CC))
PYTHON   ?= /usr/bin/python3
PREFIX   ?= /usr/local
VARIANT  := $(if $(FUZZING),fuzz,$(if $(SAN),$(SAN),release))
comma    := ,
O        := build/$(subst $(comma),-,$(VARIANT))
VERSION  := 0.1.0

PKGS     := libuv hiredis jansson openssl libjpeg libpng zlib
PKGS_OPS := libcrypto
APT_BUILD := gcc make pkg-config libuv1-dev libhiredis-dev libjansson-dev libssl-dev libjpeg-dev libpng-dev zlib1g-dev redis-server redis-tools
APT_TEST  := libcmocka-dev python3 python3-redis python3-numpy python3-onnx python3-pil python3-opencv libonnx-testdata openssl nodejs npm systemd valgrind

# --- what the compiler gets -------------------------------------------------------------------
# -ffp-contract=off: a row has the same bits on every path; fused multiply-adds are written out.
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
WARN     := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef $(if $(CI),-Werror)
CFLAGS   ?= -O2 -g
CPPFLAGS += -D_GNU_SOURCE -DQUERN_VERSION='"$(VERSION)"' -I. -I$(O)/gen $(PKG_CFLAGS)
SANFLAGS := $(if $(FUZZING),-fsanitize=fuzzer-no-link,) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
ALL_CFLAGS = -std=gnu11 $(WARN) -ffp-contract=off -fno-math-errno -fvisibility=hidden -pthread $(CFLAGS) $(SANFLAGS)
LDLIBS   += $(PKG_LIBS) -lm -ldl -pthread

# A file whose name ends in _<level> is compiled for that level and called only where cpuid has it.
ifneq (,$(findstring x86_64,$(shell $(CC) -dumpmachine)))
isa_avx2   := -mavx2 -mfma -mf16c
isa_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512
isa_vnni   := $(isa_avx512) -mavx512vnni -mavx512bf16
isa_amx    := $(isa_vnni) -mamx-tile -mamx-bf16 -mamx-int8
endif
isa_of      = $(isa_$(lastword $(subst _, ,$(basename $(notdir $(1))))))

# The fuzzers watch everything but the kernels: instrumented by clang, one of those files takes ten minutes to compile, and
# they have no parser in them. The sanitizer builds watch them.
fuzz_plain  = $(if $(and $(FUZZING),$(filter ops/kern/%,$(1))),-fno-sanitize=all)

# --- what there is -----------------------------------------------------------------------------
SRC_QUEUE  := $(sort $(wildcard queue/*.c))
SRC_OPS    := $(sort $(wildcard ops/*.c ops/*/*.c))
SRC_WORKER := $(sort $(wildcard worker/*.c worker/*/*.c))
LUA        := $(sort $(wildcard queue/lua/*.lua))
obj         = $(patsubst %.c,$(O)/%.o,$(1))
OBJ_LIB    := $(call obj,$(SRC_QUEUE) $(SRC_OPS) $(filter-out worker/main.c,$(SRC_WORKER)))
OBJ_ALL    := $(OBJ_LIB) $(O)/worker/main.o
UNIT       := $(sort $(wildcard tests/unit/test_*.c))
UNIT_BIN   := $(patsubst tests/unit/%.c,$(O)/tests/unit/%,$(UNIT))
FUZZ       := $(sort $(wildcard tests/fuzz/fuzz_*.c))
REPLAY     := $(patsubst tests/fuzz/fuzz_%.c,$(O)/tests/fuzz/replay_%,$(FUZZ))
FUZZ_BIN   := $(patsubst tests/fuzz/%.c,build/fuzz/tests/fuzz/%,$(FUZZ))
FUZZ_SECONDS ?= 300

.PHONY: all help
all: deps-build $(O)/quern $(if $(SAN),,build/quern) ## all: build build/quern (default)

help: ## help: list the targets
	@sed -n 's/^[^#]*## \([a-z0-9-]*: .*\)/  \1/p' Makefile

$(O)/quern: $(OBJ_ALL)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)

build/quern: $(O)/quern
	@ln -sf release/quern $@

$(O)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(call isa_of,$<) $(call fuzz_plain,$<) -MMD -MP -c -o $@ $<

# Lua scripts become one C header: a byte string each.
$(O)/gen/queue_scripts.h: $(LUA) Makefile
	@mkdir -p $(@D)
	@{ for f in $(LUA); do n=$$(basename $$f .lua); printf 'static const char q__lua_%s[] =\n' $$n; \
	   sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/    "&\\n"/' $$f; echo '    ;'; done; } > $@.tmp
	@mv $@.tmp $@
$(call obj,$(SRC_QUEUE)): | $(O)/gen/queue_scripts.h

# --- packages ----------------------------------------------------------------------------------
.PHONY: deps-build deps deps-test
deps-build:
	@for p in $(PKGS); do pkg-config --exists $$p || { \
	  echo "quern: the library $$p is missing; as root: apt-get install -y $(APT_BUILD)" >&2; exit 1; }; done

deps: ## deps: install what building and running need (apt, as root or with sudo)
	@tests/install.sh $(APT_BUILD)

deps-test: ## deps-test: install what the tests need too
	@tests/install.sh $(APT_BUILD) $(APT_TEST)

# --- tests -------------------------------------------------------------------------------------
.PHONY: check unit layers lint
check: deps-test ## check: install what tests need, build, run every test [SAN=address,undefined | thread]
	@$(MAKE) --no-print-directory -j$$(nproc) $(if $(SAN),SAN=$(SAN)) all unit lib layers
	@QUERN_BUILD=$(O) SAN=$(SAN) $(PYTHON) tests/run.py

unit: $(UNIT_BIN) $(REPLAY) ## unit: build the unit tests and the replay of the fuzz corpora

$(O)/tests/fuzz/replay_%: $(O)/tests/fuzz/fuzz_%.o $(O)/tests/fuzz/replay.o $(OBJ_LIB)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)

build/fuzz/tests/fuzz/fuzz_%: $(O)/tests/fuzz/fuzz_%.o $(OBJ_LIB)
	$(CC) $(ALL_CFLAGS) -fsanitize=fuzzer $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS)

# The engine for aarch64, static, with the unit tests that need nothing else, run under qemu (tests/zoo/test_arm.py). What it would take from
# libraries of that architecture, SHA-256 and cmocka, stands in tests/arm.
ARM_CC     := aarch64-linux-gnu-gcc
ARM_TESTS  := builder kern_gemm kern_quant kern_vmath kern_winograd op_control op_conv op_math op_ml op_nn op_rnn op_shape pass_channels plan session tensor
ARM_BIN    := $(patsubst %,build/arm/test_%,$(ARM_TESTS)) build/arm/outputs build/arm/outputs-native

.PHONY: check-arm arm-bin
arm-bin: $(ARM_BIN)
check-arm: all ## check-arm: build the engine for aarch64 and run it under qemu: the bits are those of this machine
	@QUERN_BUILD=$(O) $(PYTHON) tests/zoo/test_arm.py

build/arm/%.o: %.c
	@mkdir -p $(@D)
	$(ARM_CC) -D_GNU_SOURCE -DQUERN_VERSION='"$(VERSION)"' -Itests/arm -I. $(ALL_CFLAGS) -DK_PLAIN_LOOPS -MMD -MP -c -o $@ $<
build/arm/outputs: build/arm/tests/arm/outputs.o $(patsubst %.c,build/arm/%.o,$(SRC_OPS))
	$(ARM_CC) -static -pthread -o $@ $^ -lm
build/arm/test_%: build/arm/tests/unit/test_%.o $(patsubst %.c,build/arm/%.o,$(SRC_OPS))
	$(ARM_CC) -static -pthread -o $@ $^ -lm
build/arm/outputs-native: $(O)/tests/arm/outputs.o $(call obj,$(SRC_OPS))
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(OPS_LIBS)

.PHONY: fuzz fuzz-bin
fuzz-bin: $(FUZZ_BIN)
fuzz: ## fuzz: run each libFuzzer target for FUZZ_SECONDS (300) with the address and undefined sanitizers
	@tests/install.sh $(APT_BUILD) clang libclang-rt-14-dev
	@$(MAKE) --no-print-directory -j$$(nproc) CC=clang FUZZING=1 SAN=address,undefined CFLAGS='-O1 -g' fuzz-bin
	@tests/fuzz/run.sh build/fuzz/tests/fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)

$(O)/tests/unit/%: $(O)/tests/unit/%.o $(OBJ_LIB)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS) -lcmocka

layers: ## layers: check that queue/ and ops/ know neither each other nor worker/
	@! grep -nE '#include "(ops|worker)/' queue/*.[ch] || { echo 'layers: queue/ includes what it must not know' >&2; exit 1; }
	@! grep -nE '#include ("(queue|worker)/|<(uv|hiredis|jansson)[./])' -r ops --include='*.[ch]' || { echo 'layers: ops/ includes what it must not know' >&2; exit 1; }
	@! grep -nE '#include "(queue/[^q]|queue/q[^u]|ops/[^o]|ops/op[^s])' -r worker --include='*.[ch]' || { echo 'layers: worker/ includes more than queue/queue.h and ops/ops.h' >&2; exit 1; }

# Not laid out by clang-format: ops/, tests/ and what trains in worker/. invalidPointerCast: a tensor's memory has no type of its own.
lint: ## lint: clang-format and cppcheck, changes nothing
	clang-format --dry-run --Werror $$(git ls-files 'queue/*.[ch]' 'worker/*.[ch]' | grep -v train)
	cppcheck -q --enable=warning,portability --suppress=invalidPointerCast --inline-suppr --error-exitcode=1 -I. queue ops worker

clean: ## clean: remove build/
	rm -rf build

.PHONY: chaos soak
chaos: all ## chaos: kill, stop and starve workers and Redis; count what was lost or done twice
	@QUERN=build/quern $(PYTHON) tests/chaos/chaos.py
soak: all ## soak: SOAK_MINUTES (30) of mixed jobs with kills; memory must stay flat
	@QUERN=build/quern $(PYTHON) tests/chaos/soak.py

# --- measuring -----------------------------------------------------------------------------------
.PHONY: bench bench-queue bench-infer bench-train bench-e2e
bench: bench-queue bench-infer bench-train bench-e2e ## bench: quern beside its rivals: tables, and build/bench.json
bench-queue: all ## bench-queue: jobs/s beside BullMQ
	@$(PYTHON) tests/bench/bench.py queue
bench-infer: all lib ## bench-infer: items/s of the engine beside ONNX Runtime
	@$(PYTHON) tests/bench/bench.py infer
bench-train: all ## bench-train: training steps beside PyTorch
	@$(PYTHON) tests/bench/bench.py train
bench-e2e: all ## bench-e2e: images/s through the queue beside BullMQ with ONNX Runtime
	@$(PYTHON) tests/bench/bench.py e2e

# --- the engine as a library -------------------------------------------------------------------
# Operators and passes register through linker sections, so the archive holds one object: whoever takes a symbol
# takes them all. Only what ops.h marks OP_API is visible.
SO_VERSION := $(word 1,$(subst ., ,$(VERSION)))
OPS_LIBS   := $(shell pkg-config --libs $(PKGS_OPS) 2>/dev/null) -lm -pthread

.PHONY: lib always
lib: $(O)/libquern-ops.a $(O)/libquern-ops.so $(O)/quern-ops.pc ## lib: build the engine alone, static and shared, with its pkg-config file

$(call obj,$(SRC_OPS)): SANFLAGS += -fPIC

$(O)/libquern-ops.o: $(call obj,$(SRC_OPS))
	$(CC) -r -nostdlib -o $@ $^
	objcopy --localize-hidden $@

$(O)/libquern-ops.a: $(O)/libquern-ops.o
	@rm -f $@
	ar rcs $@ $<

$(O)/libquern-ops.so: $(call obj,$(SRC_OPS))
	$(CC) $(ALL_CFLAGS) -shared -Wl,-soname,libquern-ops.so.$(SO_VERSION) -o $@ $^ $(LDFLAGS) $(OPS_LIBS)

# Made anew each time: it holds the prefix.
$(O)/quern-ops.pc: always
	@mkdir -p $(@D)
	@printf 'prefix=%s\nlibdir=$${prefix}/lib\nincludedir=$${prefix}/include\n\nName: quern-ops\nDescription: loads and runs ONNX graphs\nVersion: %s\nRequires.private: %s\nLibs: -L$${libdir} -lquern-ops\nLibs.private: -lm -pthread\nCflags: -I$${includedir}/quern\n' \
	  '$(PREFIX)' '$(VERSION)' '$(PKGS_OPS)' > $@

# --- installing ----------------------------------------------------------------------------------
SYSTEMD_UNITS = systemd/quern-worker@.service systemd/quern.target

.PHONY: install docs
install: all lib $(O)/quern.1 ## install: program, library, header, man page, units into DESTDIR/PREFIX (/usr/local)
	install -Dm755 $(O)/quern $(DESTDIR)$(PREFIX)/bin/quern
	install -Dm644 $(O)/quern.1 $(DESTDIR)$(PREFIX)/share/man/man1/quern.1
	for h in $(wildcard ops/ops*.h); do install -Dm644 $$h $(DESTDIR)$(PREFIX)/include/quern/$$h; done
	install -Dm644 $(O)/libquern-ops.a $(DESTDIR)$(PREFIX)/lib/libquern-ops.a
	install -Dm755 $(O)/libquern-ops.so $(DESTDIR)$(PREFIX)/lib/libquern-ops.so.$(VERSION)
	ln -sf libquern-ops.so.$(VERSION) $(DESTDIR)$(PREFIX)/lib/libquern-ops.so.$(SO_VERSION)
	ln -sf libquern-ops.so.$(SO_VERSION) $(DESTDIR)$(PREFIX)/lib/libquern-ops.so
	install -Dm644 $(O)/quern-ops.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig/quern-ops.pc
	install -Dm644 configs/worker.json $(DESTDIR)$(PREFIX)/share/quern/worker.json
	install -Dm644 systemd/quern.env $(DESTDIR)$(PREFIX)/share/quern/quern.env
	for u in $(SYSTEMD_UNITS); do sed 's|/usr/bin/quern|$(PREFIX)/bin/quern|' $$u | \
	  install -Dm644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/$$(basename $$u); done

$(O)/quern.1: $(O)/quern
	$(O)/quern help --man > $@

docs: all lib ## docs: make configs/worker.json, configs/README.md and ops/OPERATORS.md from the program's own tables
	./build/quern config show --defaults > configs/worker.json
	./build/quern config reference > configs/README.md
	QUERN=build/quern QUERN_BUILD=$(O) $(PYTHON) tests/zoo/operators.py

demo: deps ## demo: install what is missing, build, do the main job on real data with a private Redis
	@$(MAKE) --no-print-directory -j$$(nproc) all
	@tests/demo.sh build/quern

.PHONY: clean demo
.SECONDARY:
-include $(wildcard build/arm/*/*.d build/arm/*/*/*.d)
-include $(OBJ_ALL:.o=.d) $(patsubst %.c,$(O)/%.d,$(UNIT) $(FUZZ))
