#!/usr/bin/env bash
# Runs the GPU tests and the benchmarks on a machine with a GPU, in under 11 minutes after the
# installation. Writes runs/gpu_check/gpu_check.md, and a folder with the JSON of each benchmark.
# --dry_run uses small sizes, needs no GPU and skips the GPU tests: it shows that the command works.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

small=
for word in "$@"; do
  case $word in
    --dry_run) small=yes ;;
    *) echo "gpu_check.sh: unknown option '$word'; the only one is --dry_run" >&2; exit 2 ;;
  esac
done
folder=$PWD/runs/gpu_check
[ -z "$small" ] || folder=$PWD/runs/gpu_check_dry_run
rm -rf "$folder"
mkdir -p "$folder"

sees_gpu() { "$PYTHON" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")' 2>/dev/null; }
if [ -z "$small" ] && ! sees_gpu; then
  echo "gpu_check.sh: JAX sees no GPU here; on a machine without one use --dry_run" >&2
  exit 2
fi
if [ -z "$small" ] && [ "${FER_JAX_INSTALL:-yes}" != no ] && ! "$PYTHON" -c 'import torch' 2>/dev/null; then
  echo "installing PyTorch into .venv (minutes, once; not counted)"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check torch
fi
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >> "$folder/notes.txt"
else
  echo "no nvidia-smi: everything ran on the CPU" >> "$folder/notes.txt"
fi

# The parts share a compilation cache, so only the first "until the first" includes compilation.
export JAX_COMPILATION_CACHE_DIR=$folder/compilations

# Runs one part with a time limit in seconds. A part that exceeds its limit is stopped and noted,
# so that the others keep their time; the limits sum to the time given above.
part() {
  local name=$1 seconds=$2 status=0 started=$SECONDS
  shift 2
  echo "== $name (at most $seconds s)"
  mkdir -p "$folder/$name"
  timeout --kill-after=10 "$seconds" "$@" | tee "$folder/$name/output.md" || status=$?
  case $status in
    0) echo "$name: $((SECONDS - started)) s" ;;
    124 | 137) echo "$name: STOPPED after $seconds s" ;;
    *) echo "$name: FAILED with exit code $status" ;;
  esac | tee -a "$folder/notes.txt"
  [ "$status" = 0 ] || failed=yes
}
benchmark() {
  local name=$1 seconds=$2 which=$3
  shift 3
  part "$name" "$seconds" "$PYTHON" -m fer_jax benchmark "$which" --workdir="$folder/$name" "$@"
  benchmarks+=("$name")
}

failed=
benchmarks=()
if [ -n "$small" ]; then
  tiny=(--width=0.03 --image_size=71 --repeats=1)
  part tests 300 "$PYTHON" -m pytest -m gpu -rs -p no:cacheprovider
  benchmark train_bfloat16 300 model --modes train --dtypes bfloat16 --batches 2 \
    --peers "PyTorch eager" "${tiny[@]}"
  tiny+=(--num_middle_blocks=0)
  benchmark end_to_end 300 end_to_end --batch=4 --steps=2 --inputs device "${tiny[@]}"
  benchmark input 300 input --images=64 --image_size=72 --repeats=1
  benchmark scaling 300 scaling --batch=2 --steps=1 "${tiny[@]}"
else
  part tests 150 env JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false \
    "$PYTHON" -m pytest -m gpu -rs
  # The main result: the train step as it is used, compared with PyTorch.
  benchmark train_bfloat16 170 model --modes train --dtypes bfloat16 --batches 256 \
    --peers "PyTorch eager" "PyTorch compiled"
  benchmark train_shifted 60 model --modes train --dtypes bfloat16 --batches 256 \
    --peers "ours, shifted adds"
  benchmark inference_bfloat16 60 model --modes inference --dtypes bfloat16 --batches 256 \
    --peers "PyTorch eager"
  benchmark end_to_end 80 end_to_end --batch=256 --steps=20 --dtype=bfloat16 --inputs device
  benchmark input 30 input --images=4096
  benchmark scaling 30 scaling --batch=128 --dtype=bfloat16 --steps=10
fi
{
  sed 's/^/- /' "$folder/notes.txt"
  for name in "${benchmarks[@]}"; do
    printf '\n## %s\n\n' "$name"
    cat "$folder/$name/output.md"
  done
} > "$folder/gpu_check.md"
cat "$folder/gpu_check.md"
[ -z "$failed" ] || exit 1
