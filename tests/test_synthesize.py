"""Seeds to labelled faces: reproducible, resumable, with a reason for every rejection."""

import csv
import dataclasses
import functools
import json
import os
import resource
from pathlib import Path
from typing import Any, cast

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import SIZE, small_generator, write_dataset, write_network, write_run

from fer_jax import storage
from fer_jax.__main__ import main
from fer_jax.data import synthetic
from fer_jax.errors import InputError
from fer_jax.media import images
from fer_jax.schema import EMOTIONS
from fer_jax.sharding import make_mesh
from fer_jax.synthesis import labels, synthesize
from fer_jax.synthesis.generator import Generator, latents, load_generator, make_renderer, to_uint8
from fer_jax.synthesis.labels import Directions, Teacher
from fer_jax.synthesis.options import Request, plan_sampling, read_seeds, seeds_to_text
from fer_jax.synthesis.quality import Gates

OPEN = Gates(0, 0, 0, (0, 1), one_face=False)
NAMES = ("anger", "disgust", "-")
LET_THROUGH = [
    *("--detector=none", "--min_size=0", "--min_contrast=0", "--min_sharpness=0"),
    *("--batch_size=8", "--keep_duplicates"),
]


class ColourTeacher:
    """A stand-in that is sure of one of three classes: which colour a face has much of."""

    fingerprint = "colours"
    about: dict[str, Any] = {"fingerprint": "colours", "subjects": []}

    class model:  # noqa: N801 (stands for an attribute)
        classes = EMOTIONS

    def __init__(self, generator: Generator):
        mesh = make_mesh(jax.devices()[:1])
        renderer = make_renderer(generator, mesh, classes=[0] if generator.c_dim else None, psi=1.0)
        seeds = list(range(1000, 1064))
        usual = colours(np.asarray(renderer.images(renderer.ws(seeds, [0] * 64), seeds)))
        self._mean, self._spread = usual.mean(axis=0), usual.std(axis=0)

    def probabilities(self, faces: Any) -> np.ndarray:
        powers = np.zeros((len(faces), len(EMOTIONS)))
        if len(faces):
            powers[:, :3] = np.exp(1.5 * (colours(faces) - self._mean) / self._spread)
        return powers / powers.sum(axis=1, keepdims=True)


def colours(faces: Any) -> np.ndarray:
    return np.array([face.mean(axis=(0, 1)) for face in faces])


@functools.cache
def teacher(c_dim: int) -> Teacher:
    return cast(Teacher, ColourTeacher(small_generator(c_dim)))


def ask(**fields: Any) -> Request:
    usual = {"gates": OPEN, "detector": "none", "batch_size": 8, "keep_duplicates": True}
    return Request(**(usual | fields))


def make(
    generator: Generator,
    out: Path,
    asked: Request,
    with_teacher: bool = False,
    directions: Directions | None = None,
    devices: int = 8,
) -> Any:
    plan = plan_sampling(asked, generator, has_teacher=with_teacher, directions=directions)
    return synthesize.synthesize(
        generator,
        out,
        plan,
        teacher=teacher(generator.c_dim) if with_teacher else None,
        directions=directions,
        mesh=make_mesh(jax.devices()[:devices]),
    )


def rows_of(out: Path, name: str = "records.csv") -> list[dict[str, str]]:
    if not (out / name).is_file():
        return []
    with (out / name).open(newline="") as text:
        return list(csv.DictReader(text))


def pixels(out: Path) -> dict[str, np.ndarray]:
    return {r["file"]: images.decode((out / r["file"]).read_bytes()) for r in rows_of(out)}


def assert_valid(out: Path, resolution: int = SIZE) -> None:
    """Checks that every row has its image and that every image is valid."""
    data = (out / "records.csv").read_bytes() if (out / "records.csv").is_file() else b""
    assert not data or data.endswith(b"\n")
    for picture in pixels(out).values():
        assert picture.shape == (resolution, resolution, 3)
    for path in out.rglob("*.png"):
        if not path.name.startswith("."):
            assert images.decode(path.read_bytes()).shape == (resolution, resolution, 3)


