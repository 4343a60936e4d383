"""A folder of synthetic faces becomes records; the faces of a seed stay together."""

import argparse
import collections
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import picture, small_generator, write_dataset
from small_runs import write_faces as folder

from fer_jax.__main__ import main
from fer_jax.config import default_config
from fer_jax.data import provenance
from fer_jax.data.build import find_builder
from fer_jax.data.records import Records, build_summary, open_records
from fer_jax.errors import InputError
from fer_jax.schema import EMOTIONS
from fer_jax.synthesis import synthesize
from fer_jax.synthesis.options import Request, plan_sampling
from fer_jax.synthesis.quality import Gates
from fer_jax.training.classifier import train


def build(source: Path, data_dir: Path, protocol: str = "grouped", *flags: str) -> int:
    return main(
        [
            *("build", f"synthetic/{protocol}", f"--source={source}", f"--data_dir={data_dir}"),
            *("--detector=none", *flags),
        ]
    )


def records_of(data_dir: Path, name: str = "synthetic/grouped") -> list[dict[str, Any]]:
    """Every record with everything in it, as another project would read it."""
    import tensorflow_datasets as tfds

    directory = next((data_dir / name).iterdir())
    builder: Any = tfds.builder_from_directory(directory)
    return [
        {"split": split}
        | {key: value.decode() if isinstance(value, bytes) else value for key, value in one.items()}
        for split in builder.info.splits
        for one in builder.as_data_source(split)
    ]


def test_synthetic_faces_become_records(tmp_path: Path):
    chances = np.full(7, 0.05)
    chances[EMOTIONS.index("anger")] = 0.7
    probabilities = {f"p_{name}": p for name, p in zip(EMOTIONS, chances, strict=True)}
    rows: list[dict[str, Any]] = [{"label": EMOTIONS[i % 7]} for i in range(60)]
    rows[10] |= {
        "label": "anger", "label_source": "teacher", "confidence": 0.7, "psi": -0.5, **probabilities
    }  # fmt: skip
    rows[11] |= {
        "label": "anger", "label_source": "direction", "confidence": 0.7, **probabilities
    }  # fmt: skip
    source = folder(tmp_path / "made", rows, teacher={"subjects": ["lab/a"]})
    assert build(source, tmp_path / "data") == 0
    records = {record["record_id"]: record for record in records_of(tmp_path / "data")}
    assert len(records) == 60
    one = records["synthetic/anger/seed0000000010_10"]
    assert (one["source"], one["label_source"], one["seed"]) == ("synthetic", "teacher", 10)
    assert one["truncation_psi"] == -0.5 and one["label_confidence"] == np.float32(0.7)
    np.testing.assert_allclose(one["emotion_probabilities"], chances, atol=1e-6)
    assert one["subject_id"] == "stylegan/0123456789abcdef/seed_10"
    np.testing.assert_allclose(one["image"].astype(int), picture(10), atol=60)
    # A direction gives the emotion; the teacher only confirmed it.
    other = records["synthetic/anger/seed0000000011_11"]
    assert other["emotion_probabilities"][EMOTIONS.index("anger")] == 1
    for number in range(20, 60):
        record = records[f"synthetic/{EMOTIONS[number % 7]}/seed{number:010}_{number}"]
        assert (record["emotion"], record["label_source"]) == (number % 7, "class")
        assert record["truncation_psi"] == np.float32(0.7) and record["label_confidence"] == 1
    summary = build_summary("synthetic/grouped", tmp_path / "data")
    assert summary["subjects"] == 60
    assert summary["options"]["teacher"] == {"subjects": ["lab/a"]}
    assert summary["options"]["made_by"]["network"] == "0123456789abcdef" * 4


