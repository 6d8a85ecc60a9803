# Sourced by the other scripts: make .venv with the pinned dependencies, unless it is there and up to date.
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 2; }
if ! cmp -s requirements.txt .venv/installed.txt; then
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet -r requirements.txt
  cp requirements.txt .venv/installed.txt
fi
