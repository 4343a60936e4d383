"""Folders, zips and CSVs of faces become records; what does not is in the ledger, counted."""

import collections
import csv
import importlib.util
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from fer_jax import schema
from fer_jax.__main__ import main
from fer_jax.data.records import build_summary, open_records
from fer_jax.media import images
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
        "set/notes.txt": b"not an image",
        "__MACOSX/set/._1.png": b"not a file of the set",
        "manifest.csv": manifest(rows),
    }
    assert build(make_zip(tmp_path / "x.zip", files), tmp_path / "data") == 0
    reasons = ledger(tmp_path / "data")
    assert reasons.pop("set/contempt.png").startswith("unknown emotion 'contempt'")
    assert reasons == {
        "set/gone.png": "no such file",
        "x/set/empty": "empty file",
        "x/set/text": "unreadable image",
        "x/set/cut": "truncated JPEG",
        "set/notes.txt": "not in the manifest",
        "set/unnamed.png": "not in the manifest",
    }
    summary = build_summary("x", tmp_path / "data")
    assert (summary["inputs"], summary["records"]) == (47, 40)
    assert summary["ignored"] == {"a system file": 1, "read for labels": 1}
    assert summary["inputs"] == summary["records"] + sum(summary["skipped"].values())
    records = open_records("x", "all", tmp_path / "data")
    assert len(records) == 40
    assert "x/NA" in records.columns["subject_id"]
    assert set(records.columns["emotion"]) == {
        EMOTIONS.index(w) for w in ("happiness", "sadness", "neutral")
    }
    # Non-square pictures keep their centre: 24 x 32 becomes 24 x 24.
    assert records.images([0], 24).shape == (1, 24, 24, 3)


def test_a_labelled_file_asks_for_no_hint_and_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files, rows = people()
    source = make_zip(tmp_path / "x.zip", files)
    (tmp_path / "manifest.csv").write_bytes(manifest(rows))  # beside the source
    hint, resolve = Mock(return_value=""), Mock(side_effect=Path.resolve)
    monkeypatch.setattr(schema, "did_you_mean", hint)
    # A function, because Path binds it as a method.
    monkeypatch.setattr(Path, "resolve", lambda path, *rest: resolve(path, *rest))
    assert build(source, tmp_path / "data", "--dry_run") == 0
    # Both are slow: with each of 32,298 pictures, they took a tenth of a build.
    assert hint.call_count == 0 and 0 < resolve.call_count < len(rows)


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
        (["build", "face_folder", "--source=.", "--name=x"], "name the protocol"),
        (["build", "face_folder/grouped", "--source=nowhere", "--name=x"], "does not exist"),
        (["build", "face_folder/grouped", "--source=.", "--name=../x"], "lower case"),
        (["build", "face_folder/grouped", "--name=x"], "needs --source"),
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
    for path in ("../x.png", "happy/../../x.png", "/tmp/x.png", "happy\\..\\..\\x.png"):
        refused({path: picture(0)}, "a path that leaves it")
    refused({"x.png": picture(0)}, "no file is in a folder named after an emotion")
    names = {f"pictures/{number}/x.png": picture(0) for number in range(6)}
    says = "the folders 'pictures/0', 'pictures/1', 'pictures/2', 'pictures/3' and 2 more and the "
    refused(names, says + "files 'pictures/0/x.png', ")
    refused(names, "see data_builders/face_folder/README.md")
    refused(files | {"manifest.csv": b"a,b\n1,2\n"}, "needs the columns path and label")
    refused(files | {"manifest.csv": manifest(rows + rows[:1])}, "names 1 files twice")
    other = [row | {"dataset": "xx"} for row in rows]
    source = make_zip(tmp_path / "x.zip", files | {"manifest.csv": manifest(other)})
    assert build(source, tmp_path / "data", "--dataset=x") == 2
    assert "no dataset 'x'; did you mean 'xx'" in capsys.readouterr().err
    refused(files | {"manifest.csv": manifest(rows)}, "would be empty")
    refused(files | {"manifest.csv": b"path,label\n\xff,happy\n"}, "not a CSV in UTF-8")
    refused(files | {"manifest.csv": b'path,label\n"' + b"a" * 1_100_000}, "is not a CSV")
    refused(files | {"manifest.csv": b"path,x\na,b,c,d\n"}, "it has path, x")
    refused(files | {"manifest.csv": b""}, "it has none")
    cut = make_zip(tmp_path / "x.zip", files).read_bytes()[:-30]
    (tmp_path / "x.zip").write_bytes(cut)
    assert build(tmp_path / "x.zip", tmp_path / "data") == 2
    assert "neither a folder, nor a zip" in capsys.readouterr().err
    (tmp_path / "x.csv").write_bytes(b"emotion,pixels,Usage\n0,\xff,Training\n")
    assert build(tmp_path / "x.csv", tmp_path / "data") == 2
    assert "is not a CSV in UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
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


