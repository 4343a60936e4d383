#!/usr/bin/env bash
# Injects faults into real training processes and checks that they resume or name the problem.
# Runs a fifth of the trials; --full runs all of them, --only FAULT one kind. Rerun the same command
# to resume. Writes runs/faults/faults.json.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} PYTHONPATH=$PWD
"$PYTHON" tests/faults/faults.py "$@"