def seeds_in_batches(generator: Generator, size: int, devices: int, noise: str) -> np.ndarray:
    """Returns the images of seeds 0 to 5 as floats, generated in batches."""
    mesh = make_mesh(jax.devices()[:devices])
    classes = list(range(generator.c_dim)) or None
    count = generator.c_dim or 1
    centers = np.random.default_rng(0).normal(size=(count, generator.w_dim)) * 0.1
    renderer = make_renderer(
        generator, mesh, psi=0.7, noise=noise, classes=classes, centers=centers
    )
    batches = []
    for first in range(0, 6, size):
        seeds = list(range(first, first + size))
        ws = renderer.ws(seeds, [seed % count for seed in seeds])
        batches.append(np.asarray(renderer.floats(ws, seeds)))
    return np.concatenate(batches)[:6]


@pytest.mark.parametrize(("noise", "others"), [("const", [(3, 1), (16, 8)]), ("random", [(16, 8)])])
def test_the_image_of_a_seed_does_not_depend_on_batch_and_devices(noise: str, others: Any):
    generator = small_generator(c_dim=3)
    alone = seeds_in_batches(generator, 1, 1, noise)
    assert np.abs(alone[0] - alone[3]).max() > 0.1  # of one class, yet another face
    for size, devices in others:
        found = seeds_in_batches(generator, size, devices, noise)
        np.testing.assert_allclose(found, alone, atol=1e-5, rtol=0)


def test_the_published_layouts_are_as_reproducible(shared: Path):
    generator = load_generator(shared / "golden" / "stylegan2" / "cond64.pkl")
    alone = seeds_in_batches(generator, 1, 1, "const")
    for size, devices in ((3, 1), (16, 8)):
        found = seeds_in_batches(generator, size, devices, "const")
        # Its random weights give images far outside [-1, 1]: 1e-5 of their range.
        np.testing.assert_allclose(found, alone, atol=1e-5 * np.abs(alone).max(), rtol=0)


def test_a_seed_is_the_published_latent():
    generator = small_generator()
    z = np.random.RandomState(77).randn(1, generator.z_dim).astype(np.float32)
    np.testing.assert_array_equal(latents([77], generator.z_dim), z)
    renderer = make_renderer(generator, make_mesh(jax.devices()[:1]), psi=0.6, cutoff=3)
    expected = generator.map(z, truncation_psi=0.6, truncation_cutoff=3)
    np.testing.assert_allclose(renderer.ws([77], [0]), expected, atol=1e-6)


def test_pixels_are_rounded_to_the_nearest_level():
    levels = np.arange(256)
    for off in (-0.49, 0.0, 0.49):
        found = to_uint8(((levels + off) / 127.5 - 1).astype(np.float32))
        np.testing.assert_array_equal(found, levels)
    np.testing.assert_array_equal(
        to_uint8(np.array([-9, -1.002, 1.002, 9], np.float32)), [0, 0, 255, 255]
    )


def test_truncation_moves_towards_the_mean_of_the_class(tmp_path: Path):
    generator = small_generator(c_dim=3)
    means = labels.class_means(generator)
    plan = plan_sampling(
        ask(count=1, class_names=("anger", "disgust", "fear"), psi=0.0),
        generator,
        has_teacher=False,
        directions=None,
    )
    mesh = make_mesh(jax.devices()[:1])
    for psi in (0.0, 0.5):
        asked = dataclasses.replace(plan.request, psi=psi)
        renderer = synthesize._renderer(
            generator, tmp_path, plan._replace(request=asked), None, "n", mesh
        )
        ws = np.asarray(renderer.ws([5, 5, 5], [0, 1, 2]))
        for number in range(3):
            own = np.asarray(generator.map(latents([5], generator.z_dim), number))[0]
            expected = means[number] + psi * (own - means[number])
            np.testing.assert_allclose(ws[number], expected, atol=1e-5)


