"""The reports: self-contained, every number from results.json, readable by anybody anywhere."""

import functools
import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from small_runs import picture, write_dataset, write_predictions, write_run

from fer_jax import checkpoints, results
from fer_jax.__main__ import main
from fer_jax.config import default_config, to_json
from fer_jax.data.records import build_summary
from fer_jax.errors import InputError
from fer_jax.evaluation import bootstrap, predictions, run_scores
from fer_jax.evaluation.evaluate import _differences, evaluate, explain_errors
from fer_jax.inference.network import load
from fer_jax.media import detector, images
from fer_jax.report.layout import position, without_empty_columns
from fer_jax.report.report import report
from fer_jax.schema import EMOTIONS

pytestmark = pytest.mark.usefixtures("short_network")

HOSTILE = "<script>alert(1)</script>"
# A phone's width; 360 is the narrowest that is common.
PHONE = 360

# A run


def make_workdir(workdir: Path, cross: str = "demo/social") -> Path:
    """A scored run of two sets; the second lacks a class."""
    config = default_config()
    config.sources = ("demo/controlled",)
    workdir.joinpath("config.json").write_text(to_json(config))
    write_predictions(workdir, cross)
    rows = [
        {"step": s, "train_loss": 2 / s, "train_accuracy": 0.5}
        | ({"validation_loss": 1.0, "validation_accuracy": 0.4} if s % 2 == 0 else {})
        | ({"validation_balanced_accuracy": 0.1 * s} if s % 2 == 0 else {})
        for s in range(1, 7)
    ]
    log = "".join(json.dumps(row) + "\n" for row in rows)
    # A run that was stopped left half a line.
    workdir.joinpath("metrics.jsonl").write_text(log + '{"step": 7, "train_lo')
    results.write(workdir, run_scores.score_run(workdir))
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = make_workdir(tmp_path_factory.mktemp("run"))
    report(workdir)
    return workdir


@pytest.fixture(scope="module")
def run_with_faces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(workdir, data_dir) of an untrained network that is scored on pictures that are here."""
    data_dir = tmp_path_factory.mktemp("data")
    people = [(f"s{i // 7}", i % 7) for i in range(28)]
    others = [(f"t{i // 7}", i % 7) for i in range(28)]
    write_dataset(data_dir, "lab", {"train": people, "validation": people, "test": others})
    write_dataset(data_dir, "web", {"test": people}, first=5000, grey=True)
    workdir = write_run(tmp_path_factory.mktemp("faces") / "run", data_dir, sources=("lab",))
    config = json.loads((workdir / "config.json").read_text())
    evaluate(workdir, data_dir, [("lab", "test"), ("web", "test")], explain=True)
    assert config["sources"] == ["lab"]
    return workdir, data_dir


class Text(HTMLParser):
    """The visible text of a page, without styles, scripts, and the ticks of axes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self._skipped, self._depth = "", 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self._skipped and (tag in ("style", "script") or ("class", "tick") in attrs):
            self._skipped = tag
        self._depth += tag == self._skipped

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == self._skipped
        self._skipped = self._skipped if self._depth else ""

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.text.append(data)


NUMBER = re.compile(r"(?:(?<![\w.])[−+-])?\d+(?:[.,]\d+)*%?")
# What the page says by itself: the levels of intervals and of significance, F1, the smallest p.
ITS_OWN = {"95", "1", "0", "0.001", "0.05"}


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(text.replace("−", "-")))


