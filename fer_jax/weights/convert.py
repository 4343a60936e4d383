"""The verb `convert`: somebody's network file becomes safetensors and a config.json.

NVIDIA's StyleGAN2 files become what `synthesize` works with, Keras' weights of Xception (`.h5`,
`.weights.h5`) what a run starts from (`config.init_from`). The folder holds exactly what the
reader of the original file returns, in open formats: `config.json` with what is known of it, and
`arrays.safetensors` with its arrays, a generator's under "<network>/<name>" in the layouts of
`fer_jax.weights.nvidia`. Whatever takes such a folder takes the original file, too.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fer_jax.config import OneLineParser
from fer_jax.errors import InputError
from fer_jax.models import stylegan2
from fer_jax.weights import keras, nvidia, xception
from fer_jax.weights.nvidia import Config, Network

FORMAT = "fer_jax.stylegan2"
CONFIG, ARRAYS = xception.CONFIG, xception.ARRAYS
HDF5 = b"\x89HDF\r\n\x1a\n"
OWN = {CONFIG, ARRAYS, f"{CONFIG}.part", f"{ARRAYS}.part"}  # parts: of a conversion that was cut


def convert(source: Path, out: Path) -> dict[str, Network]:
    """Writes the networks of a file into a folder.

    Args:
      source: one of NVIDIA's StyleGAN2 pickles.
      out: made if it is not there; it may hold an earlier conversion, and nothing else.

    Returns:
      The networks by name.

    Raises:
      InputError: anything that `nvidia.read_networks` refuses, or a folder of something else.
    """
    _check_out(out)
    networks = nvidia.read_networks(source)
    write_networks(out, networks, _origin(source))
    return networks


def write_networks(out: Path, networks: dict[str, Network], about: dict[str, Any]) -> None:
    """Writes networks into a folder that `read_networks` reads.

    Args:
      out: the folder; what an earlier call wrote there is replaced.
      networks: by name, some of `nvidia.NAMES`.
      about: what else config.json says of them.

    Raises:
      InputError: the folder cannot be written.
    """
    arrays = {
        f"{name}/{key}": array
        for name, network in networks.items()
        for key, array in network.arrays.items()
    }
    configs = {name: dataclasses.asdict(network.config) for name, network in networks.items()}
    _write(out, {"format": FORMAT, **about, "networks": configs}, arrays)


def convert_xception(source: Path, out: Path) -> dict[str, np.ndarray]:
    """Writes Keras' weights of Xception into a folder that `config.init_from` takes.

    Args:
      source: `.h5` or `.weights.h5`, with or without top.
      out: as for `convert`.

    Returns:
      The arrays by name.

    Raises:
      InputError: anything that `keras.read_xception` refuses, or a folder of something else.
    """
    _check_out(out)
    arrays = keras.read_xception(source)
    _write(out, {"format": xception.FORMAT, **_origin(source)}, arrays)
    return arrays


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"'{out}' is a file; name a folder")
    others = {path.name for path in out.iterdir()} - OWN if out.is_dir() else set()
    if others:
        raise InputError(f"'{out}' holds something else ({min(others)}); name a new folder")


def _origin(source: Path) -> dict[str, Any]:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"source": {"file": source.name, "sha256": digest}}


def _write(out: Path, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        # The config comes last, and each file takes its place only when complete.
        (out / CONFIG).unlink(missing_ok=True)
        (out / f"{CONFIG}.part").write_text(json.dumps(config, indent=2) + "\n")
        ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        save_file(ordered, out / f"{ARRAYS}.part")
        # It was written for its owner alone.
        shutil.copymode(out / f"{CONFIG}.part", out / f"{ARRAYS}.part")
        os.replace(out / f"{ARRAYS}.part", out / ARRAYS)
        os.replace(out / f"{CONFIG}.part", out / CONFIG)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write into '{out}': {error}") from error


def read_networks(path: Path, names: tuple[str, ...] = ()) -> dict[str, Network]:
    """Reads a network file, or a folder that `convert` wrote.

    Args:
      path: of either.
      names: some of `nvidia.NAMES`; empty: all that are there.

    Returns:
      By name; the same from both.

    Raises:
      InputError: neither of the two, damaged, or without one of the names: one line.
    """
    if not path.is_dir():
        return nvidia.read_networks(path, names)
    if not (path / CONFIG).is_file() or not (path / ARRAYS).is_file():
        raise InputError(f"'{path}' has no {CONFIG} and {ARRAYS}: fer-jax convert writes them")
    try:
        config = json.loads((path / CONFIG).read_text())
        blocks = config["networks"] if config["format"] == FORMAT else None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"'{path / CONFIG}' is not what fer-jax convert writes") from error
    if not isinstance(blocks, dict):
        raise InputError(f"'{path / CONFIG}' is not of the format {FORMAT}")
    networks = {}
    try:
        with safe_open(path / ARRAYS, framework="numpy") as file:
            stored = set(file.keys())
            for name in names or tuple(blocks):
                if name not in blocks:
                    raise InputError(f"holds no network {name}; it has {', '.join(blocks)}")
                keys = [key for key in stored if key.startswith(f"{name}/")]
                arrays = {key.partition("/")[2]: file.get_tensor(key) for key in keys}
                networks[name] = nvidia.checked(_from_json(name, blocks[name]), arrays)
    except SafetensorError as error:
        raise InputError(f"'{path / ARRAYS}' is damaged: {error}") from error
    except InputError as error:
        raise InputError(f"'{path}' {error}") from error
    return networks


def read_about(path: Path) -> dict[str, Any]:
    """What a folder's config.json says beside its networks, such as "classes"; {} of a file."""
    file = path / CONFIG
    if not file.is_file():
        return {}
    try:
        about = json.loads(file.read_text())
        return {name: value for name, value in about.items() if name not in ("format", "networks")}
    except (ValueError, AttributeError) as error:
        raise InputError(f"'{file}' is not what fer-jax convert writes") from error


