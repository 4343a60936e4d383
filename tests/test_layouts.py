"""Small imitations of published collections build, with their own names; no file vanishes."""

import csv
import io
import itertools
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from data_builders import layouts
from fer_jax import schema
from fer_jax.__main__ import main
from fer_jax.data.records import build_summary, open_records
from fer_jax.errors import InputError
from fer_jax.schema import EMOTIONS

WriteVideo = Callable[..., Path]
Labels = dict[str, tuple[str, str]]  # record -> emotion, person


def picture(seed: int = 0, ending: str = ".png", size: int = 16) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return cv2.imencode(ending, image)[1].tobytes()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def build(source: Path, data: Path, *words: str, builder: str = "face_folder/given") -> int:
    return main(["build", builder, f"--source={source}", f"--data_dir={data}", "--name=x", *words])


def labels(data: Path, split: str = "all") -> Labels:
    columns = open_records("x", split, data).columns
    names = (EMOTIONS[i] if i >= 0 else "" for i in columns["emotion"])
    rows = zip(columns["record_id"], names, columns["subject_id"], strict=True)
    return {record.removeprefix("x/"): (name, person[2:]) for record, name, person in rows}


def ledger(data: Path) -> dict[str, str]:
    (file,) = data.rglob("ledger.csv")
    with file.open(newline="") as text:
        return {row["item"]: row["reason"] for row in csv.DictReader(text)}


