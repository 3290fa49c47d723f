# Holdfast: `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help build planted demo test jepsen jepsen-kill jepsen-smoke jepsen-regressions soak holdfast-debug conformance bench bench-full bench-micro bench-load bench-watch bench-sync bench-transfer bench-offsite bench-hang bench-restore bench-growth lint lint-proto lint-alerts fmt clean system system-test system-peers try-systemd try-compose try-runbooks

# Build output stays outside the tree: RocksDB takes minutes to compile, and a fresh clone need not do it again.
CARGO_TARGET_DIR ?= $(HOME)/.cache/holdfast-target
export CARGO_TARGET_DIR

# ccache through PATH, never through CC or CXX: RocksDB's build script names those two as inputs, so that setting them
# here, and not in some editor's or shell's own call of cargo, would compile RocksDB again at every change of hands.
ifneq ($(wildcard /usr/lib/ccache/c++),)
export PATH := /usr/lib/ccache:$(PATH)
endif

# One profile and one selection of packages everywhere, clippy too. Cargo keys a build script's output by profile and
# features: `--release --workspace` in every call means that RocksDB's C++ is compiled once and shared by build, tests,
# lint and benches. --locked: what is built is what Cargo.lock says.
CARGO ?= cargo
FLAGS := --release --locked --workspace

# The release binary, copied into the tree after each build: another clone that shares the target directory cannot
# swap it under a running demo.
BIN := $(CURDIR)/target/release/holdfast
BIN_DIR := $(abspath $(CARGO_TARGET_DIR))/release

BUF_VERSION := 1.75.0
VENV := $(HOME)/.cache/holdfast/venv
BUF := $(VENV)/bin/buf

# Arguments for the programs, e.g. `make demo DEMO_ARGS="--records 20000"`.
DEMO_ARGS ?=
LOAD_ARGS ?=
MICRO_ARGS ?=
WATCH_ARGS ?=
SYNC_ARGS ?=
TRANSFER_ARGS ?=
OFFSITE_ARGS ?=
HANG_ARGS ?=
GROWTH_ARGS ?=
JEPSEN_ARGS ?=
SMOKE_ARGS ?=
REGRESSIONS_ARGS ?=
SOAK_ARGS ?=
# Of a soak: hours in all, over all calls with one ledger; and DEBUG=1 for runs with debug assertions in turn.
HOURS ?= 1
LEDGER ?= runs/soak.jsonl
DEBUG ?=
CONFORMANCE_ARGS ?=
BENCH_ARGS ?=
RUNBOOKS ?=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

build: system ## Build the release binary and print its path
	$(CARGO) build $(FLAGS) --bins
	@mkdir -p $(dir $(BIN))
	@if ! [ $(BIN_DIR)/holdfast -ef $(BIN) ] && ! cmp -s $(BIN_DIR)/holdfast $(BIN); then cp $(BIN_DIR)/holdfast $(BIN).new && mv -f $(BIN).new $(BIN); fi
	@echo $(BIN)

# Into a binary of its own, by a call of its own: no cargo feature of this call reaches the binary that is released.
planted: system ## Build the binary with bugs in it that the fault suite must find
	$(CARGO) build $(FLAGS) --features holdfast/planted --bin holdfast-planted
	@! grep -q PLANTED_BUG $(BIN) 2>/dev/null || { echo "make planted: the release binary holds planted bugs" >&2; exit 1; }
	@mkdir -p $(dir $(BIN)) && cp $(BIN_DIR)/holdfast-planted $(dir $(BIN))holdfast-planted

demo: build ## The story in about a minute: kill the leader, lose every disk, restore, compare
	$(BIN) demo $(DEMO_ARGS)

# cargo-nextest gives each test a process of its own, limits and a time-out (.config/nextest.toml); doc tests it leaves
# to cargo. Without it, `cargo test` runs the same tests.
test: system-test build ## All tests, real three-node clusters included
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -x; \
		$(CARGO) test $(FLAGS) --doc --quiet; \
		$(CARGO) nextest run $(FLAGS); \
	else set -x; \
		RUST_TEST_THREADS=$${RUST_TEST_THREADS:-2} $(CARGO) test $(FLAGS) --no-fail-fast; \
	fi