def as_shown(value: Any) -> Iterator[str]:
    """Every way in which a value of results.json may stand on a page; curves are drawn only."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(str(key))
            yield from as_shown(inner if key != "curves" else None)
    elif isinstance(value, list):
        for inner in value:
            yield from as_shown(inner)
    elif isinstance(value, str):
        yield from numbers(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from (f"{value:.3f}", f"{value:+.3f}", f"{value:.0%}", json.dumps(value))
        if value == int(value):
            yield from (f"{value:,.0f}", f"{value:.0f}")


def strangers(workdir: Path) -> set[str]:
    """Numbers on the page that are not in results.json."""
    scored = json.loads((workdir / "results.json").read_text())
    text = " ".join(Text((workdir / "report.html").read_text()).text)
    shown = numbers(text)
    assert len(shown) > 100
    return shown - set(as_shown(scored)) - ITS_OWN


def test_every_number_of_a_run_is_in_results_json(workdir: Path, tmp_path: Path):
    assert strangers(workdir) == set()
    # The check sees a number that is nowhere else.
    shutil.copytree(workdir, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    first = json.loads((workdir / "results.json").read_text())["sets"][0]["accuracy"]
    page.write_text(page.read_text().replace(f"{first:.3f}", f"{first + 0.0137:.3f}"))
    assert strangers(tmp_path / "run") == {f"{first + 0.0137:.3f}"}


def test_results_come_from_the_tables_alone(workdir: Path, tmp_path: Path):
    scored = json.loads((workdir / "results.json").read_text())
    assert results.plain(run_scores.score_run(workdir)) == scored
    for name in ("config.json", "training_labels.csv", "metrics.jsonl"):
        shutil.copy(workdir / name, tmp_path / name)
    shutil.copytree(workdir / "predictions", tmp_path / "predictions")
    assert results.plain(run_scores.score_run(tmp_path)) == scored
    cross = next(one for one in scored["sets"] if one["relation"] == "cross_domain")
    assert cross["class_roc_auc"][6] is None
    assert cross["roc_auc_classes"] == 6
    assert cross["n_subjects"] == 9
    assert cross["majority"]["balanced_accuracy"] == pytest.approx(1 / 6)
    assert sum(cross["n_by_class"]) == cross["n"]


def test_the_most_confident_errors_are_one_of_each_clip(workdir: Path):
    scored = json.loads((workdir / "results.json").read_text())
    one = next(one for one in scored["sets"] if one["relation"] == "cross_domain")
    table, classes = predictions.read(workdir / "predictions" / "demo-social.test.csv")
    wrong = {}
    for row, p in enumerate(table["probabilities"]):
        if p.argmax() != table["label"][row]:
            clip = table["clip_id"][row]
            if clip not in wrong or p.max() > wrong[clip][0]:
                wrong[clip] = (p.max(), str(table["record_id"][row]), classes[p.argmax()])
    assert len(wrong) < (table["probabilities"].argmax(axis=1) != table["label"]).sum()
    expected = sorted(wrong.values(), reverse=True)[: run_scores.WORST_ERRORS]
    found = [(e["probability"], e["record_id"], e["given"]) for e in one["errors"]]
    assert found == expected
    assert all(e["given"] != e["label"] for e in one["errors"])
    assert all(e["probability"] >= e["probability_of_label"] for e in one["errors"])


def entry(
    relation: str, name: str, labels: np.ndarray, right: np.ndarray, people: np.ndarray
) -> tuple[dict[str, Any], bootstrap.Resampled]:
    """A scored set of images that are right or not."""
    given = np.where(right, labels, (labels + 1) % 7)
    of = bootstrap.sample(labels, people, 7)
    about = {"relation": relation, "dataset": name, "split": "test", "variant": ""}
    return about, bootstrap.resample(of, [np.eye(7)[given]], areas=False)


def test_the_loss_is_of_the_same_classes_and_people(tmp_path: Path):
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(30), 14)
    labels = np.tile(np.arange(7), 60)
    skill = rng.uniform(0.4, 1, 30)[people]
    five = labels < 5
    right = [rng.random(420) < chance * skill for chance in (1.0, 0.6, 0.9)]
    sets = [
        entry("within", "lab", labels, right[0], people),
        entry("cross_domain", "web", labels[five], right[1][five], people[five]),
        entry("cross_domain", "press", labels, right[2], people + 100),
    ]
    found = run_scores.generalization(sets, EMOTIONS)
    assert found["classes"] == list(EMOTIONS[:5]) and found["chance"] == 1 / 5
    recalls = [np.mean([one[labels == c].mean() for c in range(5)]) for one in right]
    assert found["within"]["value"] == pytest.approx(recalls[0], abs=1e-9)
    assert found["cross_domain"]["value"] == pytest.approx(np.mean(recalls[1:]), abs=1e-9)
    assert found["cross_domain"]["loss"]["value"] == pytest.approx(
        recalls[0] - np.mean(recalls[1:]), abs=1e-9
    )
    assert found["cross_domain"]["sets"] == ["web test", "press test"] and found["why"] is None
    # What the same people are better at everywhere is not part of the loss's error.
    alone = [run_scores.generalization(sets[:n], EMOTIONS) for n in (1, 2)]
    cross = alone[1]["cross_domain"]
    widths = [np.diff(one["interval"])[0] for one in (alone[1]["within"], cross, cross["loss"])]
    assert widths[2] < 0.8 * np.hypot(*widths[:2])
    assert alone[0]["chance"] == 1 / 7 and np.isnan(alone[0]["cross_domain"]["loss"]["value"])
    few = [
        sets[0],
        entry("cross_domain", "x", labels[labels == 6], right[1][labels == 6], people[:60]),
    ]
    found = run_scores.generalization(few, EMOTIONS)
    assert np.isnan(found["within"]["value"]) and "two classes in common" in found["why"]


@pytest.mark.parametrize("in_config", [False, True])
def test_images_of_another_set_do_not_enter_a_mean_twice(in_config: bool):
    def part(dataset: str, split: str, images: range) -> tuple[dict[str, Any], Any]:
        about = {"dataset": dataset, "split": split, "variant": "", "caveats": []}
        return about | {"not_in_means": None}, {"record_id": np.asarray(images).astype(str)}

    tests = [part("lab", "holdout", range(3)), part("web", "all", range(10, 20))]
    tests += [part("web", "test", range(15, 25)), part("web/grouped", "x", range(25, 30))]
    config = default_config()
    config.test_sets = ("web",) if in_config else ()
    run_scores._mark_repeated(tests, [("lab validation", part("", "", range(2, 9))[1])], config)
    why = [one["not_in_means"] for one, _ in tests]
    # By the order of names `all` comes before `test`, unless `test` is in the config.
    expected = [None, "has 5 images of web all"]
    expected = ["has 5 images of web test", None] if in_config else expected
    assert why == ["has 1 images of lab validation", *expected, None]
    assert tests[0][0]["caveats"] == ["in no mean: it has 1 images of lab validation"]


def test_a_table_of_two_datasets_is_scored_apart(workdir: Path, tmp_path: Path):
    run = shutil.copytree(workdir, tmp_path / "run")
    for file in (run / "predictions").glob("*.*.*.csv"):
        file.unlink()
    files = [
        run / "predictions" / predictions.file_name(name, "test")
        for name in ("demo/controlled", "demo/social")
    ]
    rows = files[1].read_text().splitlines()[1:]
    files[0].write_text(files[0].read_text() + "\n".join(rows) + "\n")
    files[1].unlink()
    before = json.loads((workdir / "results.json").read_text())
    after = results.plain(run_scores.score_run(run))
    assert after["sets"] == [one for one in before["sets"] if not one["variant"]]
    assert after["generalization"] == before["generalization"]


@pytest.mark.parametrize(
    ("loss", "bounds", "says"),
    [
        (0.2, [0.1, 0.3], "a loss of 0.200 [0.100, 0.300]"),
        (-0.01, [-0.05, 0.03], "a difference of -0.010 [-0.050, +0.030], which is not significant"),
        (-0.2, [-0.3, -0.1], "a difference of -0.200 [-0.300, -0.100]"),
        (0.2, [None, None], "a difference of +0.200 (no interval)"),
    ],
)
def test_only_a_significant_loss_is_called_one(loss: float, bounds: list, says: str):
    assert results.loss_in_words(loss, bounds) == says


def test_chance_is_said(workdir: Path, tmp_path: Path):
    scored = json.loads((workdir / "results.json").read_text())
    assert [one["chance"] for one in scored["sets"]] == 3 * [1 / 7] + 3 * [1 / 6]
    page = (workdir / "report.html").read_text()
    assert "over the 6 classes that all of these sets have" in page
    assert "not distinguishable from chance" not in page
    scored["generalization"]["cross_domain"] |= {"value": 0.2, "interval": [0.15, 0.26]}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(scored))
    assert (
        "0.200 [0.150, 0.260], not distinguishable from chance, on unseen"
        in report(folder).read_text()
    )


def test_the_page_says_where_people_are_not_named(workdir: Path, tmp_path: Path):
    page = (workdir / "report.html").read_text()
    assert "on held-out people of" in page and "people are named" not in page
    shutil.copytree(workdir, tmp_path / "run")
    for file in (tmp_path / "run" / "predictions").glob("demo-controlled.test*.csv"):
        table, classes = predictions.read(file)
        table |= {name: np.full(len(table["label"]), "") for name in ("subject_id", "clip_id")}
        predictions.write(file, table, classes)
    results.write(tmp_path / "run", run_scores.score_run(tmp_path / "run"))
    page = report(tmp_path / "run").read_text()
    assert "on held-out images (not all people are named) of" in page
    assert "Not all people are named in demo/controlled test: whether" in page
    assert "no people are named: one who is in several images makes" in page


def test_undefined_numbers_read_as_not_available(workdir: Path):
    assert ">n/a<" in (workdir / "report.html").read_text()


def test_a_column_without_any_value_is_left_out():
    table = (
        '<table><thead><tr><th></th><th colspan="2">number</th><th colspan="2">ECE</th></tr><tr>'
        "<th>set</th><th>clips</th><th>people</th><th>model</th><th>x</th></tr></thead><tbody>"
        '<tr><th colspan="5">group</th></tr>'
        "<tr><th>a</th><td>n/a</td><td><b>n/a</b></td><td>0.1</td><td>n/a: one class</td></tr>"
        "<tr><th>b</th><td></td><td>3</td><td>n/a</td><td>n/a</td></tr></tbody></table>"
    )
    assert without_empty_columns(table) == (
        '<table><thead><tr><th></th><th colspan="1">number</th><th colspan="2">ECE</th></tr><tr>'
        "<th>set</th><th>people</th><th>model</th><th>x</th></tr></thead><tbody>"
        '<tr><th colspan="4">group</th></tr>'
        "<tr><th>a</th><td><b>n/a</b></td><td>0.1</td><td>n/a: one class</td></tr>"
        "<tr><th>b</th><td>3</td><td>n/a</td><td>n/a</td></tr></tbody></table>"
    )
    both = '<table><thead><tr><th></th><th colspan="2">PR-AUC</th></tr></thead><tbody>'
    both += "<tr><th>a</th><td>n/a</td><td>n/a</td></tr></tbody></table>"
    assert "PR-AUC" not in without_empty_columns(both)


def test_a_variant_is_a_row_of_its_own(workdir: Path):
    page = (workdir / "report.html").read_text()
    rows = re.findall(r"<tr.*?</tr>", page[page.index('class="tests"') :], re.DOTALL)[:6]
    names = [re.findall(r'<a href="#set\d">(.*?)</a>', row)[0] for row in rows]
    variants = ["adapted", "label shift"]
    assert names == ["demo/controlled test", *variants, "demo/social test", *variants]
    assert ['class="variant"' in row for row in rows] == 2 * [False, True, True]


def test_the_page_says_how_often_a_test_set_was_evaluated(
    workdir: Path, run_with_faces: tuple[Path, Path], tmp_path: Path
):
    evaluated = json.loads((run_with_faces[0] / "results.json").read_text())
    assert [(one["dataset"], one["times"]) for one in evaluated["test_access"]] == [
        ("lab", 1),
        ("web", 1),
    ]
    for file in (run_with_faces[0] / "predictions").glob("*.csv"):
        origin = predictions.read_origin(file)
        assert (
            origin.pop("fingerprint")
            == build_summary(file.name[:3], run_with_faces[1])["fingerprint"]
        )
        assert origin == {"step": 1, "checksum": checkpoints.checksum(run_with_faces[0], 1)} | {
            "chosen": "best"
        }
    assert "Test access: n/a" in (workdir / "report.html").read_text()
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    rows = [
        {"dataset": name, "split": "test", "checkpoint": step, "time": f"2026-0{step}-01T00:00:00"}
        for step, name in ((3, "demo/controlled"), (4, "demo/social"), (5, "demo/social"))
    ]
    (run / "test_access.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results.write(run, run_scores.score_run(run))
    report(run)
    text = " ".join(" ".join(Text((run / "report.html").read_text()).text).split())
    assert "Some test sets were evaluated more than once" in text
    assert "Evaluated once, on 2026-03-01T00:00:00. PR-AUC is over 7 classes" in text
    assert (
        "Evaluated 2 times, last on 2026-05-01T00:00:00. repeated test access PR-AUC is over"
        in text
    )
    assert strangers(run) == set()


@pytest.mark.parametrize("kind", ["run", "study"])
def test_it_is_self_contained_and_deterministic(kind: str, workdir: Path, study: Path):
    folder = workdir if kind == "run" else study
    page = (folder / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    own = {link for link in links if link.startswith(("#", "data:"))}
    assert set(links) - own <= {"runs/lab.seed_0/report.html"}
    assert not re.findall(r"url\((?!#)|@import|https?://", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", page))
    report(folder)
    assert (folder / "report.html").read_text() == page


def test_names_are_text_not_markup(tmp_path: Path):
    make_workdir(tmp_path, cross=HOSTILE)
    page = report(tmp_path).read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("sets", 0, "accuracy"), "0.5"),
        (("sets", 0, "n_by_class"), {}),
        (("sets", 0, "intervals", "ece"), [0.1]),
        (("sets", 0, "intervals", "recall", 0), None),
        (("sets", 0, "curves", 1), 3),
        (("sets", 0, "errors"), {}),
        (("sets", 0, "dataset"), None),
        (("sets", 0), "lab"),
        (("classes",), "anger"),
        (("means", "within"), []),
        (("generalization", "within", "loss"), 0.1),
        (("test_access", 0, "times"), None),
        (("checkpoint",), None),
        (("reproduce", "config", "selection_metric"), 1),
    ],
)
def test_results_of_other_types_are_one_line(
    workdir: Path, place: tuple[Any, ...], value: Any, capsys: pytest.CaptureFixture[str]
):
    """Without a page: what is there stays."""
    file = workdir / "results.json"
    before = file.read_text()
    content = json.loads(before)
    content["test_access"].append({"dataset": "x", "split": "test", "times": 1})
    functools.reduce(lambda held, key: held[key], place[:-1], content)[place[-1]] = value
    file.write_text(json.dumps(content))
    page = (workdir / "report.html").read_bytes()
    assert main(["report", f"--workdir={workdir}"]) == 2
    printed = capsys.readouterr().err
    file.write_text(before)
    assert printed.count("\n") == 1 and "rerun `fer-jax evaluate`" in printed
    assert str(place[-1]) in printed and json.dumps(value)[:60] in printed
    assert (workdir / "report.html").read_bytes() == page


def test_parts_that_are_missing_are_said_to_be(tmp_path: Path):
    make_workdir(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    page = report(tmp_path).read_text()
    assert "n/a: the workdir has no metrics.jsonl" in page
    assert "Leakage into demo/controlled test, demo/social test: n/a" in page
    assert "<img" not in page and not (tmp_path / "explanations").exists()
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        report(tmp_path)
    (tmp_path / "results.json").unlink()
    with pytest.raises(InputError, match="has no results.json; run `fer-jax evaluate` first"):
        report(tmp_path)
    for file in (tmp_path / "predictions").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="run `fer-jax evaluate` first"):
        run_scores.score_run(tmp_path)


def test_a_report_only_reads(workdir: Path, tmp_path: Path):
    run = shutil.copytree(workdir, tmp_path / "run")
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    # Nothing is scored again: the tables may be gone.
    shutil.rmtree(run / "predictions")
    heavy = "any(name in sys.modules for name in ('jax', 'scipy', 'tensorflow_datasets'))"
    code = "import sys; from fer_jax.__main__ import main; main(sys.argv[1:]); sys.exit({})"
    words = ["report", f"--workdir={run}"]
    done = subprocess.run([sys.executable, "-c", code.format(heavy), *words], check=False)
    assert done.returncode == 0
    assert (run / "report.html").read_text() == before
    kept = {path: data for path, data in files.items() if "predictions" not in path.parts}
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_set_of_grey_images_has_a_caveat_where_colour_was_trained_on(
    run_with_faces: tuple[Path, Path],
):
    scored = json.loads((run_with_faces[0] / "results.json").read_text())
    caveat = "0% of the training images are grey, 100% of this set's"
    assert [caveat in one["caveats"] for one in scored["sets"]] == [False, True]
    assert f"web test: {caveat}" in run_scores.summary(scored)


def test_a_set_of_wider_pictures_has_a_caveat(shared: Path):
    """Tight crops, and photographs of a session with hair and shoulders."""
    looks = []
    for name in ("ck48", "jaffe"):
        with zipfile.ZipFile(shared / "data" / "faces" / f"{name}.zip") as archive:
            files = [file for file in archive.namelist() if not file.endswith("/")]
            sample = [images.decode(archive.read(file)) for file in files[:: len(files) // 24][:24]]
        looks.append((1.0, detector.framing(sample)))
    tight, wide = looks
    (caveat,) = _differences(tight, wide)
    assert re.fullmatch(r"faces take 8\d% of the side of a training image, 6\d% of .*", caveat)
    assert _differences(tight, tight) == []
    assert _differences(tight, (1.0, math.nan)) == []


def test_the_gallery_shows_faces_and_where_the_network_looked(run_with_faces: tuple[Path, Path]):
    workdir, _ = run_with_faces
    page = report(workdir).read_text()
    scored = json.loads((workdir / "results.json").read_text())
    assert strangers(workdir) == set()
    num_errors = sum(len(one["errors"]) for one in scored["sets"])
    assert num_errors == 24
    assert page.count("<img") == 2 * num_errors
    assert "Some images are missing" not in page
    kept = {file.name for file in (workdir / "explanations").iterdir()}
    assert {"lab.test.1.jpg", "lab.test.12.face.jpg", "lab.test.json", "web.test.json"} <= kept
    assert len(kept) == 2 * num_errors + 2
    rows = json.loads((workdir / "explanations" / "web.test.json").read_text())
    errors = next(one["errors"] for one in scored["sets"] if one["dataset"] == "web")
    assert [{name: row[name] for name in errors[0]} for row in rows] == errors
    assert np.asarray(rows[0]["map"]).shape == (3, 3)


def test_faces_stay_out_where_that_is_asked(run_with_faces: tuple[Path, Path], tmp_path: Path):
    workdir = shutil.copytree(run_with_faces[0], tmp_path / "run")
    assert main(["report", f"--workdir={workdir}", "--no_faces"]) == 0
    page = (workdir / "report.html").read_text()
    assert "<img" not in page and "predicted as <b>" in page
    shutil.rmtree(workdir / "explanations")
    with pytest.raises(InputError, match="is missing; run `fer-jax evaluate` again, or use --no"):
        report(workdir)
    assert main(["evaluate", f"--workdir={workdir}", "--data=web", "--no_faces"]) == 0
    assert not (workdir / "explanations").exists()
    assert "<img" not in report(workdir).read_text()


def test_errors_are_explained_as_far_as_that_is_possible(
    run_with_faces: tuple[Path, Path], tmp_path: Path
):
    workdir = shutil.copytree(run_with_faces[0], tmp_path / "run")
    table, classes = predictions.read(workdir / "predictions" / "web.test.csv")
    table["probabilities"] = (table["probabilities"] + 1 / 7) / 2
    web, file = (workdir / "predictions" / f"{name}.test.csv" for name in ("web", "lab"))
    predictions.write(web, table, classes, predictions.read_origin(web))
    gone = json.loads((workdir / "explanations" / "lab.test.json").read_text())[0]["record_id"]
    file.write_text(file.read_text().replace(f"{gone},", "lab/of_an_earlier_build,"))

    def explained(data_dir: Path) -> str:
        scored = run_scores.score_run(workdir)
        network = load(workdir)
        explain_errors(workdir, scored, data_dir, network.explain, network.image_size, 1)
        results.write(workdir, scored)
        return report(workdir).read_text()

    page = explained(run_with_faces[1])
    assert "the checkpoint of step 1 predicts otherwise than this table" in page
    assert json.loads((workdir / "explanations" / "web.test.json").read_text()) == []
    # Its faces are here, but where the network looked is not known.
    assert not (workdir / "explanations" / "web.test.1.jpg").exists()
    assert (workdir / "explanations" / "web.test.1.face.jpg").exists()
    assert len(json.loads((workdir / "explanations" / "lab.test.json").read_text())) == 11
    assert "some of these records are no longer in the dataset" in page
    page = explained(tmp_path / "nowhere")
    assert "<img" not in page and page.count("is not built in") == 2


# A study

SCENARIOS = {"lab": ["lab"], "lab + web": ["lab", "web"], "lab + synthetic": ["lab", "synthetic"]}
SCENARIOS |= {"all": ["lab", "web", "synthetic"]}
TEST_SETS = {"lab": ("fold_4", 43, 10), "web": ("test", 3589, 0), "press": ("test", 130, 97)}
TEST_SETS |= {"synthetic": ("test", 49, 49), "advertisements": ("car_tech", 3020, 18)}


def interval(value: float, arm: float) -> dict[str, Any]:
    return {"value": value, "interval": [value - arm * (value + 1) / 2, value + arm * (1 - value)]}


def simulated_study() -> dict[str, Any]:
    """A study's results.json, as its contract says; the numbers are drawn."""
    rng = np.random.default_rng(7)
    cells = []
    for scenario, sources in SCENARIOS.items():
        for dataset, (split, n, people) in TEST_SETS.items():
            for variant in ("", "adapted") if scenario == "all" else ("",):
                within = dataset in sources
                cell = {
                    **{"scenario": scenario, "dataset": dataset, "split": split},
                    "variant": variant,
                    "relation": "within"
                    if within
                    else "cross_content"
                    if dataset == "advertisements"
                    else "cross_domain",
                    "empty": None,
                    "oracle": False,
                    "warning": "only 10 clusters (by subject): rough intervals"
                    if people == 10
                    else None,
                    "cluster": "subject" if people else "image",
                    "n_clusters": people or n,
                    **{"n": n, "n_subjects": people, "n_clips": 0},
                    "metrics": {},
                    "prevalence": 1 / 7,
                    "majority": {"accuracy": 0.25, "balanced_accuracy": 1 / 7},
                    "pixel_free": {"accuracy": 0.21, "balanced_accuracy": 0.16},
                }
                if dataset == "synthetic" and scenario == "lab":
                    cell |= {"empty": "no image of 'contempt' in this set", "metrics": {}}
                else:
                    base = 0.35 + 0.35 * within + 0.05 * len(sources) + rng.normal(0, 0.03)
                    for number, name in enumerate(results.HEADLINE):
                        seeds = (base + 0.03 * number + rng.normal(0, 0.02, 3)).clip(0, 0.99)
                        found = interval(float(seeds.mean()), 1.5 / np.sqrt(people or n))
                        cell["metrics"][name] = found | {"by_seed": seeds.tolist()}
                cells.append(cell)
    cells[6]["pixel_free"] = None
    cells[7]["metrics"]["roc_auc"] = {"value": None, "interval": [None, None], "by_seed": [None]}
    differences = [
        {
            **{"scenario": scenario, "against": "lab", "dataset": dataset},
            "split": TEST_SETS[dataset][0],
            "metric": metric,
            "difference": float(d),
            "interval": [d - 0.06, d + 0.05],
            "p": p,
            "p_corrected": min(1.0, 4 * p),
        }
        for metric in ("accuracy", "balanced_accuracy")
        for scenario in list(SCENARIOS)[1:]
        for dataset in ("web", "press", "advertisements")
        for d, p in [(rng.normal(0.05, 0.05), float(rng.choice([0.0004, 0.031, 0.42])))]
    ]
    distances = [
        {
            "scenario": scenario,
            "within_domain": interval(0.71, 0.08) | {"n_sets": 1},
            "cross_domain": interval(0.44, 0.05) | {"n_sets": 3},
            "cross_content": interval(0.39, 0.07) | {"n_sets": 1},
            "new_people": {"value": None, "interval": None, "why": "one content group only"},
            "new_content": interval(-0.031, 0.06) | {"n_sets": 2} if scenario == "all" else None,
            "why": "one content group only",
        }
        for scenario in SCENARIOS
    ]
    runs = {s: [f"runs/{s.replace(' + ', '_')}.seed_{i}" for i in range(3)] for s in SCENARIOS}
    return {
        "question": "Which sources make the model generalize to unseen content?",
        "answer": "Adding web pictures raises balanced accuracy on unseen content by 0.093 "
        "[0.021, 0.158] over the laboratory alone; synthetic faces add 0.012 [-0.041, 0.063].",
        "task": "emotion",
        "classes": list(EMOTIONS),
        "common_classes": list(EMOTIONS),
        "protocol": "sources by sources, subjects disjoint",
        "baseline": "lab",
        "scenarios": [
            {
                "name": scenario,
                "sources": sources,
                "n_images": 1200 * len(sources),
                "n_subjects": 80 * len(sources),
                "seeds": [0, 1, 2],
                "runs": runs[scenario],
                "steps": [40, 60, 50],
                "oracle": scenario == "all",
            }
            for scenario, sources in SCENARIOS.items()
        ],
        "test_sets": [
            {
                **{"dataset": dataset, "split": split, "source": dataset, "n": n},
                **{"n_subjects": people, "n_clips": 0, "classes_present": 7},
                "faces": f"../../test_faces/{dataset}.{split}.jpg",
                "majority": {"accuracy": 0.25, "balanced_accuracy": 1 / 7},
            }
            for dataset, (split, n, people) in TEST_SETS.items()
        ],
        "cells": cells,
        "differences": differences,
        "n_compared": len(differences) + 1,
        "over_sets": [
            {
                **{"scenario": "all", "against": "lab", "n_sets": 2, "without": ["press test"]},
                **{"difference": 0.0625, "interval": [0.01, 0.115], "p": 0.02},
                "p_corrected": 0.06,
            }
        ],
        "distances": distances,
        "audit": {"leaks": {}, "warnings": [], "allowed": False, "left_out": {"web train": 31}}
        | {"looked_for": "people", "near_duplicates": None, "unknown_people": []},
        "test_access": [
            {
                **{"run": run, "dataset": dataset, "split": TEST_SETS[dataset][0]},
                **{"time": "2026-11-24T21:03:11Z", "times": 2 if "all" in run else 1},
            }
            for scenario in SCENARIOS
            for run in runs[scenario][:1]
            for dataset in TEST_SETS
        ],
        "published": {"accuracy": 0.94, "pr_auc": 0.94, "source": "the paper's table 3, car_tech"},
        "reproduce": {
            "command": "fer-jax study --config=configs/study_sources.py --workdir=STUDY",
            "config": {"seeds": [0, 1, 2], "num_epochs": 24.0, "scenarios": SCENARIOS},
            "seeds": [0, 1, 2],
            "commit": "3c5dcc8f00",
            "datasets": {dataset: f"{i:064x}" for i, dataset in enumerate(TEST_SETS)},
            "versions": {"python": "3.11.2", "jax": "0.10.2"},
            "hardware": "2 CPU cores",
        },
    }


