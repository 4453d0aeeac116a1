# Ferry: a thin front for meson and the scripts. `make help` lists what there is.
#
# BUILD=DIR another build directory; BENCH=name one benchmark case; V=1 shows commands; AGAIN=1 has tests that fail run a
# second time.

BUILD  ?= build
PREFIX ?= /usr/local
DESTDIR ?=
AGAIN_OPTION = $(if $(AGAIN),--again,)
NINJA   = ninja -C $(BUILD) $(if $(V),-v,)

.PHONY: all build help deps guests demo test test-unit test-integration test-asan test-tsan test-lab test-faults soak check format bench install clean

all: build

help:
	@echo 'make            build $(BUILD)/ferry, $(BUILD)/ferryd and $(BUILD)/ferry-vm'
	@echo 'make demo       move a running Debian Linux between two hosts on this machine and watch it'
	@echo 'make test       all tests: units, then real guests'
	@echo 'make test-asan  the units with address and undefined-behaviour sanitizers, in $(BUILD)-asan'
	@echo 'make test-tsan  the engine'"'"'s units with the thread sanitizer, in $(BUILD)-tsan'
	@echo 'make test-lab   an unmodified x86-64 Linux on genuine KVM, in an emulated machine (LAB=short for less)'
	@echo 'make test-faults  fail a migration of a real guest at every step, on either side, in every way'
	@echo 'make soak       SOAK=2000 migrations with random faults (SEED=N for others)'
	@echo 'make check      format, warnings as errors with gcc and clang, clang-tidy'
	@echo 'make bench      measure against peers (BENCH=name for one case); writes $(BUILD)/bench.json'
	@echo 'make guests     fetch the Debian guest and build the test guests'
	@echo 'make format     let clang-format lay out the sources'
	@echo 'make install    into $(DESTDIR)$(PREFIX)'
	@echo 'make clean      remove $(BUILD)'

deps:
	@scripts/install-deps build

$(BUILD)/build.ninja:
	meson setup --prefix=$(PREFIX) $(BUILD)

build: deps $(BUILD)/build.ninja
	@$(NINJA)

guests:
	@scripts/install-deps build guests
	@guests/build $(BUILD)/guest

demo: build guests
	@scripts/demo $(BUILD)

test: test-deps build guests
	@scripts/run-tests --build $(BUILD) unit integration $(AGAIN_OPTION)

test-unit: test-deps build
	@scripts/run-tests --build $(BUILD) unit

test-integration: test-deps build guests
	@scripts/run-tests --build $(BUILD) integration

# LAB=short for one CPU and two moves only.
LAB ?= long
test-lab: test-deps build guests
	@FERRY_LAB=$(LAB) scripts/run-tests --build $(BUILD) lab $(AGAIN_OPTION)

$(BUILD)-asan/build.ninja:
	meson setup -Db_sanitize=address,undefined -Db_lundef=false $(BUILD)-asan

# With the guests, which some units move.
test-asan: test-deps guests $(BUILD)-asan/build.ninja
	@ninja -C $(BUILD)-asan $(if $(V),-v,)
	@mkdir -p $(BUILD)-asan/guest && cp -rs "$(abspath $(BUILD))/guest/." $(BUILD)-asan/guest/ 2>/dev/null || true
	@UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=1 \
		scripts/run-tests --build $(BUILD)-asan unit $(AGAIN_OPTION)

$(BUILD)-tsan/build.ninja:
	meson setup -Db_sanitize=thread -Db_lundef=false $(BUILD)-tsan

# The engine's units: it is where threads share things.
test-tsan: test-deps $(BUILD)-tsan/build.ninja
	@ninja -C $(BUILD)-tsan $(if $(V),-v,) thread-tests
	@TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 scripts/run-tests --build $(BUILD)-tsan --suite threads unit $(AGAIN_OPTION)

# FAULTS='--only TEXT', '--sample N' or '--seed S' for some of them only;
# FAULTS=--upgrade: in an upgrade on one host instead of a migration.
test-faults: test-deps build guests
	@scripts/run-faults --build $(BUILD) $(FAULTS)

SOAK ?= 2000
SEED ?= 1
soak: test-deps build guests
	@scripts/run-soak --build $(BUILD) --seed $(SEED) $(SOAK)

.PHONY: test-deps
test-deps:
	@scripts/install-deps build guests test

check:
	@scripts/install-deps build guests test check
	@scripts/check

format:
	@scripts/install-deps check
	@git ls-files '*.c' '*.h' | xargs clang-format -i

bench: build guests
	@scripts/install-deps bench
	@bench/fetch-qemu >/dev/null || echo "bench: no QEMU from backports; the installed one is the peer" >&2
	@/usr/bin/python3 bench/run.py --build $(BUILD) $(if $(BENCH),--case $(BENCH),)

install: build
	DESTDIR=$(DESTDIR) meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf $(BUILD)
