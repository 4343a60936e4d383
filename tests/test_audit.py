"""Leakage between splits is found, named, and can be left out."""

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from small_runs import write_rows

from data_builders.demo import demo_dataset_builder as demo
from data_builders.demo import draw
from fer_jax.__main__ import main
from fer_jax.data.audit import findings
from fer_jax.data.records import open_records
from fer_jax.evaluation import bootstrap, evaluate, predictions
from fer_jax.media.extraction import Found
from fer_jax.media.images import decode, encode_jpeg
from fer_jax.schema import EMOTIONS

pytestmark = pytest.mark.usefixtures("short_network")

FACES: dict[int, bytes] = {}


def face(number: int) -> bytes:
    """A rendered person; the same number is the same image."""
    if number not in FACES:
        row = demo.list_rows("social")[number * 21 % 1260]
        FACES[number] = demo.render(row)[0].faces[0]["image"]
    return FACES[number]


def dataset(data_dir: Path, rows: list[dict[str, Any]], name: str = "x", config: str = "grouped"):
    """Writes rows as a dataset; row i shows person i unless "_face" says otherwise."""
    whole = [
        {"record_id": f"{name}/{i}", "source": name, "emotion": i % 7, "_face": i} | row
        for i, row in enumerate(rows)
    ]

    def read(row: dict[str, Any]) -> list[Found]:
        picture = row["_face"]
        data = picture if isinstance(picture, bytes) else face(picture)
        return [Found(row["record_id"], [{"image": data}])]

    write_rows(data_dir, name, whole, read, config)


