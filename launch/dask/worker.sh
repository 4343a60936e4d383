#!/usr/bin/env bash
# Runs the Dask workers of a host until its standard input ends; ssh.sh starts it on each host.
#
#   bash launch/dask/worker.sh FOLDER PYTHON
set -euo pipefail
cd "$(dirname "$0")/../.."
source "$1/dask.env"
exec 3<&0
# One worker for each core; -1 means all cores.
"$2" -m dask worker --scheduler-file "$1/scheduler.json" --nworkers=-1 --nthreads=1 \
  --dashboard-address=127.0.0.1:0 --death-timeout=60 3<&- < /dev/null &
workers=$!
{ read -r _ || kill "$workers"; } <&3 &
reader=$!
trap 'kill "$reader" 2> /dev/null || true' EXIT
wait "$workers"