def write_study(folder: Path, study: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(study))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("study"), simulated_study())
    run = folder / "runs" / "lab.seed_0"
    run.mkdir(parents=True)
    (run / "report.html").write_text("<title>a run</title>")
    (folder / "test_faces").mkdir()
    (folder / "test_faces" / "lab.fold_4.jpg").write_bytes(images.encode_jpeg(picture(0, 96)))
    report(folder)
    return folder


def test_every_number_of_a_study_is_in_results_json(study: Path):
    before = (study / "results.json").read_text()
    assert strangers(study) == set()
    assert (study / "results.json").read_text() == before


def test_the_matrix_has_every_cell_or_says_why_not(study: Path):
    scored = json.loads((study / "results.json").read_text())
    page = (study / "report.html").read_text()
    matrix = page[page.index('<table class="matrix">') :]
    matrix = matrix[: matrix.index("</table>")]
    cells = re.findall(r"<td.*?</td>", matrix, re.DOTALL)
    assert len(cells) == (len(SCENARIOS) + 1) * len(TEST_SETS)
    for one in scored["cells"]:
        if one["empty"]:
            assert f"n/a: {one['empty']}".replace("'", "&#39;") in matrix
        else:
            found = one["metrics"]["balanced_accuracy"]
            assert f"{found['value']:.3f}" in matrix
            assert results.interval(found["interval"]).replace("-", "−") in matrix
    rows = re.findall(r"<tr.*?</tr>", matrix, re.DOTALL)
    assert [len(re.findall('class="home"', row)) for row in rows] == [0, 1, 2, 2, 3, 3]
    assert "oracle" in rows[-2] and "oracle" not in rows[1]
    assert "adapted" in rows[-1] and "baseline" in rows[1]