# Not part of `make test`: it takes all cores for more than a minute.
jepsen-kill: build ## Kill the leader ten times and everyone once under 64 clients; judge what they saw (JEPSEN_ARGS=...)
	$(BIN_DIR)/jepsen-tests test -w set -n kill --clients 64 --kills 10 --kill-all --holdfast $(BIN) $(JEPSEN_ARGS)

# Not part of `make test`: it needs root for networks and disks of its own, and the binary with bugs in it.
jepsen-smoke: build planted ## Short runs through faults, and planted bugs that must be found (root; SMOKE_ARGS=...)
	$(BIN_DIR)/jepsen-tests test-all --profile smoke --at-once 2 --require --holdfast $(BIN) --planted $(dir $(BIN))holdfast-planted $(SMOKE_ARGS)

# At most 25 minutes on two cores: faults and workloads in pairs, the smoke profile, and the planted bugs.
jepsen: build planted ## Full fault suite before a change counts as done, at most 25 minutes (root; JEPSEN_ARGS=...)
	$(BIN_DIR)/jepsen-tests test-all --profile ci --require --holdfast $(BIN) --planted $(dir $(BIN))holdfast-planted $(JEPSEN_ARGS)

# What once broke Holdfast or systems like it, and the limit that it states.
jepsen-regressions: build ## Runs of what once broke this or other systems, about twelve minutes (root; REGRESSIONS_ARGS=...)
	$(BIN_DIR)/jepsen-tests test-all --profile regressions --at-once 2 --require --holdfast $(BIN) $(REGRESSIONS_ARGS)

# Can be stopped at any time: the next call with the same ledger goes on.
soak: build $(if $(DEBUG),holdfast-debug) ## Drawn runs for HOURS=n, resumed from LEDGER=file; DEBUG=1: debug assertions in turn (root)
	@mkdir -p $(dir $(LEDGER))
	$(BIN_DIR)/jepsen-tests test-all --profile soak --hours $(HOURS) --ledger $(LEDGER) --holdfast $(BIN) $(if $(DEBUG),--holdfast-debug $(dir $(BIN))holdfast-debug) $(SOAK_ARGS)

# The same profile with assertions on, in a target directory of its own: cargo keeps one output for a profile, and would
# compile all crates again at every change of hands. It links the RocksDB that `build` compiled: the assertions are Rust's.
holdfast-debug: build ## Build a binary with debug assertions, for soaks; the first time compiles all crates once more
	ROCKSDB_STATIC=1 ROCKSDB_LIB_DIR="$$(dirname "$$(ls -t $(BIN_DIR)/build/librocksdb-sys-*/out/librocksdb.a | head -1)")" \
	CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/debug-assertions $(CARGO) build $(FLAGS) --bin holdfast
	@mkdir -p $(dir $(BIN)) && cp $(CARGO_TARGET_DIR)/debug-assertions/release/holdfast $(dir $(BIN))holdfast-debug

# Not part of `make test`: a minute more, and a table of its own.
conformance: build ## The promises to frontends, one by one, through transfers, kills and a restore (CONFORMANCE_ARGS=...)
	$(BIN_DIR)/holdfast-conformance --holdfast $(BIN) $(CONFORMANCE_ARGS)

# Not part of `make test`: it needs root, and a kernel that lets root run a systemd in namespaces of its own.
try-systemd: build ## Try the systemd unit with the real binary (root)
	deploy/try-systemd.sh $(BIN)

# Nor this: it needs root and Debian's docker.io and docker-compose, which it installs.
try-compose: build ## Try the container image and the compose file with an engine of its own (root)
	@deploy/install-deps.sh --compose
	deploy/try-compose.sh $(BIN)

# Nor this, for the same reasons as try-systemd.
try-runbooks: build ## Run every command of the runbooks on machines made for it (root; RUNBOOKS="replace add")
	deploy/runbooks/run.sh $(BIN) $(RUNBOOKS)

bench-micro: system ## Time single steps of the write path, the feed and the archive (MICRO_ARGS="apply" for some)
	$(CARGO) bench $(FLAGS) --bench micro -- $(MICRO_ARGS)

# Ratios of one run, on the same work; etcd and PostgreSQL come from Debian, and what is missing is left out and said.
bench: system-peers build ## Holdfast beside etcd and PostgreSQL; fail when a goal is not met, at most 20 minutes (BENCH_ARGS=...)
	$(BIN_DIR)/peers --holdfast $(BIN) $(BENCH_ARGS)

