#!/usr/bin/env bash
# What a generator that was trained on one's own faces is worth: trains it on FER2013's training
# part (64 px on a GPU, configs/stylegan_small.py without), asks a classifier of real faces what it
# sees in the generated ones, and what they add to real ones of another collection.
#
#   bash launch/generator.sh FACES OUT
#
# FACES holds fer2013.zip, lfw_gray.zip and ck48.zip. OUT receives data and runs; after
# launch/recipe.sh in the same OUT, its classifier is the judge. The same command again goes on.
set -euo pipefail
if [ $# -ne 2 ] || [ ! -f "$1/fer2013.zip" ]; then
  echo "usage: bash launch/generator.sh FACES OUT, where FACES holds fer2013.zip and the other sets" >&2
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

# An audit that finds leaks, as this one does, ends with 1; anything else is a failure.
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

judge=$out/fer2013.seed_0
fer_jax train --config="$recipe" --workdir="$judge" \
  --config.exclusions="$out/fer2013_exclusions.csv"
fer_jax evaluate --workdir="$judge" --data=generated/grouped --split=all
fer_jax report --workdir="$judge"

study=(--config=configs/study_synthetic_ratio.py:lfw_gray/grouped,generated/grouped,ck48/grouped
  --workdir="$out/study_ratio")
[ -f "$out/ratio.csv" ] || fer_jax study "${study[@]}" --write_exclusions="$out/ratio.csv"
fer_jax study "${study[@]}" --config.run.exclusions="$out/ratio.csv"