def table(*rows: tuple[Any, ...]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


FER = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
USAGES = ("Training", "PublicTest", "PrivateTest")
PIXELS = " ".join(["7"] * 48 * 48)


def fer_rows() -> list[tuple[str, str, str]]:
    return [(str(i), PIXELS, usage) for usage in USAGES for i in range(7)]


@pytest.mark.parametrize(
    "form", ["fer2013.csv", "icml_face_data.csv", "FER2013.CSV", "zip", "folder"]
)
def test_fer2013(tmp_path: Path, form: str):
    text = table(("emotion", "pixels", "Usage"), *fer_rows())
    source = tmp_path / form
    if form == "icml_face_data.csv":
        rows = [(emotion, usage, pixels) for emotion, pixels, usage in fer_rows()]
        text = table(("emotion", " Usage", " pixels"), *rows)
    if form == "zip":
        source = tmp_path / "archive.zip"
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("fer2013/fer2013.csv", text)
            archive.writestr("fer2013/README", "about it")
    elif form == "folder":  # as Kaggle's challenge is
        short = table(("emotion", "pixels"), *(row[:2] for row in fer_rows()[:7]))
        pixels = table(("pixels",), (PIXELS,))
        write(source, {"fer2013.csv": text, "train.csv": short, "test.csv": pixels})
    else:
        source.write_text(text)
    assert build(source, tmp_path / "data") == 0
    for split in ("train", "validation", "test"):
        assert [name for name, _ in labels(tmp_path / "data", split).values()].sort() == [
            *FER
        ].sort()
    assert len(labels(tmp_path / "data")) == 21
    if form == "folder":
        assert ledger(tmp_path / "data") == {
            name: "not read: 'fer2013.csv' is" for name in ("train.csv", "test.csv")
        }


def test_fer2013s_training_part_without_usage_and_a_test_part_alone(tmp_path: Path):
    text = table(("emotion", "pixels"), *(row[:2] for row in fer_rows() * 3))
    (tmp_path / "train.csv").write_text(text)
    assert build(tmp_path / "train.csv", tmp_path / "1") == 0
    assert len(labels(tmp_path / "1", "train")) == 63
    assert build(tmp_path / "train.csv", tmp_path / "2", builder="face_folder/grouped") == 0
    assert set(build_summary("x/grouped", tmp_path / "2")["splits"]) == {
        "train",
        "validation",
        "test",
    }
    # A collection for testing alone.
    source = write(tmp_path / "set", {f"{name}/{n}.png": picture(n) for n, name in enumerate(FER)})
    assert build(source, tmp_path / "3", "--part=test") == 0
    assert len(labels(tmp_path / "3", "test")) == 7


def ferplus_rows() -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    names = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear")
    header = ("Usage", "Image name", *names, "contempt", "unknown", "NF")
    rows = []
    for number, usage in enumerate(usage for usage in USAGES for _ in range(7)):
        votes = [0] * 10
        votes[number % 7], votes[8] = 6, 2
        votes[(number + 1) % 7] += 2
        rows.append((usage, f"fer{number:07}.png", *votes))
    rows[4] = ("Training", "", *[0] * 9, 10)
    return header, rows


@pytest.mark.parametrize("form", ["joined", "pictures"])
def test_ferplus(tmp_path: Path, form: str):
    header, rows = ferplus_rows()
    (tmp_path / "fer2013new.csv").write_text(table(header, *rows))
    source = tmp_path / "fer2013.csv"
    source.write_text(table(("emotion", "pixels", "Usage"), *fer_rows()))
    if form == "pictures":
        folders = dict(zip(USAGES, ("FER2013Train", "FER2013Valid", "FER2013Test"), strict=True))
        names = [f"{folders[row[0]]}/{row[1]}" for row in rows if row[1]]
        source = write(tmp_path / "data set", {name: picture(n) for n, name in enumerate(names)})
    assert build(source, tmp_path / "data", f"--manifest={tmp_path / 'fer2013new.csv'}") == 0
    item = "row_00004" if form == "joined" else f"{tmp_path / 'fer2013new.csv'}: row 6"
    reason = "FERPlus names no picture for it" if form == "joined" else "no file is named"
    assert ledger(tmp_path / "data") == {item: reason}
    records = open_records("x", "validation", tmp_path / "data")
    soft = dict(
        zip(records.columns["record_id"], records.targets("emotion", soft=True), strict=True)
    )
    first = "x/row_00007" if form == "joined" else "x/FER2013Valid/fer0000007"
    expected = np.zeros(7)
    expected[EMOTIONS.index("neutral")], expected[EMOTIONS.index("happiness")] = 0.75, 0.25
    np.testing.assert_allclose(soft[first], expected)


def test_an_option_that_cannot_act_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "fer2013.csv").write_text(table(("emotion", "pixels", "Usage"), *fer_rows()))
    (tmp_path / "other.csv").write_text(table(("path", "label"), ("a.png", "happy")))
    folder = write(tmp_path / "set", {"happy/a.png": picture(), "sad/b.png": picture()})
    listed = write(
        tmp_path / "listed", {"a.png": picture(), "manifest.csv": "path,label\na.png,sad\n"}
    )
    for source, option, says in (
        ("fer2013.csv", "--manifest=gone.csv", "--manifest 'gone.csv' does not exist"),
        ("fer2013.csv", f"--manifest={tmp_path / 'other.csv'}", "--manifest has no effect"),
        ("fer2013.csv", "--subject_from=folder", "--subject_from has no effect"),
        ("fer2013.csv", "--layout=rafdb", "--layout=rafdb has no effect"),
        (folder, "--dataset=x", "--dataset acts only with a manifest"),
        (folder, "--subject_from=folder", "no folder can be a person's"),
        (listed, "--subject_from=folder", "acts only on class folders; here 'manifest.csv'"),
        (listed, "--dataset=x", "describes no dataset 'x'"),
    ):
        assert build(tmp_path / source, tmp_path / "data", option) == 2
        printed = capsys.readouterr().err
        assert says in printed and printed.count("\n") == 1
    assert build(folder, tmp_path / "data", "--part=test", builder="face_folder/folds") == 2
    assert "--part acts only with the protocol 'given'" in capsys.readouterr().err


RAFDB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


@pytest.mark.parametrize("form", ["published", "Kaggle's"])
def test_rafdb(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]):
    names = [(f"{part}_{n:05}", n % 7) for part in ("train", "test") for n in range(1, 8)]
    if form == "published":
        files: dict[str, bytes | str] = {
            f"basic/Image/aligned/{name}_aligned.jpg": picture(n)
            for n, (name, _) in enumerate(names)
        }
        files["basic/Image/original/train_00001.jpg"] = picture()
        files["basic/EmoLabel/list_patition_label.txt"] = "".join(
            f"{name}.jpg {label + 1}\n" for name, label in names
        )
    else:
        files = {
            f"DATASET/{name.split('_')[0]}/{label + 1}/{name}_aligned.jpg": picture(n)
            for n, (name, label) in enumerate(names)
        }
    source = write(tmp_path / "rafdb", files)
    assert build(source, tmp_path / "data", "--dry_run") == 0
    assert "published with 'rafdb' (1 surprise, 2 fear, 3 disgust" in capsys.readouterr().out
    assert build(source, tmp_path / "data") == 0
    for split, part in (("train", "train"), ("test", "test")):
        found = {k.rpartition("/")[2]: v[0] for k, v in labels(tmp_path / "data", split).items()}
        assert found == {
            f"{name}_aligned": RAFDB[label] for name, label in names if name.startswith(part)
        }
    if form == "published":
        assert ledger(tmp_path / "data") == {
            "basic/Image/original/train_00001.jpg": "not in 'list_patition_label.txt'"
        }


