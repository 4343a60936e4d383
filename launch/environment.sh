# Sourced by the scripts of this folder: installs the tested versions into .venv, again only when
# requirements.txt or pyproject.toml change, and sets $PYTHON. README.md lists the variables.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${FER_JAX_INSTALL:-yes}" = no ]; then
  # A Python that has all packages already: no .venv, and no package index is contacted.
  PYTHON=$(command -v "${FER_JAX_PYTHON:-python3}" || true)
  if ! "${PYTHON:-false}" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("jax", "flax", "grain", "tensorflow_datasets"))))' 2>/dev/null; then
    echo "FER_JAX_INSTALL=no needs a Python that has JAX, Flax, Grain and TFDS, and '${FER_JAX_PYTHON:-python3}' does not; name one: FER_JAX_PYTHON=/path/to/python" >&2
    exit 2
  fi
else
  if [ ! -x .venv/bin/python ]; then
    for candidate in "${FER_JAX_PYTHON:-}" python3.12 python3.13 python3.11 python3; do
      if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        found=$candidate
        break
      fi
    done
    if [ -z "${found:-}" ]; then
      echo "fer_jax needs Python 3.11 or newer; install it, or name it: FER_JAX_PYTHON=/path/to/python3.11 bash $0" >&2
      exit 2
    fi
    "$found" -m venv .venv
  fi
  PYTHON=$PWD/.venv/bin/python

  cuda=
  case ${FER_JAX_CUDA:-} in
    yes) cuda=" cuda" ;;
    no) ;;
    "") if [[ $(nvidia-smi -L 2>/dev/null || true) == "GPU "* ]]; then cuda=" cuda"; fi ;;
    *)
      echo "FER_JAX_CUDA must be yes or no, got '$FER_JAX_CUDA'" >&2
      exit 2
      ;;
  esac

  # The hash of what was installed: a changed requirement, or a GPU, installs again.
  required=$(cat requirements.txt pyproject.toml | sha256sum)$cuda
  if [ "$(cat .venv/installed 2>/dev/null)" != "$required" ]; then
    pip=("$PYTHON" -m pip install --quiet --disable-pip-version-check)
    echo "installing the tested versions into .venv (about a minute)"
    "${pip[@]}" --require-hashes -r requirements.txt
    "${pip[@]}" --no-deps --editable .
    if [ -n "$cuda" ]; then
      jax=$("$PYTHON" -c 'from importlib.metadata import version; print(version("jax"))')
      echo "installing JAX $jax for CUDA (several minutes; FER_JAX_CUDA=no skips it)"
      "${pip[@]}" "jax[cuda13]==$jax"
    fi
    echo "$required" > .venv/installed
  fi
fi

# A training step on CPU allocates a gigabyte and frees it; glibc returns it to the kernel,
# which then clears every page again: 310 CPU-ms per image instead of 238 (Xception at 224 px,
# batch 8, float32). Keeping the memory is as fast as tcmalloc. Other C libraries ignore this.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736}
