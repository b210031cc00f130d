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
# Scenarios and flags of the benchmark harness; none: all scenarios.
BENCH ?=

# Without libhwloc the machine is read from /sys. Recursive on purpose: evaluated after setup ran.
FEATURES = $(shell pkg-config --exists 'hwloc >= 2.8.0' libudev 2>/dev/null || echo --no-default-features)

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZ_SECONDS=60 (needs cargo-fuzz and a nightly toolchain)
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { \
	  echo "make fuzz needs cargo-fuzz: cargo install cargo-fuzz && rustup toolchain install nightly" >&2; exit 1; }
	for target in $$($(CARGO) +nightly fuzz list); do \
	  $(CARGO) +nightly fuzz run "$$target" -- -max_total_time=$(FUZZ_SECONDS); \
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

.PHONY: clean
clean: ## remove everything that was built
	$(CARGO) clean
	@for other in benches fuzz; do \
	  if [ -f $$other/Cargo.toml ]; then (set -x; $(CARGO) clean --manifest-path $$other/Cargo.toml); fi; \
	done
