# LUC: everything a newcomer needs. `make help` lists it.

SHELL := /bin/bash
.DELETE_ON_ERROR:

# qemu for real virtual machines; test for libvirt's simulated hypervisor, where QEMU cannot be installed.
HYPERVISOR ?= qemu
# Set to play the demo's story once, check every step, and clean up.
ONCE ?=
GUEST := target/guest/luc-guest.qcow2
VENV := target/venv
# cargo-nextest where it is there: it runs tests in parallel, and ends those that hang.
RUNNER := $(shell cargo nextest --version >/dev/null 2>&1 && echo nextest run || echo test)

.PHONY: help demo test explore lint bench bench-build bench-claims bench-memory deps sim mutants prove check jepsen jepsen-build

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

demo: ## Three sites on this machine, a story, then yours to play with (ONCE=1: the story only; HYPERVISOR=test)
	@HYPERVISOR=$(HYPERVISOR) packaging/install-deps.sh build demo
	@if [ "$(HYPERVISOR)" = qemu ]; then packaging/guest/build.sh; fi
	cargo build --release --locked -p luc-api
	@target/release/luc demo --hypervisor $(HYPERVISOR) $(if $(ONCE),--once)

# What property tests begin with. One and the same for everybody, so that what passes here passes there; `make explore` tries others.
test: export PROPTEST_RNG_SEED ?= 1
test: ## Install what is missing and run all tests
	@packaging/install-deps.sh build demo test
	@packaging/guest/build.sh
	@$(MAKE) --no-print-directory $(VENV)/ready
	cargo build --locked -p luc-api
	cargo $(RUNNER) --workspace --locked
	@# From 100 seeds of 1,000 operations on every hard state must have been met.
	@$(MAKE) --no-print-directory sim SEEDS=1000 OPS=2000
	@$(MAKE) --no-print-directory sim SEEDS=300 OPS=1000 FAULTS=cut,slow,liar
	@$(MAKE) --no-print-directory sim SEEDS=200 OPS=1000 FAULTS=cut,slow,logs,liar
	@$(MAKE) --no-print-directory sim SEEDS=200 OPS=1000 FAULTS=lose,retire,cut,slow,liar
	@$(MAKE) --no-print-directory mutants