AFFECTNET = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")


@pytest.mark.parametrize("form", ["npy", "csv", "numbered folders"])
def test_affectnet(tmp_path: Path, form: str):
    files: dict[str, bytes | str] = {}
    words: tuple[str, ...] = ()
    rows: dict[str, list[tuple[Any, ...]]] = {"training": [], "validation": []}
    for part, label in itertools.product(("train", "val"), range(8)):
        if form == "npy":
            files[f"{part}_set/images/{label}.jpg"] = picture(label)
            array = io.BytesIO()
            np.save(array, np.array(str(label)))
            files[f"{part}_set/annotations/{label}_exp.npy"] = array.getvalue()
            files[f"{part}_set/annotations/{label}_val.npy"] = array.getvalue()
        elif form == "csv":
            name = f"{100 + label}/{part}{label}.jpg"
            files[f"Manually_Annotated_Images/{name}"] = picture(label, size=40)
            rows["training" if part == "train" else "validation"].append(
                (name, 4, 4, 20, 20, "1;2;3;4;5;6;7;8;9;10;11;12", label, 0.1, 0.2)
            )
        else:
            files[f"{part}/{label}/{label}.jpg"] = picture(label)
            words = ("--layout=affectnet",)
    header = (
        "subDirectory_filePath face_x face_y face_width face_height facial_landmarks expression"
    )
    for name, listed in rows.items() if form == "csv" else ():
        files[f"{name}.csv"] = table((*header.split(), "valence", "arousal"), *listed)
    assert build(write(tmp_path / "affectnet", files), tmp_path / "data", *words) == 0
    for split in ("train", "validation"):
        assert sorted(n for n, _ in labels(tmp_path / "data", split).values()) == sorted(EMOTIONS)
    assert (
        list(ledger(tmp_path / "data").values()).count("'contempt' is not an emotion of the seven")
        == 2
    )
    if form == "csv":
        assert open_records("x", "all", tmp_path / "data").images([0], 20).shape == (1, 20, 20, 3)


CODES = {"AF": "fear", "AN": "anger", "DI": "disgust", "HA": "happiness", "NE": "neutral",
         "SA": "sadness", "SU": "surprise"}  # fmt: skip


def test_kdef(tmp_path: Path):
    files = {
        f"KDEF/{session}{person}/{session}{person}{code}{angle}.JPG": picture(n, ".jpg")
        for n, (session, person, code, angle) in enumerate(
            itertools.product("AB", ("F01", "M02"), CODES, ("S", "HL", "FR"))
        )
    }
    source = write(tmp_path / "kdef", {**files, "KDEF/AF01/AF01XX.JPG": picture()})
    assert build(source, tmp_path / "data", "--folds=2", builder="face_folder/folds") == 0
    assert labels(tmp_path / "data") == {
        name[:-4]: (CODES[Path(name).name[4:6]], Path(name).name[1:4]) for name in files
    }
    assert ledger(tmp_path / "data") == {"KDEF/AF01/AF01XX.JPG": "its name is not as published"}
    columns = open_records("x", "all", tmp_path / "data").columns
    assert set(columns["content"]) == {"S", "HL", "FR"} and set(columns["gender"]) == {
        "female",
        "male",
    }


