# Kerf's Makefile: `make help` lists the targets. C parts add theirs in */build.mk.
B        := build
CC       ?= gcc
GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
CFLAGS_C := -O2 -g -std=gnu11 -fPIC -Wall -Wextra -Werror -fvisibility=hidden
LDFLAGS  := -X github.com/kerf-gpu/kerf/cmd/internal/version.Version=$(VERSION)
export CGO_ENABLED := 1
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations
GOBUILD  := $(GO) build -trimpath -ldflags '-s -w $(LDFLAGS)'
LINT     := $(GO) tool -modfile=tools/go.mod golangci-lint
TESTTIME ?= 12m
export GOFLAGS ?= -p=2

.PHONY: help build clib bin demo test e2e lint generate check bench gpu-check soak cluster cluster-down deps clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

include $(wildcard internal/sim/driver/build.mk internal/sim/nvml/build.mk internal/sim/mps/build.mk vgpu/shim/build.mk bench/tenants/build.mk bench/probe/build.mk deploy/build.mk deploy/lab/build.mk)

build: clib bin ## Build the daemon, the command, the shim, the simulated driver and the tenants

clib: simdriver simnvml simmps shim tenants

bin:
	@mkdir -p $(B)/bin $(B)/test
	$(GOBUILD) -o $(B)/bin/ ./cmd/kerf ./cmd/kerfd
	CGO_ENABLED=0 $(GOBUILD) -o $(B)/bin/ ./cmd/kerf-hook ./cmd/kerf-cni ./cmd/kerf-controller
	$(GO) test -c -o $(B)/test/nodetest ./internal/nodetest

demo: deps build ## Four programs share one GPU, each inside its limit (simulated where there is no GPU)
	$(B)/bin/kerf demo

test: build ## Run every test
	$(GO) test -timeout $(TESTTIME) ./...
	cd dra-driver/oracle36 && $(GO) test ./...

e2e: deps image $(B)/bin/cluster ## Kerf on a real Kubernetes node, simulated GPUs (the node's binaries take 15 minutes the first time)
	cd deploy/e2e && KERF_E2E=1 $(GO) test -count=1 -timeout 60m -v ./...

soak: deps image $(B)/bin/cluster ## The long forms of the crash tests (thousands of kills), on a cluster too
	KERF_SOAK=1 $(GO) test -count=1 -timeout 60m -v -run 'Soak|Crash|Succession' ./...
	cd deploy/e2e && KERF_SOAK=1 KERF_E2E=1 $(GO) test -count=1 -timeout 60m -v -run 'TestKubernetes/h200x8/crash' ./...

lint: ## Vet, lint, and check the format
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w"; exit 1; }
	$(GO) vet ./...
	cd deploy/cluster && $(GO) vet ./...
	cd deploy/e2e && $(GO) vet ./...
	$(LINT) run

generate: ## Make the generated files again
	$(GO) generate ./...
	$(MAKE) manifests

check: deps lint generate chart-test ## What must hold before a commit: lint, generated files as committed, C with gcc and clang
	@git diff --exit-code --stat -- . || { echo "generated files differ from the committed ones: commit what 'make generate' wrote"; exit 1; }
	$(MAKE) clib CC=clang B=$(B)/clang

bench: build ## Overhead of the shim, native and shim in one run
	$(B)/bin/kerf bench run overhead

gpu-check: ## Run the GPU suite on a machine with an NVIDIA GPU, from a tree built elsewhere or here
	bench/gpu/check.sh $(B)

.PHONY: $(B)/bin/cluster
$(B)/bin/cluster:
	@mkdir -p $(B)/bin
	cd deploy/cluster && $(GO) build -o ../../$(B)/bin/cluster .

cluster: $(B)/bin/cluster ## A real one-node Kubernetes on this machine, built from Go modules (15 minutes the first time)
	$(B)/bin/cluster up

cluster-down: ## Stop it, and remove what it made
	$(B)/bin/cluster down

DEPS := gcc clang llvm libclang-rt-dev make git libc6-dev libc-bin file e2fsprogs xfsprogs btrfs-progs
deps: ## Install what a fresh Debian machine lacks
	@missing=$$(for p in $(DEPS); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -z "$$missing" ] || [ -n "$(KERF_NO_DEPS)" ]; then exit 0; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "not root (or not Debian): install these packages yourself if the build misses them:" $$missing; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

clean: ## Remove what was built
	rm -rf $(B)