def test_a_seed_is_in_one_split_in_all_folders_of_its_network(tmp_path: Path):
    # Each seed with several expressions and truncations, in two folders.
    rows = [{"seed": n // 3, "label": EMOTIONS[n % 3], "psi": n % 3 / 2} for n in range(180)]
    for name in ("a", "b"):
        assert (
            build(folder(tmp_path / name, rows), tmp_path / "data", "grouped", f"--name={name}")
            == 0
        )
    splits = collections.defaultdict(set)
    for name in ("a", "b"):
        for record in records_of(tmp_path / "data", f"{name}/grouped"):
            splits[record["seed"]].add(record["split"])
    assert len(splits) == 60 and all(len(parts) == 1 for parts in splits.values())
    assert {part for parts in splits.values() for part in parts} == {"train", "validation", "test"}
    assert build(tmp_path / "a", tmp_path / "data", "folds", "--name=c") == 0
    folds = collections.defaultdict(set)
    for record in records_of(tmp_path / "data", "c/folds"):
        folds[record["seed"]].add(record["split"])
    assert all(len(parts) == 1 for parts in folds.values())


def test_interest_is_a_label_too(tmp_path: Path):
    words = ("not_interested", "interested")
    source = folder(tmp_path / "made", [{"label": words[n % 2]} for n in range(60)], "interest")
    assert build(source, tmp_path / "data") == 0
    records = open_records("synthetic/grouped", "all", tmp_path / "data")
    assert collections.Counter(records.columns["interest"].tolist()) == {0: 30, 1: 30}
    assert set(records.columns["emotion"].tolist()) == {-1}


def test_what_cannot_be_a_record_is_in_the_ledger(tmp_path: Path):
    rows: list[dict[str, Any]] = [{} for _ in range(60)]
    rows[1] |= {"label": ""}
    rows[2] |= {"label": "contempt"}
    rows[3] |= {"file": "../outside.png"}
    rows[4] |= {"seed": -4, "file": "images/fear/x.png"}
    rows[5] |= {"psi": "much"}
    rows[6] |= {"label_source": "guessed"}
    rows[7] |= {f"p_{name}": 0.5 for name in EMOTIONS}
    source = folder(tmp_path / "made", rows)
    (source / "images/fear/seed0000000008_8.png").unlink()
    (source / "images/fear/seed0000000009_9.png").write_bytes(b"no picture")
    with (source / "records.csv").open("a") as file:
        file.write("images/fear/torn.png,77")
    assert build(source, tmp_path / "data") == 0
    directory = next((tmp_path / "data" / "synthetic" / "grouped").iterdir())
    with (directory / "ledger.csv").open() as text:
        ledger = {row["item"]: row["reason"] for row in csv.DictReader(text)}
    assert sorted(reason.split(";")[0] for reason in ledger.values()) == sorted(
        [
            "no label",
            "unknown emotion 'contempt'",
            "the file is outside the folder",
            "'-4' is not a seed",
            "'much' is not a truncation",
            "unknown label_source 'guessed'",
            "class probabilities must sum to 1, got 3.5",
            "no such file",
            "unreadable image",
        ]
    )
    summary = build_summary("synthetic/grouped", tmp_path / "data")
    assert (summary["inputs"], summary["records"]) == (60, 51)


@pytest.mark.parametrize("damage", ["nothing", "settings", "columns", "values"])
def test_a_folder_of_something_else_is_one_line(tmp_path: Path, capsys, damage: str):
    source = folder(tmp_path / "made", [{} for _ in range(60)])
    if damage == "nothing":
        (source / "synthesis.json").unlink()
    if damage == "settings":
        (source / "synthesis.json").write_text("{}")
    if damage == "columns":
        (source / "records.csv").write_text("file,label\nx.png,fear\n")
    if damage == "values":
        (source / "records.csv").write_text((source / "records.csv").read_text() + "a,b\n")
    assert build(source, tmp_path / "data") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    said = {
        "nothing": "generate faces with `fer-jax synthesize",
        "settings": "is damaged",
        "columns": "lacks the columns seed",
        "values": "line 62: 2 values",
    }
    assert said[damage] in error[0]


def test_the_folder_that_synthesize_leaves(tmp_path: Path):
    generator = small_generator(c_dim=3)
    asked = Request(
        count=20,
        class_names=("anger", "disgust", "fear"),
        gates=Gates(0, 0, 0, (0, 1), one_face=False),
        detector="none",
        keep_duplicates=True,
        batch_size=8,
    )
    plan = plan_sampling(asked, generator, has_teacher=False, directions=None)
    synthesize.synthesize(generator, tmp_path / "made", plan)
    assert build(tmp_path / "made", tmp_path / "data") == 0
    records = open_records("synthetic/grouped", "all", tmp_path / "data")
    assert collections.Counter(records.columns["emotion"].tolist()) == {0: 20, 1: 20, 2: 20}
    network = synthesize.generator_fingerprint(generator)[:16]
    assert str(records.columns["subject_id"][0]).startswith(f"stylegan/{network}/seed_")


def test_training_on_labels_of_a_teacher_that_saw_the_test_people_is_refused(tmp_path: Path):
    rows = [{"label": EMOTIONS[n % 7]} for n in range(60)]
    saw = [
        {"dataset": "nameless/grouped", "split": "train[:4]"},
        {"dataset": "gone", "split": "train"},
    ]
    teacher = {"subjects": ["lab/x0", "lab/y"], "saw": saw}
    source = folder(tmp_path / "made", rows, teacher=teacher)
    data = tmp_path / "data"
    assert build(source, data) == 0
    people = {"test": [(f"x{n}", n) for n in range(7)], "other": [("z", n) for n in range(7)]}
    write_dataset(data, "lab", people, first=5000)  # no picture of the generator
    write_dataset(
        data, "nameless", {part: [("", n) for n in range(7)] for part in ("train", "test")}
    )
    opened = {part: open_records("lab", part, data) for part in people}
    pictures = {part: open_records("nameless", part, data) for part in ("train", "test")}
    faces = open_records("synthetic/grouped", "train", data)
    said = "that labelled synthetic/grouped saw 1 of the subjects of the test set lab"

    def sentences(part: Records, *tests: Records) -> list[str]:
        seen, unknown = provenance.behind([part], tests, data, {})
        if part is faces:
            # The network of this folder does not say whom it saw.
            generator, gone = unknown[1], unknown[0]
            assert generator == "the generator of synthetic/grouped (0123456789abcdef)"
            teacher = "the teacher that labelled synthetic/grouped"
            assert gone == f"gone train, which {teacher} saw and is not here"
        return [one.sentence for one in seen]

    (only,) = sentences(faces, opened["test"])
    assert f"{said} test (such as 'lab/x0')" in only
    (only,) = sentences(faces, *pictures.values())
    assert "saw 4 of the records of the test set nameless train" in only
    for part, test in (
        (faces, opened["other"]), (opened["other"], opened["test"]), (faces, pictures["test"])
    ):  # fmt: skip
        assert not sentences(part, test)
    # The training program asks before it trains.
    config = default_config()
    config.sources, config.test_sets = ("synthetic/grouped",), ("lab",)
    with pytest.raises(InputError, match=said):
        train(config, tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_a_builder_refuses_an_invalid_name(tmp_path: Path):
    with pytest.raises(InputError, match="lower case letters"):
        find_builder("synthetic")(options=argparse.Namespace(name="../x", source=tmp_path))