def run(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["audit", *words, f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'audit'}"])
    return code, json.loads((tmp_path / "audit" / "audit.json").read_text())


CLEAN = [
    {"split": "train", "subject_id": "x/a", "clip_id": "c1", "url": "u1", "content": "food"},
    {"split": "train", "subject_id": "x/a", "clip_id": "c1", "url": "u1", "content": "food"},
    {"split": "validation", "subject_id": "x/b", "clip_id": "c2", "content": "cars"},
    {"split": "test", "subject_id": "x/c", "clip_id": "c3", "url": "u2", "content": "food"},
]


def changed(row: int, **fields: Any) -> list[dict[str, Any]]:
    rows = [dict(one) for one in CLEAN]
    rows[row] |= fields
    return rows


def test_a_clean_set_is_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dataset(tmp_path, CLEAN)
    code, found = run(tmp_path, "x")
    assert (code, found["leaks"], found["warnings"]) == (0, {}, {})
    assert found["splits"]["train"]["records"] == 2
    assert found["splits"]["test"]["subjects"] == 1
    assert "leaks: none" in capsys.readouterr().out


def saved_again(number: int) -> bytes:
    return encode_jpeg(np.roll(cv2.convertScaleAbs(decode(face(number)), beta=8), 1, axis=1))


@pytest.mark.parametrize(
    ("rows", "config", "kind"),
    [
        (changed(3, subject_id="x/a"), "grouped", "subject"),
        (changed(3, clip_id="c1"), "grouped", "clip"),
        (changed(3, url="u1"), "grouped", "url"),
        (CLEAN, "content", "content"),
        ([row | {"stimulus_id": "ad"} for row in changed(3, content="sea")], "content", "stimulus"),
        ([row | {"seed": 7, "emotion": 3} for row in CLEAN[1:]], "grouped", "seed"),
        ([row | {"seed": 7} for row in CLEAN[:2]], "grouped", "seed_labels"),
        (changed(3, _face=saved_again(0)), "grouped", "image"),
    ],
)
def test_each_kind_of_leak(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    config: str,
    kind: str,
    capsys: pytest.CaptureFixture[str],
):
    dataset(tmp_path, rows, config=config)
    exclusions = tmp_path / "leave_out.csv"
    code, found = run(tmp_path, "x", f"--write-exclusions={exclusions}")
    assert (code, found["leaks"]) == (1, {kind: 1})
    (finding,) = (f for f in found["findings"] if f["kind"] == kind)
    if kind != "seed_labels":
        assert finding["a"]["split"] != finding["b"]["split"]
    assert findings.LEAKS[kind] in capsys.readouterr().out
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 and "http" not in page
    with exclusions.open() as file:
        left_out = list(csv.DictReader(file))
    # No test record is left out.
    splits = {f"x/{i}": row["split"] for i, row in enumerate(rows)}
    assert left_out and all(splits[row["record_id"]] != "test" for row in left_out)


def test_an_advertisement_under_a_split_by_people_is_a_warning(tmp_path: Path):
    dataset(tmp_path, [row | {"stimulus_id": "ad", "content": "food"} for row in CLEAN])
    code, found = run(tmp_path, "x")
    assert (code, found["leaks"], found["warnings"]) == (0, {}, {"shared_stimulus": 1})


def test_an_advertisement_in_two_categories_is_a_warning(tmp_path: Path):
    dataset(tmp_path, [row | {"stimulus_id": "ad"} for row in changed(1, content="cars")[:2]])
    _, found = run(tmp_path, "x")
    assert (found["leaks"], found["warnings"]) == ({}, {"stimulus_content": 1})


def test_one_image_with_two_labels_within_a_split_is_a_warning(tmp_path: Path):
    dataset(tmp_path, changed(1, _face=saved_again(0), subject_id=""))
    code, found = run(tmp_path, "x")
    assert (code, found["warnings"]) == (0, {"image_labels": 1})
    assert found["hashes"]["confirmed"] == 1


def test_unknown_labels_contradict_nothing(tmp_path: Path):
    rows = [row | {"subject_id": "", "clip_id": "", "url": "", "seed": 4} for row in CLEAN[:2]]
    rows[0] |= {"interest": 1, "emotion": 2}
    rows[1] |= {"interest": -1, "emotion": 2, "_face": saved_again(0)}
    dataset(tmp_path, rows)
    code, found = run(tmp_path, "x")
    assert (code, found["leaks"], found["warnings"]) == (0, {}, {})


def test_photographs_of_one_person_are_not_duplicates(shared: Path, tmp_path: Path):
    """JAFFE's sessions: hundreds of pictures of one person that differ in the mouth alone."""
    source = f"--source={shared / 'data' / 'faces' / 'jaffe.zip'}"
    words = [source, f"--data_dir={tmp_path}", "--name=jaffe"]
    assert main(["build", "face_folder/folds", *words]) == 0
    code, found = run(tmp_path, "jaffe")
    assert (code, found["leaks"], found["warnings"]) == (0, {}, {})


def test_rendered_people_are_not_near_duplicates(tmp_path: Path):
    for source in ("controlled", "social"):
        write_rows(tmp_path, "demo", demo.list_rows(source)[::8], demo.render, source)
    # The name alone stands for both.
    code, found = run(tmp_path, "demo")
    assert (code, found["leaks"]) == (0, {})
    assert found["datasets"] == ["demo/controlled", "demo/social"]
    assert set(found["warnings"]) <= {"shared_stimulus"}
    assert found["hashes"]["candidates"] > 100
    assert found["hashes"]["look_alikes"] == ["demo"]


def test_copies_under_another_name_are_found_where_people_are_named(tmp_path: Path):
    picture = decode(face(3))
    edge, turned = len(picture) // 20, cv2.getRotationMatrix2D((36, 36), 8, 1)
    copies = [
        picture[edge:-edge, edge:-edge],
        cv2.flip(picture, 1)[edge:-edge, edge:-edge],
        (255 * (picture / 255) ** 0.5).astype(np.uint8),
        cv2.warpAffine(picture, turned, picture.shape[1::-1], borderMode=cv2.BORDER_REPLICATE),
    ]
    rows = [{"split": "train", "subject_id": f"x/{i}", "_face": i} for i in range(8)]
    rows += [
        {"split": "test", "subject_id": f"x/copy{i}", "_face": encode_jpeg(one.copy())}
        for i, one in enumerate(copies)
    ]
    dataset(tmp_path, rows)
    _, found = run(tmp_path, "x")
    assert found["leaks"] == {"image": len(copies)}
    images = [f for f in found["findings"] if f["kind"] == "image"]
    assert {f["b"]["record_id"] for f in images} == {"x/3"}
    similarities = found["hashes"]["similarities"]
    assert sum(similarities["confirmed"]) == found["hashes"]["confirmed"]
    assert "similarity of candidate pairs" in (tmp_path / "audit" / "audit.html").read_text()


def clip(person: int, frames: range) -> list[bytes]:
    """Frames of a rendered person who begins to smile and tilts the head, within 40 frames."""
    who, found = draw.identity(np.random.default_rng(person)), []
    for frame in frames:
        # The same person, background and light in all frames; the camera's noise is of each.
        smile = draw.expression("happiness", True, frame / 40, np.random.default_rng(person))
        smile = smile._replace(roll_degrees=smile.roll_degrees + frame / 8)
        rng = np.random.default_rng(person)
        picture = draw.draw_face(who, smile, "controlled", "car_tech", rng).astype(float)
        picture += np.random.default_rng([person, frame]).normal(0, 2, picture.shape)
        found.append(encode_jpeg(np.clip(picture, 0, 255).astype(np.uint8)))
    return found


@pytest.mark.parametrize("name", ["x", "y"])
def test_a_clip_of_which_other_frames_were_taken_is_found_under_another_name(
    tmp_path: Path, name: str
):
    """In the same dataset as another person's, and in another dataset."""
    rows = [
        {"split": "train", "subject_id": f"x/{p}", "clip_id": f"x/{p}", "emotion": 3, "_face": f}
        for p in range(4)
        for f in clip(p, range(0, 40, 10))
    ]
    again = [
        {"split": "test", "subject_id": f"{name}/new{p}", "clip_id": f"{name}/new{p}"}
        | {"record_id": f"{name}/new{p}_{i}", "emotion": 3, "_face": f}
        for p in (2, 7)
        for i, f in enumerate(clip(p, range(4, 40, 10)))
    ]
    dataset(tmp_path, [*rows, *again] if name == "x" else rows)
    if name == "y":
        dataset(tmp_path, again, name="y")
    _, found = run(tmp_path, *{"x", name})
    assert found["leaks"].keys() == {"image"}
    pairs = {(f["a"]["subject_id"], f["b"]["subject_id"]) for f in found["findings"]}
    assert {frozenset(pair) for pair in pairs} == {frozenset(("x/2", f"{name}/new2"))}
    found_again = {f[side]["record_id"] for f in found["findings"] for side in "ab"}
    assert {f"{name}/new2_{i}" for i in range(4)} <= found_again


def test_ways_of_splitting_one_set_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dataset(tmp_path, CLEAN)
    dataset(tmp_path, CLEAN, config="content")
    assert main(["audit", "x", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'audit'}"]) == 2
    assert "is built with several configs" in capsys.readouterr().err


def test_near_duplicates_of_a_set_are_groups(tmp_path: Path):
    pictures = [face(0), face(1), saved_again(0), face(2), face(2)]
    dataset(tmp_path, [{"split": "test", "_face": picture} for picture in pictures])
    records = open_records("x", "test", tmp_path)
    found = findings.near_duplicate_groups(records).tolist()
    groups = {f"x/{n}": f"x/{first}" for n, first in enumerate((0, 1, 0, 3, 3))}
    assert dict(zip(records.columns["record_id"].tolist(), found, strict=True)) == groups
    # An evaluation finds them where nobody is named, and they are clusters of its table.
    about = evaluate.describe_set(records, "emotion", None, tmp_path)
    assert about["near_duplicates"] == {"x/0": "x/0", "x/2": "x/0", "x/3": "x/3", "x/4": "x/3"}
    workdir = tmp_path / "run"
    file = workdir / "predictions" / "x.test.csv"
    table = predictions.from_records(records, np.arange(5), "emotion", np.full((5, 7), 1 / 7))
    predictions.write(file, table, EMOTIONS)
    read, _ = predictions.read(file)
    assert bootstrap.sample_table(read, 7).describe()["cluster"] == "image"
    (workdir / predictions.TEST_SETS).write_text(json.dumps({"x.test.csv": about}))
    read, _ = predictions.read(file)
    described = bootstrap.sample_table(read, 7).describe()
    assert (described["cluster"], described["n_clusters"]) == ("near-duplicate group", 3)


def test_findings_and_counts_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [*CLEAN, *({"split": "test", "_face": saved_again(i)} for i in range(3))]
    rows += [{"split": "test", "_face": face(i)} for i in range(2)]
    blank = encode_jpeg(np.zeros((72, 72, 3), np.uint8))
    dataset(tmp_path, [*rows, {"split": "train", "_face": blank}])
    _, found = run(tmp_path, "x")
    # Faces 0 to 2 were saved again; 0 and 1 are there byte for byte too, which is told at once.
    assert found["leaks"] == {"image": 5}
    keys = [finding["key"] for finding in found["findings"] if finding["kind"] == "image"]
    assert keys.count("equal byte for byte") == 2
    # One picture has two labels within the test part, twice.
    assert found["warnings"] == {"image_labels": 2}
    assert found["hashes"]["confirmed"] == 3 + 2
    assert found["hashes"]["blank"] == 1
    said = "1 blank images were not compared"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "audit" / "audit.html").read_text()
    assert sum((found["leaks"] | found["warnings"]).values()) == len(found["findings"])
    assert sum(split["records"] for split in found["splits"].values()) == len(rows) + 1


def test_people_are_followed_across_datasets_and_seeds_are_not(tmp_path: Path):
    dataset(tmp_path, [row | {"seed": i, "emotion": 1} for i, row in enumerate(CLEAN)])
    rows = [
        {"split": "test", "subject_id": "x/a", "seed": 0, "emotion": 2, "_face": 9},
        {"split": "train", "subject_id": "y/a", "seed": 3, "emotion": 2, "_face": 10},
    ]
    dataset(tmp_path, rows, name="y")
    code, found = run(tmp_path, "x", "y")
    assert (code, found["leaks"]) == (1, {"subject": 1})


def test_real_fer2013_holds_duplicates_and_lab_sets_none(shared: Path, tmp_path: Path):
    """Whole laboratory sets, whose tight crops collide in their hashes."""
    for name, protocol in (("ck48", "grouped"), ("jaffe", "folds")):
        source = f"--source={shared / 'data' / 'faces' / name}.zip"
        words = [source, f"--data_dir={tmp_path}", f"--name={name}"]
        assert main(["build", f"face_folder/{protocol}", *words]) == 0
    code, found = run(tmp_path, "ck48", "jaffe")
    assert (code, found["leaks"]) == (0, {})
    assert found["hashes"]["candidates"] > 500


CONFIG = """
from fer_jax.config import default_config
def get_config():
    config = default_config()
    config.sources = ("x",)
    config.test_sets = ({test})
    return config
"""


def test_an_experiments_parts_and_its_exclusions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dataset(tmp_path, [*changed(3, subject_id="x/a"), {"split": "train", "_face": 8}])
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(test='"x", "elsewhere"'))
    exclusions = tmp_path / "leave_out.csv"
    code, found = run(tmp_path, f"--config={config}", f"--write_exclusions={exclusions}")
    assert (code, found["leaks"]) == (1, {"subject": 1})
    assert "not audited, because they are not built: elsewhere" in capsys.readouterr().out
    words = f"--config={config}", f"--config.exclusions={exclusions}"
    code, found = run(tmp_path, *words)
    assert (code, found["leaks"]) == (0, {})
    assert found["splits"]["train"]["records"] == 1