# Every test binary with properties in it, wherever that is.
PROPERTIES = $(shell grep -lE '^proptest!' */tests/*.rs | sed -E 's:.*/(.*)\.rs:-E binary(\1):' | tr '\n' ' ')

explore: ## Run the property tests again and again, each time with cases that nobody has tried (SEEDS=100)
	@packaging/install-deps.sh build
	@for n in $$(seq $(SEEDS)); do \
		seed=$$(od -An -N6 -tu8 /dev/urandom | tr -d ' '); echo "PROPTEST_RNG_SEED=$$seed"; \
		PROPTEST_RNG_SEED=$$seed cargo nextest run --workspace --exclude luc-tests --cargo-profile sim --locked \
			--status-level fail --final-status-level fail $(foreach test,$(PROPERTIES),'$(test)') || exit 1; \
	done

# The OpenStack client that the tests use, at exactly the versions in tests/requirements.txt.
$(VENV)/ready: tests/requirements.txt
	@rm -rf $(VENV)
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

lint: ## Formatting, clippy with warnings denied, documentation, and that the pure parts stay pure
	@packaging/install-deps.sh build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	@if { cargo tree --locked -p luc-engine -e normal --prefix none; \
		cargo tree --locked -p luc-engine -e normal --prefix none --depth 1 | sed -n 's/^rand .*/& direct/p'; } \
		| grep -E '^(tokio|quinn|hyper|mio) |^rand.*direct'; then \
		echo "luc-engine must not depend on these: it is pure" >&2; exit 1; fi

bench: ## Measure what the README promises, then how long cold builds take
	@HYPERVISOR=test packaging/install-deps.sh build demo
	cargo build --release --locked -p luc-api
	cargo run --release --locked -p jepsen --bin bench
	@$(MAKE) --no-print-directory bench-build

bench-claims: ## Measure what a claim costs, and how often one is refused in vain; draws docs/false-refusals.svg
	cargo run --release --locked -p jepsen --no-default-features --bin claims -- --seeds 100

bench-memory: ## Measure what a replica keeps in memory and on disk, and what of it grows with history
	cargo run --release --locked -p jepsen --no-default-features --features memory --bin memory

bench-build: ## Measure cold builds, in a directory of their own
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; set -e; \
	for profile in "dev 240" "release 480"; do \
		set -- $$profile; start=$$(date +%s); \
		CARGO_TARGET_DIR=$$dir cargo build --workspace --locked --quiet --profile $$1; \
		printf '%-52s %8d s   %10s\n' "cold build of the workspace, $$1" $$(($$(date +%s) - start)) "≤ $$2 s"; \
	done

# How many seeds `make sim` runs, from which on, and for how long if HOURS is set.
SEEDS ?= 20
SEED ?= 1
OPS ?= 300
HOURS ?=
FAULTS ?=
# One build for both: a seeded bug that is off costs nothing that can be measured.
SIM := cargo run --profile sim --locked -p jepsen --no-default-features --features memo,mutants

sim: ## Run the simulator (SEEDS=100, SEED=1, OPS=2000, HOURS=2, FAULTS=cut,liar)
	$(SIM) -- sim --seed $(SEED) --seeds $(SEEDS) --ops $(OPS) $(if $(HOURS),--hours $(HOURS)) $(if $(FAULTS),--faults $(FAULTS))

mutants: ## Switch on each seeded bug, and print which rule of the simulator catches it
	$(SIM) -- mutants --ops 1500

# The suite against real processes; needs root, for network namespaces. TIME is that of faults, seconds.
TIME ?= 150
OUT ?= target/jepsen
SUITE = jepsen run --out $(OUT)

# Hours are for what users run, optimised, with our own assertions; a short check does not build everything a second time.
PROFILE := dev
jepsen: PROFILE := checked
jepsen-build:
	@HYPERVISOR=test packaging/install-deps.sh build suite
	cargo build --profile $(PROFILE) --locked -p luc-api -p jepsen --bin luc --bin jepsen

CHECK = target/debug/$(SUITE) --time $(TIME) --every 8s --seed $(SEED)
check: jepsen-build ## A cloud of five sites, every workload, every fault briefly, every checker (TIME=150, SEED=1); the report is target/jepsen/report.html
	@# 2: no rule was broken, and too little was seen of one, as on a machine that others keep busy. That is no verdict: once more.
	$(CHECK) || { [ $$? = 2 ] && $(CHECK); }

jepsen: jepsen-build ## Random faults, several at once, for HOURS (default 1), by a seed that is told
	target/checked/$(SUITE) --time $$(awk 'BEGIN { print int($(or $(HOURS),1) * 3600) }') --every 15s --overlap 3 $(if $(filter command,$(origin SEED)),--seed $(SEED))

# Which seeded bugs of sites, `none` for the same runs without a bug; all if empty. And with how many seeds each.
MUTANTS ?=
PROOFS ?= 5
# Without the engine's own assertions, which would end a site before any client sees its bug.
UNASSERTED := $(foreach crate,engine sync compute api,--config profile.dev.package.luc-$(crate).debug-assertions=false)

prove: ## Prove the suite's checkers: by faults in histories, and by bugs in sites (MUTANTS=StaleRead,none PROOFS=5 SEED=1; needs root)
	@HYPERVISOR=test packaging/install-deps.sh build suite
	cargo build $(UNASSERTED) --locked -p luc-api --features mutants
	cp -f target/debug/luc target/debug/luc-mutants
	cargo build --locked -p luc-api -p jepsen --bin luc --bin jepsen
	target/debug/jepsen prove --sites --seeds $(PROOFS) --seed $(SEED) $(if $(MUTANTS),--only $(MUTANTS))