def test_jaffe(tmp_path: Path):
    codes = {"FE" if code == "AF" else code: name for code, name in CODES.items()}
    files = {
        f"jaffe/{person}.{code}{n}.{n}.tiff": picture(n, ".tiff")
        for n, (person, code) in enumerate(itertools.product(("KA", "KL", "NA"), codes), 1)
        if n < 10
    }
    source = write(tmp_path / "jaffe", {**files, "jaffe/README": "about them"})
    assert build(source, tmp_path / "data", "--folds=2", builder="face_folder/folds") == 0
    assert labels(tmp_path / "data") == {
        name[:-5]: (codes[Path(name).name[3:5]], Path(name).name[:2]) for name in files
    }


def test_ck(tmp_path: Path):
    names = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
    files: dict[str, bytes | str] = {}
    right: Labels = {}
    for number, name in enumerate(names):
        folder = f"S{number + 5:03}/001"
        for frame in range(1, 6):
            path = f"cohn-kanade-images/{folder}/{folder.replace('/', '_')}_{frame:08}"
            files[f"{path}.png"] = picture(frame)
            if frame >= 3 and name != "contempt" and number != 7:
                right[path] = (name, folder[:4])
        if number != 7:
            label = f"Emotion/{folder}/{folder.replace('/', '_')}_00000005_emotion.txt"
            files[label] = f"   {number}.0000000e+00\n"
    source = write(tmp_path / "ck", files)
    assert build(source, tmp_path / "data", "--folds=2", builder="face_folder/folds") == 0
    assert labels(tmp_path / "data") == right
    reasons = list(ledger(tmp_path / "data").values())
    assert reasons.count("not one of the last 3 frames of its sequence") == 14
    assert reasons.count("no label is published for it") == 5
    assert reasons.count("'contempt' is not an emotion of the seven") == 3
    assert build_summary("x/folds", tmp_path / "data")["ignored"] == {"read for labels": 7}


def test_ck_in_class_folders_keeps_its_people(tmp_path: Path):
    """Kaggle's CK+48: the label is the folder, the person is in the name."""
    words = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
    files = {
        f"CK+48/{word}/S{person:03}_00{n}_0000001{frame}.png": picture(frame)
        for n, word in enumerate(words)
        for person in (10, 11, 130)
        for frame in range(3)
    }
    source = write(tmp_path / "ck48", files)
    assert build(source, tmp_path / "data", "--folds=3", builder="face_folder/folds") == 0
    assert labels(tmp_path / "data") == {
        name[:-4]: (name.split("/")[1].replace("happy", "happiness"), Path(name).name[:4])
        for name in files
        if "contempt" not in name
    }
    people = [{who for _, who in labels(tmp_path / "data", f"fold_{n}").values()} for n in range(3)]
    assert [len(found) for found in people] == [1, 1, 1] and len(set.union(*people)) == 3


@pytest.mark.parametrize("form", ["published", "manifest and boxes", "manifest with boxes"])
def test_expw(tmp_path: Path, form: str):
    rows = [("angry_1.jpg", 0, 4, 6, 36, 36, 3), ("angry_1.jpg", 1, 4, 40, 70, 36, 0),
            ("happy_2.jpg", 0, 2, 2, 50, 50, 6)]  # fmt: skip
    files: dict[str, bytes | str] = {
        f"image/origin/{name}": picture(n, ".jpg", 80)
        for n, name in enumerate({r[0]: 0 for r in rows})
    }
    words: tuple[str, ...] = ()
    boxes = [(r[0], r[3], r[2], r[4] - r[3], r[5] - r[2]) for r in rows]
    if form == "published":
        files["label/label.lst"] = "".join(
            f"{name} {face} {top} {left} {right} {bottom} 50.1 {label}\n"
            for name, face, top, left, right, bottom, label in rows
        )
    elif form == "manifest and boxes":
        files["manifest.csv"] = table(("path", "label"), *((r[0], FER[r[6]]) for r in rows))
        (tmp_path / "boxes.csv").write_text(table(("file", "x", "y", "width", "height"), *boxes))
        words = ("--detector=boxes", f"--boxes={tmp_path / 'boxes.csv'}")
    else:
        header = ("path", "x", "y", "width", "height", "label")
        listed = [(*box, FER[row[6]]) for box, row in zip(boxes, rows, strict=True)]
        files["manifest.csv"] = table(header, *listed)
    source = write(tmp_path / "expw", files)
    assert build(source, tmp_path / "data", "--folds=2", *words, builder="face_folder/folds") == 0
    assert {name: found for name, (found, _) in labels(tmp_path / "data").items()} == {
        "image/origin/angry_1_0": "happiness",
        "image/origin/angry_1_1": "anger",
        "image/origin/happy_2": "neutral",
    }
    records = open_records("x", "all", tmp_path / "data")
    assert {len(labels(tmp_path / "data", f"fold_{n}")) for n in (0, 1)} == {1, 2}  # by picture
    row = records.columns["record_id"].tolist().index("x/image/origin/angry_1_1")
    assert records.images([row], 32).shape == (1, 32, 32, 3)


