#!/usr/bin/env bash
# Breaks runs in every way of the table and looks whether they survive, or say what is wrong.
# A fifth of the trials, in at most 15 minutes on 2 cores; --full: all of them; --only FAULT: one.
# The same command goes on where it was stopped. Leaves runs/faults/faults.json.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

"$PYTHON" launch/faults.py "$@"
