# SPDX-License-Identifier: GPL-3.0-or-later
# Each target sets up `.venv` if need be (setup.sh) and calls one command in it.
# `make help` lists the targets.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

.PHONY: help demo test test-quick lint

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\): ## /\1\t/p' Makefile | expand -t 14

demo: ## two simulated boards updated, and one rolled back, before your eyes
	@./setup.sh -- -m ota_service.cli.demo

test: ## every test
	@./setup.sh --dev -- -m pytest -n 2

test-quick: ## the tests that end within a minute
	@./setup.sh --dev -- -m pytest -n 2 -m "not slow"

lint: ## ruff, and mypy in its strict mode
	@./setup.sh --dev -- -m ruff check .
	@./setup.sh --dev -- -m mypy