def test_faces_of_each_class_with_their_rows(tmp_path: Path):
    generator = small_generator(c_dim=3)
    tally = make(generator, tmp_path, ask(count=5, class_names=NAMES, psi=0.9))
    assert tally == {("anger", ""): 5, ("disgust", ""): 5}
    rows = rows_of(tmp_path)
    assert list(rows[0]) == list(synthetic.record_columns("emotion"))
    assert [int(row["seed"]) for row in rows] == list(range(10))
    for row in rows:
        name = NAMES[int(row["seed"]) % 2]
        assert (row["class"], row["label"], row["label_source"]) == (name, name, "class")
        assert row["file"] == f"images/{name}/seed{int(row['seed']):010}_{name}.png"
        assert (row["psi"], row["direction"], row["confidence"]) == ("0.9", "", "")
        assert float(row["quality"]) > 0 and float(row["contrast"]) > 0
    assert_valid(tmp_path)
    sheet = images.decode((tmp_path / "contact_sheet.jpg").read_bytes())
    assert sheet.shape[0] == 2 * (112 + 16)
    assert (tmp_path / "filter.csv").read_text() == (
        "class,judged,kept\nanger,5,5\ndisgust,5,5\nall,10,10\n"
    )
    settings = json.loads((tmp_path / "synthesis.json").read_text())
    assert settings["request"]["psi"] == 0.9
    assert settings["made_by"]["network"] == synthesize.generator_fingerprint(generator)
    # The picture of a row is that of its seed and class.
    renderer = synthesize._renderer(
        generator,
        tmp_path,
        plan_sampling(
            ask(count=5, class_names=NAMES, psi=0.9), generator, has_teacher=False, directions=None
        ),
        None,
        settings["made_by"]["network"],
        make_mesh(jax.devices()[:1]),
    )
    expected = np.asarray(renderer.images(renderer.ws([7], [1]), [7]))[0]
    saved = pixels(tmp_path)["images/disgust/seed0000000007_disgust.png"].astype(int)
    assert np.abs(saved - expected).max() <= 1


def test_given_seeds_are_sampled_for_each_class(tmp_path: Path):
    generator = small_generator(c_dim=3)
    make(generator, tmp_path, ask(seeds=(9, 4), class_names=NAMES))
    assert [(row["seed"], row["label"]) for row in rows_of(tmp_path)] == [
        ("9", "anger"), ("9", "disgust"), ("4", "anger"), ("4", "disgust"),
    ]  # fmt: skip


def test_classes_without_names_give_faces_without_labels(tmp_path: Path):
    make(small_generator(c_dim=3), tmp_path, ask(count=2, classes=("2", "0")))
    assert [(row["class"], row["label"], row["label_source"]) for row in rows_of(tmp_path)] == [
        ("2", "", ""), ("0", "", ""), ("2", "", ""), ("0", "", ""),
    ]  # fmt: skip


def test_a_teachers_labels_are_balanced_by_rejection_for_every_batch_size(tmp_path: Path):
    generator = small_generator()
    asked = ask(count=6, threshold=0.6, classes=("anger", "fear"), psi=1.0)
    for name, size, devices in (("a", 8, 8), ("b", 1, 1), ("c", 16, 8)):
        changed = dataclasses.replace(asked, batch_size=size)
        make(generator, tmp_path / name, changed, with_teacher=True, devices=devices)
    rows, refused = rows_of(tmp_path / "a"), rows_of(tmp_path / "a", "rejected.csv")
    assert sorted(row["label"] for row in rows) == ["anger"] * 6 + ["fear"] * 6
    for row in rows:
        chances = [float(row[f"p_{name}"]) for name in EMOTIONS]
        assert row["label"] == EMOTIONS[int(np.argmax(chances))]
        assert row["label_source"] == "teacher"
        assert float(row["confidence"]) == pytest.approx(max(chances), rel=1e-4)
        assert max(chances) >= 0.6
    reasons = {row["reason"] for row in refused}
    assert reasons == {"the teacher is not sure", "its class is complete", "not a requested class"}
    seeds = [int(row["seed"]) for row in rows + refused]
    assert sorted(seeds) == list(range(max(seeds) + 1))  # each seed was judged once, none left out
    for name in ("b", "c"):
        others = rows_of(tmp_path / name)
        assert [row["file"] for row in others] == [row["file"] for row in rows]
        found = rows_of(tmp_path / name, "rejected.csv")
        assert [row | {"confidence": ""} for row in found] == [
            row | {"confidence": ""} for row in refused
        ]
        # Images agree within 1e-5, so that a pixel may be rounded to the next level.
        confidence, expected = (
            [float(row["confidence"]) for row in table] for table in (found, refused)
        )
        np.testing.assert_allclose(confidence, expected, atol=1e-4)


