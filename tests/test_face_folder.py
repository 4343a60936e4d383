"""Folders, zips and CSVs of faces become records; what does not is in the ledger, counted."""

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_jax.__main__ import main
from fer_jax.data.records import build_summary, open_records
from fer_jax.schema import EMOTIONS


def picture(seed: int, size: int = 24) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (size, size + 8, 3), dtype=np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def manifest(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted({key for row in rows for key in row}))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def people(count: int = 40) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    files, rows = {}, []
    for number in range(count):
        path = f"set/{number}.png"
        files[path] = picture(number)
        subject = "NA" if number == 0 else f"S{number}"
        label = ["happy", "Sadness", "neutral"][number % 3]
        rows.append({"path": path, "label": label, "subject_id": subject})
    return files, rows


def build(source: Path, data_dir: Path, *words: str, protocol: str = "grouped") -> int:
    place = [f"--source={source}", f"--data_dir={data_dir}", "--name=x", *words]
    return main(["build", f"face_folder/{protocol}", *place])


def ledger(data_dir: Path, protocol: str = "grouped") -> dict[str, str]:
    with (data_dir / "x" / protocol / "1.0.0" / "ledger.csv").open(newline="") as file:
        return {row["item"]: row["reason"] for row in csv.DictReader(file)}


def test_a_zip_with_a_manifest_and_everything_that_can_be_wrong(tmp_path: Path):
    files, rows = people()
    rows += [
        {"path": "set/contempt.png", "label": "contempt"},
        {"path": "set/gone.png", "label": "fear"},
        {"path": "set/empty.png", "label": "fear"},
        {"path": "set/text.png", "label": "fear"},
        {"path": "set/cut.jpg", "label": "fear"},
    ]
    whole = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    files |= {
        "set/contempt.png": picture(1),
        "set/empty.png": b"",
        "set/text.png": b"<html>",
        "set/cut.jpg": whole[: len(whole) // 2],
        "set/unnamed.png": picture(2),
        "set/notes.txt": b"not an image, not an input",
        "manifest.csv": manifest(rows),
    }
    assert build(make_zip(tmp_path / "x.zip", files), tmp_path / "data") == 0
    reasons = ledger(tmp_path / "data")
    assert reasons.pop("set/contempt.png").startswith("'contempt' is not an emotion")
    assert reasons == {
        "set/gone.png": "no such file",
        "x/set/empty": "empty file",
        "x/set/text": "unreadable image",
        "x/set/cut": "truncated JPEG",
        "set/unnamed.png": "not in the manifest",
    }
    summary = build_summary("x", tmp_path / "data")
    assert (summary["inputs"], summary["records"]) == (46, 40)
    assert summary["inputs"] == summary["records"] + sum(summary["skipped"].values())
    records = open_records("x", "all", tmp_path / "data")
    assert len(records) == 40
    assert "x/NA" in records.columns["subject_id"]
    assert set(records.columns["emotion"]) == {
        EMOTIONS.index(w) for w in ("happiness", "sadness", "neutral")
    }
    # Non-square pictures keep their centre: 24 x 32 becomes 24 x 24.
    assert records.images([0], 24).shape == (1, 24, 24, 3)


def test_pixels_survive_within_jpegs_error(tmp_path: Path):
    y, x = np.mgrid[:64, :64]
    smooth = np.dstack([2 * x + y, 255 - 3 * x, 100 + y]).astype(np.uint8)
    files = {
        f"data/{word}/{n}.png": cv2.imencode(".png", smooth[..., ::-1])[1].tobytes()
        for word in ("anger", "fear")
        for n in range(20)
    }
    assert build(make_zip(tmp_path / "x.zip", files), tmp_path / "data") == 0
    face = open_records("x", "train", tmp_path / "data").images([0], 64)[0]
    assert np.abs(face.astype(int) - smooth).max() < 12


def test_votes_become_distributions(tmp_path: Path):
    columns = [*EMOTIONS, "contempt", "unknown", "NF"]
    files, rows = {}, []
    for number in range(30):
        path = f"{number}.png"
        files[path] = picture(number)
        votes = dict.fromkeys(columns, 0) | {"happiness": 6, "neutral": 3, "contempt": 1}
        if number == 29:
            votes |= {"contempt": 9}
        rows.append({"path": path} | votes)
    files["manifest.csv"] = manifest(rows)
    assert (
        build(make_zip(tmp_path / "x.zip", files), tmp_path / "data", "--folds=3", protocol="folds")
        == 0
    )
    assert list(ledger(tmp_path / "data", "folds").values()) == [
        "most votes are for none of the seven emotions"
    ]
    records = open_records("x", "fold_0", tmp_path / "data")
    expected = np.zeros(7)
    expected[EMOTIONS.index("happiness")], expected[EMOTIONS.index("neutral")] = 2 / 3, 1 / 3
    np.testing.assert_allclose(records.targets("emotion", soft=True)[0], expected, rtol=1e-6)
    assert records.targets("emotion", soft=False)[0].max() == 1


def test_fer2013s_own_csv_and_its_parts(tmp_path: Path):
    pixels = " ".join(["7"] * 48 * 48)
    rows = [
        {"emotion": str(i % 7), "pixels": pixels, "Usage": usage}
        for usage in ("Training", "PublicTest", "PrivateTest")
        for i in range(7)
    ]
    rows += [{"emotion": "9", "pixels": pixels, "Usage": "Training"}]
    rows += [{"emotion": "0", "pixels": "1 2 3", "Usage": "Training"}]
    (tmp_path / "fer2013.csv").write_bytes(manifest(rows))
    assert build(tmp_path / "fer2013.csv", tmp_path / "data", protocol="given") == 0
    for split in ("train", "validation", "test"):
        records = open_records("x", split, tmp_path / "data")
        assert sorted(records.columns["emotion"]) == list(range(7))
    assert ledger(tmp_path / "data", "given") == {
        "row_00021": "emotion 9 is not 0 to 6",
        "x/row_00022": "not 48 x 48 grey values",
    }


def test_building_again_changes_nothing_and_another_source_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files, rows = people()
    source = make_zip(tmp_path / "x.zip", files | {"manifest.csv": manifest(rows)})
    assert build(source, tmp_path / "data") == 0
    first = build_summary("x", tmp_path / "data")["fingerprint"]
    assert build(source, tmp_path / "data") == 0
    assert "already built" in capsys.readouterr().out
    assert build(source, tmp_path / "data", "--overwrite") == 0
    assert build_summary("x", tmp_path / "data")["fingerprint"] == first
    assert build(source, tmp_path / "data", "--namespace=ck") == 2
    assert "namespace (was x, now ck)" in capsys.readouterr().err
    rows[5]["label"] = "fear"
    make_zip(source, files | {"manifest.csv": manifest(rows)})
    assert build(source, tmp_path / "data") == 2
    assert not list((tmp_path / "data").glob(".building_*"))


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files, rows = people()
    source = make_zip(tmp_path / "x.zip", files | {"manifest.csv": manifest(rows)})
    assert build(source, tmp_path / "data", "--dry_run") == 0
    assert "would read 40 images" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["build", "face_foldr/grouped"], "did you mean 'face_folder'"),
        (["build", "face_folder/group", "--source=.", "--name=x"], "did you mean 'grouped'"),
        (["build", "face_folder", "--source=.", "--name=x"], "say how to split"),
        (["build", "face_folder/grouped", "--source=nowhere", "--name=x"], "does not exist"),
        (["build", "face_folder/grouped", "--source=.", "--name=../x"], "lower case"),
        (["build", "face_folder/grouped", "--name=x"], "required: --source"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1


def test_bad_sources_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def refused(files: dict[str, bytes], says: str) -> None:
        assert build(make_zip(tmp_path / "x.zip", files), tmp_path / "data") == 2
        printed = capsys.readouterr().err
        assert says in printed and printed.count("\n") == 1

    files, rows = people(6)
    refused({"../x.png": picture(0)}, "a path that leaves it")
    refused({"x.png": picture(0)}, "no image stands in a folder named after an emotion")
    refused(files | {"manifest.csv": b"a,b\n1,2\n"}, "needs the columns path and label")
    refused(files | {"manifest.csv": manifest(rows + rows[:1])}, "names 1 files twice")
    other = [row | {"dataset": "xx"} for row in rows]
    refused(files | {"manifest.csv": manifest(other)}, "no dataset 'x'; did you mean 'xx'")
    refused(files | {"manifest.csv": manifest(rows)}, "would be empty")
    (tmp_path / "x.txt").write_text("x")
    assert build(tmp_path / "x.txt", tmp_path / "data") == 2


def test_another_project_reads_it_with_tfds_alone(tmp_path: Path):
    files, rows = people()
    source = make_zip(tmp_path / "x.zip", files | {"manifest.csv": manifest(rows)})
    assert build(source, tmp_path / "data") == 0
    code = (
        "import json, sys, tensorflow_datasets as tfds\n"
        "assert 'tensorflow' not in sys.modules\n"
        f"a = tfds.data_source('x/grouped', split='train', data_dir={str(tmp_path / 'data')!r})\n"
        f"b = tfds.builder_from_directory({str(tmp_path / 'data/x/grouped/1.0.0')!r})\n"
        "b = b.as_data_source('train')\n"
        "assert len(a) == len(b) and a[0]['record_id'] == b[0]['record_id']\n"
        "print(json.dumps([len(a), list(a[0]['image'].shape), sorted(a[0])]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, shape, features = json.loads(done.stdout)
    assert count == build_summary("x", tmp_path / "data")["splits"]["train"]
    assert shape == [24, 24, 3]
    assert "emotion_probabilities" in features


def test_real_sets_build_whole(shared: Path, tmp_path: Path):
    faces = shared / "data" / "faces"
    for name, protocol, expected in (("jaffe", "folds", 213), ("synth_sd", "grouped", 332)):
        words = [f"--source={faces / name}.zip", f"--data_dir={tmp_path}", f"--name={name}"]
        assert main(["build", f"face_folder/{protocol}", *words]) == 0
        assert build_summary(name, tmp_path)["records"] == expected
    assert "jaffe/NA" in open_records("jaffe", "all", tmp_path).columns["subject_id"]
