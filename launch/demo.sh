#!/usr/bin/env bash
# The main job on the embedded data: build, train, evaluate, report. Prints where report.html is.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

"$PYTHON" -m fer_jax demo "$@"
