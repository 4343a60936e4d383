#!/usr/bin/env bash
# Lint, format, types, tests. Everything it needs is made on the first run.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m basedpyright
"$PYTHON" -m pytest -n 2 -rs "$@"
