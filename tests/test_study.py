"""A study: what is missing is trained, what is there stays, and every number is in the tables."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import special
from small_runs import write_dataset

from fer_jax import checkpoints, results
from fer_jax.__main__ import main
from fer_jax.config import Config, default_study, load_config, override
from fer_jax.errors import InputError
from fer_jax.evaluation import bootstrap, metrics, predictions
from fer_jax.evaluation.compare import compare
from fer_jax.report import run_page
from fer_jax.schema import EMOTIONS, INTERESTS
from fer_jax.study import matrix, scenarios, study

CONFIG = """
from fer_jax.config import default_study

def get_config():
    config = default_study()
    config.scenarios = (
        {"name": "base", "sources": ("lab",)},
        {"name": "both", "sources": ("lab", "web")},
    )
    config.test_sets = ("lab", "web", "solo")
    config.seeds = (0, 1)
    config.variants = ("label_shift",)
    run = config.run
    run.batch_size = 8
    run.num_epochs = 2.0
    run.model.update({"width": 0.03, "num_middle_blocks": 1, "image_size": 71})
    run.model.batch_norm_momentum = 0.5
    run.optimizer.learning_rate = 1e-2
    run.schedule.warmup_epochs = 0.0
    run.validate_every_epochs = 1.0
    return config