# Can be stopped at any time: the next call with the same binary and folder goes on.
bench-full: system-peers build ## All that can be compared, about an hour, resumed from bench-results/ (BENCH_ARGS=...)
	$(BIN_DIR)/peers --full --holdfast $(BIN) $(BENCH_ARGS)

bench-load: build ## Put load on a three-node cluster and report rate, latency and CPU (LOAD_ARGS=...)
	$(BIN_DIR)/load --holdfast $(BIN) $(LOAD_ARGS)

bench-watch: build ## Watch ten thousand users under writes; fail when a wake-up is lost (WATCH_ARGS=...)
	$(BIN_DIR)/watch-load --holdfast $(BIN) $(WATCH_ARGS)

bench-sync: build ## Compare the cost of a delta sync at 1 k and 1 M records; fail above 1.2 times (SYNC_ARGS=...)
	$(BIN_DIR)/sync-cost --holdfast $(BIN) $(SYNC_ARGS)

bench-transfer: build ## Hand leadership over under load; fail when writes stand still for over 100 ms (TRANSFER_ARGS=...)
	$(BIN_DIR)/transfer-silence --holdfast $(BIN) $(TRANSFER_ARGS)

bench-offsite: system-test build ## Ship 1,000 writes/s to a folder and an S3 server through ten kills of leaders; fail above 5 s of lag (OFFSITE_ARGS=...)
	$(BIN_DIR)/offsite-lag --holdfast $(BIN) $(OFFSITE_ARGS)

bench-growth: system-test build ## How cost grows with records, users and nodes: a table and JSON (GROWTH_ARGS="--records 5000000")
	$(BIN_DIR)/growth --holdfast $(BIN) $(GROWTH_ARGS)

bench-hang: system-test build ## Let an S3 server hang for ten minutes under 1,000 writes/s; fail when people notice, or it never catches up (HANG_ARGS=...)
	$(BIN_DIR)/offsite-hang --holdfast $(BIN) $(HANG_ARGS)

bench-restore: build ## Restore an archive again and again; fail when a time told is over 20 % off (RESTORE_ARGS="--from URL")
	$(BIN_DIR)/restore-rate --holdfast $(BIN) $(RESTORE_ARGS)

lint: system-test ## Formatting, protobuf rules, alert rules, clippy without a warning
	$(CARGO) fmt --all --check
	@$(MAKE) --no-print-directory lint-proto
	@$(MAKE) --no-print-directory lint-alerts
	$(CARGO) clippy $(FLAGS) --all-targets -- -D warnings

# buf comes from PyPI into a virtual environment of its own. Offline it cannot, and then this says so and goes on,
# except where a check that did not run must not look like one that passed: under CI or with REQUIRE_BUF=1.
lint-proto:
	@if ! $(BUF) --version 2>/dev/null | grep -x '$(BUF_VERSION)' >/dev/null; then \
		echo "lint: installing buf $(BUF_VERSION) into $(VENV)"; \
		{ python3 -m venv $(VENV) && \
		  $(VENV)/bin/pip install --quiet --disable-pip-version-check 'buf-bin==$(BUF_VERSION)'; } || \
		{ echo "lint: ***** buf could not be installed: proto/ was NOT checked *****" >&2; \
		  [ -n "$${CI:-}$${REQUIRE_BUF:-}" ] && exit 1 || exit 0; }; \
	fi; \
	set -x; $(BUF) lint proto

# promtool comes with Debian's `prometheus`.
lint-alerts: ## Check the alert rules, and that each alert fires in its test
	promtool check rules deploy/prometheus/holdfast.rules.yml
	promtool test rules deploy/prometheus/holdfast.test.yml

fmt: ## Format the code
	$(CARGO) fmt --all

# Installs what is missing, and says so; where all is there it takes no time.
system:
	@deploy/install-deps.sh

system-test:
	@deploy/install-deps.sh --test

# Without a peer the bench says which goals could not be judged.
system-peers:
	@deploy/install-deps.sh --peers || echo "bench: goes on without what could not be installed" >&2

clean: ## Remove what was built, RocksDB too
	$(CARGO) clean
	rm -rf $(CURDIR)/target
