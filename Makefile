SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# What may be given on the command line: make test PKGS=./tasking/... TESTFLAGS='-run Claim -v'
PKGS      ?= ./...
TESTFLAGS ?=
RACE      ?=
FUZZTIME  ?= 10s
DIR       ?= /usr/share/doc
OUT       ?= PULP_MANIFEST
ARGS      ?=
SCENARIO  ?=
BENCHFLAGS ?=

# Tools are pinned by the modules in tools/ and built once for each version of them and of Go.
GO_VERSION   := $(shell go env GOVERSION)
pinned        = $(shell awk '$$1 == "$(2)" {print $$2; exit}' $(1)/go.mod)
SQLC         := .cache/tools/sqlc-$(call pinned,tools,github.com/sqlc-dev/sqlc)-$(GO_VERSION)
GOLANGCI     := .cache/tools/golangci-lint-$(call pinned,tools/lint,github.com/golangci/golangci-lint/v2)-$(GO_VERSION)
GOVULNCHECK  := .cache/tools/govulncheck-$(call pinned,tools/vuln,golang.org/x/vuln)-$(GO_VERSION)
# sqlc parses with WebAssembly when cgo is off, so no tool needs a C compiler.
build-tool    = mkdir -p $(@D) && CGO_ENABLED=0 go -C $(1) build -ldflags='-s -w' -o $(CURDIR)/$@ $(2)

GO_TEST       = go test -shuffle=on -timeout 10m -p 2 $(if $(RACE),-race) $(TESTFLAGS) $(PKGS)
# Modules of their own keep their dependencies from everyone else. Those that hold our code are tested too.
OUR_MODULES   = tools/pooler deploy/rdsiam bench chaos
MODULES       = . tools tools/lint tools/vuln $(OUR_MODULES)
POOLER       := .cache/tools/pooler-$(GO_VERSION)
# Pulp's clients are Python programs, in an environment of their own.
CLIENTS      := .cache/clients-$(shell sha256sum <internal/clients/requirements.txt | cut -c1-12)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/pith
	go build -o bin/pith ./cmd/pith

.PHONY: test
test: ## run the whole suite behind PgBouncer in transaction mode
	PITH_TEST_POOLER=pgbouncer $(GO_TEST)

.PHONY: test-direct
test-direct: ## run the whole suite with direct connections
	PITH_TEST_POOLER=direct $(GO_TEST)

.PHONY: test-statement
test-statement: ## run the whole suite behind PgBouncer in statement mode
	PITH_TEST_POOLER=statement $(GO_TEST)

.PHONY: test-pinned
test-pinned: ## run the whole suite behind the stand-in for RDS Proxy: a pin fails it
	PITH_TEST_POOLER=rdsproxy $(GO_TEST)

.PHONY: test-container
test-container: ## run the whole suite behind the container of deploy/pgbouncer, where an engine can be had
	PITH_ENGINE_OPTIONAL=1 .ci/engine $(MAKE) test-in-engine

# An engine is there.
.PHONY: test-in-engine
test-in-engine: $(POOLER)
	$(POOLER) --build
	PITH_TEST_POOLER=container go -C tools/pooler test $(TESTFLAGS) ./...
	PITH_TEST_POOLER=container PITH_TEST_POOLER_PROGRAM=$(CURDIR)/$(POOLER) $(GO_TEST)

.PHONY: test-modules
test-modules: ## vet and test the modules of their own; bench-quick measures the scenarios
	@for module in $(OUR_MODULES); do echo "go -C $$module test ./..."; go -C $$module vet ./...; go -C $$module test $(TESTFLAGS) ./...; done

.PHONY: clients
clients: $(CLIENTS)/complete ## install Pulp's own clients

.PHONY: test-clients
test-clients: clients ## drive the REST API with Pulp's own clients
	PITH_TEST_CLIENTS=$(CURDIR)/$(CLIENTS) go test -count=1 -timeout 15m $(TESTFLAGS) ./internal/clients