"""
pytestmark = pytest.mark.usefixtures("short_network", "one_device")

RUNS = ("base.seed_0", "base.seed_1", "both.seed_0", "both.seed_1")


def people(name: str, count: int, emotions: range = range(7)) -> list[tuple[str, int]]:
    return [(f"{name}{number}", emotion) for number in range(count) for emotion in emotions]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, one person with five emotions, and people of the first under another name."""
    directory = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("lab", "web")):
        parts = {
            "train": people("a", 2),
            "validation": people("b", 1),
            "test": people("c", 3),
        }
        write_dataset(directory, name, parts, first=10_000 * number)
    write_dataset(directory, "solo", {"test": people("d", 1, range(5))}, first=30_000)
    # Its test pictures are those of lab's first training people.
    write_dataset(directory, "copies", {"test": people("f", 2)})
    return directory


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.py"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="module")
def finished(data_dir: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("study")
    assert main(words(config_file, workdir, data_dir)) == 0
    return workdir


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def loaded(config_file: Path) -> Config:
    return study_config(config_file)


def study_config(file: Path, **changes: str) -> Config:
    config = load_config(str(file), scenarios.check_study)
    for field, text in changes.items():
        override(config, field, text)
    return config


def words(config_file: Path, workdir: Path, data_dir: Path, *more: str) -> list[str]:
    return [
        "study",
        f"--config={config_file}",
        f"--workdir={workdir}",
        f"--data_dir={data_dir}",
    ] + [*more]


def refused(command: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1, printed


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the runs that are trained, and those that are predicted with a "?"."""
    called = []

    def recording(name: str, mark: str) -> None:
        real = getattr(study, name)

        def call(*arguments: Any, **options: Any) -> Any:
            called.extend(
                mark + a.name for a in arguments if isinstance(a, Path) and ".seed" in a.name
            )
            return real(*arguments, **options)

        monkeypatch.setattr(study, name, call)

    recording("train", "")
    recording("evaluate", "?")
    yield called


@pytest.fixture
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of the runs lack their figures, which take longest to write again."""
    monkeypatch.setattr(run_page, "run_figures", lambda *_, **__: {})


def fingerprint(workdir: Path) -> dict[str, int]:
    """When the files of all runs were written, but for what is computed from them."""
    return {
        str(path.relative_to(workdir)): path.stat().st_mtime_ns
        for path in (workdir / "runs").rglob("*")
        if path.is_file() and path.name not in ("results.json", "report.html")
    }


def test_the_matrix_is_what_the_tables_say(finished: Path, data_dir: Path):
    found = json.loads((finished / "results.json").read_text())
    assert [one["runs"] for one in found["scenarios"]] == [
        ["runs/base.seed_0", "runs/base.seed_1"],
        ["runs/both.seed_0", "runs/both.seed_1"],
    ]
    assert [one["n_images"] for one in found["scenarios"]] == [14, 28]
    assert [one["n_subjects"] for one in found["scenarios"]] == [2, 4]
    # As many steps as the baseline's two epochs of one batch.
    assert [one["n_steps"] for one in found["scenarios"]] == [2, 2]
    assert len(found["cells"]) == 2 * 3 * 2
    for cell in found["cells"]:
        name = predictions.file_name(cell["dataset"], cell["split"], cell["variant"])
        scored = []
        for seed in (0, 1):
            run = finished / "runs" / f"{cell['scenario']}.seed_{seed}"
            table, _ = predictions.read(run / "predictions" / name)
            scored.append(metrics.score(table["label"], table["probabilities"]))
        assert cell["empty"] is None and cell["oracle"] is False
        assert cell["n"] == len(table["label"])
        for metric, told in cell["metrics"].items():
            assert told["by_seed"] == pytest.approx([one[metric] for one in scored], abs=1e-9)
            assert told["value"] == pytest.approx(np.mean(told["by_seed"]), abs=1e-9)
            low, high = told["interval"]
            if low is not None:
                assert low <= told["value"] <= high
    relations = {
        (cell["scenario"], cell["dataset"]): cell["relation"]
        for cell in found["cells"]
        if not cell["variant"]
    }
    assert relations == {
        ("base", "lab"): "within",
        ("base", "web"): "cross_domain",
        ("base", "solo"): "cross_domain",
        ("both", "lab"): "within",
        ("both", "web"): "within",
        ("both", "solo"): "cross_domain",
    }


def test_cells_say_what_is_doubtful(finished: Path):
    found = json.loads((finished / "results.json").read_text())
    for cell in found["cells"]:
        if cell["dataset"] == "solo":
            assert cell["warning"].startswith(
                "no image of sadness, surprise; no interval: there is only one subject"
            )
            assert cell["metrics"]["balanced_accuracy"]["interval"] == [None, None]
            assert cell["majority"]["balanced_accuracy"] == pytest.approx(1 / 5)
        else:
            assert "only 3 clusters (by subject)" in cell["warning"]
    (solo,) = (one for one in found["test_sets"] if one["dataset"] == "solo")
    assert (solo["n"], solo["n_subjects"], solo["classes_present"]) == (5, 1, 5)


def test_differences_are_those_of_compare(finished: Path):
    found = json.loads((finished / "results.json").read_text())
    sides = [
        [finished / "runs" / f"{name}.seed_{seed}" for seed in (0, 1)] for name in ("both", "base")
    ]
    compared = {
        one["dataset"]: one["metrics"] for one in compare(*sides)["sets"] if not one["variant"]
    }
    assert {one["metric"] for one in found["differences"]} == set(results.HEADLINE)
    assert {(one["scenario"], one["against"]) for one in found["differences"]} == {("both", "base")}
    for one in found["differences"]:
        same = results.plain(compared[one["dataset"]][one["metric"]])
        assert one["difference"] == pytest.approx(same["difference"], abs=1e-12)
        assert one["interval"] == same["interval"]
        assert one["p"] == same["p"]
        # All differences of the study are one family.
        assert one["p"] is None or same["p_corrected"] <= one["p_corrected"]


def test_differences_over_sets(finished: Path):
    """A set of one person has no interval: it is named, and the mean is of the others."""
    found = json.loads((finished / "results.json").read_text())
    (mean,) = found["over_sets"]
    assert (mean["scenario"], mean["against"]) == ("both", "base")
    assert (mean["n_sets"], mean["without"]) == (2, ["solo test"])
    of_sets = [
        one["difference"]
        for one in found["differences"]
        if one["metric"] == "balanced_accuracy" and one["dataset"] != "solo"
    ]
    assert mean["difference"] == pytest.approx(np.mean(of_sets))


def gain(value: float, people: range, seeds: tuple[float, ...] = (0.0,)) -> bootstrap.Estimate:
    """A difference of standard error 0.2 from the choice among people; it is 0 from one."""
    keys = np.asarray(people, np.uint64)
    deviations = np.sqrt(0.04 / len(keys)) * special.ndtri(
        np.exp(-bootstrap.draw(keys, 0, 20_000))
    ).sum(axis=0)
    by_seed = value + np.asarray(seeds)
    if len(people) < 2:
        deviations = np.full(20_000, np.nan)
    deviations = np.tile(deviations, (len(seeds), 1))
    return bootstrap.Estimate(
        {"": by_seed}, {"": deviations}, keys, np.full(len(keys), 1 / len(keys))
    )


def test_a_mean_over_sets_is_sharper_and_seeds_stay():
    """Errors of other people average out; those of the same people and of the seeds do not."""

    def mean_of(gains: dict[str, bootstrap.Estimate]) -> dict[str, Any]:
        sets = {(name, "test"): {"balanced_accuracy": one} for name, one in gains.items()}
        return matrix.compare_scenarios({"more": sets}, "base")[1][0]

    t = bootstrap.quantile_of_t
    single = mean_of({"0": gain(0.1, range(31))})
    apart = mean_of({str(i): gain(0.1, range(31 * i, 31 * i + 31)) for i in range(16)})
    same = mean_of({str(i): gain(0.1, range(31)) for i in range(16)})
    seeds = mean_of({str(i): gain(0.1, range(31 * i, 31 * i + 31), (-0.1, 0.1)) for i in range(16)})
    widths = [np.diff(one["interval"])[0] for one in (single, apart, same, seeds)]
    expected = [2 * 0.2 * t(30), 2 * 0.05 * t(16 * 31 - 1), 2 * 0.2 * t(30)]
    np.testing.assert_allclose(widths[:3], expected, rtol=0.03)
    assert widths[3] > 2 * 0.1 * t(10)
    assert single["difference"] == pytest.approx(0.1) == pytest.approx(apart["difference"])
    one = mean_of({"a": gain(0.1, range(31)), "b": gain(0.5, range(1))})
    assert (one["n_sets"], one["without"]) == (1, ["b test"])


def test_the_csv_has_the_same_numbers(finished: Path):
    found = json.loads((finished / "results.json").read_text())
    with (finished / "matrix.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["cells"])
    for row, cell in zip(rows, found["cells"], strict=True):
        assert (row["scenario"], row["dataset"]) == (cell["scenario"], cell["dataset"])
        for metric, told in cell["metrics"].items():
            assert row[metric] == ("" if told["value"] is None else str(told["value"]))
            assert row[f"{metric}_low"] == (
                "" if told["interval"][0] is None else row[f"{metric}_low"]
            )
        assert row["majority_accuracy"] == str(cell["majority"]["accuracy"])


def test_everything_is_as_the_contract_says(finished: Path, data_dir: Path):
    found = json.loads((finished / "results.json").read_text())
    assert found["baseline"] == "base" and found["classes"] == list(EMOTIONS)
    assert (
        "Of 100 faces of solo test, which none of these networks was trained on" in found["answer"]
    )
    assert {one["times"] for one in found["test_access"]} == {1}
    assert len(found["test_access"]) == 4 * 3
    for one in found["test_sets"]:
        strip = cv2.imread(str(finished / one["faces"]))
        assert strip is not None and strip.shape == (96, 6 * 96, 3)
    assert (finished / "report.html").read_text().count('alt="Faces of ') == 3
    nothing = {"leaks": {}, "by_scenario": {}, "warnings": [], "left_out": {}}
    assert found["audit"].pop("looked_for").endswith("equal byte for byte")
    nothing |= {"allowed": False, "near_duplicates": None, "unknown_people": []}
    assert found["audit"] == nothing
    steps = [step for one in found["scenarios"] for step in one["steps"]]
    assert len(steps) == 4 and set(steps) <= {1, 2}
    assert found["published"] is None
    reproduce = found["reproduce"]
    assert set(reproduce["datasets"]) == {"lab", "web", "solo"}
    assert all(reproduce["datasets"].values()) and reproduce["seeds"] == [0, 1]
    (base, both) = found["distances"]
    assert base["within_domain"]["n_sets"] == 1 and base["cross_domain"]["n_sets"] == 2
    assert both["within_domain"]["n_sets"] == 2 and both["cross_domain"]["n_sets"] == 1
    assert base["cross_content"] == {
        "value": None,
        "interval": [None, None],
        "n_sets": 0,
        "why": "no test set is cross content for it",
    }


@pytest.mark.usefixtures("plain_pages")
def test_again_nothing_is_trained_or_predicted(
    copied: Path, data_dir: Path, config_file: Path, trained: list[str]
):
    before, results_before = fingerprint(copied), (copied / "results.json").read_text()
    assert main(words(config_file, copied, data_dir)) == 0
    assert trained == []
    assert fingerprint(copied).items() >= before.items()
    now, was = (json.loads(t) for t in ((copied / "results.json").read_text(), results_before))
    assert now.pop("reproduce")["datasets"] == was.pop("reproduce")["datasets"]
    assert now == was


@pytest.mark.usefixtures("plain_pages")
def test_a_deleted_run_alone_is_trained_again(
    copied: Path,
    data_dir: Path,
    config_file: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
):
    was = json.loads((copied / "results.json").read_text())
    shutil.rmtree(copied / "runs" / "both.seed_0")
    before = fingerprint(copied)
    assert main(words(config_file, copied, data_dir, "--dry_run")) == 0
    assert "both.seed_0" in capsys.readouterr().out and trained == []
    # As a job of a launcher does it: this one run, and no results.
    (copied / "results.json").unlink()
    assert main(words(config_file, copied, data_dir, "--run=3")) == 0
    assert "4 of 4 runs are finished" in capsys.readouterr().out
    assert not (copied / "results.json").exists()
    assert main(words(config_file, copied, data_dir)) == 0
    assert trained == ["both.seed_0", "?both.seed_0"]
    assert {name: time for name, time in fingerprint(copied).items() if name in before} == before
    now = json.loads((copied / "results.json").read_text())
    assert now["cells"] == was["cells"] and now["differences"] == was["differences"]


@pytest.mark.usefixtures("plain_pages")
def test_a_deleted_table_is_predicted_again_and_counted(
    copied: Path, data_dir: Path, config_file: Path, trained: list[str]
):
    (copied / "runs" / "base.seed_1" / "predictions" / "web.test.csv").unlink()
    assert main(words(config_file, copied, data_dir)) == 0
    assert trained == ["?base.seed_1"]
    found = json.loads((copied / "results.json").read_text())
    times = {
        (one["run"], one["dataset"]): one["times"]
        for one in found["test_access"]
        if one["times"] > 1
    }
    assert times == {("runs/base.seed_1", "web"): 2}


def test_a_table_of_another_checkpoint_is_not_taken(copied: Path, data_dir: Path, loaded: Config):
    found, runs = study.open_study(loaded, copied, data_dir)
    assert not any(study.sets_to_predict(run, loaded, data_dir) for run in runs)
    changes = {"lab": {"checksum": "retrained"}, "web": {"fingerprint": "another build"}}
    for name, change in changes.items():
        file = runs[0].workdir / "predictions" / f"{name}.test.csv"
        origin = predictions.read_origin(file) | change
        file.with_suffix(".json").write_text(json.dumps(origin))
    assert study.sets_to_predict(runs[0], loaded, data_dir) == [("lab", "test"), ("web", "test")]


def test_a_run_that_is_not_done_is_said_to_be(copied: Path, data_dir: Path, config_file: Path):
    config = study_config(config_file, **{"run.num_epochs": "4"})
    found, runs = study.open_study(config, copied, data_dir)
    assert [run.scenario.num_steps for run in runs] == [4] * 4
    assert not any(scenarios.is_finished(run) for run in runs)
    assert "at step 2" in study.overview(config, found, runs)
    config = study_config(
        config_file, **{"run.early_stopping_patience": "5", "run.num_epochs": "4"}
    )
    metrics_file = runs[0].workdir / "metrics.jsonl"
    row = {"step": 2} | {f"validation_{n}": 0.5 for n in ("loss", "accuracy", "balanced_accuracy")}
    metrics_file.write_text((json.dumps(row | {"validation_macro_f1": 0.5}) + "\n") * 7)
    found, runs = study.open_study(config, copied, data_dir)
    # The latest of equals counts as the best: patience is counted from the first.
    assert scenarios.is_finished(runs[0]) and not scenarios.is_finished(runs[1])


def test_a_changed_scenario_is_refused(
    copied: Path, data_dir: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
):
    command = words(config_file, copied, data_dir)
    refused([*command, "--config.run.optimizer.learning_rate=1"], "another config", capsys)
    environment = copied / "runs" / "base.seed_0" / "environment.json"
    described = json.loads(environment.read_text())
    described["datasets"]["lab"]["fingerprint"] = "of yesterday"
    environment.write_text(json.dumps(described))
    refused(command, "was trained on another build of 'lab'", capsys)


def test_predictions_of_another_label_space_are_refused(
    copied: Path, data_dir: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
):
    file = copied / "runs" / "base.seed_1" / "predictions" / "web.test.csv"
    table, _ = predictions.read(file)
    n = len(table["label"])
    table |= {"label": np.zeros(n, int), "probabilities": np.full((n, 2), 0.5)}
    predictions.write(file, table, INTERESTS, predictions.read_origin(file))
    refused(words(config_file, copied, data_dir), "is about not_interested, interested", capsys)


def test_a_leaking_study_is_refused_before_anything_is_trained(
    data_dir: Path,
    config_file: Path,
    tmp_path: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
):
    command = words(config_file, tmp_path / "leaks", data_dir, "--config.test_sets=lab,copies")
    assert main([*command, "--dry_run"]) == 0
    assert "base LEAKS: 14 x image in more than one split" in capsys.readouterr().out
    refused(command, "scenario 'base': the data leaks: 14 x image in more than one split", capsys)
    assert trained == [] and not (tmp_path / "leaks").exists()
    assert main([*command, "--dry_run", "--config.run.allow_leaks=true"]) == 0
    assert "(allowed)" in capsys.readouterr().out


def test_what_leaks_can_be_left_out(
    data_dir: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    listed = tmp_path / "lists" / "leave_out.csv"
    command = words(
        config_file,
        tmp_path / "leaks",
        data_dir,
        "--config.test_sets=copies",
        "--config.scenarios=({'name': 'both', 'sources': ('lab', 'web')},)",
    )
    assert main([*command, f"--write_exclusions={listed}"]) == 0  # its folder is made
    assert "14 records to exclude" in capsys.readouterr().out
    # All of lab's training part: the other source alone would remain.
    refused([*command, f"--config.run.exclusions={listed}"], "leaves nothing of lab train", capsys)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--config.test_sets=lab,wep"], "dataset 'wep' is not built"),
        (["--config.test_sets=lab,lab"], "names lab test twice"),
        (["--config.scenarios=({'name': 'x', 'sources': ('labb',)},)"], "scenario 'x': dataset"),
        (
            [
                "--config.scenarios=({'name':'x','sources':('lab',)},{'name':'x','sources':('web',)})"
            ],
            "two scenarios have the name 'x'",
        ),
        (
            ["--config.scenarios=({'name': 'x', 'sources': ('lab',), 'ema_decy': 0.9},)"],
            "did you mean 'ema_decay'",
        ),
        (
            ["--config.scenarios=({'name': 'x', 'sources': ('lab',), 'batch_size': 'a'},)"],
            "scenario 'x': config.batch_size must be a whole number, got 'a'",
        ),
        (["--config.scenarios=({'name': '../x', 'sources': ('lab',)},)"], "must have a name of"),
        (["--config.scenarios=({'name': 'x'},)"], "scenario 'x' names no sources"),
        (["--config.scenarios=({'name': 'x', 'sources': ('solo',)},)"], "has no split 'train'"),
        (["--config.baseline=bass"], "did you mean 'base'"),
        (["--config.seeds=0,0"], "distinct non-negative integers"),
        (["--config.seeds=a"], "distinct non-negative integers"),
        (["--config.run.sources=lab"], "is set by the scenarios"),
        (["--config.run.batch_size=64"], "scenario 'base': run.batch_size 64 exceeds the 14"),
        (["--config.variants=int9"], "unknown 'int9'"),
        (["--config.shared=true"], "did you mean"),
        (["--only=bath"], "did you mean 'both'"),
        (["--run=5"], "--run must be 1 to 4, got 5"),
        (["--run=1", "--only=base"], "not allowed with argument --run"),
    ],
)
def test_what_no_study_can_be_is_refused(
    more: list[str],
    says: str,
    data_dir: Path,
    config_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    refused(words(config_file, tmp_path / "study", data_dir, *more), says, capsys)
    assert not (tmp_path / "study").exists()


def test_a_runs_folder_is_no_studys(
    finished: Path, data_dir: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
):
    command = words(config_file, finished / "runs" / "base.seed_0", data_dir)
    refused(command, "holds a run, not a study", capsys)


def test_only_shared_classes_are_scored(copied: Path, data_dir: Path, config_file: Path):
    config = study_config(config_file, shared_classes="true")
    opened, runs = study.open_study(config, copied, data_dir)
    found = matrix.write(config, opened, runs, copied, data_dir)
    assert found["classes"] == list(EMOTIONS[:5])
    for cell in found["cells"]:
        assert cell["n"] == {"lab": 15, "web": 15, "solo": 5}[cell["dataset"]]
        assert cell["majority"]["balanced_accuracy"] == pytest.approx(1 / 5)
        name = predictions.file_name(cell["dataset"], cell["split"], cell["variant"])
        run = copied / "runs" / f"{cell['scenario']}.seed_0" / "predictions" / name
        table, _ = predictions.read(run)
        kept = table["label"] < 5
        answers = table["probabilities"][kept, :5].argmax(axis=1)
        accuracy = (answers == table["label"][kept]).mean()
        assert cell["metrics"]["accuracy"]["by_seed"][0] == pytest.approx(accuracy)


def test_a_test_set_without_the_scored_classes_says_so(
    copied: Path, data_dir: Path, loaded: Config
):
    opened, runs = study.open_study(loaded, copied, data_dir)
    for run in runs:
        for name in ("solo.test.csv", "solo.test.label_shift.csv"):
            file = run.workdir / "predictions" / name
            table, classes = predictions.read(file)
            predictions.write(file, table | {"label": np.full(len(table["label"]), -1)}, classes)
    found = matrix.write(loaded, opened, runs, copied, data_dir)
    cells = [cell for cell in found["cells"] if cell["dataset"] == "solo"]
    assert {cell["empty"] for cell in cells} == {f"no image of {', '.join(EMOTIONS)}"}
    assert all(cell["metrics"]["accuracy"]["value"] is None for cell in cells)
    assert "no image of anger" in matrix.summary(found)


def test_oracles_are_marked(copied: Path, data_dir: Path, loaded: Config):
    first, second = loaded.scenarios
    loaded.scenarios = (first, second | {"oracle": True})
    opened = scenarios.open_scenarios(loaded, data_dir)
    assert [(one.oracle, one.config.allow_leaks) for one in opened] == [
        (False, False),
        (True, True),
    ]
    runs = scenarios.runs_of(loaded, opened, copied)
    found = matrix.write(loaded, opened, runs, copied, data_dir)
    assert {(c["scenario"], c["oracle"]) for c in found["cells"]} == {
        ("base", False),
        ("both", True),
    }
    assert [one["oracle"] for one in found["scenarios"]] == [False, True]
    assert "'both'" not in found["answer"]


def test_the_defaults_are_complete():
    with pytest.raises(InputError, match="scenarios is empty"):
        scenarios.check_study(default_study())


@pytest.mark.usefixtures("plain_pages")
def test_a_run_that_averages_is_predicted_once(
    config_file: Path, data_dir: Path, tmp_path: Path, trained: list[str]
):
    one = "--config.scenarios=({'name': 'one', 'sources': ('lab',)},)"
    more = [one, "--config.run.weight_average=swad", "--config.seeds=(0,)"]
    # By its losses the first validation is the best; it predicts with its last checkpoint.
    more.append("--config.run.selection_metric=validation_loss")
    command = words(config_file, tmp_path, data_dir, *more, "--config.run.num_epochs=3.0")
    assert main(command) == 0 and trained == ["one.seed_0", "?one.seed_0"]
    history = scenarios.history_of(tmp_path / "runs" / "one.seed_0", "validation_loss")
    assert checkpoints.best_step(history, "validation_loss") == 1 and len(history) == 3
    trained.clear()
    assert main(command) == 0 and trained == []
