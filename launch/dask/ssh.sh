#!/usr/bin/env bash
# Starts a Dask scheduler here and workers on other hosts by SSH, until it is ended (Ctrl-C).
#
#   bash launch/dask/ssh.sh FOLDER HOST...
#   source FOLDER/dask.env && fer-jax build clips/folds ... --dask=FOLDER/scheduler.json
#
# FOLDER gets a certificate (certificates.sh), scheduler.json and the log of each host. FOLDER and
# this checkout with its .venv have the same paths on all hosts: on a file system that they share.
# Each host must accept your key without a question; ~/.ssh/config names other ports and users. A
# host has one worker for each of its processor cores. The workers end when the scheduler does.
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: bash $0 FOLDER HOST..." >&2
  exit 2
fi
mkdir -p -m 700 -- "$1"
folder=$(cd -- "$1" && pwd)
shift
source "$(dirname "$0")/../environment.sh"
[ -e "$folder/dask.env" ] || bash launch/dask/certificates.sh "$folder"
source "$folder/dask.env"

rm -f -- "$folder/scheduler.json"
command=$(printf '%q ' bash "$PWD/launch/dask/worker.sh" "$folder" "$PYTHON")
for host in "$@"; do
  # The input of ssh ends with this process, which becomes the scheduler, however that ends.
  tail --follow --pid=$$ /dev/null \
    | ssh -o BatchMode=yes -o ServerAliveInterval=15 "$host" "$command" \
      > "$folder/${host//\//_}.log" 2>&1 &
done
printf 'workers log into %q\n' "$folder"
exec "$PYTHON" -m dask scheduler --scheduler-file "$folder/scheduler.json" --port=0 \
  --dashboard-address=127.0.0.1:0
