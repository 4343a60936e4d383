"""A small generator, a small trained run and a small dataset, made in moments."""

import dataclasses
import functools
import json
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import tensorflow_datasets as tfds
from nvidia_files import random_arrays, write_tensorflow, write_torch
from safetensors.numpy import save_file

from fer_jax import checkpoints, schema
from fer_jax.config import default_config, to_json
from fer_jax.data import build, synthetic
from fer_jax.data.builder import Inputs, RecordBuilder
from fer_jax.evaluation import predictions
from fer_jax.inference.network import model_arguments
from fer_jax.media.extraction import Found
from fer_jax.media.images import encode_jpeg
from fer_jax.models import stylegan2, xception
from fer_jax.storage import append_table
from fer_jax.synthesis.generator import Generator
from fer_jax.weights.nvidia import Network, to_trees

SIZE = 16


def generator_config(c_dim: int, resolution: int = SIZE) -> stylegan2.GeneratorConfig:
    mapping = stylegan2.MappingConfig(
        z_dim=12, c_dim=c_dim, w_dim=16, num_layers=2, embed_features=16, layer_features=16
    )
    return stylegan2.GeneratorConfig(
        resolution=resolution, channel_base=256, channel_max=8, mapping=mapping
    )


def arrays_of(config: stylegan2.GeneratorConfig, seed: int) -> dict[str, np.ndarray]:
    """Random, but with colours within the range and a mapping that leaves w of the usual size."""
    arrays = random_arrays(config, seed)
    for name, array in arrays.items():
        if ".fc" in name or ".embed" in name:
            arrays[name] = array / (0.01 if name.endswith("weight") else 1.0)
        if "torgb.weight" in name:
            arrays[name] = array * 0.2
        if "torgb.bias" in name:
            arrays[name] = array * 0.0
        if "noise_strength" in name:
            arrays[name] = array * 0.1
    return arrays


@functools.cache
def network_file(tensorflow: bool) -> bytes:
    """A small NVIDIA file of a family."""
    generator = generator_config(0, 8)
    critic = stylegan2.DiscriminatorConfig(resolution=8, channel_base=64, channel_max=2)
    made = {"G": generator, "D": critic, "G_ema": generator}
    arrays = {name: random_arrays(config) for name, config in made.items()}
    with tempfile.TemporaryDirectory() as folder:
        writer = write_tensorflow if tensorflow else write_torch
        return writer(Path(folder) / "x.pkl", made, arrays).read_bytes()


def small_generator(c_dim: int = 0, seed: int = 0, resolution: int = SIZE) -> Generator:
    config = generator_config(c_dim, resolution)
    return Generator(config, *to_trees(Network(config, arrays_of(config, seed))))


def write_network(folder: Path, c_dim: int = 0, seed: int = 0) -> Path:
    """The same network as a folder that `convert` could have written."""
    config = generator_config(c_dim)
    folder.mkdir(parents=True)
    arrays = arrays_of(config, seed)
    save_file(
        {f"G_ema/{key}": np.array(a, order="C") for key, a in arrays.items()},
        folder / "arrays.safetensors",
    )
    about = {"format": "fer_jax.stylegan2", "networks": {"G_ema": dataclasses.asdict(config)}}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def write_run(workdir: Path, data_dir: Path, task: str = "emotion", **config_fields: Any) -> Path:
    """A run with a checkpoint of an untrained network whose opinions differ between pictures."""
    config = default_config()
    config.task = task
    config.model.update({"width": 0.03, "num_middle_blocks": 1, "image_size": 71})
    config.update(config_fields)
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(to_json(config))
    (workdir / "environment.json").write_text(json.dumps({"data_dir": str(data_dir)}))
    params, batch_stats = xception.init(jax.random.key(0), **model_arguments(config))
    params["logits"]["kernel"] = params["logits"]["kernel"] * 20
    manager = checkpoints.open_checkpoints(workdir, keep=1, metric="validation_accuracy")
    history = [{"step": 1, config.selection_metric: 0.5, "validation_accuracy": 0.5}]
    checkpoints.save(
        manager,
        1,
        network={"params": params, "batch_stats": batch_stats, "ema": {}},
        training={"step": np.zeros((), np.int32)},
        loop={"history": history},
        metrics=history[-1],
    )
    manager.wait_until_finished()
    manager.close()
    return workdir