def test_a_studys_page_shows_faces_of_its_test_sets(study: Path, tmp_path: Path):
    page = (study / "report.html").read_text()
    assert page.count("<img") == 1 and 'alt="Faces of lab fold_4"' in page
    copied = shutil.copytree(study, tmp_path / "study")
    assert "<img" not in report(copied, faces=False).read_text()


def test_differences_lead_with_balanced_accuracy(study: Path):
    scored = json.loads((study / "results.json").read_text())
    page = (study / "report.html").read_text()
    part = page[page.index('id="differences"') : page.index("Other metrics")]
    said = [
        f"{one['difference']:+.3f}".replace("-", "−")
        for one in scored["differences"]
        if one["metric"] == "balanced_accuracy"
    ]
    assert re.findall(r"<td><b>(.*?)</b></td>", part) == ["+0.062", *said]
    assert part.count('<td class="left">mean of 2 of 3 sets</td>') == 1
    assert "mean of" not in page[page.index("Other metrics") :]
    assert "<td>&lt;0.001</td><td>0.002</td>" in part
    assert "Differences between recipes" in page


def test_a_study_says_what_was_published_and_what_was_evaluated_again(study: Path):
    page = (study / "report.html").read_text()
    assert ">0.940<" in page and "as published" in page.lower()
    assert page.count("repeated test access</span></td>") == len(TEST_SETS)
    assert "31 records of web train" in page
    assert 'role="alert"' not in page
    assert 'href="runs/lab.seed_0/report.html"' in page and page.count("report.html") == 1


