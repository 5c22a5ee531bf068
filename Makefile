# What can be run from a clone. All set-up is part of each: see .ci/setup.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

ARGS ?=
# Debian's, for what runs in another than this machine's: bookworm, trixie, sid.
RELEASE ?= bookworm
RELEASES ?= bookworm trixie sid

# Most of what the tests take is waiting, so more of them than there are processors run at a time.
WORKERS ?= 4

.PHONY: help test panics release-test service-test package-test image-test kill-matrix hostile demo \
  deb rpm release lint reference requirements clean

help: ## list these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

test: ## run the tests, 4 at a time; ARGS='-k policy -x' goes to pytest (-n0: one after the other)
	@.ci/setup test
	@.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

kill-matrix: ## kill panicd at every point of every plan, on fake and real QEMUs and libvirtds
	@.ci/setup test
	@.venv/bin/python -m tests.kill $(ARGS)

hostile: ## the whole suite of hostile guests, monitors and clients; the soak is tests.hostile.soak
	@.ci/setup test
	@PANICD_HOSTILE=whole .venv/bin/python -m pytest tests/hostile $(ARGS)

panics: ## real Linux guests panic of eight kinds of trouble, three boots each: the line, the signature
	@.ci/setup test
	@PANICD_LINUX=whole .venv/bin/python -m pytest tests/e2e/test_panic_words.py $(ARGS)

release-test: ## run the tests on RELEASE=trixie, in a fresh root of it (root; debootstrap)
	@.ci/on $(RELEASE) make test ARGS='$(ARGS)'

service-test: ## try the service of RELEASE under systemd, in a container (root; debootstrap, systemd-container)
	@RELEASE=$(RELEASE) tests/service/container /var/tmp/panicd-service-$(RELEASE) $(ARGS)

package-test: ## install, upgrade, downgrade, remove the package of RELEASE; ARGS=upgrade-release: from Debian 12
	@tests/service/package $(RELEASE) $(ARGS)

image-test: ## build the container image and run it beside real QEMUs (root; as service-test)
	@RELEASE=$(RELEASE) tests/service/image /var/tmp/panicd-image-$(RELEASE)

demo: ## panic a real QEMU and see panicd decide; ARGS goes to panicd demo
	@.ci/setup demo
	@.venv/bin/panicd demo $(ARGS)

deb: ## build the Debian packages for RELEASES, to dist/ (root; debootstrap)
	@share/package/deb $(RELEASES)

rpm: ## build rpms for the Pythons of RELEASES (3.11, 3.13, 3.14), to dist/ (root; debootstrap)
	@share/package/rpm $(RELEASES)

release: ## everything that is published, to dist/, and the tag (root; debootstrap)
	@.ci/setup test
	@share/package/release

lint: ## ruff and mypy over the whole tree
	@.ci/setup test
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m mypy

reference: ## write docs/commands.md, the man pages and the completions anew
	@.ci/setup test
	@.venv/bin/python -m tests.reference

# The three that are left out are wanted on Windows only. The second file is what builds the package,
# the third the two before and the tests' own. Each file of a release has its hash, whatever Python
# and machine it is for.
PIN := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-package cffi --no-emit-package colorama --no-emit-package pycparser \
  --custom-compile-command 'make requirements' $(ARGS)

requirements: ## pin the dependencies anew (needs uv); ARGS=--upgrade takes newer ones
	@$(PIN) pyproject.toml -o config/requirements.txt >/dev/null
	@printf 'hatchling\neditables\n' | $(PIN) - -o config/build-requirements.txt >/dev/null
	@printf 'hatchling\neditables\n' | $(PIN) --extra test -c config/requirements.txt \
	  -c config/build-requirements.txt pyproject.toml - -o tests/requirements.txt >/dev/null

clean: ## remove .venv and all caches; the next target makes them anew
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find panicd tests -name __pycache__ -prune -exec rm -rf {} +
