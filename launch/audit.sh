#!/usr/bin/env bash
# Known weaknesses of the pinned packages, by pip-audit and its service, which must be reachable:
# what could not be audited counts as a failure. Not a part of launch/test.sh.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

# In an environment of its own: its packages are no part of what is audited.
if [ ! -x .venv/audit/bin/pip-audit ]; then
  "$PYTHON" -m venv .venv/audit
  .venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.9.0
fi
found=$(mktemp)
trap 'rm -f "$found"' EXIT
# Its exit code says little: 0 also where it audited nothing. What it wrote decides.
.venv/audit/bin/pip-audit --requirement=requirements.txt --require-hashes --disable-pip \
  --format=json --output="$found" --progress-spinner=off --timeout=15 || true
"$PYTHON" launch/audit.py requirements.txt "$found"
