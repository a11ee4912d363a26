# Everything on this machine, with Python 3.11 or later and nothing else; .venv is made at first need.
# For the same in a container: docker compose up train

RECIPE =# the name of a file in configs/, or a path
NAME =# of the run
ARGS =# handed on as they are: make train ARGS="lr=1e-3 max_steps=500"; make test ARGS="-k resume"

bin := .venv/bin
pip := $(bin)/python -m pip install --disable-pip-version-check
# Before the rest and exact, so that pip takes a build of torch that it finds on this machine.
torch := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

.PHONY: help train test bench lint fmt docs lock clean always

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 8

train: .venv/with-train ## a GPT, trained here (RECIPE= NAME= ARGS=); again: goes on, or says that it is done
	@$(bin)/python -m runner host train $(RECIPE) $(if $(NAME),--name $(NAME)) $(ARGS)

test: .venv/with-dev ## the whole suite (ARGS=); in containers too where a Docker engine answers
	@$(bin)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: .venv/with-dev ## the trainer measured on this machine, beside peers (ARGS=; docs/bench.md)
	@$(bin)/python -m bench $(RECIPE) $(ARGS)

lint: .venv/with-dev ## ruff, mypy, hadolint
	@$(bin)/python -m ruff check . && $(bin)/python -m ruff format --check . && $(bin)/python -m mypy && $(bin)/hadolint Dockerfile

fmt: .venv/with-dev ## put the code into its format
	@$(bin)/python -m ruff check --fix . && $(bin)/python -m ruff format .

docs: .venv/with-dev ## remake docs/cli.md from the commands
	@$(bin)/python -m runner.cli_reference

lock: .venv/with-dev ## remake requirements.lock from pyproject.toml (ARGS=--upgrade)
	@$(pip) --quiet uv && PATH="$(bin):$$PATH" $(bin)/python container/lock.py $(ARGS)

clean: ## remove .venv and caches; never volumes/
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The extra of that name is installed, as pyproject.toml now has it.
.venv/with-%: pyproject.toml .venv/place
	$(pip) $(torch)
	$(pip) --quiet --editable '.[$*]'
	@touch $@

# Where .venv is. Scripts in it name that place, .venv/bin/runner too, so that a checkout that was moved installs
# itself again; nothing here starts through them, for the first line of each is a path that is gone by then.
.venv/place: always | .venv/bin/pip
	@here="$$(cd .venv && pwd -P)"; [ "$$(cat $@ 2>/dev/null)" = "$$here" ] || echo "$$here" > $@

# pip in an environment of its own. Debian parts venv from Python: there, the host's pip serves, if any.
.venv/bin/pip:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || continue; \
	    $$python -m venv .venv >/dev/null 2>&1 && exit 0; \
	    $$python -m venv --without-pip .venv 2>/dev/null && \
	        $$python -m pip --python .venv/bin/python install --quiet pip 2>/dev/null && exit 0; \
	    rm -rf .venv; \
	    echo "$$python can't make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2; \
	    exit 1; \
	done; \
	echo "Python 3.11 to 3.14 is needed and none was found; where it has another name: make PYTHON=/path/to/python" >&2; \
	exit 1