def spoiled(path: Path, name: str, change: Callable[[bytearray, int], None]) -> Path:
    """The same zip after a change at the local header of one of its files."""
    data = bytearray(path.read_bytes())
    change(data, data.index(b"PK\x03\x04", data.index(name.encode()) - 30))
    path.write_bytes(data)
    return path


def test_files_that_an_archive_cannot_give_have_their_reason(tmp_path: Path):
    names = [f"{word}/{n}.png" for word in ("happy", "sad") for n in range(4)]
    files = {name: picture(n) for n, name in enumerate(names)}
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)

    def encrypted(data: bytearray, start: int) -> None:
        data[start + 6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1  # the first of the archive

    def damaged(data: bytearray, start: int) -> None:
        data[start + 30 + len(names[1])] = 7  # a block of a kind that deflate does not have

    def exchanged(data: bytearray, start: int) -> None:
        data[start + 80 : start + 90] = bytes(10)  # found by the checksum

    spoiled(path, names[0], encrypted)
    spoiled(path, names[1], damaged)
    spoiled(path, names[2], lambda data, start: data.__setitem__(start, 0))
    spoiled(path, names[3], exchanged)
    assert build(path, tmp_path / "data", "--folds=2", protocol="folds") == 0
    assert ledger(tmp_path / "data", "folds") == {
        "x/happy/0": "encrypted, or compressed in an unknown way",
        "x/happy/1": "damaged in the archive",
        "x/happy/2": "damaged in the archive",
        "x/happy/3": "damaged in the archive",
    }
    summary = build_summary("x", tmp_path / "data")
    assert (summary["inputs"], summary["records"]) == (8, 4)


def test_a_member_that_unpacks_to_more_than_it_declares_is_refused(tmp_path: Path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(4):
            archive.writestr(f"happy/{n}.png", picture(n))
        archive.writestr("happy/bomb.png", bytes(300 * 2**20))
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", 1000)
    path.write_bytes(data)
    tracemalloc.start()
    assert build(path, tmp_path / "data", "--folds=2", protocol="folds") == 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ledger(tmp_path / "data", "folds") == {"x/happy/bomb": "damaged in the archive"}
    assert most < 100 * 2**20


def enormous_png(width: int, height: int) -> bytes:
    """Some hundred bytes that claim so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


CV2_FIRST = """
import cv2, sys
from fer_jax.errors import InputError
from fer_jax.media import images

for name in sys.argv[1:]:
    try:
        print(images.decode(open(name, "rb").read()).shape)
    except InputError as error:
        print(error)
"""


def test_sizes_are_checked_also_where_opencv_was_imported_first(tmp_path: Path):
    (tmp_path / "small.png").write_bytes(picture(0))
    (tmp_path / "huge.png").write_bytes(enormous_png(12_000, 12_000))
    (tmp_path / "vast.png").write_bytes(enormous_png(65_000, 65_000))
    (tmp_path / "words.png").write_bytes(b"no picture")
    names = [str(tmp_path / f"{name}.png") for name in ("small", "huge", "vast", "words")]
    environment = {k: v for k, v in os.environ.items() if k != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    words = [sys.executable, "-c", CV2_FIRST, *names]
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    shape = images.decode(picture(0)).shape
    assert ran.stdout.splitlines() == [str(shape), OVER, OVER, "unreadable image"]


OVER = "over the limit of 64000000 pixels; OPENCV_IO_MAX_IMAGE_PIXELS=N raises it"


def test_a_small_file_that_claims_gigapixels_is_not_decoded(tmp_path: Path):
    for number in range(4):
        path = tmp_path / "in" / "happy" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (tmp_path / "in" / "happy" / "huge.png").write_bytes(enormous_png(65_000, 65_000))
    (tmp_path / "in" / "happy" / "large.png").write_bytes(enormous_png(30_000, 30_000))
    words = [f"--source={tmp_path / 'in'}", f"--data_dir={tmp_path / 'data'}", "--name=x"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "build", "face_folder/folds", *words, "--folds=2"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ledger(tmp_path / "data", "folds") == {
        "x/happy/huge": OVER,
        "x/happy/large": OVER,
    }


# The process limits itself: nothing may run between a fork and the program, with JAX's threads.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))
from fer_jax.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_short_and_long_rows_of_a_manifest_are_rows(tmp_path: Path):
    files = {f"{n}.png": picture(n) for n in range(6)}
    text = "label,path\nhappy,0.png,more,cells\nsad,1.png\nsad\nhappy,2.png\nsad,3.png\r\n,4.png\n"
    source = make_zip(tmp_path / "x.zip", files | {"manifest.csv": text.encode()})
    assert build(source, tmp_path / "data", "--folds=2", protocol="folds") == 0
    assert ledger(tmp_path / "data", "folds") == {
        "manifest.csv: row 4": "no file is named",
        "4.png": "no label",
        "5.png": "not in the manifest",
    }
    assert build_summary("x", tmp_path / "data")["records"] == 4


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A limit of the file size stands for it; the shards are written by C++."""
    source = make_zip(tmp_path / "x.zip", {f"happy/{n}.png": picture(n) for n in range(6)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        assert build(source, tmp_path / "data", "--folds=2", protocol="folds") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large; make room and rerun the same command" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_links_out_of_a_folder_are_not_read(tmp_path: Path):
    (tmp_path / "in" / "happy").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "in" / "happy" / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "secret.png").write_bytes(picture(9))
    (tmp_path / "in" / "happy" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "sad").symlink_to(tmp_path / "in" / "happy")
    assert build(tmp_path / "in", tmp_path / "data", "--folds=2", protocol="folds") == 0
    assert ledger(tmp_path / "data", "folds") == {
        "happy/link.png": "a link out of the folder",
        "sad": "a link to a folder",
    }


def test_every_face_of_a_photo_is_a_record_of_its_own_name(tmp_path: Path):
    files = {f"happy/{name}.png": picture(n, 90) for n, name in enumerate(("a", "a_0", "b", "c"))}
    boxes = ["file,x,y,width,height,ignore"]
    boxes += ["happy/a.png,0,0,20,20,0", "happy/a.png,30,30,40,40,0", "happy/a.png,9,9,9,9,1"]
    boxes += ["a_0.png,0,0,30,30,0", "happy/c.png,5,5,30,30,0", "happy/c.png,200,5,30,30,0"]
    (tmp_path / "boxes.csv").write_text("\n".join(boxes))
    words = ["--folds=2", "--detector=boxes", f"--boxes={tmp_path / 'boxes.csv'}"]
    source = make_zip(tmp_path / "x.zip", files)
    assert build(source, tmp_path / "all", *words, "--choice=all", protocol="folds") == 0
    columns = open_records("x", "all", tmp_path / "all").columns["record_id"]
    assert sorted(columns) == ["x/happy/a_0", "x/happy/a_0_0", "x/happy/a_1", "x/happy/c_0"]
    summary = build_summary("x", tmp_path / "all")
    assert (summary["inputs"], summary["inputs_with_faces"], summary["records"]) == (4, 3, 4)
    assert ledger(tmp_path / "all", "folds") == {"x/happy/b": "no face"}
    assert build(source, tmp_path / "one", *words, protocol="folds") == 0
    columns = open_records("x", "all", tmp_path / "one").columns["record_id"]
    assert sorted(columns) == ["x/happy/a", "x/happy/a_0", "x/happy/c"]


# Haar misses one of the three faces in the first photo.
@pytest.mark.parametrize(("detector", "first"), [("yunet", 3), ("haar", 2), ("boxes", 3)])
def test_real_photos_become_records_of_their_faces(
    shared: Path, tmp_path: Path, yunet_model: Path, detector: str, first: int
):
    photos = shared / "data" / "photos"
    names = ["photo_10", "photo_13", "photo_26", "photo_28"]  # 3, 2, 2 and 3 faces
    source = make_zip(
        tmp_path / "x.zip",
        {f"neutral/{n}.jpg": (photos / f"{n}.jpg").read_bytes() for n in names},
    )
    words = ["--folds=2", f"--detector={detector}", "--choice=all", "--margin=0.2"]
    words += [f"--boxes={photos / 'boxes.csv'}"] if detector == "boxes" else []
    words += [f"--detector_model={yunet_model}"] if detector == "yunet" else []
    assert build(source, tmp_path / "data", *words, protocol="folds") == 0
    records = open_records("x", "all", tmp_path / "data")
    per_photo = [sum(name in one for one in records.columns["record_id"]) for name in names]
    assert per_photo == [first, 2, 2, 3]
    summary = build_summary("x", tmp_path / "data")
    assert summary["inputs"] == summary["inputs_with_faces"] == 4
    assert summary["options"]["faces"]["detector"] == detector
    with (tmp_path / "data/x/folds/1.0.0/quality.csv").open(newline="") as text:
        assert len(list(csv.DictReader(text))) == len(records)


def test_real_press_photos_are_aligned(shared: Path, tmp_path: Path, yunet_model: Path):
    """The detector finds the face of each, and sees it where the framing puts it."""
    files, rows = {}, []
    with (shared / "data" / "faces" / "manifest.csv").open(newline="") as text:
        entries = [row for row in csv.DictReader(text) if row["dataset"] == "lfw_gray"]
    with zipfile.ZipFile(shared / "data" / "faces" / "lfw_gray.zip") as archive:
        for row in entries[::40]:
            files[row["path"]] = archive.read(row["path"])
            rows.append(row)
    source = make_zip(tmp_path / "lfw.zip", files | {"manifest.csv": manifest(rows)})
    words = [f"--source={source}", f"--data_dir={tmp_path}", "--name=lfw_gray", "--folds=2"]
    words += ["--detector=yunet", f"--detector_model={yunet_model}"]
    assert main(["build", "face_folder/folds", *words]) == 0
    summary = build_summary("lfw_gray", tmp_path)
    assert len(rows) == 30 and "no face" not in summary["skipped"]
    contempt = sum(row["label"] == "contempt" for row in rows)
    assert summary["records"] == summary["inputs"] - contempt == 30 - contempt
    records = open_records("lfw_gray", "all", tmp_path)
    detect = cv2.FaceDetectorYN.create(str(yunet_model), "", (256, 256), 0.6)
    eyes = []
    for face in records.images(range(len(records)), 256):
        found = detect.detect(np.ascontiguousarray(face[..., ::-1]))[1]
        assert found is not None
        eyes.append(found[0, 4:8] / 256)
    np.testing.assert_allclose(np.median(eyes, axis=0), [0.31, 0.38, 0.69, 0.38], atol=0.03)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tensorflow", "mlcroissant"))),
    reason="the command `tfds` needs tensorflow and mlcroissant",
)
def test_the_command_of_tfds_builds_the_same(tmp_path: Path):
    source = tmp_path / "faces"
    files, rows = people()
    for name, data in (files | {"manifest.csv": manifest(rows)}).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "tensorflow_datasets.scripts.cli.main", "build"]
    command += [str(root / "data_builders" / "face_folder"), "--config=grouped"]
    command += [f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={source}"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert build(source, tmp_path / "ours", "--name=face_folder") == 0
    one, other = (build_summary("face_folder", tmp_path / place) for place in ("tfds", "ours"))
    assert one == other and one["records"] == 40
    ids = [
        open_records("face_folder", "train", tmp_path / place).columns["record_id"].tolist()
        for place in ("tfds", "ours")
    ]
    assert ids[0] == ids[1]


def test_an_empty_part_says_what_was_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(20):
        (tmp_path / "x" / "img").mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / "img" / f"{number}.png").write_bytes(picture(number))
    rows = [{"path": f"img/{n}.png", "label": "bored", "content": "c"} for n in range(20)]
    (tmp_path / "x" / "manifest.csv").write_bytes(manifest(rows))
    for protocol in ("grouped", "folds", "content", "given"):
        assert build(tmp_path / "x", tmp_path / "data", protocol=protocol) == 2
        said = capsys.readouterr().err
        assert "all 20 inputs were skipped (unknown emotion 'bored'" in said, protocol
    rows[0]["label"] = "fear"
    (tmp_path / "x" / "manifest.csv").write_bytes(manifest(rows))
    for words, protocol in (((), "grouped"), (("--content_parts=train=c;test=d",), "content")):
        assert build(tmp_path / "x", tmp_path / "data", *words, protocol=protocol) == 2
        said = capsys.readouterr().err
        assert "would be empty: " in said
        assert "; 19 inputs were skipped (unknown emotion 'bored'" in said


def test_class_folders_may_be_numbered(tmp_path: Path):
    names = ("1_anger", "02. Happy", "3 - sad", "4-neutral")
    for number in range(40):
        folder = tmp_path / "x" / names[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(number))
    assert build(tmp_path / "x", tmp_path / "data", protocol="folds") == 0
    classes = build_summary("x/folds", tmp_path / "data")["classes"].values()
    counts = sum((collections.Counter(one["emotion"]) for one in classes), collections.Counter())
    assert counts == dict.fromkeys(("anger", "happiness", "sadness", "neutral"), 10)