def test_a_teacher_confirms_the_labels_of_classes(tmp_path: Path):
    generator = small_generator(c_dim=3)
    asked = ask(count=3, class_names=("anger", "disgust", "fear"), psi=1.0, threshold=0.5)
    make(generator, tmp_path, dataclasses.replace(asked, budget=60), with_teacher=True)
    rows, refused = rows_of(tmp_path), rows_of(tmp_path, "rejected.csv")
    for row in rows:
        chances = {name: float(row[f"p_{name}"]) for name in EMOTIONS}
        assert row["label"] == row["class"] == max(chances, key=lambda name: chances[name])
        assert row["label_source"] == "class"
        assert float(row["confidence"]) == pytest.approx(chances[row["label"]], rel=1e-4)
        assert chances[row["label"]] >= 0.5
    assert "the teacher sees another class" in {row["reason"] for row in refused}
    assert all(row["label"] == row["class"] for row in refused)


def test_directions_move_faces_to_labels_that_the_teacher_confirms(tmp_path: Path):
    generator = small_generator()
    asked = ask(count=1, fit_samples=400, psi=1.0, batch_size=16)
    mesh = make_mesh(jax.devices()[:1])
    found = synthesize.fit_directions(generator, asked, teacher(0), None, mesh)
    assert found.network == synthesize.generator_fingerprint(generator)
    assert found.fits[:3].min() > 0.5, found.fits
    wanted = ("anger", "disgust", "fear")
    plain = ask(seeds=tuple(range(24)), psi=1.0, threshold=0.0, classes=wanted)
    shares = []
    for strength in (0.0, 2.0):
        out = tmp_path / str(strength)
        asked = dataclasses.replace(plain, strength=strength)
        tally = make(generator, out, asked, with_teacher=True, directions=found)
        shares.append(sum(tally[name, ""] for name in wanted) / tally.total())
    # Of the untouched faces a third is what the direction says; of the moved ones most.
    assert shares[0] < 0.4 and shares[1] > 0.6, shares
    rows = rows_of(tmp_path / "2.0")
    assert {row["label_source"] for row in rows} == {"direction"}
    assert all(row["label"] == row["direction"] and row["strength"] == "2" for row in rows)


def test_directions_change_the_layers_that_are_asked_for():
    generator = small_generator()
    edits = np.ones((1, generator.w_dim), np.float32)
    mesh = make_mesh(jax.devices()[:1])
    plain = np.asarray(make_renderer(generator, mesh).ws([3], [0]))
    edited = make_renderer(generator, mesh, edits=edits, edited_layers=(2, 4)).ws([3], [0])
    changed = np.abs(np.asarray(edited) - plain).max(axis=(0, 2))
    np.testing.assert_allclose(changed, [0, 0, 1, 1, 1, 0], atol=1e-6)
    with pytest.raises(InputError, match="--direction_layers is FIRST-LAST within 0-5"):
        make_renderer(generator, mesh, edits=edits, edited_layers=(2, 6))


def test_the_budget_ends_a_run_and_a_larger_one_resumes_it(tmp_path: Path):
    generator = small_generator()
    asked = ask(count=4, threshold=0.6, psi=1.0, budget=10)
    tally = make(generator, tmp_path, asked, with_teacher=True)
    assert tally.total() == 10
    first = rows_of(tmp_path)
    more = dataclasses.replace(asked, budget=25, batch_size=16)
    assert make(generator, tmp_path, more, with_teacher=True).total() == 25
    assert rows_of(tmp_path)[: len(first)] == first
    make(generator, tmp_path / "once", more, with_teacher=True)
    assert rows_of(tmp_path / "once") == rows_of(tmp_path)
    assert rows_of(tmp_path / "once", "rejected.csv") == rows_of(tmp_path, "rejected.csv")


def test_near_duplicates_are_rejected(tmp_path: Path):
    generator = small_generator(c_dim=3)
    asked = ask(count=4, class_names=NAMES, psi=0.0, budget=20, keep_duplicates=False)
    tally = make(generator, tmp_path, asked)
    assert tally["anger", ""] == tally["disgust", ""] == 1
    assert tally["anger", "near-duplicate"] + tally["disgust", "near-duplicate"] == 18
    # Those that were kept are known to the run that goes on.
    more = dataclasses.replace(asked, budget=24)
    assert make(generator, tmp_path, more)["anger", ""] == 1
    kept = dataclasses.replace(asked, keep_duplicates=True)
    assert make(generator, tmp_path / "kept", kept).total() == 8


