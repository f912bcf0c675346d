.PHONY: help test slow lint types ci

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-8s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

test:  ## run the tests, without the slow ones
	pytest

slow:  ## run the slow tests
	pytest -m slow

lint:  ## check style and formatting
	ruff check .
	ruff format --check .

types:  ## check types
	mypy

ci:  ## everything a change must pass, in a fresh virtual environment
	.ci/run
