#!/usr/bin/env bash
# Runs lint, format check, type check and tests; the first run installs what they need.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m basedpyright
"$PYTHON" -m pytest -n 2 -rs "$@"
