"""Labels of synthetic faces: a calibrated teacher, class means, directions in w."""

import dataclasses
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import Ridge
from small_runs import picture, small_generator, write_dataset, write_run

from fer_jax.checkpoints import fingerprint
from fer_jax.data.records import open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import metrics
from fer_jax.evaluation.predictions import predict
from fer_jax.inference.network import compile_predict_step, load, model_arguments
from fer_jax.models import xception
from fer_jax.schema import EMOTIONS
from fer_jax.sharding import make_mesh, replicated
from fer_jax.synthesis import labels

PEOPLE = {
    "train": [(f"t{i % 5}", i % 7) for i in range(21)],
    "validation": [(f"v{i % 3}", i % 7) for i in range(21)],
    "test": [(f"x{i % 3}", i % 7) for i in range(14)],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with data/, and a run that was "trained" on it."""
    folder = tmp_path_factory.mktemp("labels")
    write_dataset(folder / "data", "lab", PEOPLE)
    write_dataset(folder / "data", "nameless", {s: [("", i) for i in range(7)] for s in PEOPLE}, 50)
    sources = ("lab", "nameless")
    write_run(folder / "run", folder / "data", sources=sources, test_sets=sources)
    return folder


def overconfident(n: int = 4000, sharpness: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels sampled from probabilities, and the same probabilities sharpened."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, 7))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = np.array([rng.choice(7, p=row) for row in true])
    sharp = np.exp(sharpness * logits)
    return given, sharp / sharp.sum(axis=1, keepdims=True)


def test_the_temperature_undoes_overconfidence():
    given, sharp = overconfident()
    temperature = labels.fit_temperature(given, sharp)
    assert temperature == pytest.approx(2.5, rel=0.06)
    calm = labels.with_temperature(sharp, temperature)

    def loss(value: float) -> float:
        return metrics.score(given, labels.with_temperature(sharp, value))["loss"]

    assert loss(temperature) < min(loss(temperature * 1.01), loss(temperature / 1.01))
    before, after = (metrics.score(given, p)["ece"] for p in (sharp, calm))
    assert before > 0.15 and after < 0.03
    np.testing.assert_array_equal(calm.argmax(axis=1), sharp.argmax(axis=1))


def test_a_temperature_of_one_changes_nothing_and_zeros_are_accepted():
    _, p = overconfident(50)
    np.testing.assert_allclose(labels.with_temperature(p, 1.0), p, atol=1e-12)
    hard = np.eye(7)
    # Where all temperatures give a loss of 0, the highest of them.
    right = labels.fit_temperature(np.arange(7), hard)
    lowest, highest = labels.TEMPERATURES
    assert lowest <= right < 0.15
    np.testing.assert_array_equal(labels.with_temperature(hard, right), hard)
    wrong = labels.fit_temperature((np.arange(7) + 1) % 7, hard)
    assert wrong == pytest.approx(highest)
    assert labels.fit_temperature(np.arange(7), hard * 0.3 + 0.1) == pytest.approx(lowest)


def test_a_loaded_run_predicts_as_evaluation_does(run: Path):
    model = load(run / "run", batch_sizes=(8,))
    records = open_records("lab", "validation", run / "data")
    rows = np.arange(len(records))
    mesh, network = make_mesh(), model.arrays | {"ema": {}}
    sharding = jax.tree.map(lambda _: replicated(mesh), network)
    graphdef = xception.graphdef(**model_arguments(model.config))
    score = compile_predict_step(graphdef, sharding, mesh, flip=False)
    expected = predict(
        score,
        network,
        records,
        rows,
        batch_size=8,
        image_size=model.image_size,
        mesh=mesh,
    )
    faces = records.images(rows, model.image_size)
    found = model.probabilities(faces)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # A face's numbers do not depend on what else is in its batch.
    np.testing.assert_allclose(model.probabilities(faces[3:4]), expected[3:4], atol=1e-6)
    # A picture of another size comes to the network as a record does, but for its JPEG.
    first = list(records.columns["record_id"]).index("lab/validation_0")
    np.testing.assert_allclose(model.probabilities([picture(1000)])[0], expected[first], atol=0.03)
    features = model.features(faces)
    assert features.shape[0] == len(rows) and features.std(axis=0).max() > 0
    np.testing.assert_allclose(model.features(faces[5:6]), features[5:6], atol=1e-5)
    assert model.probabilities([]).shape == (0, 7)


def test_a_teacher_is_calibrated_and_says_what_it_saw(run: Path):
    teacher = labels.load_teacher(run / "run", "emotion", None, [])
    about = teacher.about
    assert about["subjects"] == [f"lab/t{i}" for i in range(5)] + [f"lab/v{i}" for i in range(3)]
    assert {(part["dataset"], part["split"]) for part in about["saw"]} == {
        (name, split) for name in ("lab", "nameless") for split in ("train", "validation")
    }
    assert about["test_sets"] == ["lab:test", "nameless:test"]
    assert about["validation"]["images"] == 28
    loss = about["validation"]["loss"]
    assert loss["after"] < loss["before"]  # its network is untrained and sure of itself
    faces = [picture(7), picture(8, 90)]
    np.testing.assert_allclose(
        teacher.probabilities(faces),
        labels.with_temperature(teacher.model.probabilities(faces), teacher.temperature),
    )


def test_a_teacher_of_grey_images_is_given_grey_images(run: Path, tmp_path: Path):
    parts = {part: [(f"{part}{i}", i % 7) for i in range(7)] for part in PEOPLE}
    write_dataset(tmp_path / "data", "grey", parts, grey=True)
    write_dataset(tmp_path / "data", "lab", parts)
    colour = picture(3)
    plain = cv2.cvtColor(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    for sources, grey in ((("grey",), True), (("grey", "lab"), False)):
        workdir = write_run(tmp_path / str(grey), tmp_path / "data", sources=sources)
        teacher = labels.load_teacher(workdir, "emotion", None, [])
        assert teacher.grey == teacher.about["grey"] == grey
        seen = teacher.probabilities([colour, plain])
        assert np.allclose(seen[0], seen[1], atol=1e-6) == grey


def test_a_teacher_that_saw_a_test_subject_is_refused(run: Path):
    data = run / "data"
    # A person of the training part in another dataset: as ck48 and ckseq share people.
    write_dataset(data, "again", {"test": [("a", 0)], "train": [("b", 1)]}, 9000)
    shared = write_run(run / "shared", data, sources=("lab",), test_sets=())
    labels.load_teacher(shared, "emotion", data, [("lab", "test")])
    with pytest.raises(InputError, match="saw 5 of the subjects of the test set lab train"):
        labels.load_teacher(shared, "emotion", data, [("again", "test"), ("lab", "train")])
    # What it was calibrated and chosen on was seen, too.
    with pytest.raises(InputError, match="saw 3 of the subjects .*such as 'lab/v0'"):
        labels.load_teacher(shared, "emotion", data, [("lab", "validation")])
    # Images without a subject are compared one by one.
    own = write_run(run / "own", data, sources=("nameless",), test_sets=("nameless",))
    with pytest.raises(InputError, match="saw 7 of the records of the test set nameless train"):
        labels.load_teacher(own, "emotion", data, [("nameless", "train")])


def test_a_teacher_of_another_task_is_refused(run: Path):
    other = write_run(run / "other", run / "data", task="interest", sources=("lab",))
    with pytest.raises(InputError, match="predicts interest, not emotion"):
        labels.load_teacher(other, "emotion", None, [])


def test_class_means_are_the_classes_own():
    generator = small_generator(c_dim=3)
    means = labels.class_means(generator)
    z = np.random.RandomState(1).randn(4000, generator.z_dim)
    for number in range(3):
        w = np.asarray(generator.map(z, number)[:, 0])
        error = w.std(axis=0) / np.sqrt(labels.MEAN_SAMPLES)
        assert np.all(np.abs(means[number] - w.mean(axis=0)) < 6 * error)
    assert np.abs(means[0] - means[1]).max() > 0.1


def test_class_means_are_kept_for_their_network_only(tmp_path: Path):
    generator = small_generator(c_dim=3)
    means = np.arange(48, dtype=np.float32).reshape(3, 16)
    labels.write_class_means(tmp_path / "m.safetensors", means, "network")
    found = labels.read_class_means(tmp_path / "m.safetensors", generator, "network")
    np.testing.assert_array_equal(found, means)
    assert labels.read_class_means(tmp_path / "m.safetensors", generator, "another") is None
    (tmp_path / "m.safetensors").write_bytes(b"damaged")
    assert labels.read_class_means(tmp_path / "m.safetensors", generator, "network") is None


def planted(n: int = 600, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w, log-probabilities that depend on it linearly, and the directions: [k, w_dim]."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(n, 16)) * np.linspace(0.5, 2, 16)
    slopes = rng.normal(size=(7, 16))
    logits = w @ slopes.T + noise * rng.normal(size=(n, 7))
    shifted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    centred = slopes - slopes.mean(axis=0)
    return w, shifted, centred / np.linalg.norm(centred, axis=1, keepdims=True)


def test_known_directions_are_recovered():
    w, scores, truth = planted()
    found = labels.fit_directions(w, scores, EMOTIONS, "network")
    cosines = (found.vectors * truth).sum(axis=1)
    assert cosines.min() > 0.995, cosines
    assert found.fits.min() > 0.9
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found.scales, (w @ truth.T).std(axis=0), rtol=0.05)
    # An edit raises its class and moves w along its direction alone.
    moved = w + found.edit(2, 3.0)
    across = moved - w - np.outer((moved - w) @ found.vectors[2], found.vectors[2])
    assert np.abs(across).max() < 1e-5
    a, b = w[:300], w[300:]
    apart = np.sqrt(np.square(a - b).sum(axis=1).mean())
    assert found.apart == pytest.approx(apart, rel=0.05)
    assert found.moved(2, 3.0) == pytest.approx(
        np.linalg.norm(found.edit(2, 3.0)) / found.apart, rel=1e-5
    )


def test_noise_is_not_mistaken_for_directions():
    w, scores, _ = planted()
    shuffled = np.random.default_rng(1).permutation(scores)
    found = labels.fit_directions(w, shuffled, EMOTIONS, "network")
    assert np.abs(found.fits).max() < 0.35


def test_the_regression_is_ridge_with_the_penalty_of_least_cross_validation_error():
    w, scores, _ = planted(60, noise=8.0)
    odds = scores - scores.mean(axis=1, keepdims=True)
    penalties = np.linalg.svd(w - w.mean(axis=0), compute_uv=False)[0] ** 2 * np.logspace(-8, 2, 41)
    errors, slopes = [], []
    for penalty in penalties:
        fit = Ridge(alpha=penalty).fit(w, odds)
        x = np.column_stack([np.ones(len(w)), w])
        ridge = penalty * np.diag([0.0] + [1.0] * 16)
        freedom = np.trace(x @ np.linalg.solve(x.T @ x + ridge, x.T))
        rest = np.square(odds - fit.predict(w)).sum()
        errors.append(rest / (1 - freedom / len(w)) ** 2)
        slopes.append(fit.coef_.T)
    best = int(np.argmin(errors))
    assert 0 < best < 40
    np.testing.assert_allclose(labels._ridge(w, odds), slopes[best], rtol=1e-6, atol=1e-9)


def test_pictures_without_a_face_are_left_out_and_too_few_refused():
    w, scores, truth = planted()
    scores[::2] = np.nan
    found = labels.fit_directions(w, scores, EMOTIONS, "network")
    assert (found.vectors * truth).sum(axis=1).min() > 0.99
    scores[99 * 2 :] = np.nan
    with pytest.raises(InputError, match="only 99 of 600 sampled images show a face"):
        labels.fit_directions(w, scores, EMOTIONS, "network")


def test_directions_survive_their_file_and_fit_one_network_only(tmp_path: Path):
    generator = small_generator()
    network = fingerprint((generator.params, generator.buffers))
    w, scores, _ = planted()
    fitted = labels.fit_directions(w, scores, EMOTIONS, network)
    path = tmp_path / "directions.safetensors"
    labels.write_directions(path, fitted)
    found = labels.read_directions(path, generator, network, "emotion")
    assert (found.classes, found.apart, found.network) == (fitted.classes, fitted.apart, network)
    np.testing.assert_array_equal(found.vectors, fitted.vectors)

    other = small_generator(seed=1)
    foreign = fingerprint((other.params, other.buffers))
    with pytest.raises(InputError, match="is for another network"):
        labels.read_directions(path, other, foreign, "emotion")
    with pytest.raises(InputError, match="names an unknown interest 'anger'"):
        labels.read_directions(path, generator, network, "interest")
    with pytest.raises(InputError, match="does not exist"):
        labels.read_directions(tmp_path / "none", generator, network, "emotion")


@pytest.mark.parametrize("damage", ["text", "cut", "shape", "nan", "no metadata"])
def test_a_damaged_file_of_directions_is_refused(tmp_path: Path, damage: str):
    generator = small_generator()
    w, scores, _ = planted(200)
    path = tmp_path / "d.safetensors"
    fitted = labels.fit_directions(w, scores, EMOTIONS, "network")
    if damage == "shape":
        fitted = fitted._replace(vectors=fitted.vectors[:, :5])
    if damage == "nan":
        fitted = fitted._replace(vectors=fitted.vectors * np.nan)
    labels.write_directions(path, fitted)
    if damage == "text":
        path.write_text("anger,0.1,0.2\n")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    if damage == "no metadata":
        save_file(load_file(path), path)
    with pytest.raises(InputError, match="does not have a direction|is not a file of directions"):
        labels.read_directions(path, generator, "network", "emotion")


def test_an_edit_that_would_change_the_person_is_refused():
    w, scores, _ = planted()
    found = labels.fit_directions(w, scores, EMOTIONS, "network")
    labels.check_strength(found, range(7), 0.5)
    far = 1.02 * labels.MAX_EDIT * found.apart / found.scales[3]
    with pytest.raises(InputError, match="towards happiness by 0.51 of the distance"):
        labels.check_strength(found, [3], -far)


def test_a_fingerprint_depends_on_the_arrays():
    one, two = small_generator(), small_generator()
    assert fingerprint(one.params) == fingerprint(two.params)
    assert fingerprint(one.params) != fingerprint(small_generator(seed=1).params)
    changed = dataclasses.replace(
        two, buffers={**two.buffers, "w_avg": two.buffers["w_avg"] + 1e-6}
    )
    assert fingerprint(one.buffers) != fingerprint(changed.buffers)