def test_what_is_found_only_after_leaving_out_is_left_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The search is repeated, because hashes depend on medians over all images."""
    dataset(
        tmp_path, [*changed(3, _face=saved_again(0)), {"split": "train", "_face": saved_again(2)}]
    )
    config, exclusions = tmp_path / "config.py", tmp_path / "leave_out.csv"
    config.write_text(CONFIG.format(test='"x",'))
    find = findings.duplicates.find_near_duplicates

    def blind(thumbnails: np.ndarray, *arguments: Any) -> Any:
        found = find(thumbnails, *arguments)
        best = np.argsort(-found.similarity)[:1]
        return found._replace(i=found.i[best], j=found.j[best], similarity=found.similarity[best])

    monkeypatch.setattr(findings.duplicates, "find_near_duplicates", blind)
    words = f"--config={config}", f"--write_exclusions={exclusions}"
    assert run(tmp_path, *words)[0] == 1
    with exclusions.open() as file:
        assert [row["record_id"] for row in csv.DictReader(file)] == ["x/0", "x/4"]
    # A new list goes on leaving out what the old one did.
    again = tmp_path / "again.csv"
    words = f"--config={config}", f"--config.exclusions={exclusions}", f"--write_exclusions={again}"
    assert run(tmp_path, *words)[0] == 0
    with again.open() as file:
        assert [row["record_id"] for row in csv.DictReader(file)] == ["x/0", "x/4"]


def test_a_seed_under_two_labels_takes_nothing_out_of_a_test(tmp_path: Path):
    rows = [{"split": split, "seed": 7, "emotion": i} for i, split in enumerate(("train", "test"))]
    dataset(tmp_path, rows)
    exclusions = tmp_path / "lists" / "leave_out.csv"
    _, found = run(tmp_path, "x", f"--write_exclusions={exclusions}")
    assert found["leaks"] == {"seed": 1, "seed_labels": 1}
    with exclusions.open() as file:
        assert [row["record_id"] for row in csv.DictReader(file)] == ["x/0"]


def test_parts_that_overlap_share_their_records(tmp_path: Path):
    dataset(tmp_path, CLEAN)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(test='{"name": "x", "test": "train[:50%]"},'))
    code, found = run(tmp_path, f"--config={config}")
    assert code == 1 and found["leaks"]["record"] == 1


def test_a_named_protocol_claims_its_content_however_it_is_named(tmp_path: Path):
    dataset(tmp_path, CLEAN, config="content")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(test='"x",'))
    code, found = run(tmp_path, f"--config={config}")
    assert (code, found["leaks"]) == (1, {"content": 1})


def test_records_without_a_label_for_the_task_leak_nothing(tmp_path: Path):
    rows = [*CLEAN, {"split": "train", "subject_id": "x/c", "emotion": -1, "interest": 1}]
    dataset(tmp_path, rows)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(test='"x",'))
    assert run(tmp_path, f"--config={config}")[0] == 0
    config.write_text(
        CONFIG.format(test='"x",').replace("test_sets", "task = 'interest'\n    config.test_sets")
    )
    rows = [row | {"interest": 0} for row in rows]
    rows[-1]["interest"] = 1
    dataset(tmp_path / "other", rows)
    code, found = run(tmp_path / "other", f"--config={config}")
    assert (code, found["leaks"]) == (1, {"subject": 1})


def test_a_task_without_labels_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dataset(tmp_path, CLEAN)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(test='"x",'))
    words = [f"--config={config}", "--config.task=interest", f"--data_dir={tmp_path}"]
    for verb in ("audit", "train"):
        assert main([verb, *words, f"--workdir={tmp_path / verb}"]) == 2
        printed = capsys.readouterr().err
        assert "no training record of x has a label for the task 'interest'" in printed
        assert printed.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"{", b"[" * 100_000])
def test_a_dataset_without_its_metadata_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
):
    dataset(tmp_path, CLEAN)
    (file,) = tmp_path.glob("x/*/*/features.json")
    file.unlink() if content is None else file.write_bytes(content)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(test='"x",'))
    for words in (["audit", "x"], ["audit", f"--config={config}"], ["train", f"--config={config}"]):
        place = [f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'out'}"]
        assert main([*words, *place]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1 and str(file.parent) in printed
        assert "build the dataset again" in printed


def test_a_misspelled_split_of_a_test_set_is_not_taken_for_an_absent_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    dataset(tmp_path, CLEAN)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(test='{"name": "x", "test": "tset"},'))
    words = [f"--config={config}", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'audit'}"]
    assert main(["audit", *words]) == 2
    assert "has no split 'tset'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"dataset,id\nx,0\n", "lacks the columns"),
        (b"dataset,record_id\nx/grouped\n", "line 2: 1 values, not 2"),
        (b"dataset,record_id\nx/grouped,\n", "line 2: dataset or record_id is empty"),
        (b"", "lacks the columns"),
        (b'dataset,record_id\nx,"0\n', "is not a CSV table"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_exclusions_that_cannot_be_read_are_one_line(
    tmp_path: Path, content: bytes, says: str, capsys: pytest.CaptureFixture[str]
):
    dataset(tmp_path, CLEAN)
    config, file = tmp_path / "config.py", tmp_path / "leave_out.csv"
    config.write_text(CONFIG.format(test=""))
    file.write_bytes(content)
    words = [f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'audit'}"]
    assert main(["audit", f"--config={config}", f"--config.exclusions={file}", *words]) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1


def leaking(tmp_path: Path) -> list[str]:
    """A dataset whose test person is in its training part; the words that train on it."""
    rows = [{"split": "train", "subject_id": f"x/{i}", "_face": i} for i in range(8)]
    rows += [{"split": "validation", "_face": 20 + i, "emotion": i} for i in range(2)]
    rows += [{"split": "test", "subject_id": f"x/{i}", "_face": 30 + i} for i in (3, 9)]
    dataset(tmp_path, rows)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(test='"x",'))
    small = {"batch_size": 4, "num_epochs": 1, "model.image_size": 71, "model.width": 0.03}
    small |= {"model.num_middle_blocks": 0}
    words = [f"--config.{name}={value}" for name, value in small.items()]
    return [f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path}", *words]


def test_training_refuses_a_leak_unless_allowed_and_the_report_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    words = leaking(tmp_path)
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    assert main(["train", *words]) == 2
    refused = capsys.readouterr().err
    assert "1 x person in more than one split" in refused and refused.count("\n") == 1
    assert not (tmp_path / "run").exists()

    workdir = f"--workdir={tmp_path / 'run'}"
    assert main(["train", *words, "--config.allow_leaks=true"]) == 0
    assert "LEAKS, as config.allow_leaks allows" in capsys.readouterr().out
    assert main(["evaluate", workdir]) == 0
    assert main(["report", workdir]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["leaks"] == results["sets"][0]["leaks"] == {"subject": 1}
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'class="leaks" role="alert"' in page
    assert "x test: 1 x person in more than one split" in page


def test_training_leaves_out_what_is_excluded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    words = leaking(tmp_path)
    exclusions = tmp_path / "leave_out.csv"
    audited = [*words[:1], f"--workdir={tmp_path}", words[2], f"--write_exclusions={exclusions}"]
    assert main(["audit", *audited]) == 1
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    assert main(["train", *words, f"--config.exclusions={exclusions}"]) == 0
    printed = capsys.readouterr().out
    assert "x train: 7 images to train on" in printed
    assert "x train: 1 records left out by config.exclusions" in printed
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (environment["leaks"], environment["left_out"]) == ({}, {"x train": 1})
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    assert main(["report", f"--workdir={tmp_path / 'run'}"]) == 0
    assert 'role="alert"' not in (tmp_path / "run" / "report.html").read_text()


def test_training_refuses_an_image_that_is_in_the_test_set_byte_for_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    words = leaking(tmp_path / "first")
    rows = [{"split": "train", "_face": i} for i in range(8)]
    rows += [{"split": "validation", "_face": 20}, {"split": "test", "_face": 3, "emotion": 3}]
    dataset(tmp_path, rows)
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    assert main(["train", *words, f"--data_dir={tmp_path}"]) == 2
    assert "1 x image in more than one split" in capsys.readouterr().err


def test_a_run_keeps_its_exclusions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    words, exclusions = leaking(tmp_path), tmp_path / "leave_out.csv"
    exclusions.write_text("dataset,record_id,reason\nx,x/3,seen\n")
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    assert main(["train", *words, f"--config.exclusions={exclusions}"]) == 0
    exclusions.write_text("dataset,record_id,reason\nx,x/3,seen\nx,x/4,seen\n")
    assert main(["train", *words, f"--config.exclusions={exclusions}"]) == 2
    assert "other exclusions" in capsys.readouterr().err
    # What was left out is known without the file, and where the training data is not, that too.
    exclusions.unlink()
    workdir = f"--workdir={tmp_path / 'run'}"
    assert main(["evaluate", workdir]) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["sets"][0]["leaks"] == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name datasets, or an experiment"),
        (["nothing"], "is not built"),
        (["x", "--config=configs/demo.py"], "not both"),
        (["--config=configs/demo.py", "--config.exclusions=gone.csv"], "does not exist"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    place = [f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'audit'}"]
    assert main(["audit", *words, *place]) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1