@pytest.mark.parametrize("call", ["picture", "rejected", "records"])
def test_a_stopped_run_resumes(tmp_path: Path, monkeypatch, call: str):
    generator = small_generator()
    asked = ask(count=6, threshold=0.6, classes=("anger", "fear"), psi=1.0, batch_size=8)
    make(generator, tmp_path / "whole", asked, with_teacher=True)

    class Stop(Exception):
        pass

    calls = 0

    def stopping(function: Any, wrong: Any) -> Any:
        def wrapper(path: Path, *arguments: Any, **options: Any) -> None:
            nonlocal calls
            if wrong(path):
                calls += 1
                if calls == 2 or (call == "picture" and calls == 7):
                    raise Stop
            function(path, *arguments, **options)

        return wrapper

    with monkeypatch.context() as patch:
        if call == "picture":
            patch.setattr(
                storage,
                "write_atomically",
                stopping(
                    storage.write_atomically, lambda path: path.suffix == ".png" and calls < 7
                ),
            )
        else:
            patch.setattr(
                storage,
                "append_table",
                stopping(storage.append_table, lambda path: path.name == f"{call}.csv"),
            )
        with pytest.raises(Stop):
            make(generator, tmp_path / "stopped", asked, with_teacher=True)
    assert len(rows_of(tmp_path / "stopped")) < len(rows_of(tmp_path / "whole"))
    assert_valid(tmp_path / "stopped")
    # A process that was killed can leave a line without its end.
    with (tmp_path / "stopped" / "rejected.csv").open("a") as file:
        file.write("seed0000000999,999,1,")
    make(generator, tmp_path / "stopped", asked, with_teacher=True)
    for name in ("records.csv", "rejected.csv"):
        assert sorted(map(str, rows_of(tmp_path / "stopped", name))) == sorted(
            map(str, rows_of(tmp_path / "whole", name))
        )
    assert pixels(tmp_path / "stopped").keys() == pixels(tmp_path / "whole").keys()


def test_a_folder_that_two_commands_wrote_is_refused(tmp_path: Path, capsys):
    network = write_network(tmp_path / "network")
    words = ["synthesize", f"--network={network}", f"--out={tmp_path / 'out'}", "--seeds=0-3"]
    with storage.lock(tmp_path / "out"):
        assert main([*words, *LET_THROUGH]) == 2
    assert f"is in use by process {os.getpid()}" in capsys.readouterr().err
    assert main([*words, *LET_THROUGH]) == 0
    table = tmp_path / "out" / "records.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[-1] + "\n")
    capsys.readouterr()
    assert main([*words, *LET_THROUGH]) == 2
    assert "has 1 faces twice in its tables; choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [300, 1500])