def test_a_study_without_publication_test_access_or_differences(tmp_path: Path):
    one = simulated_study() | {"published": None, "test_access": [], "differences": []}
    one["audit"] |= {"leaks": {"subject": 3}, "allowed": True, "left_out": {}}
    one["audit"]["warnings"] = ["lab: 3 x person in more than one split"]
    for scenario in one["scenarios"]:
        scenario["seeds"] = [0]
    # An address that leads elsewhere is no link.
    one["scenarios"][0]["runs"] = ["..", str(tmp_path), "runs/../.."]
    (tmp_path / "report.html").write_text("not of this study")
    page = report(write_study(tmp_path / "study", one)).read_text()
    assert "as published" not in page.lower()
    assert "Differences between models" in page and "One seed" in page
    assert 'class="leaks" role="alert"' in page and "3 x person in more than one split" in page
    assert "n/a: no scenarios were compared" in page and "n/a, not logged" in page
    assert "report.html" not in page
    assert strangers(tmp_path / "study") == set()


def test_a_study_that_is_no_study_is_refused(tmp_path: Path):
    one = simulated_study()
    del one["test_sets"]
    with pytest.raises(InputError, match="it lacks 'test_sets'"):
        report(write_study(tmp_path / "a", one))
    one = simulated_study()
    one["openings"] = one.pop("test_access")
    with pytest.raises(InputError, match="by another version; rerun `fer-jax study`"):
        report(write_study(tmp_path / "d", one))
    one = simulated_study()
    del one["cells"][0]["prevalence"]
    with pytest.raises(InputError, match=r"it lacks .*'prevalence'"):
        report(write_study(tmp_path / "b", one))
    (tmp_path / "c" / "runs").mkdir(parents=True)
    with pytest.raises(InputError, match="has no results.json; run `fer-jax study` first"):
        report(tmp_path / "c")


