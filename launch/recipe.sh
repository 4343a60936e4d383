#!/usr/bin/env bash
# The complete recipe of configs/fer2013.py, for a machine with a GPU: three seeds, evaluated on six
# unseen datasets, then the studies of what each ingredient and each dataset adds.
#
#   bash launch/recipe.sh FACES OUT
#
# FACES has fer2013.zip, ck48.zip, lfw_gray.zip, jaffe.zip, yale.zip, web96.zip and synth_sd.zip;
# OUT receives data, runs and studies. Rerun the same command to resume.
set -euo pipefail
if [ $# -ne 2 ] || [ ! -f "$1/fer2013.zip" ]; then
  echo "usage: bash launch/recipe.sh FACES OUT, where FACES has fer2013.zip and the other datasets" >&2
  exit 2
fi
faces=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
source "$(dirname "$0")/environment.sh"
export FER_JAX_DATA=$out/data
fer_jax() { "$PYTHON" -m fer_jax "$@"; }
build() { fer_jax build "face_folder/$1" --name="$2" --source="$faces/$2.zip" "${@:3}"; }

build given fer2013
build grouped ck48 --namespace=ck
build grouped lfw_gray
build folds jaffe --detector=yunet
build folds yale --detector=yunet
build grouped web96 --detector=yunet
build grouped synth_sd --detector=yunet --label_source=prompt

# Exit code 1 means that the audit found leakage, which is expected; other codes are failures.
status=0
fer_jax audit --config=configs/fer2013.py --workdir="$out/fer2013_audit" \
  --write_exclusions="$out/fer2013_exclusions.csv" || status=$?
[ "$status" -le 1 ] || exit "$status"
for seed in 0 1 2; do
  run=$out/fer2013.seed_$seed
  fer_jax train --config=configs/fer2013.py:gpu --workdir="$run" --config.seed=$seed \
    --config.exclusions="$out/fer2013_exclusions.csv"
  # A dataset with predictions is not evaluated again.
  for set in ck48/grouped jaffe/folds lfw_gray/grouped yale/folds web96/grouped synth_sd/grouped; do
    [ -f "$run/predictions/${set/\//-}.all.csv" ] ||
      fer_jax evaluate --workdir="$run" --data="$set" --split=all
  done
  fer_jax report --workdir="$run"
done

for name in recipe leave_one_out; do
  study=(--config="configs/study_$name.py" --workdir="$out/study_$name")
  [ -f "$out/$name.csv" ] || fer_jax study "${study[@]}" --write_exclusions="$out/$name.csv"
  fer_jax study "${study[@]}" --config.run.exclusions="$out/$name.csv"
done