def test_a_full_disk_is_one_line_and_leaves_valid_files(tmp_path: Path, capsys, limit: int):
    """A limit of the file size stands for it: at 300 bytes no picture fits, at 1500 no table."""
    write_network(tmp_path / "network", c_dim=3)
    command = [
        *("synthesize", f"--network={tmp_path / 'network'}", f"--out={tmp_path / 'out'}"),
        *("--count=12", "--class_names=anger,disgust,fear", "--format=png", *LET_THROUGH),
    ]
    # What is written before the first face is written without the limit.
    assert main([*command, "--budget=3"]) == 0
    (tmp_path / "out" / "images").mkdir(exist_ok=True)
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert main(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith(f"fer-jax: File too large: {tmp_path / 'out'}")
    assert "make room and rerun the same command" in error[0]
    assert_valid(tmp_path / "out")
    assert 3 <= len(rows_of(tmp_path / "out")) < 36
    assert not list((tmp_path / "out").rglob("*.tmp*"))
    assert main(command) == 0
    assert len(rows_of(tmp_path / "out")) == 36
    assert_valid(tmp_path / "out")


def test_another_request_in_the_same_folder_is_refused(tmp_path: Path):
    generator = small_generator(c_dim=3)
    asked = ask(count=2, class_names=NAMES)
    make(generator, tmp_path / "out", asked)
    for change, said in (({"psi": 0.5}, r"psi \(was 0.7, now 0.5\)"), ({"count": 3}, "count")):
        with pytest.raises(InputError, match=f"faces of another run: {said}"):
            make(generator, tmp_path / "out", dataclasses.replace(asked, **change))
    with pytest.raises(InputError, match="faces of another run: network"):
        make(small_generator(c_dim=3, seed=1), tmp_path / "out", asked)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_text("mine")
    with pytest.raises(InputError, match="holds something else .thesis.docx."):
        make(generator, tmp_path / "other", asked)
    (tmp_path / "out" / rows_of(tmp_path / "out")[0]["file"]).unlink()
    with pytest.raises(InputError, match="1 images of .* are missing"):
        make(generator, tmp_path / "out", asked)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--count=2", "--classes=3"], "the network has classes 0 to 2, not 3"),
        (["--count=2", "--classes=-1"], "the network has classes 0 to 2, not -1"),
        (["--count=2", "--classes=fear"], "no class of the network is named 'fear'"),
        (["--count=2", "--classes=joyy"], "unknown emotion 'joyy'"),
        (["--count=2", "--class_names=anger,fear"], "names 2 classes; the network has 3"),
        (["--count=2", "--class_names=anger,fear,angry"], "names 'anger' twice"),
        (["--count=2", "--class_names=a-,fear,anger"], "unknown emotion 'a-'"),
        (["--count=2", "--psi=nan"], "--psi must be a finite number, got nan"),
        (["--count=2", "--psi=inf"], "--psi must be a finite number, got inf"),
        (["--count=2", "--psi=high"], "invalid float value: 'high'"),
        (["--count=2", "--cutoff=99"], "--cutoff must be 0 to 6 layers, got 99"),
        (["--count=2", "--min_size=256"], "generates images of 16 px and --min_size is 256"),
        (["--count=2", "--threshold=1"], "--threshold must be in"),
        (["--count=-2"], "--count must be at least 0, got -2"),
        (["--count=2", "--batch_size=0"], "--batch_size must be at least 1"),
        (["--count=2", "--first_seed=4294967295"], "0 to 2**32 - 1"),
        (["--count=2", "--seeds=1"], "one of them"),
        ([], "give --count=N faces of each class or --seeds"),
        (["--seeds=5-1"], "argument --seeds: seeds must be ascending"),
        (["--seeds=1,1"], "names a seed twice"),
        (["--seeds=4294967296"], "within 0 to 2**32 - 1, got '4294967296'"),
        (["--seeds=0-99999999"], "more than 10000000 seeds"),
        (["--count=2", "--directions=fit"], "--directions is for unconditional networks"),
        (["--count=2", "--real=x"], "--real needs features"),
        (["--count=2", "--test_sets=x:test"], "there is none"),
        (["--count=2", "--teacher=absent"], "'absent' does not exist"),
        (["--count=2", "--face_share=0.5"], "--face_share: the share must be given as LEAST,MOST"),
        (["--sweep=1:x"], "--sweep: truncations must be given as"),
        (["--sweep=1:nan"], "--sweep: truncations must be finite"),
        (["--interpolate=1"], "takes two seeds or more"),
        (["--mix=1:2", "--mix_layers=3-9"], "--mix_layers is FIRST-LAST within 0-5"),
        (["--sed=1"], "--sed"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    tmp_path: Path, capsys, flags: list[str], said: str
):
    write_network(tmp_path / "network", c_dim=3)
    out = tmp_path / "out"
    # A flag that comes twice counts the last time.
    command = ["synthesize", f"--network={tmp_path / 'network'}", f"--out={out}", *LET_THROUGH]
    assert main([*command, *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0], error
    assert not out.exists()


def test_mistakes_with_directions(tmp_path: Path, capsys):
    generator = small_generator()
    network = write_network(tmp_path / "network")
    w = np.random.default_rng(0).normal(size=(200, 16))
    scores = np.log(np.random.default_rng(1).dirichlet(np.ones(7), 200))
    own = synthesize.generator_fingerprint(load_generator(network))
    assert own == synthesize.generator_fingerprint(generator)
    for name, whose in (("own", own), ("foreign", "another")):
        found = labels.fit_directions(w, scores, EMOTIONS, whose)
        labels.write_directions(tmp_path / name, found)
    command = [
        *("synthesize", f"--network={network}", f"--out={tmp_path / 'out'}", "--count=1"),
        *LET_THROUGH,
    ]
    for flags, said in (
        ([f"--directions={tmp_path / 'foreign'}"], "is for another network"),
        ([f"--directions={tmp_path / 'own'}"], "--directions needs a --teacher"),
        (["--directions=fit"], "--directions=fit needs a --teacher"),
        (["--directions=absent"], "'absent' does not exist"),
        (["--classes=anger"], "--classes needs a --teacher"),
        (["--class_names=anger"], "--class_names is for conditional networks"),
    ):
        assert main([*command, *flags]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and said in error[0], error
    with pytest.raises(InputError, match="distance between two people"):
        asked = ask(count=1, strength=1000.0)
        found = labels.fit_directions(w, scores, EMOTIONS, own)
        make(generator, tmp_path / "far", asked, with_teacher=True, directions=found)
    assert not (tmp_path / "out").exists() and not (tmp_path / "far").exists()


def test_with_a_trained_run_from_the_command_line(tmp_path: Path, capsys):
    people = {
        part: [(f"{part}{i % 3}", i % 7) for i in range(14)]
        for part in ("train", "validation", "test")
    }
    write_dataset(tmp_path / "data", "lab", people)
    run = write_run(tmp_path / "run", tmp_path / "data", sources=("lab",), test_sets=("lab",))
    other = write_run(tmp_path / "other", tmp_path / "data", task="interest", sources=("lab",))
    network = write_network(tmp_path / "network")
    command = [
        *("synthesize", f"--network={network}", f"--out={tmp_path / 'out'}", "--count=2"),
        *("--threshold=0.15", "--budget=30", *LET_THROUGH),
    ]
    assert main([*command, f"--teacher={other}"]) == 2
    assert "predicts interest, not emotion" in capsys.readouterr().err
    assert main([*command, f"--teacher={run}", "--test_sets=lab:train"]) == 2
    assert "saw 3 of the subjects of the test set lab train" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    assert main([*command, f"--teacher={run}", "--real=lab:train"]) == 0
    said = capsys.readouterr().out
    assert (
        "teacher run, step 1: temperature" in said
        and "the budget of 30 candidates is used up" in said
    )
    settings = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert settings["teacher"]["subjects"] == sorted(
        f"lab/{part}{i}" for part in ("train", "validation") for i in range(3)
    )
    rows = rows_of(tmp_path / "out")
    assert rows and {row["label_source"] for row in rows} == {"teacher"}
    measured = json.loads((tmp_path / "out" / "measures.json").read_text())
    assert measured["real"] == "lab:train"
    everything = measured["measures"][0]
    assert (everything["real"], everything["generated"]) == (14, len(rows))
    assert everything["frechet"] > 0


def test_sheets_and_a_video(tmp_path: Path, capsys):
    network = write_network(tmp_path / "network")
    out = tmp_path / "out"
    command = [
        *("synthesize", f"--network={network}", f"--out={out}", "--sweep=0-2:-1,0,0.7,1"),
        *("--mix=0-1:5-7", "--mix_layers=0-2", "--interpolate=1,2,3", "--frames=5", *LET_THROUGH),
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(out / name) for name in ("truncation.jpg", "mixing.jpg", "interpolation.mp4")
    ]
    assert {path.name for path in out.iterdir()} == {
        *("truncation.jpg", "mixing.jpg", "interpolation.mp4", ".lock")
    }
    for name, rows in (("truncation.jpg", 3), ("mixing.jpg", 3)):
        assert images.decode((out / name).read_bytes()).shape[0] == rows * (112 + 16)
    video = cv2.VideoCapture(str(out / "interpolation.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == 2 * 5 + 1
    # At the seeds the frames are the images of the seeds, up to compression.
    renderer = make_renderer(load_generator(network), make_mesh(jax.devices()[:1]), psi=0.7)
    stations = np.asarray(renderer.ws([1, 2, 3], [0] * 3))
    path = [stations[0], 0.6 * stations[0] + 0.4 * stations[1], stations[1], stations[2]]
    expected = np.asarray(renderer.images(jnp.asarray(np.stack(path)), [1] * 4))[..., ::-1].astype(
        float
    )
    errors = [[np.abs(frames[i] - one).mean() for one in expected] for i in (0, 2, 5, 10)]
    assert np.argmin(errors, axis=1).tolist() == [0, 1, 2, 3], errors
    # Faces can follow in the same folder.
    assert main([*command[:3], "--count=3", *LET_THROUGH]) == 0
    assert len(rows_of(out)) == 3


def test_seeds_are_read_and_written():
    assert read_seeds("3, 0-2,7") == (3, 0, 1, 2, 7)
    for text in ("0-99,200", "5", "1-2,0"):
        assert seeds_to_text(read_seeds(text)) == text
