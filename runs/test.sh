#!/usr/bin/env bash
# Set up .venv (once) and run ruff and the tests. Needs Python 3.10+ and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# A file a worker, each with one thread of torch: two workers of two threads would spin on two cores. One worker more
# than there are cores, since now and then one waits for what it has started.
workers=$(.venv/bin/python -c "import os; print(min(4, os.cpu_count() + 1))")
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
