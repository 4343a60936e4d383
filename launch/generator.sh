#!/usr/bin/env bash
# Trains a generator on FER2013's training part (64 px on a GPU, else configs/stylegan_small.py),
# evaluates a classifier of real faces on the generated ones, and measures what they add to another
# dataset of real faces.
#
#   bash launch/generator.sh FACES OUT
#
# FACES has fer2013.zip, lfw_gray.zip and ck48.zip. OUT receives data and runs; if launch/recipe.sh
# ran in the same OUT, its classifier is used. Rerun the same command to resume.
set -euo pipefail
if [ $# -ne 2 ] || [ ! -f "$1/fer2013.zip" ]; then
  echo "usage: bash launch/generator.sh FACES OUT, where FACES has fer2013.zip and the other datasets" >&2
  exit 2
fi
faces=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
source "$(dirname "$0")/environment.sh"
export FER_JAX_DATA=$out/data
fer_jax() { "$PYTHON" -m fer_jax "$@"; }

fer_jax build face_folder/given --name=fer2013 --source="$faces/fer2013.zip"
fer_jax build face_folder/grouped --name=lfw_gray --source="$faces/lfw_gray.zip"
fer_jax build face_folder/grouped --name=ck48 --source="$faces/ck48.zip" --namespace=ck

# Exit code 1 means that the audit found leakage, which is expected; other codes are failures.
status=0
fer_jax audit --config=configs/fer2013.py --workdir="$out/fer2013_audit" \
  --write_exclusions="$out/fer2013_exclusions.csv" || status=$?
[ "$status" -le 1 ] || exit "$status"

config=(--config=configs/stylegan_small.py)
recipe=configs/fer2013.py
if "$PYTHON" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")'; then
  config=(--config=configs/stylegan_faces.py --config.sources=fer2013/given
    --config.model.image_size=64 --config.num_images=2000000)
  recipe=$recipe:gpu
  fer_jax benchmark stylegan2_train --workdir="$out/stylegan2_train" --batch=64
fi
fer_jax train "${config[@]}" --workdir="$out/generator" \
  --config.exclusions="$out/fer2013_exclusions.csv"
fer_jax report --workdir="$out/generator"
fer_jax synthesize --network="$out/generator/generator" --out="$out/generated" --count=500 \
  --detector=none --min_size=32
fer_jax build synthetic/grouped --name=generated --source="$out/generated" --detector=none

classifier=$out/fer2013.seed_0
fer_jax train --config="$recipe" --workdir="$classifier" \
  --config.exclusions="$out/fer2013_exclusions.csv"
fer_jax evaluate --workdir="$classifier" --data=generated/grouped --split=all
fer_jax report --workdir="$classifier"

study=(--config=configs/study_synthetic_ratio.py:lfw_gray/grouped,generated/grouped,ck48/grouped
  --workdir="$out/study_ratio")
[ -f "$out/ratio.csv" ] || fer_jax study "${study[@]}" --write_exclusions="$out/ratio.csv"
fer_jax study "${study[@]}" --config.run.exclusions="$out/ratio.csv"