def test_a_studys_names_are_text_not_markup(tmp_path: Path):
    text = json.dumps(simulated_study()).replace("lab + web", HOSTILE)
    page = report(write_study(tmp_path / "study", json.loads(text))).read_text()
    assert HOSTILE not in page and "&lt;script&gt;" in page


def test_notes_have_marks_of_their_own_however_many(tmp_path: Path):
    one = simulated_study()
    one["cells"][4]["relation"] = None
    for number, cell in enumerate(2 * one["cells"]):
        cell["warning"] = f"note number {number % len(one['cells'])}"
    one["cells"] += [
        one["cells"][0] | {"variant": f"v{i}", "warning": f"other note {i}"} for i in range(9)
    ]
    page = report(write_study(tmp_path / "study", one)).read_text()
    marks = re.findall(r'<li id="note_(\w+)">', page)
    assert len(marks) == 34 and marks[:3] == ["a", "b", "c"] and marks[25:28] == ["z", "aa", "ab"]
    assert "partly trained on" in page


def test_a_position_stays_within_its_ends():
    assert 'class="dot" style="left:25.0%"' in position(-0.1, [-0.9, 0.1], low=-0.2, high=0.2)
    assert "left:0.0%;width:75.0%" in position(-0.1, [-0.9, 0.1], low=-0.2, high=0.2)
    assert "reach" not in position(0.5, [None, None]) and "dot" not in position(None, None)


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    if chromium.PATH is None:
        pytest.skip("needs chromium")
    with chromium.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(params=["run", "faces", "study"])