def test_faces_without_boxes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = table(("path", "label"), ("a.jpg", "happy"), ("a.jpg", "sad"))
    source = write(tmp_path / "set", {"a.jpg": picture(), "manifest.csv": text})
    assert build(source, tmp_path / "data", builder="face_folder/folds") == 2
    assert "several faces of a picture need the columns x, y, width" in capsys.readouterr().err


def test_oulu_casia_and_people_above_their_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = [
        f"{light}/{how}/P{person:03}/{label}/{n:03}.jpeg"
        for light, how, label in (("VL", "Strong", "Anger"), ("NI", "Dark", "Fear"))
        for person in range(1, 31)
        for n in range(2)
    ]
    source = write(tmp_path / "oulu", {name: picture() for name in names})
    assert build(source, tmp_path / "1", builder="face_folder/grouped") == 0
    assert "30 folders such as 'P001' are read as people" in capsys.readouterr().out
    people = [
        {who for _, who in labels(tmp_path / "1", split).values()}
        for split in ("train", "validation", "test")
    ]
    assert sum(map(len, people)) == 30 == len(set.union(*people)) and all(people)
    # Folders that may be people or something else.
    for number in range(40):
        write(
            tmp_path / "two", {f"session_{number}/happy/x.png": picture(), "sad/y.png": picture()}
        )
    assert build(tmp_path / "two", tmp_path / "2", builder="face_folder/grouped") == 2
    printed = capsys.readouterr().err
    assert "40 folders such as 'session_0' may be people" in printed
    assert "--subject_from=folder" in printed and "a manifest" in printed
    for option, count in (("none", 0), ("folder", 40)):
        words = [f"--subject_from={option}", "--overwrite"]
        assert build(tmp_path / "two", tmp_path / "2", *words, builder="face_folder/grouped") == 0
        assert build_summary("x/grouped", tmp_path / "2")["subjects"] == count
    assert build(tmp_path / "two", tmp_path / "3", "--part=test") == 0


