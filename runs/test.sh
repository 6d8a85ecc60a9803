#!/usr/bin/env bash
# Set up .venv (once) and run ruff and the tests. Needs Python 3.10+ and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest "$@"
