# Everything that is done with this repository; `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# `make images PROFILE=dev` is quicker to build and slower to run.
PROFILE ?= release
# The binary runs as a gate in strangers' images, so it may need nothing of them: it is linked statically.
STATIC := --profile $(PROFILE) --locked --target $(HOST) --config 'target.$(HOST).rustflags=["-C","target-feature=+crt-static"]'
BINARY := target/$(HOST)/$(PROFILE:dev=debug)/slipway

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what a fresh machine lacks, and build the cluster's tools
	hack/setup
	hack/from-debian registry > /dev/null || true   # its tests say that they are skipped
	hack/cluster/build-tools

.PHONY: build
build: ## Build for development
	cargo build --locked

.PHONY: binary
binary: ## Build the static binary that the image holds
	cargo build $(STATIC)

.PHONY: images
images: binary ## Build every image and load it into the cluster, if one is up
	hack/images/build --binary $(BINARY)

.PHONY: up
up: ## Start the one-node cluster
	hack/cluster/cluster up

.PHONY: down
down: ## Stop it and leave nothing behind
	hack/cluster/cluster down

.PHONY: demo
demo: setup ## From nothing to a running image, built and pushed by Slipway
	$(MAKE) binary up images
	hack/demo/run

.PHONY: test
test: setup lint test-unit test-charts test-cluster ## Everything that CI asks for

.PHONY: test-unit
test-unit: ## Unit, property and protocol tests, and drift of generated files
	hack/suite unit cargo test --locked --lib --bins --quiet
	hack/suite generated cargo test --locked --test generated --quiet
	hack/suite commands cargo test --locked --test commands --quiet

.PHONY: corpus
corpus: ## What becomes of every odd and hostile archive, one line each, and its sums
	cargo test --locked --lib --quiet -- --exact --nocapture image::archive::tests::corpus::every_case_has_its_outcome

.PHONY: fuzz
fuzz: ## Fuzz whatever reads strangers' bytes; FUZZ="600 tar" is seconds and targets
	hack/fuzz $(FUZZ)

.PHONY: test-charts
test-charts: ## Lint and render the charts
	hack/suite charts charts/test

.PHONY: test-cluster
test-cluster: binary up images ## On a real API server and a real kubelet
	hack/demo/run install
	eval "$$(hack/cluster/cluster env)"; \
	hack/suite api-server cargo test --locked --test api_server --quiet; \
	hack/suite kubelet cargo test --locked --test cluster -- --test-threads 4

.PHONY: lint
lint: ## Format and clippy
	cargo fmt --check
	cargo clippy --locked --all-targets --quiet -- -D warnings

.PHONY: deny
deny: ## Licences, bans and advisories, where cargo-deny is installed
	cargo deny check licenses bans sources

.PHONY: crds
crds: ## Generate the definitions
	cargo run --locked --quiet -- crds --output crds
	cp crds/*.yaml charts/slipway-crds/files/

.PHONY: docs
docs: ## Generate the reference pages
	cargo run --locked --quiet -- docs docs/reference

.PHONY: generate
generate: crds docs ## Generate everything that is generated

.PHONY: manifests
manifests: ## Render the charts to plain YAML under target/manifests
	mkdir -p target/manifests
	PATH="$$(hack/cluster/build-tools --dir helm):$$PATH"; \
	helm template slipway-crds charts/slipway-crds > target/manifests/crds.yaml; \
	helm template slipway charts/slipway --namespace slipway-system > target/manifests/slipway.yaml
	@ls target/manifests

.PHONY: bench-overhead
bench-overhead: binary up images ## Seconds and API requests of a build, beside a bare pod
	hack/demo/run install
	eval "$$(hack/cluster/cluster env)"; cargo bench --locked --profile dev --bench overhead

.PHONY: bench-layers
bench-layers: binary ## Archive to registry, beside skopeo, crane and regctl: seconds, memory, bytes
	hack/bench/layers --binary $(BINARY)

.PHONY: bench-push
bench-push: binary ## Pushes beside skopeo, crane and regctl, with 0, 20 and 80 ms of delay
	export SLIPWAY_BIN="$$PWD/$(BINARY)" PATH="$$(hack/cluster/build-tools --dir registry crane regctl):$$PATH"; \
	cargo bench --locked --profile dev --bench push
