"""Convert a network file to safetensors and a config.json.

NVIDIA's StyleGAN2 files become a folder for `synthesize`, Keras' weights of Xception (.h5,
.weights.h5) a folder for `config.init_from`. Converting is optional: both also take the original
file. The folder has the same content in open formats: config.json, and arrays.safetensors with a
generator's arrays under "<network>/<name>" in the layouts of `fer_jax.weights.nvidia`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fer_jax import forms, storage
from fer_jax.config import OneLineParser, output_path
from fer_jax.errors import InputError
from fer_jax.models import stylegan2
from fer_jax.storage import sha256, write_atomically
from fer_jax.weights import keras, nvidia
from fer_jax.weights.keras import ARRAYS, CONFIG
from fer_jax.weights.nvidia import Config, Network

FORMAT = "fer_jax.stylegan2"
HDF5 = b"\x89HDF\r\n\x1a\n"


def convert(source: Path, out: Path) -> dict[str, Network]:
    """Writes the networks of a StyleGAN2 pickle of NVIDIA's into a folder; returns them by name."""
    _check_out(out)
    networks = nvidia.read_networks(source)
    write_networks(out, networks, _origin(source))
    return networks


def write_networks(out: Path, networks: dict[str, Network], about: dict[str, Any]) -> None:
    """Writes networks by name into a folder for `read_networks`; `about` is for config.json."""
    arrays = {
        f"{name}/{key}": array
        for name, network in networks.items()
        for key, array in network.arrays.items()
    }
    configs = {name: dataclasses.asdict(network.config) for name, network in networks.items()}
    _write(out, {"format": FORMAT, **about, "networks": configs}, arrays)


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"'{out}' is a file; name a folder")
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    # An interrupted conversion may leave hidden temporary files.
    if others := {name for name in present - {CONFIG, ARRAYS} if not name.startswith(".")}:
        raise InputError(f"'{out}' holds something else ({min(others)}); name a new folder")


def _origin(source: Path) -> dict[str, Any]:
    return {"source": {"file": source.name, "sha256": sha256(source)}}


def _write(out: Path, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    # The folder is valid only with its config, which is written last.
    (out / CONFIG).unlink(missing_ok=True)
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(out / ARRAYS, save(contiguous))
    write_atomically(out / CONFIG, json.dumps(config, indent=2) + "\n")


def read_networks(path: Path, names: tuple[str, ...] = ()) -> dict[str, Network]:
    """Reads some of `nvidia.NAMES` (empty: all) of a network file or a folder of `convert`."""
    if not path.is_dir():
        return nvidia.read_networks(path, names)
    if not (path / CONFIG).is_file() or not (path / ARRAYS).is_file():
        raise InputError(f"'{path}' has no {CONFIG} and {ARRAYS}: fer-jax convert writes them")
    config = storage.read_json(path / CONFIG)
    blocks = config.get("networks") if config.get("format") == FORMAT else None
    if not isinstance(blocks, dict):
        raise InputError(f"'{path / CONFIG}' is not of the format {FORMAT}")
    networks = {}
    try:
        with safe_open(path / ARRAYS, framework="numpy") as file:
            stored = set(file.keys())
            for name in names or tuple(blocks):
                if name not in blocks:
                    raise InputError(f"has no network {name}; it has {', '.join(blocks)}")
                keys = [key for key in stored if key.startswith(f"{name}/")]
                arrays = {key.partition("/")[2]: file.get_tensor(key) for key in keys}
                networks[name] = nvidia.checked(_from_json(name, blocks[name]), arrays)
    except SafetensorError as error:
        raise InputError(f"'{path / ARRAYS}' is damaged: {error}") from error
    except InputError as error:
        raise InputError(f"'{path}' {error}") from error
    return networks


def read_about(path: Path) -> dict[str, Any]:
    """Returns the entries of a folder's config.json except its networks; {} for a file."""
    about = storage.read_json(path / CONFIG, form=forms.NETWORK)
    return {name: value for name, value in about.items() if name not in ("format", "networks")}


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
    parser = OneLineParser("fer-jax convert", __doc__)
    parser.add_argument("source", type=Path, metavar="FILE", help=".pkl, .h5 or .weights.h5")
    parser.add_argument("out", type=output_path, metavar="OUT", help="the folder to write")
    arguments = parser.parse_args(argv)
    source = arguments.source
    is_keras = source.suffix in (".h5", ".hdf5")
    if not is_keras and source.is_file():
        with source.open("rb") as file:
            is_keras = file.read(len(HDF5)) == HDF5
    with storage.lock(arguments.out, keep_file=False):
        print((_convert_xception if is_keras else _convert)(source, arguments.out))


def _convert_xception(source: Path, out: Path) -> str:
    _check_out(out)
    arrays = keras.read_xception(source)
    _write(out, {"format": keras.FORMAT, **_origin(source)}, arrays)
    count = sum(array.size for array in arrays.values())
    head = arrays.get("params/logits/bias")
    top = "no top" if head is None else f"{len(head):,} classes"
    return f"Xception, {top}, {count:,} parameters; train with --config.init_from={out}"


def _convert(source: Path, out: Path) -> str:
    lines = []
    for name, network in convert(source, out).items():
        config, count = network.config, sum(array.size for array in network.arrays.values())
        classes = config.mapping.c_dim if config.mapping else 0
        conditional = f", {classes} classes" if classes else ""
        lines.append(
            f"{name}: {config.resolution} px, {config.architecture}{conditional}, "
            f"{count:,} parameters"
        )
    return "\n".join([*lines, f"{out / CONFIG} and {ARRAYS}"])
