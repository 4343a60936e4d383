#!/usr/bin/env bash
# Looks up known vulnerabilities of the pinned packages with pip-audit, which needs its service. A
# package that could not be looked up is a failure. Not part of launch/test.sh.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

# In an environment of its own, because pip-audit's own packages are not audited.
if [ ! -x .venv/audit/bin/pip-audit ]; then
  "$PYTHON" -m venv .venv/audit
  .venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.9.0
fi
.venv/audit/bin/pip-audit --strict --requirement=requirements.txt --require-hashes --disable-pip \
  --progress-spinner=off --timeout=15
