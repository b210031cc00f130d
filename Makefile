# The tasks of a day's work on ringmill. `make` alone lists them.
#
# demo, test and bench first install what is missing (scripts/setup.sh says what it does); all other
# targets only use what is there.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# rustup's default place, for a shell that has not been told about it yet.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Simulator seeds: `make simulate SEEDS=1000000`, or one alone with `make simulate SEED=4711`.
SEEDS ?= 100000
SEED ?=
FUZZ_SECONDS ?= 60
# Fuzz targets; none: all.
FUZZ ?=
# Scenarios and flags of the benchmark harness; none: all scenarios.
BENCH ?=

# Without libhwloc the machine is read from /sys. Recursive on purpose: evaluated after setup ran.
FEATURES = $(shell pkg-config --exists 'hwloc >= 2.8.0' libudev 2>/dev/null || echo --no-default-features)

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## optimised program in target/release/ringmill
	$(CARGO) build --release -p ringmill $(FEATURES)

.PHONY: demo
demo: ## install what is missing, build, and load an echo server on this machine
	@scripts/setup.sh build
	$(CARGO) build --release -p ringmill $(FEATURES)
	$(TARGET_DIR)/release/ringmill demo

.PHONY: test
test: ## install what is missing, then run every test
	@scripts/setup.sh test
	@# The program first: the end-to-end tests start it.
	$(CARGO) build --workspace --bins $(FEATURES)
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  set -x; $(CARGO) nextest run --workspace $(FEATURES); \
	else \
	  echo "skipped: cargo-nextest is not installed; plain cargo test runs the same tests, one at a time where they use real sockets"; \
	  set -x; $(CARGO) test --workspace --exclude ringmill-tests --lib --bins --tests $(FEATURES); \
	  $(CARGO) test -p ringmill-tests --lib --tests $(FEATURES) -- --test-threads=1; \
	fi
	$(CARGO) test --workspace --doc $(FEATURES)
	RUSTFLAGS="--cfg loom" $(CARGO) test -p ringmill-doorbell --release --test loom --target-dir $(TARGET_DIR)/loom

.PHONY: simulate
simulate: ## SEEDS=100000 simulated networks, or one with SEED=n
	RINGMILL_SEEDS=$(SEEDS) $(if $(SEED),RINGMILL_SEED=$(SEED)) \
	  $(CARGO) test --release -p ringmill-engine --test simulation $(FEATURES) -- --nocapture
	RINGMILL_SEEDS=$(SEEDS) $(if $(SEED),RINGMILL_SEED=$(SEED)) \
	  $(CARGO) test --release -p ringmill-tests --test simulator $(FEATURES) -- --nocapture

# The parsers have no unsafe code, so no sanitizer: a run is several times as fast. Finds stay out of
# the tree until fuzz-corpus takes what is worth keeping.
FUZZ_RUN = $(CARGO) +nightly fuzz run --sanitizer none
FUZZ_FOUND = fuzz/target/found

.PHONY: fuzz-tools
fuzz-tools:
	@$(CARGO) +nightly fuzz --version >/dev/null 2>&1 || { \
	  echo "make fuzz needs cargo-fuzz: cargo install --locked cargo-fuzz && rustup toolchain install nightly" >&2; exit 1; }

.PHONY: fuzz
fuzz: fuzz-tools ## every fuzz target for FUZZ_SECONDS=60, or some with FUZZ='NAME...' (needs cargo-fuzz and a nightly toolchain)
	for target in $(or $(FUZZ),$$($(CARGO) +nightly fuzz list)); do \
	  mkdir -p "$(FUZZ_FOUND)/$$target"; \
	  $(FUZZ_RUN) "$$target" "$(FUZZ_FOUND)/$$target" "fuzz/corpus/$$target" -- -max_total_time=$(FUZZ_SECONDS); \
	done

.PHONY: fuzz-corpus
fuzz-corpus: fuzz-tools ## add to the corpus what make fuzz found that reaches new code
	for target in $(or $(FUZZ),$$($(CARGO) +nightly fuzz list)); do \
	  mkdir -p "$(FUZZ_FOUND)/$$target"; \
	  $(FUZZ_RUN) "$$target" "fuzz/corpus/$$target" "$(FUZZ_FOUND)/$$target" -- \
	    -set_cover_merge=1 -use_counters=0 -max_len=1024; \
	done

.PHONY: bench
bench: ## install what is missing, then every benchmark, or some with BENCH='NAME --quick'
	@scripts/setup.sh bench
	$(CARGO) build --release -p ringmill $(FEATURES)
	CARGO=$(CARGO) benches/run.sh $(BENCH)

.PHONY: lint
lint: ## format, clippy, and the bans, licences and sources of dependencies; no warning allowed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets $(FEATURES) -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  set -x; $(CARGO) deny --log-level error check bans licenses sources; \
	else \
	  echo "skipped: cargo-deny is not installed (cargo install --locked cargo-deny)"; \
	fi

.PHONY: tuning
tuning: ## the scripts in tuning/ again, from the profiles
	$(CARGO) run -p ringmill $(FEATURES) -- tune scripts --out tuning

.PHONY: clean
clean: ## remove everything that was built
	$(CARGO) clean
	@for other in benches fuzz; do \
	  if [ -f $$other/Cargo.toml ]; then (set -x; $(CARGO) clean --manifest-path $$other/Cargo.toml); fi; \
	done
