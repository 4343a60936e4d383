"""Relations come from records; what new people and new content cost is told apart."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_runs import write_dataset

from fer_jax.config import default_config
from fer_jax.data.records import Records, open_records
from fer_jax.evaluation import bootstrap, relations, scoring
from fer_jax.evaluation.relations import KNOWN_PEOPLE, Learned
from fer_jax.study import distances
from fer_jax.study.distances import METRIC, SeedPredictions

LEARNED = Learned(
    sources=frozenset({"lab"}),
    places=frozenset({("lab", "food"), ("lab", "cosmetics")}),
    chosen_on=frozenset({("lab", "food"), ("web", "cars")}),
    subjects=frozenset({"lab/0", "lab/1"}),
    records=frozenset({"lab/0/smile"}),
)


def table(*images: tuple[str, str, str]) -> dict[str, np.ndarray]:
    """Images by (source, content, subject)."""
    source, content, subject = zip(*images, strict=True)
    return {
        "source": np.asarray(source),
        "content": np.asarray(content),
        "subject_id": np.asarray(subject),
        "clip_id": np.full(len(images), ""),
        "record_id": np.asarray([f"x/{i}" for i in range(len(images))]),
    }


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([("lab", "food", "lab/7"), ("lab", "cosmetics", "lab/8")], "within"),
        ([("lab", "cars", "lab/7")], "cross_content"),
        ([("web", "food", "web/7")], "cross_domain"),
        ([("web", "", "")], "cross_domain"),
        # Partly one and partly another.
        ([("lab", "food", "lab/7"), ("lab", "cars", "lab/8")], None),
        ([("lab", "food", "lab/7"), ("web", "food", "web/8")], None),
        # What is not said is not new.
        ([("lab", "", "lab/7")], None),
        # People who were trained on.
        ([("lab", "food", "lab/0")], KNOWN_PEOPLE),
        ([("lab", "food", "lab/0"), ("lab", "food", "lab/7")], None),
        ([("lab", "food", "lab/0"), ("lab", "food", "")], None),
    ],
)
def test_relations_come_from_the_records(images: list[tuple[str, str, str]], expected: str | None):
    assert relations.relation(LEARNED, table(*images)) == expected


def test_a_copy_under_another_name_is_known_by_its_images(tmp_path: Path):
    parts = {"train": [("a", 0), ("b", 1)], "validation": [("c", 0)], "test": [("d", 0)] * 3}
    write_dataset(tmp_path, "lab", parts)
    # The same pictures again, of people with other names; and a set that shares one with lab.
    write_dataset(tmp_path, "again", parts)
    write_dataset(tmp_path, "web", {"test": [("x", 0)] * 40}, first=2002)
    config = default_config()
    config.sources = ("lab",)
    train, validation = (open_records("lab", part, tmp_path) for part in ("train", "validation"))
    whole = relations.open_whole(config, tmp_path)

    def related(name: str, split: str, whole: list[Records]) -> str | None:
        of = relations.describe_training([train], [validation], "emotion", whole)
        tested = relations.as_trained(of, open_records(name, split, tmp_path))
        return relations.relation(of, tested)

    assert related("again", "test", whole) == related("lab", "test", whole) == "within"
    assert related("again", "train", whole) == KNOWN_PEOPLE
    assert related("again", "train+test", whole) is None
    assert related("web", "test", whole) == "cross_domain"
    # By the columns alone it would be another source.
    assert related("again", "test", []) == "cross_domain"


def test_what_was_chosen_with_the_tests_kind_is_an_oracle():
    assert not relations.is_oracle(LEARNED, table(("lab", "food", "lab/7")))
    assert not relations.is_oracle(LEARNED, table(("web", "food", "web/7")))
    # The checkpoint was selected on the kind that is tested, which training had not.
    assert relations.is_oracle(LEARNED, table(("web", "cars", "web/7")))
    seen = table(("lab", "food", "lab/7")) | {"record_id": np.asarray(["lab/0/smile"])}
    assert relations.is_oracle(LEARNED, seen)


def test_learned_reads_labelled_records_only(tmp_path):
    rows = {"train": [("a", 0), ("b", 1), ("c", -1)], "validation": [("d", 2), ("", 3)]}
    write_dataset(tmp_path, "lab", rows)
    train, validation = (open_records("lab", part, tmp_path) for part in ("train", "validation"))
    found = relations.describe_training([train], [validation], "emotion")
    assert found == Learned(
        sources=frozenset({"lab"}),
        places=frozenset({("lab", "")}),
        chosen_on=frozenset({("lab", "")}),
        subjects=frozenset({"lab/a", "lab/b"}),
        records=frozenset(
            f"lab/{n}" for n in ("train_0", "train_1", "validation_0", "validation_1")
        ),
    )


def answered(
    num_people: int,
    per_class: list[int],
    accuracy: float,
    rng: np.random.Generator,
    *,
    seeds: int = 1,
    spread: float = 0.0,
    name: str = "p",
) -> SeedPredictions:
    """People with so many images of each class, right with a chance that varies among them."""
    k = len(per_class)
    labels = np.tile(np.repeat(np.arange(k), per_class), num_people)
    person = np.repeat(np.arange(num_people), sum(per_class))
    chance = np.clip(accuracy + spread * rng.standard_normal(num_people), 0, 1)[person]
    probabilities = []
    for _ in range(seeds):
        right = rng.random(len(labels)) < chance
        answers = np.where(right, labels, (labels + 1 + rng.integers(0, k - 1, len(labels))) % k)
        probabilities.append(0.9 * np.eye(k)[answers] + 0.1 / k)
    columns = table(*(("lab", "food", f"{name}/{i}") for i in person)) | {"label": labels}
    return SeedPredictions(columns, probabilities)


def cell(related: str, one: SeedPredictions, num_classes: int = 3):
    of = bootstrap.sample_table(one.table, num_classes)
    resampled = bootstrap.resample(of, one.probabilities, num_draws=500)
    return related, bootstrap.estimate(resampled, METRIC, range(len(one.probabilities))), one


def test_one_set_has_the_interval_of_its_results():
    one = answered(12, [4, 4, 4], 0.6, np.random.default_rng(0), spread=0.1)
    of = bootstrap.sample_table(one.table, 3)
    mean = bootstrap.combine(
        [(bootstrap.estimate(bootstrap.resample(of, one.probabilities), METRIC), 1.0)]
    )
    text = {name: np.full(len(of.labels), "") for name in ("gender",)}
    plain = one.table | text | {"age": np.full(len(of.labels), -1.0)}
    scored, _ = scoring.score_table(plain | {"probabilities": one.probabilities[0]}, 3)
    assert mean.value == pytest.approx(scored["balanced_accuracy"])
    assert bootstrap.interval(METRIC, mean) == pytest.approx(scored["intervals"][METRIC])


def test_the_mean_of_several_sets_is_surer_and_seeds_are_in_it():
    rng = np.random.default_rng(1)
    sets = [
        cell("within", answered(10, [3, 3, 3], 0.6, rng, seeds=2, name=str(i))) for i in range(4)
    ]
    estimates = [estimated for _, estimated, _ in sets]
    mean = bootstrap.combine([(one, 1 / 4) for one in estimates])
    assert mean.value == pytest.approx(np.mean([one.value for one in estimates]))
    assert mean.error()[0] < min(one.error()[0] for one in estimates)
    # Two seeds that differ by 0.2 everywhere differ as much in the mean of the sets: that is
    # added to what the people give, less the part of it in which both seeds differ by them.
    apart = [dataclasses.replace(one, by_seed={"": np.asarray([0.5, 0.7])}) for one in estimates]
    mean = bootstrap.combine([(one, 1 / 4) for one in apart])
    own = mean.deviations[""]
    of_clusters = np.mean(own.mean(axis=0) ** 2)
    explained = np.mean((own[0] - own[1]) ** 2) / 4
    assert mean.error()[0] == pytest.approx(np.sqrt(of_clusters + 0.02 / 2 - explained))


def test_new_content_and_new_people_are_told_apart():
    rng = np.random.default_rng(2)
    known = answered(40, [6, 6, 6], 0.9, rng, spread=0.05, name="k")
    within = answered(40, [6, 6, 6], 0.8, rng, spread=0.05, name="w")
    content = answered(40, [6, 6, 6], 0.5, rng, spread=0.05, name="c")
    cells = [cell(KNOWN_PEOPLE, known), cell("within", within), cell("cross_content", content)]
    found = distances.measure_distances(cells, 3)
    assert found["new_people"]["value"] == pytest.approx(0.1, abs=0.05)
    assert found["new_content"]["value"] == pytest.approx(0.3, abs=0.05)
    for name, truth in (("new_people", 0.1), ("new_content", 0.3)):
        low, high = found[name]["interval"]
        assert low < truth < high and high - low < 0.15
    assert found["new_content"]["of"] == "cross_content"
    # Without other content, another source stands for it; without either, nothing does.
    cells = [cell("within", within), cell("cross_domain", content)]
    found = distances.measure_distances(cells, 3)
    assert found["new_content"]["of"] == "cross_domain"
    assert found["new_people"]["why"] == "no test set has people that were trained on"
    found = distances.measure_distances(cells[:1], 3)
    assert np.isnan(found["new_content"]["value"]) and found["new_content"]["n_sets"] == 0
    found = distances.measure_distances(cells[1:], 3)
    assert (
        found["new_content"]["why"]
        == "no test set has unseen people of the training data's sources"
    )


def test_sides_are_matched_in_people_images_and_classes():
    rng = np.random.default_rng(3)
    large, small = answered(30, [8, 8, 8], 0.7, rng), answered(5, [2, 1, 0], 0.7, rng, name="q")
    seen = []

    def counting(one: SeedPredictions, cluster, num_clusters, per_class):
        seen.append((num_clusters, per_class.tolist(), sorted(set(one.table["label"].tolist()))))
        return original(one, cluster, num_clusters, per_class)

    original = distances._thinned
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "_thinned", counting)
        pair = distances.match_sizes(large, small, 3)
        assert pair is not None
        a, b = pair
        assert seen == [(5, [10, 5, 0], [0, 1])]
        # Clusters of another kind are not counted against people.
        alone = SeedPredictions(small.table | {"subject_id": np.full(15, "")}, small.probabilities)
        distances.match_sizes(large, alone, 3)
        assert seen[1][0] == 30
    # The smaller side is as it is.
    rows = small.table["label"] < 2
    right = small.probabilities[0].argmax(axis=1) == small.table["label"]
    recalls = [right[rows & (small.table["label"] == c)].mean() for c in (0, 1)]
    assert b.value == pytest.approx(np.mean(recalls))
    assert a.value == pytest.approx(0.7, abs=0.05)


def test_no_class_in_common_is_no_number():
    rng = np.random.default_rng(4)
    cells = [
        cell("within", answered(5, [2, 2, 0], 0.7, rng)),
        cell("cross_domain", answered(5, [0, 0, 2], 0.7, rng)),
    ]
    found = distances.measure_distances(cells, 3)
    assert found["new_content"]["why"] == "the two groups have no class in common"


def test_the_interval_of_new_content_holds_the_truth():
    """Equal models on a small and a large side; 19 of 20 such intervals should hold 0."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        within = answered(25, [2, 2, 2], 0.6, rng, spread=0.15)
        beyond = answered(60, [2, 2, 2], 0.6, rng, spread=0.15, name="q")
        cells = [cell("within", within), cell("cross_content", beyond)]
        low, high = distances.measure_distances(cells, 3)["new_content"]["interval"]
        held += low < 0 < high
    # Binomial with 0.95: fewer than 52 of 60 happens once in two hundred times.
    assert 52 <= held