def address(request: pytest.FixtureRequest, workdir: Path, study: Path) -> str:
    if request.param == "faces":
        faces, _ = request.getfixturevalue("run_with_faces")
        report(faces)
        return (faces / "report.html").as_uri()
    return ((workdir if request.param == "run" else study) / "report.html").as_uri()


OPEN_ALL = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
# The worst contrast of text against what it stands on, and where (WCAG 2.2, 1.4.3).
CONTRAST = """(() => {
  const channels = (text) => {
    const found = text.match(/[\\d.]+(?:e-?\\d+)?/g).map(Number);
    const scale = text.startsWith("color(") ? 1 : 255;
    return [...found.slice(0, 3).map((v) => v / scale), found.length > 3 ? found[3] : 1];
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const luminance = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) =>
    sum + weight * (c[i] <= 0.04045 ? c[i] / 12.92 : ((c[i] + 0.055) / 1.055) ** 2.4), 0);
  const ground = (element) => {
    const here = channels(getComputedStyle(element).backgroundColor);
    if (here[3] === 1) return here.slice(0, 3);
    return over(here, element.parentElement ? ground(element.parentElement) : [1, 1, 1]);
  };
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.getClientRects().length || element.closest("script, title")) continue;
    const style = getComputedStyle(element);
    const behind = ground(element);
    const ink = over(channels(element.closest("svg") ? style.fill : style.color), behind);
    const [high, low] = [luminance(ink), luminance(behind)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, element.outerHTML.slice(0, 200)];
  }
  return worst;
})()"""


