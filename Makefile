# Everything runs on this machine and needs only Python 3.11 or later; .venv is created when needed.
# To run in a container instead: docker compose up train

RECIPE =# a name in configs/, or a path
NAME =# of the run
ARGS =# passed on unchanged: make train ARGS="lr=1e-3 max_steps=500"; make test ARGS="-k resume"

bin := .venv/bin
pip := $(bin)/python -m pip install --disable-pip-version-check
# Installed first and at an exact version, so that pip reuses a build that this machine already has.
torch := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

.PHONY: help train test bench lint fmt docs lock clean always

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

train: .venv/with-train ## train a GPT (RECIPE= NAME= ARGS=); run again to resume it
	@$(bin)/python -m runner host train $(RECIPE) $(if $(NAME),--name $(NAME)) $(ARGS)

test: .venv/with-dev ## run all tests (ARGS=), with container tests if Docker is running
	@$(bin)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: .venv/with-dev ## measure the trainer next to baselines (ARGS=; docs/benchmarks.md)
	@$(bin)/python -m bench $(RECIPE) $(ARGS)

lint: .venv/with-dev ## run ruff, mypy, import-linter and hadolint
	@$(bin)/python -m ruff check . && $(bin)/python -m ruff format --check . \
	    && $(bin)/python -m mypy && $(bin)/lint-imports --no-cache && $(bin)/hadolint Dockerfile

fmt: .venv/with-dev ## format the code
	@$(bin)/python -m ruff check --fix . && $(bin)/python -m ruff format .

docs: .venv/with-dev ## regenerate docs/cli.md from the commands
	@$(bin)/python docs/cli_reference.py

lock: .venv/with-dev ## update requirements.lock from pyproject.toml (ARGS=--upgrade)
	@$(pip) --quiet uv && PATH="$(bin):$$PATH" $(bin)/python container/lock.py $(ARGS)

clean: ## remove .venv and caches, but not volumes/
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Install an extra of pyproject.toml; again whenever pyproject.toml changes.
.venv/with-%: pyproject.toml .venv/path
	$(pip) $(torch)
	$(pip) --quiet --editable '.[$*]'
	@touch $@

# The path of .venv. Its scripts hold that path in their first line, so a checkout that was moved
# must be installed again. This Makefile starts none of them, because the old path is gone then.
.venv/path: always | .venv/bin/pip
	@here="$$(cd .venv && pwd -P)"; [ "$$(cat $@ 2>/dev/null)" = "$$here" ] || echo "$$here" > $@

# pip in a virtual environment. Debian ships Python without ensurepip: use the host's pip there.
.venv/bin/pip:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	        2>/dev/null || continue; \
	    $$python -m venv .venv >/dev/null 2>&1 && exit 0; \
	    $$python -m venv --without-pip .venv 2>/dev/null && \
	        $$python -m pip --python .venv/bin/python install --quiet pip 2>/dev/null && exit 0; \
	    rm -rf .venv; \
	    echo "error: $$python cannot create a virtual environment;" \
	        "on Debian and Ubuntu: sudo apt install python3-venv" >&2; \
	    exit 1; \
	done; \
	echo "error: no Python 3.11 to 3.14 found; to name one: make PYTHON=/path/to/python" >&2; \
	exit 1