.PHONY: race
race: ## run the whole suite behind PgBouncer with the race detector
	@$(MAKE) test RACE=1

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s)
	@{ grep -rno --include='*_test.go' '^func Fuzz[[:alnum:]_]*' . || echo 'no fuzz targets' >&2; } | sort | \
	while IFS=: read -r file _ func; do \
		pkg=$${file%/*}; name=$${func#func }; \
		echo "go test -run '^$$' -fuzz '^$$name\$$' -fuzztime $(FUZZTIME) $$pkg"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$pkg" </dev/null; \
	done

BENCH = go -C bench run . $(if $(SCENARIO),-scenario $(SCENARIO))

.PHONY: bench
bench: ## measure SCENARIO (all) on a quiet machine, into docs/benchmarks.md
	$(BENCH) -out ../docs/benchmarks.md $(BENCHFLAGS)

.PHONY: bench-quick
bench-quick: ## see whether the benchmarks work; the figures mean little
	$(BENCH) -quick $(BENCHFLAGS)

CHAOS_DURATION ?= 2m
# Built first: go run would turn every exit status into 1, and print it.
.PHONY: chaos
chaos: ## break everything for CHAOS_DURATION (2m), and judge; CHAOSFLAGS='-seed N' does the same again
	go -C chaos build -o $(CURDIR)/bin/chaos .
	bin/chaos -duration $(CHAOS_DURATION) $(CHAOSFLAGS)

.PHONY: bench-isolated
bench-isolated: ## measure what a child process per task costs
	go test -run '^$$' -bench . -count 5 ./internal/isolate

.PHONY: demo
demo: ## make the PULP_MANIFEST of DIR with the tasking system and write OUT
	go run ./cmd/pith demo $(ARGS) --out '$(OUT)' '$(DIR)'

.PHONY: dev
dev: ## run everything on this machine, with a database of its own
	go run ./cmd/pith dev $(ARGS)

.PHONY: migrate
migrate: ## bring the database of PITH_DATABASE_URL up to date
	@: "$${PITH_DATABASE_URL:?PITH_DATABASE_URL is not set}"
	go run ./cmd/pith migrate up

.PHONY: sqlc
sqlc: $(SQLC) ## generate db/ from sql/
	@touch .cache/generating
	$(SQLC) generate
	@find db -name '*.go' ! -newer .cache/generating -exec grep -l '^// Code generated by sqlc' {} + | xargs -r rm -v --

.PHONY: fmt
fmt: $(GOLANGCI) ## format the Go code
	$(GOLANGCI) fmt

.PHONY: lint
lint: $(GOLANGCI) ## lint the Go code
	$(GOLANGCI) run
	@for module in $(OUR_MODULES); do echo "$$module"; (cd $$module && $(CURDIR)/$(GOLANGCI) run --config $(CURDIR)/.golangci.yml); done

.PHONY: model
model: ## check the models of the queue and of the leases with spin
	docs/model/check.sh

# What npm has under that version is what is committed: `git diff` shows what a new one changes.
SWAGGER_UI := 5.35.0
.PHONY: assets
assets: ## fetch the files of the REST API's documentation page
	npm pack --silent --pack-destination .cache swagger-ui-dist@$(SWAGGER_UI)
	tar -xzf .cache/swagger-ui-dist-$(SWAGGER_UI).tgz -C api/assets --strip-components=1 \
	  package/swagger-ui-bundle.js package/swagger-ui-bundle.js.LICENSE.txt package/swagger-ui.css package/LICENSE package/NOTICE

.PHONY: vuln
vuln: $(GOVULNCHECK) ## look for known vulnerabilities in what the code calls
	.ci/vuln $(GOVULNCHECK) . $(OUR_MODULES)

.PHONY: verify
verify: $(GOLANGCI) ## check that what is generated or formatted is current
	@for module in $(MODULES); do echo "go -C $$module mod tidy -diff"; go -C $$module mod tidy -diff; done
	$(GOLANGCI) fmt --diff
	@$(MAKE) sqlc
	$(SQLC) vet
	@git --no-pager diff --exit-code -- db || { echo 'db/ is out of date: run make sqlc and commit' >&2; exit 1; }
	@new=$$(git ls-files --others --exclude-standard -- db); \
	[ -z "$$new" ] || { echo "generated and not in git: $$new" >&2; exit 1; }

.PHONY: tools
tools: $(SQLC) $(GOLANGCI) $(GOVULNCHECK) $(POOLER) ## build the tools that generate, lint, look for vulnerabilities and run the pooler's container

.PHONY: ci
ci: ## run what every submission must pass
	@.ci/run

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .cache

$(SQLC): tools/go.mod tools/go.sum
	$(call build-tool,tools,github.com/sqlc-dev/sqlc/cmd/sqlc)

$(GOLANGCI): tools/lint/go.mod tools/lint/go.sum
	$(call build-tool,tools/lint,github.com/golangci/golangci-lint/v2/cmd/golangci-lint)

$(GOVULNCHECK): tools/vuln/go.mod tools/vuln/go.sum
	$(call build-tool,tools/vuln,golang.org/x/vuln/cmd/govulncheck)

$(POOLER): tools/pooler/go.mod tools/pooler/go.sum $(wildcard tools/pooler/*.go)
	$(call build-tool,tools/pooler,.)

$(CLIENTS)/complete:
	@rm -rf $(@D)
	python3 -m venv $(@D) || { echo 'python3 with its module venv is needed' >&2; exit 1; }
	$(@D)/bin/pip --quiet --disable-pip-version-check install -r internal/clients/requirements.txt || \
		{ echo 'the clients cannot be installed: is the Python package index in reach?' >&2; exit 1; }
	@touch $@