def test_it_fits_a_phone_and_fetches_nothing(browser: chromium.Page, address: str):
    browser.requests.clear()
    browser.errors.clear()
    browser.open(address, PHONE)
    browser.run(OPEN_ALL)
    assert browser.run("document.documentElement.scrollWidth") <= PHONE
    # What is wider than the phone scrolls within its own box, that the keyboard reaches.
    assert browser.run(
        "[...document.querySelectorAll('body *')].filter((e) => e.scrollWidth > e.clientWidth + 1"
        " && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX))"
        ".every((e) => e.tabIndex === 0)"
    )
    assert [url for url in browser.requests if not url.startswith("data:")] == [address]
    assert browser.errors == []
    assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize("dark", [False, True])
def test_every_word_can_be_read(browser: chromium.Page, address: str, dark: bool):
    browser.open(address, 1280, dark=dark)
    browser.run(OPEN_ALL)
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ("255, 255, 255" in ground) != dark
    ratio, where = browser.run(CONTRAST)
    assert ratio >= 4.5, where


def test_a_click_opens_what_it_leads_to(browser: chromium.Page, address: str):
    browser.open(address, 1280)
    closed = "document.querySelectorAll('details:not([open])').length"
    before = browser.run(closed)
    assert before > 1
    browser.click("details:not([open]) > summary")
    assert browser.run(closed) == before - 1
    browser.click("nav button")
    assert browser.run(closed) == 0
    assert browser.run("document.querySelector('nav button').textContent") == "Close all sections"
    browser.click("nav button")
    assert browser.run(closed) == browser.run("document.querySelectorAll('details').length")
    if browser.run("document.querySelector('.tests') !== null"):
        browser.click(".tests tr:last-child a")
        target = "document.querySelector(document.querySelector('.tests tr:last-child a').hash)"
        browser.until(f"{target}.closest('details').open")
        assert -1 <= browser.run(f"{target}.getBoundingClientRect().top") < 800
    browser.click("nav a[href='#reproduce']")
    assert browser.run("location.hash") == "#reproduce"


def test_the_keyboard_is_enough(browser: chromium.Page, address: str):
    browser.open(address, 1280)
    focused = "document.activeElement"
    browser.press("Tab")
    assert browser.run(f"{focused}.className") == "skip"
    assert browser.run(f"{focused}.getBoundingClientRect().left") >= 0
    browser.press("Enter")
    assert browser.run("location.hash") == "#main"
    seen = set()
    for _ in range(400):
        browser.press("Tab")
        tag = browser.run(f"{focused}.tagName")
        if tag == "BODY":
            break
        outline = browser.run(f"getComputedStyle({focused}).outlineStyle")
        assert outline != "none", browser.run(f"{focused}.outerHTML")[:200]
        seen.add(tag)
        if tag == "SUMMARY" and not browser.run(f"{focused}.parentElement.open"):
            browser.press("Enter")
            assert browser.run(f"{focused}.parentElement.open")
    assert {"SUMMARY", "DIV", "PRE"} <= seen
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0


def test_paper_has_everything_in_black_on_white(browser: chromium.Page, address: str):
    # A4 across, less its margins, in CSS pixels.
    browser.open(address, 1031, dark=True)
    browser.media("print", dark=True)
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    count = "document.querySelectorAll('details:not([open])').length"
    rights = "[...document.querySelectorAll('table')].map((t) => t.getBoundingClientRect().right)"
    assert browser.run(f"(() => {{ {OPEN_ALL}; return Math.max(...{rights}); }})()") <= 1031
    browser.run("document.querySelectorAll('nav button')[0].click()")
    closed = browser.run(count)
    assert closed > 1
    browser.run(f"addEventListener('beforeprint', () => {{ window.leftClosed = {count}; }})")
    printed = browser("Page.printToPDF", printBackground=True)["data"]
    assert len(printed) > 10_000
    assert browser.run("window.leftClosed") == 0
    assert browser.run(count) == closed
