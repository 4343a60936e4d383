#!/usr/bin/env bash
# Runs the whole path on rendered faces: build, train, evaluate, report. Prints the path of report.html.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

"$PYTHON" -m fer_jax demo "$@"
