"""Ways to get a better number than the model deserves: each is refused, or said on the page."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import write_dataset, write_faces, write_network

from fer_jax import access_log, results
from fer_jax.__main__ import main
from fer_jax.config import Config, default_config, default_study, to_json
from fer_jax.data import provenance
from fer_jax.data.audit.findings import find_near_duplicates
from fer_jax.data.audit.leakage import audit
from fer_jax.data.experiment import (
    check_leaks,
    find_leaks,
    leaks_into,
    open_experiment,
    open_trained,
)
from fer_jax.data.records import Records, dataset_directory, open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import predictions, run_scores
from fer_jax.evaluation.compare import compare
from fer_jax.report.report import report
from fer_jax.schema import EMOTIONS
from fer_jax.study.scenarios import open_scenarios
from fer_jax.synthesis.generator import generator_fingerprint, load_generator
from fer_jax.training import gan

BEST = {"step": 70, "checksum": "a", "chosen": "best", "fingerprint": "d"}
PARTS = ("train", "validation", "test")
NAMELESS = {part: [("", n % 7) for n in range(14)] for part in PARTS}
LATER = {"step": 90, "checksum": "b", "chosen": "last", "fingerprint": "d"}


def scored_run(workdir: Path, origins: dict[str, dict[str, Any]], rest: dict[str, Any]) -> Path:
    """A scored run of small tables; `origins` of some by their names, and of the rest."""
    config = default_config()
    config.sources = ("lab",)
    (workdir / "predictions").mkdir(parents=True)
    workdir.joinpath("config.json").write_text(to_json(config))
    labels = "".join(f"lab,,{name},20\n" for name in EMOTIONS)
    workdir.joinpath("training_labels.csv").write_text("source,content,label,images\n" + labels)
    parts = (("lab", "test", ""), ("web", "test", ""), ("web", "test", "int8"))
    for seed, (dataset, split, variant) in enumerate((*parts, ("lab", "validation", ""))):
        rng, n = np.random.default_rng(seed), 28
        table = {name: np.full(n, "") for name in predictions.TEXT} | {
            "dataset": np.full(n, dataset),
            "source": np.full(n, dataset),
            "split": np.full(n, split),
            "record_id": np.asarray([f"{dataset}/{split}/{i}" for i in range(n)]),
            "subject_id": np.asarray([f"{dataset}/{split}/s{i // 4}" for i in range(n)]),
            "frame_index": np.zeros(n, int),
            "age": np.full(n, -1.0),
            "label": np.arange(n) % 7,
            "probabilities": rng.dirichlet(np.ones(7), n) / 2 + np.eye(7)[np.arange(n) % 7] / 2,
        }
        name = predictions.file_name(dataset, split, variant)
        origin = origins.get(name, rest)
        predictions.write(workdir / "predictions" / name, table, EMOTIONS, origin)
    results.write(workdir, run_scores.score_run(workdir))
    return workdir


def read_scores(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "results.json").read_text())


# Other checkpoints


def test_a_table_of_another_checkpoint_is_in_no_mean(tmp_path: Path):
    whole = read_scores(scored_run(tmp_path / "whole", {}, BEST))
    assert whole["apart"] == []
    assert whole["generalization"]["cross_domain"]["loss"]["value"] is not None
    run = scored_run(tmp_path / "run", {"web.test.csv": LATER}, BEST)
    scored = read_scores(run)
    assert scored["checkpoint"] == {"step": 70, "checksum": "a", "chosen": "best"}
    named = [(one["dataset"], one["variant"]) for one in scored["sets"]]
    assert named == [("lab", ""), ("web", "int8")]
    assert {one["step"] for one in scored["sets"] + scored["validation"]} == {70}
    (apart,) = scored["apart"]
    assert (apart["dataset"], apart["step"], apart["calibrated"]) == ("web", 90, None)
    assert scored["means"]["cross_domain"]["accuracy"] is None
    assert scored["generalization"]["cross_domain"]["sets"] == []
    assert scored["calibration"] == whole["calibration"]
    page = report(run).read_text()
    assert "step 70 was selected on validation data" in page
    # The variant of another checkpoint's predictions is not a row of the set before it.
    assert '">web test int8</a>' in page
    rows = page[page.index("Of other checkpoints") :]
    assert "web test" in rows and "<td>90</td>" in rows
    assert "in no mean and not temperature-scaled" in run_scores.summary(scored)


def test_the_temperature_is_not_of_another_checkpoint(tmp_path: Path):
    run = scored_run(tmp_path / "run", {"lab.validation.csv": LATER}, BEST)
    scored = read_scores(run)
    assert scored["calibration"] is None and scored["validation"] == []
    assert [one["relation"] for one in scored["apart"]] == ["validation"]


def test_a_log_without_the_rows_of_its_results_is_not_reported(tmp_path: Path):
    run = scored_run(tmp_path / "run", {"web.test.csv": BEST}, BEST)
    access_log.append(run, {"dataset": "web", "split": "test", "checkpoint": BEST["step"]})
    results.write(run, run_scores.score_run(run))
    (run / access_log.FILE).unlink()
    with pytest.raises(InputError, match="lacks rows that a result was made with"):
        report(run)


@pytest.mark.parametrize("last", [LATER, BEST])
def test_the_page_is_about_the_checkpoint_that_was_evaluated_last(tmp_path: Path, last: Any):
    run = scored_run(tmp_path / "run", {"web.test.csv": LATER}, BEST)
    row = {"dataset": "web", "split": "test", "checkpoint": last["step"], "time": "now"}
    (run / "test_access.jsonl").write_text(json.dumps(row | {"checksum": last["checksum"]}) + "\n")
    scored = run_scores.score_run(run)
    assert scored["checkpoint"]["step"] == last["step"]
    assert len(scored["apart"]) == (1 if last is BEST else 3)


@pytest.mark.parametrize(
    ("origin", "says"),
    [
        (BEST | {"chosen": "last"}, "was the last one, not selected on validation data"),
        (BEST | {"chosen": "step"}, "was named by the user, not selected on validation data"),
        ({}, "Which checkpoint made the predictions and how it was chosen: n/a"),
    ],
)
def test_a_checkpoint_that_validation_did_not_choose_is_said_to_be(
    tmp_path: Path, origin: dict[str, Any], says: str
):
    page = report(scored_run(tmp_path / "run", {}, origin)).read_text()
    assert says in page
    assert "was selected on" not in page and "that selected the checkpoint" not in page


def test_a_table_does_not_keep_the_origin_of_the_one_that_it_replaces(tmp_path: Path):
    run = scored_run(tmp_path / "run", {}, BEST)
    file = run / "predictions" / "web.test.csv"
    table, classes = predictions.read(file)
    predictions.write(file, table, classes)
    assert [one["dataset"] for one in run_scores.score_run(run)["apart"]] == ["web"]


def test_runs_are_compared_by_one_checkpoint_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a = scored_run(tmp_path / "a", {"web.test.csv": LATER}, BEST)
    b = scored_run(tmp_path / "b", {}, BEST)
    compared = compare([a], [b], num_draws=100)
    assert "web" not in {one["dataset"] for one in compared["sets"] if not one["variant"]}
    assert main(["compare", str(a), str(b), "--draws=100"]) == 0
    printed = capsys.readouterr().out
    assert f"{a} predicted it with another checkpoint" in printed and "(step 70)" in printed


# People behind synthetic images


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with named people, "lab", and "nameless" ones."""
    people = {part: [(f"{part}{n // 2}", n % 7) for n in range(14)] for part in PARTS}
    write_dataset(tmp_path / "data", "lab", people, 20000)
    write_dataset(tmp_path / "data", "nameless", NAMELESS, 5000)
    return tmp_path / "data"