def test_people_may_be_below_the_emotion(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    people = [f"{first} {last}" for first in ("Anna", "Bo", "Cem", "Dora") for last in "ABCDEFGH"]
    names = [f"{label}/{who}/x.png" for label in ("happy", "sad") for who in people]
    source = write(tmp_path / "set", {name: picture() for name in names})
    assert build(source, tmp_path / "data", builder="face_folder/grouped") == 2
    assert "32 folders such as 'Anna A' may be people" in capsys.readouterr().err
    option = "--subject_from=folder"
    assert build(source, tmp_path / "data", option, builder="face_folder/grouped") == 0
    assert "32 folders such as 'Anna A' are read as people" in capsys.readouterr().out
    assert build_summary("x/grouped", tmp_path / "data")["subjects"] == 32


def test_sfew(tmp_path: Path):
    folders = {"Train/Train_Aligned_Faces": "train", "Val/Val_Aligned_Faces": "validation"}
    words = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
    files = {
        f"{folder}/{word}/AboutABoy_00014028{n}_00000008.png": picture(n)
        for folder in folders
        for n, word in enumerate(words)
    }
    test = "Test/Test_Aligned_Faces/Airheads_000519240_00000005.png"
    others = {test: picture(), "training.csv": "epoch,loss\n"}  # not AffectNet's
    assert build(write(tmp_path / "sfew", {**files, **others}), tmp_path / "data") == 0
    for folder, split in folders.items():
        found = labels(tmp_path / "data", split)
        assert sorted(name for name, _ in found.values()) == sorted(EMOTIONS)
        assert all(name.startswith(folder) for name in found)
    assert ledger(tmp_path / "data")[test].startswith("unknown emotion 'Test_Aligned_Faces'")


RAVDESS = ("neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")


@pytest.mark.parametrize("form", ["published", "manifest"])
def test_ravdess_and_clips_of_ones_own(tmp_path: Path, form: str, write_video: WriteVideo):
    frames = [np.full((48, 48, 3), 9 * n, np.uint8) for n in range(4)]
    rows: list[tuple[str, ...]] = [("video_id", "participant_id", "category", "reaction_type")]
    for number, name in enumerate(RAVDESS, 1):
        clip, actor = (
            f"02-01-{number:02}-01-01-01-{number % 3 + 1:02}",
            f"Actor_{number % 3 + 1:02}",
        )
        write_video(tmp_path / "clips" / actor / f"{clip}.mp4", frames)
        rows.append((clip, actor, "speech", name))
    write(tmp_path / "clips", {"notes.txt": "x", "cover.jpg": picture()})
    words = ["--folds=3", "--detector=none", "--frames=2"]
    if form == "manifest":
        (tmp_path / "metadata.csv").write_text(table(*rows))
        words.append(f"--manifest={tmp_path / 'metadata.csv'}")
    assert build(tmp_path / "clips", tmp_path / "data", *words, builder="clips/folds") == 0
    found = labels(tmp_path / "data")
    assert len(found) == 14 and {name for name, _ in found.values()} == set(EMOTIONS)
    for record, (name, person) in found.items():
        number = int(record.split("/")[1].split("-")[2])
        assert name == RAVDESS[number - 1] and person[-2:] == f"{number % 3 + 1:02}"
    reasons = ledger(tmp_path / "data")
    assert reasons["cover.jpg"] == "a picture, not a clip"
    assert any("calm" in reason for reason in reasons.values()) and len(reasons) == 3


def test_a_zip_of_windows(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for n, part in enumerate(("train", "test") * 2):
            archive.writestr(f"fer\\{part}\\happiness\\{n}.png", picture(n))
        archive.writestr("fer\\train\\", b"")
    assert build(tmp_path / "x.zip", tmp_path / "data") == 0
    assert set(labels(tmp_path / "data", "test")) == {f"fer/test/happiness/{n}" for n in (1, 3)}


def test_a_manifest_of_several_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [(f"{name}/{n}.png", "happy", name) for name in ("one", "two") for n in range(4)]
    rows += [("three/0.png", "sad", "three")]
    files = {path: picture(n) for n, (path, _, name) in enumerate(rows) if name != "three"}
    source = write(
        tmp_path / "set", {**files, "manifest.csv": table(("path", "label", "dataset"), *rows)}
    )
    words = ("--folds=2", "--overwrite")
    assert build(source, tmp_path / "data", *words, builder="face_folder/folds") == 0
    assert "rows of datasets without a file are left out (three)" in capsys.readouterr().out
    assert len(labels(tmp_path / "data")) == 8 and not ledger(tmp_path / "data")
    words += ("--dataset=two",)
    assert build(source, tmp_path / "data", *words, builder="face_folder/folds") == 0
    assert set(labels(tmp_path / "data")) == {f"two/{n}" for n in range(4)}


JPEG = picture(1, ".jpg", 64)
CONTENTS: dict[str, bytes] = {
    "png": picture(),
    "jpeg": JPEG,
    "gif": picture(0, ".gif"),
    "avif": picture(0, ".avif"),
    "half": JPEG[: len(JPEG) // 2],
    "motion": JPEG + b"ftypmp42" * 9999,  # what a phone puts behind a picture
    "empty": b"",
    "text": b"path,label\n",
}
READABLE = {"png", "jpeg", "gif", "avif", "motion"}
FILES = st.tuples(
    st.sampled_from(["", "train/", "test/", "train/deep/", "__MACOSX/"]),
    st.sampled_from(["", "happy/", "Sad/", "fear/", "contempt/", "joyful/", ".hidden/"]),
    st.one_of(
        st.sampled_from(
            ["a", "a\rb.png", "a.png", "a.jpg", "a.png.png", ".a.png", "._a.png", "..png", "a."]
        ),
        st.sampled_from([".DS_Store", "Thumbs.db", "desktop.ini", "b.GIF", "c.mts", "ä ü.jfif"]),
        st.text(
            st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
            min_size=1,
            max_size=8,
        ).filter(lambda name: name not in (".", "..")),  # fmt: skip
    ),
)
SYSTEM = {".ds_store", "thumbs.db", "desktop.ini"}


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],
)
@given(tree=st.dictionaries(FILES, st.sampled_from(sorted(CONTENTS)), min_size=1, max_size=12))
@pytest.mark.parametrize("zipped", [False, True])
def test_no_file_vanishes(tmp_path_factory: pytest.TempPathFactory, tree: Any, zipped: bool):
    folder = tmp_path_factory.mktemp("tree")
    # So many that no fold is without a picture.
    known = {f"train/happy/known {n}.png": "png" for n in range(16)}
    files = known | {"".join(parts): content for parts, content in tree.items()}
    source = folder / "source"
    for name, content in list(files.items()):
        try:
            write(source, {name: CONTENTS[content]})
        except OSError:  # a name that is too long for the file system
            del files[name]
    if zipped:
        with zipfile.ZipFile(folder / "x.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name.replace("\\", "_")), CONTENTS[content])
        files = {name.replace("\\", "_"): content for name, content in files.items()}
        source = folder / "x.zip"
    assert build(source, folder / "data", "--folds=2", builder="face_folder/folds") == 0
    summary = build_summary("x/folds", folder / "data")
    ignored = sum(summary["ignored"].values())
    assert len(files) == summary["records"] + sum(summary["skipped"].values()) + ignored
    assert sum(summary["skipped"].values()) == len(ledger(folder / "data"))
    for name in files:
        base = os.path.basename(name).lower()
        if base.startswith(("._", "~$")) or base in SYSTEM or "__MACOSX/" in name:
            ignored -= 1
    assert ignored == 0
    readable = [
        name
        for name, content in files.items()
        if content in READABLE
        and not os.path.basename(name).startswith("._")
        and os.path.basename(name).lower() not in SYSTEM
        and "__MACOSX" not in name
        and any(part in ("happy", "Sad", "sad", "fear") for part in name.split("/")[:-1])
    ]
    assert summary["records"] == len(readable)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("C:\\Users\\me\\happy\\1.png", "happy/1.png"),
        ("/home/me/set/faces/happy/1.png", "happy/1.png"),
        ("faces/top.png", "top.png"),
        ("set/faces/happy/1.png", "happy/1.png"),
        ("HAPPY/1.PNG", "happy/1.png"),
        ("sad/Ame\u0301lie.png", "sad/Amélie.png"),
    ],
)
def test_a_path_from_outside_the_source_or_from_windows_is_found(written: str, meant: str):
    files = ["happy/1.png", "sad/1.png", "top.png", "sad/Amélie.png"]
    assert layouts._finder(files, "faces")(written, "") == meant