def _from_json(name: str, block: Any) -> Config:
    kind: Any = stylegan2.DiscriminatorConfig if name == "D" else stylegan2.GeneratorConfig

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        options = {key: tuples(value) for key, value in block.items()}
        mapping = options.pop("mapping")
        mapping = None if mapping is None else stylegan2.MappingConfig(**mapping)
        return kind(mapping=mapping, **options)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"({name}) has a config.json that was changed: {error}") from error


def main(argv: list[str]) -> None:
    """The verb `convert`."""
    parser = OneLineParser(
        prog="fer-jax convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="FILE", help=".pkl, .h5 or .weights.h5")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    arguments = parser.parse_args(argv)
    if _is_keras(arguments.source):
        arrays = convert_xception(arguments.source, arguments.out)
        count = sum(array.size for array in arrays.values())
        head = arrays.get("params/logits/bias")
        top = "no top" if head is None else f"{len(head):,} classes"
        print(f"Xception, {top}, {count:,} numbers; train with --config.init_from={arguments.out}")
        return
    for name, network in convert(arguments.source, arguments.out).items():
        config, count = network.config, sum(array.size for array in network.arrays.values())
        classes = config.mapping.c_dim if config.mapping else 0
        conditional = f", {classes} classes" if classes else ""
        print(
            f"{name}: {config.resolution} px, {config.architecture}{conditional}, {count:,} numbers"
        )
    print(f"{arguments.out / CONFIG} and {ARRAYS}")


def _is_keras(source: Path) -> bool:
    """Whether it says that it is HDF5, by its first bytes or by its name."""
    if source.suffix in (".h5", ".hdf5"):
        return True
    if not source.is_file():
        return False
    with source.open("rb") as file:
        return file.read(len(HDF5)) == HDF5