def build_faces(data: Path, name: str, network: str, **about: Any) -> Records:
    """A dataset of a generator's faces, whose fingerprint repeats the digit `network`."""
    made_by = {"network": network * 64} | about.pop("made_by", {})
    rows = [{"label": EMOTIONS[n % 7]} for n in range(60)]
    out = write_faces(data.parent / f"{name}_faces", rows, made_by=made_by, **about)
    words = ["build", "synthetic/grouped", f"--name={name}", f"--source={out}", "--detector=none"]
    assert main([*words, f"--data_dir={data}"]) == 0
    return open_records(name, "train", data)


def of_training(data: Path, *parts: tuple[str, str]) -> dict[str, Any]:
    return provenance.of_training([open_records(*part, data) for part in parts], data)


def config_of(sources: Any, *tests: Any, **changes: Any) -> Config:
    config = default_config()
    config.sources, config.test_sets = sources, tests
    config.update(changes)
    return config


def refused(data: Path, config: Config, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_leaks(find_leaks(open_experiment(config, data), data), config)


LAB_TRAIN = {"name": "lab", "test": "train"}


def test_people_stay_behind_a_network_over_two_steps(data: Path):
    build_faces(data, "made", "a", generator=of_training(data, ("lab", "train")))
    assert "lab/train0" in of_training(data, ("made", "train"))["subjects"]
    # A teacher was trained on these faces alone; it labelled those of a generator of other people.
    build_faces(
        data,
        "labelled",
        "b",
        generator=of_training(data, ("lab", "validation")),
        teacher=of_training(data, ("made", "train")),
        made_by={"teacher": "c" * 32 + "/1.5"},
    )
    says = "the teacher that labelled labelled/grouped saw 7 of the subjects .*'lab/train0'"
    refused(data, config_of(("labelled/grouped",), LAB_TRAIN), says)
    # As validation data they are no better.
    experiment = open_experiment(config_of(("nameless",), LAB_TRAIN), data)
    faces = open_records("labelled", "validation", data)
    leaks = find_leaks(experiment._replace(validation=[faces]), data)
    assert leaks.counts["teacher"] == 1 and "saw 7 of the subjects" in leaks.seen[0]
    # A folder that names only what its teacher was trained on itself.
    only = {"saw": [{"dataset": "made", "split": "train"}], "subjects": []}
    build_faces(data, "short", "d", generator=only)
    refused(data, config_of(("short/grouped",), LAB_TRAIN), "saw 7 of the subjects .*'lab/train0'")
    fine = find_leaks(open_experiment(config_of(("labelled/grouped",), "lab"), data), data)
    assert fine == ({}, [], [])


def test_a_stripped_folder_is_known_by_its_networks_arrays(data: Path):
    build_faces(data, "made", "a", generator=of_training(data, ("lab", "train")))
    build_faces(data, "copied", "a")
    says = "the generator of copied/grouped saw 7 of the subjects"
    refused(data, config_of(("copied/grouped",), LAB_TRAIN), says)
    # The names of its people have the network's fingerprint, whatever is taken out of the dataset.
    (dataset_directory("copied", data) / "build.json").unlink()
    refused(data, config_of(("copied/grouped",), LAB_TRAIN), "the generator of copied/grouped saw")


def test_unknown_people_are_acknowledged_and_said_to_be_unknown(data: Path, tmp_path: Path):
    build_faces(data, "made", "b")
    config = config_of(("made/grouped",), "lab")
    says = "unknown whether people .* the generator of made/grouped .b{16}.*allow_unknown_people"
    refused(data, config, says)
    config.allow_unknown_people = True
    leaks = find_leaks(open_experiment(config, data), data)
    check_leaks(leaks, config)
    run = scored_run(tmp_path / "run", {}, BEST)
    environment = {"unknown_people": leaks.unknown, "leaks": {}, "seen": []}
    (run / "environment.json").write_text(json.dumps(environment))
    results.write(run, run_scores.score_run(run))
    page = report(run).read_text()
    assert "Unknown people" in page and "the generator of made/grouped (bbbbbbbbbbbbbbbb)" in page


def test_a_teacher_that_is_not_named_is_unknown(data: Path):
    known = of_training(data, ("lab", "train"))
    source = data.parent / "made_faces"
    rows = [{"label": EMOTIONS[n % 7], "confidence": 0.9} for n in range(60)]
    write_faces(source, rows, made_by={"network": "a" * 64}, generator=known)
    words = ["build", "synthetic/grouped", "--name=made", f"--source={source}", "--detector=none"]
    assert main([*words, f"--data_dir={data}"]) == 0
    refused(data, config_of(("made/grouped",), "nameless"), "unknown .*the teacher of made/grouped")


def test_renamed_data_is_what_a_generator_saw(data: Path):
    build_faces(data, "made", "a", generator=of_training(data, ("nameless", "train")))
    test = {"name": "other", "test": "train"}
    shutil.move(data / "nameless", data / "other")
    says = "the generator of made/grouped saw 14 of the records of the test set other train"
    refused(data, config_of(("made/grouped",), test), says)
    # Built again, every record has another name, but the images are the same.
    people = [(f"somebody{n}", n % 7) for n in range(14)]
    write_dataset(data, "again", {"test": people}, 5000)
    says = "saw 14 of the images of the test set again test"
    refused(data, config_of(("made/grouped",), "again"), says)
    # Without the data it cannot be said.
    shutil.rmtree(data / "other")
    refused(data, config_of(("made/grouped",), "lab"), "unknown .*nameless train, which the gen")


def test_an_evaluation_on_other_data_looks_for_all_that_training_looks_for(
    data: Path, tmp_path: Path
):
    build_faces(data, "made", "a", generator=of_training(data, ("lab", "train")))
    trained = open_experiment(config_of(("made/grouped", "nameless")), data)
    found = leaks_into(trained, open_records("lab", "train", data), data, tmp_path)
    assert found["counts"] == {"generator": 1} and "saw 7 of the subjects" in found["seen"][0]
    found = leaks_into(trained, open_records("nameless", "validation", data), data, tmp_path)
    assert found["counts"] == {"record": 14}
    assert (found["unknown"], found["near_duplicates"]) == ([], None)


def test_a_run_of_an_earlier_build_is_not_audited(data: Path, tmp_path: Path, capsys: Any):
    config = config_of(("lab",))
    environment: dict[str, Any] = {"datasets": {"lab": {"fingerprint": "of yesterday"}}}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    assert open_trained(config, data, tmp_path) is None
    assert "'lab' is another build than the run was trained on" in capsys.readouterr().out
    (tmp_path / "environment.json").write_text(json.dumps({"left_out": {}}))
    hidden = open_records("lab", "train", data).columns["record_id"][:3].tolist()
    rows = ["dataset,record_id,reason", *(f"lab,{name},leaks" for name in hidden)]
    (tmp_path / "exclusions.csv").write_text("\n".join(rows) + "\n")
    assert open_trained(config, data, tmp_path) is None
    assert "does not leave out what was left out of the training" in capsys.readouterr().out


def test_a_generator_inherits_whom_the_network_saw_that_it_starts_from(data: Path):
    network = write_network(data.parent / "network")
    known = gan._behind_start(str(network), data)
    assert known["unknown"] == ["the network network that the generator started from"]
    saw = of_training(data, ("lab", "train"))
    provenance.register(data, generator_fingerprint(load_generator(network)), saw)
    gan._behind_start.cache_clear()
    assert gan._behind_start(str(network), data) == saw


# Slices and spellings


@pytest.mark.parametrize(
    ("source", "test", "kinds"),
    [
        ({"name": "lab", "validation": "train[50%:]"}, "lab", "7 x record in more .* person in"),
        ({"name": "lab", "train": "all"}, "lab", "record in more than one split"),
        ({"name": "nameless", "train": "train+test[:1]"}, "nameless", "1 x record in more"),
    ],
)
def test_overlapping_slices_leak(data: Path, source: Any, test: str, kinds: str):
    refused(data, config_of((source,), test), f"the data leaks: .*{kinds}")


@pytest.mark.parametrize(
    "second", ["lab/grouped", {"name": "lab", "test": "test[50%:]"}, {"name": "lab", "test": "all"}]
)
def test_a_study_does_not_count_a_test_set_twice(data: Path, second: Any):
    config = default_study()
    config.scenarios = ({"name": "base", "sources": ("nameless",)},)
    config.test_sets, config.run.batch_size = ("lab", second), 8
    with pytest.raises(InputError, match="lab test and lab.* have (14|7) images in common"):
        open_scenarios(config, data)


def test_people_under_another_name_are_found_by_their_images(data: Path):
    write_dataset(data, "again", {"test": [(f"somebody{n}", n % 7) for n in range(14)]}, 20000)
    refused(data, config_of(("lab",), "again"), "the data leaks: 14 x image in more than one split")


# What a page says was looked for


def test_near_duplicates_were_looked_for_only_where_an_audit_was(data: Path, tmp_path: Path):
    experiment = open_experiment(config_of(("lab",), "nameless"), data)
    assert find_near_duplicates(tmp_path, experiment.parts) is None
    _, _, described = audit(experiment.parts)
    (tmp_path / "audit.json").write_text(json.dumps(described))
    found = find_near_duplicates(tmp_path, experiment.parts)
    assert found == {"date": described["date"], "fingerprint": described["fingerprint"], "found": 0}
    trained = open_trained(config_of(("lab",)), data, tmp_path)
    assert trained is not None
    near = [
        leaks_into(trained, open_records(*test, data), data, tmp_path)["near_duplicates"]
        for test in (("nameless", "test"), ("nameless", "train"))
    ]
    assert near == [found, None]
    # Found ones count as leaks.
    pair: dict[str, Any] = {"kind": "image", "key": "similarity 0.950"}
    for side, part in zip("ab", experiment.train + experiment.test, strict=True):
        pair[side] = {"record_id": str(part.columns["record_id"][0])}
    (tmp_path / "audit.json").write_text(json.dumps(described | {"findings": [pair]}))
    leaks = leaks_into(trained, experiment.test[0], data, tmp_path)
    assert leaks["counts"] == {"image": 1} and leaks["near_duplicates"]["found"] == 1
    # Other images under the same names were not looked at.
    shutil.rmtree(data / "nameless")
    write_dataset(data, "nameless", NAMELESS, 90000)
    changed = open_records("nameless", "test", data)
    assert leaks_into(trained, changed, data, tmp_path)["near_duplicates"] is None


def test_no_leaks_found_says_among_what(tmp_path: Path):
    run = scored_run(tmp_path / "run", {}, BEST)
    none: dict[str, Any] = {"counts": {}, "seen": [], "unknown": [], "near_duplicates": None}
    near = {"date": "2026-11-29T12:00:00+00:00", "fingerprint": "f" * 64, "found": 0}
    leaks = {"lab.test.csv": none, "web.test.csv": none}
    (run / "leaks.json").write_text(json.dumps(leaks))
    results.write(run, run_scores.score_run(run))
    page = report(run).read_text()
    assert "No leaks found among people, clips, " in page and "equal byte for byte. " in page
    assert "Near-duplicates in lab test, web test: n/a, not looked for" in page
    leaks["web.test.csv"] = none | {"near_duplicates": near}
    (run / "leaks.json").write_text(json.dumps(leaks))
    results.write(run, run_scores.score_run(run))
    page = report(run).read_text()
    assert "Near-duplicates in lab test: n/a" in page
    assert f"in web test: none, by the audit of {near['date']} (fingerprint ffff" in page


def test_compare_says_which_side_leaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = (scored_run(tmp_path / name, {}, BEST) for name in "ab")
    leak = {"counts": {"subject": 3}, "seen": [], "unknown": [], "near_duplicates": None}
    for run, found in ((a, leak), (b, leak | {"counts": {}})):
        leaks = dict.fromkeys(("lab.test.csv", "web.test.csv"), found)
        (run / "leaks.json").write_text(json.dumps(leaks))
    (b / "environment.json").write_text(json.dumps({"leaks": {"image": 2}}))
    assert main(["compare", str(a), str(b), "--draws=100"]) == 0
    printed = capsys.readouterr().out
    assert f"{a}: LEAKS, web.test.csv: 3 x person in more than one split" in printed
    assert f"{b}: LEAKS, the data of the training: 2 x image in more" in printed
    assert f"{b}: LEAKS, demo" not in printed and "not audited" not in printed
    (a / "leaks.json").unlink()
    assert main(["compare", str(a), str(b), "--draws=100"]) == 0
    assert f"{a}: not audited for leaks: lab" in capsys.readouterr().out
