# SPDX-License-Identifier: GPL-3.0-or-later
# Each target sets up `.venv` if need be (setup.sh) and calls one command in it.
# `make help` lists the targets.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

.PHONY: bench help pins demo module wheels test test-archive test-quick test-viam-server prove mutants
.PHONY: lint
.PHONY: serve-ota build-esp32-ota build-esp32-bin flash-esp32-bin

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\): ## /\1\t/p' Makefile | expand -t 17

demo: ## boards updated before your eyes, one rolled back, and three as one group
	@./setup.sh -- -m tools.demo

test: ## every test
	@./setup.sh --dev -- -m pytest -n 4 --dist worksteal

test-quick: ## the tests that end within a minute
	@./setup.sh --dev -- -m pytest -n 2 --dist worksteal -m "not slow"

test-viam-server: ## the scenarios under a real viam-server: VIAM_SERVER=/path make test-viam-server
	@./setup.sh --dev -- -m pytest tests/viam_server -rs

mutants: ## small changes of the critical code, and whether the tests notice (ONLY=words)
	@./setup.sh --dev -- -m tests.mutants

prove: ## every interruption of an update, tried (QUICK=1: thinned; CASE=..: one of them again)
	@./setup.sh --dev -- -m tests.prove

module: ## dist/archive.tar.gz and its meta.json for Viam: [NAMESPACE=acme] [WHEELS=build/wheels]
	@./setup.sh --dev -- -m tools.module_archive $(if $(NAMESPACE),--namespace '$(NAMESPACE)') \
	    $(if $(WHEELS),--wheels '$(WHEELS)')

test-archive: ## that archive, unpacked and used as a user does: [ARCHIVE=dist/archive.tar.gz]
	@ARCHIVE='$(or $(ARCHIVE),dist/archive.tar.gz)' ./setup.sh --dev -- -m pytest -rs \
	    tests/repo/test_self_contained.py

wheels: ## build/wheels: the packages for machines without an index [PLATFORM=linux/arm64 [PYVER=3.11]]
	@./setup.sh -- tools/wheels.py $(if $(PLATFORM),--platform '$(PLATFORM)') \
	    $(if $(PYVER),--python '$(PYVER)')

bench: ## what updates cost, beside scripts and the floor (QUICK=1: under a minute; RUNS=3)
	@./setup.sh --dev -- -m bench $(if $(RUNS),--runs '$(RUNS)') $(ARGS)

pins: ## requirements*.txt from pyproject.toml, with hashes; needs uv (newer versions: ARGS=--upgrade)
	uv pip compile $(PINS) $(ARGS) -o requirements.txt pyproject.toml
	uv pip compile $(PINS) $(ARGS) -o requirements-build.txt --group build
	uv pip compile $(PINS) $(ARGS) -o requirements-dev.txt pyproject.toml --group dev -c requirements-build.txt \
	    $$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' requirements.txt requirements-build.txt)
PINS := -q --generate-hashes --no-annotate --python-version 3.11 --python-platform linux \
    --custom-compile-command 'make pins'

lint: ## ruff, and mypy in its strict mode
	@./setup.sh --dev -- -m ruff check .
	@./setup.sh --dev -- -m mypy

CLI := ./setup.sh -- -m ota_service.cli.main

serve-ota: ## serve an App Image: FIRMWARE=app.bin [HOST=..] [PORT=3001] [AUTH=user:password]
	@ESP32_OTA_AUTH='$(AUTH)' $(CLI) serve \
	    $(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)') \
	    '$(or $(FIRMWARE),$(error FIRMWARE=app.bin is missing))'

build-esp32-ota: ## make an App Image: ELF=app.elf or APP=app.bin [PARTITIONS=..] [CHIP=..] [OUT=..]
	@$(CLI) image ota $(if $(CHIP),--chip '$(CHIP)') $(if $(OUT),-o '$(OUT)') \
	    $(if $(PARTITIONS),--partitions '$(PARTITIONS)') \
	    '$(or $(ELF),$(APP),$(error ELF=app.elf or APP=app.bin is missing))'

build-esp32-bin: ## make a Merged Binary: BOOTLOADER=.. PARTITIONS=.. APP=.. [NVS=..] [FLASH_SIZE=8MB]
	@$(CLI) image merge $(if $(NVS),--nvs '$(NVS)') $(if $(OUT),-o '$(OUT)') \
	    $(if $(FLASH_SIZE),--flash-size '$(FLASH_SIZE)') \
	    --bootloader '$(or $(BOOTLOADER),$(error BOOTLOADER=bootloader.bin is missing))' \
	    --partitions '$(or $(PARTITIONS),$(error PARTITIONS=partitions.csv is missing))' \
	    --app '$(or $(APP),$(error APP=app.bin is missing))'

flash-esp32-bin: ## write a Merged Binary: PORT=.. [BIN=the newest in build/] [KEEP_NVS=1] [YES=1]
	@$(CLI) flash $(if $(KEEP_NVS),--keep-nvs) $(if $(YES),--yes) \
	    '$(or $(PORT),$(error PORT=/dev/.. is missing))' \
	    '$(or $(BIN),$(shell ls -t build/*-merged.bin 2>/dev/null | head -n 1),$(error BIN=.. is missing))'
