# Sourced by the other scripts: make .venv with the pinned dependencies, unless it is there and up to date.
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
if ! cat requirements.txt requirements.lock | cmp -s - .venv/installed.txt; then
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet -r requirements.txt -c requirements.lock
  cat requirements.txt requirements.lock > .venv/installed.txt
fi