def picture(seed: int, size: int = 32) -> np.ndarray:
    """A blurred pattern, uint8 [size, size, 3]; another one for each seed."""
    noise = np.random.default_rng(seed).standard_normal((size, size, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), size / 12)
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def image_bomb() -> bytes:
    """A PNG that says it has 20,000 x 20,000 pixels, in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        size, check = len(data), zlib.crc32(kind + data)
        return struct.pack(">I", size) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def write_rows(
    data_dir: Path,
    name: str,
    rows: list[dict[str, Any]],
    find_faces: Callable[[dict[str, Any]], list[Found]],
    config: str = "grouped",
) -> Path:
    """Builds a dataset from rows that have their splits."""

    class Rows(RecordBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)]

        def _info(self) -> tfds.core.DatasetInfo:
            return self.record_info("rows of a test")

        def list_inputs(self) -> Inputs:
            return Inputs(rows, [], {})

        def _check_parts(self, inputs: Inputs) -> None:
            """A test may need one part only."""

        def _split_generators(self, dl_manager: Any) -> Any:
            return self.splits_of_inputs()

        def _generate_examples(self, rows: list[dict[str, Any]]) -> Any:
            return self.examples(rows, find_faces)

    Rows.name = name
    return build.build_config(Rows, config, data_dir)


def write_dataset(
    data_dir: Path,
    name: str,
    rows: dict[str, list[tuple[str, int]]],
    first: int = 0,
    grey: bool = False,
) -> Path:
    """A dataset of patterns: split -> (subject, emotion) of each picture."""

    def read(row: dict[str, Any]) -> list[Found]:
        image = picture(row["_picture"])
        image = np.repeat(image[..., :1], 3, axis=2) if grey else image
        return [Found(row["record_id"], [{"image": encode_jpeg(image)}])]

    planned = [
        {
            "record_id": f"{name}/{split}_{index}",
            "source": name,
            "subject_id": f"{name}/{subject}" if subject else "",
            "emotion": emotion,
            "interest": schema.UNKNOWN,
            "split": split,
            "_picture": first + 1000 * number + index,
        }
        for number, (split, entries) in enumerate(rows.items())
        for index, (subject, emotion) in enumerate(entries)
    ]
    return write_rows(data_dir, name, planned, read)


def write_faces(
    out: Path, rows: list[dict[str, Any]], task: str = "emotion", **settings: Any
) -> Path:
    """A folder as `synthesize` leaves it: fear of one seed each, unless a row says otherwise."""
    out.mkdir(parents=True)
    about = {"request": {"task": task}, "made_by": {"network": "0123456789abcdef" * 4}} | settings
    (out / "synthesis.json").write_text(json.dumps(about))
    complete = []
    for number, row in enumerate(rows):
        row = {"seed": number, "psi": 0.7, "label": "fear", "label_source": "class"} | row
        row.setdefault("file", f"images/{row['label']}/seed{row['seed']:010}_{number}.png")
        complete.append(row)
        path = out / row["file"]
        if ".." not in row["file"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture(number)[..., ::-1])
    append_table(out / "records.csv", synthetic.record_columns(task), complete)
    return out


def write_predictions(workdir: Path, cross: str, origin: dict[str, Any] | None = None) -> None:
    """Drawn predictions of a run on demo/controlled; the set `cross` lacks a class."""
    workdir.joinpath("predictions").mkdir()
    labels = "".join(f"demo/controlled,x,{name},20\n" for name in schema.EMOTIONS)
    workdir.joinpath("training_labels.csv").write_text("source,content,label,images\n" + labels)
    parts = [("demo/controlled", "test", 140, 7), (cross, "test", 90, 6)]
    parts += [("demo/controlled", "validation", 70, 7)]
    for seed, (dataset, split, n, classes) in enumerate(parts):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, n)
        chances = rng.dirichlet(np.ones(7), n) + np.eye(7)[labels] * (1 - seed % 2 * 0.7)
        text = {name: np.full(n, "x") for name in predictions.TEXT}
        table = text | {
            "dataset": np.full(n, dataset),
            "source": np.full(n, dataset),
            "split": np.full(n, split),
            "record_id": np.asarray([f"{dataset}/{split}/{i}" for i in range(n)]),
            "subject_id": np.asarray([f"{dataset}/{split}/s{i % 9}" for i in range(n)]),
            "clip_id": np.asarray([f"{dataset}/{split}/c{i // 2}" for i in range(n)]),
            "gender": np.where(np.arange(n) % 9 < 4, "female", "male"),
            "frame_index": np.zeros(n, int),
            "age": 20.0 + 5 * (np.arange(n) % 9),
            "label": labels,
            "probabilities": chances / chances.sum(axis=1, keepdims=True),
        }
        predictions.write(
            workdir / "predictions" / predictions.file_name(dataset, split),
            table,
            schema.EMOTIONS,
            origin,
        )
        if split == "test":
            table["probabilities"] = (table["probabilities"] + 1 / 7) / 2
            for variant in ("adapted", "label_shift"):
                name = predictions.file_name(dataset, split, variant)
                file = workdir / "predictions" / name
                predictions.write(file, table, schema.EMOTIONS, origin)