@pytest.mark.parametrize("written", ["/home/me/top.png", "train/happy/1.png", "x/1.png"])
def test_a_path_of_another_folder_is_not_found(written: str):
    with pytest.raises(InputError, match="no such file"):
        layouts._finder(["happy/1.png", "sad/1.png", "top.png"], "faces")(written, "")


def test_numbers_of_a_manifest_have_limits():
    votes = {name: index for index, name in enumerate(schema.EMOTIONS)}
    cast = dict.fromkeys(votes, "0")
    with pytest.raises(InputError, match="fear is not a number of at least 0"):
        layouts.read_entry(cast | {"anger": "3", "fear": "nan"}, votes, {})
    with pytest.raises(InputError, match="fear is not a number of at least 0"):
        layouts.read_entry(cast | {"anger": "3", "fear": "-1"}, votes, {})

    def read(**cells: str) -> dict[str, Any]:
        return layouts.read_entry({"label": "happy"} | cells, {}, {})

    known = read(frame_index="12.0", timestamp="1,5", age="nan", label_confidence="0.5")
    assert (known["frame_index"], known["timestamp"]) == (12, 1.5) and "age" not in known
    for column, cell in (
        ("frame_index", "99999999999"),
        ("frame_index", "1.5"),
        ("timestamp", "-1"),
        ("age", "1e9"),
        ("label_confidence", "2"),
    ):
        with pytest.raises(InputError, match=f"{column} is not a"):
            read(**{column: cell})
