"""The rendered world: the same for the same seed, found by detectors, laid out as published."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_builders.clips import clips_dataset_builder as clips
from data_builders.demo import film, world
from data_builders.neurobiosense import neurobiosense_dataset_builder as neurobiosense
from fer_jax.collect.links import read_links
from fer_jax.data.builder import Inputs, RecordBuilder
from fer_jax.media import faces
from fer_jax.media.detector import make_detector
from fer_jax.media.video import Video
from fer_jax.schema import EMOTIONS

SEED = world.World(11)


def reaction(
    platform: str, number: int, emotion: str, seed: world.World = SEED
) -> list[film.Frame]:
    one = world.viewer(seed, platform, number)
    (shown,) = [shown for shown in one.reactions if shown.emotion == emotion]
    return list(one.film(shown, one.where()))


def pixels(frames: list[film.Frame]) -> np.ndarray:
    return np.stack([frame.image for frame in frames]).astype(int)


@pytest.mark.parametrize("platform", film.PLATFORMS)
def test_the_seed_and_the_person_determine_every_pixel(platform: str):
    first = pixels(reaction(platform, 4, "fear"))
    about = film.PLATFORMS[platform]
    assert first.shape == (film.NUM_FRAMES, about.height, about.width, 3)
    np.testing.assert_array_equal(first, pixels(reaction(platform, 4, "fear")))
    for other in (
        reaction(platform, 5, "fear"),
        reaction(platform, 4, "anger"),
        reaction(platform, 4, "fear", world.World(12)),
    ):
        assert np.abs(first - pixels(other)).mean() > 1


def test_people_pass_from_neutral_to_an_expression_and_back():
    frames = reaction("laboratory", 2, "surprise")
    assert [round(frame.shown, 1) for frame in frames] == [0.2, 0.5, 0.8, *[1.0] * 7, 0.9, 0.5]
    dark = []
    for frame in frames:  # the mouth, which is below the nose, opens
        x, y = (round(value) for value in frame.centre)
        reach = round(frame.eyes / 2)
        mouth = frame.image[y + reach : y + 3 * reach, x - reach : x + reach].astype(int)
        dark.append(int((mouth.sum(axis=-1) < 0.5 * np.median(mouth.sum(axis=-1))).sum()))
    assert min(dark[3:10]) > 2 * dark[0], dark


@pytest.mark.parametrize("platform", film.PLATFORMS)
def test_everybody_shows_each_emotion_once_in_one_category(platform: str):
    people = world.viewers(SEED, platform, 120)
    assert len({str(one.who) for one in people}) == len(people)
    for one in people:
        assert sorted(shown.emotion for shown in one.reactions) == sorted(EMOTIONS)
        # An advertisement interests or does not, whatever it makes people feel.
        assert len({(shown.ad, shown.interested) for shown in one.reactions}) == world.ADS_EACH
    for content, share in world.INTERESTED.items():
        own = [one for one in people if one.content == content]
        found = np.mean([shown.interested for one in own for shown in one.reactions])
        assert len(own) == 40 and found == pytest.approx(share, abs=0.1)
    others = {
        str(one.who)
        for name in film.PLATFORMS
        if name != platform
        for one in world.viewers(SEED, name, 120)
    }
    assert not others & {str(one.who) for one in people}


def found_share(detector: str, model: str, platform: str, count: int) -> float:
    """The share of wanted frames in which the largest face is where it was rendered."""
    detect, found = make_detector(detector, model), []
    for one in world.viewers(SEED, platform, count):
        shown = one.reactions[one.number % len(one.reactions)]
        for frame in list(one.film(shown, one.where()))[2::4]:
            seen = faces.largest_first(detect(frame.image[..., ::-1].copy(), faces.LARGE_FACES))
            centre = (
                [seen[0].box[i] + seen[0].box[i + 2] / 2 for i in (0, 1)] if seen else [np.inf] * 2
            )
            found.append(np.abs(np.subtract(centre, frame.centre)).max() < 1.2 * frame.eyes)
    return float(np.mean(found))


@pytest.mark.parametrize("platform", film.PLATFORMS)
def test_detectors_find_the_faces(platform: str, yunet_model: Path):
    assert found_share("yunet", str(yunet_model), platform, 24) >= 0.97


@pytest.mark.parametrize("platform", film.PLATFORMS)
def test_opencvs_cascade_finds_the_faces(platform: str):
    assert found_share("haar", "", platform, 48) >= 0.92


def test_platforms_differ_in_light_noise_and_framing():
    def looks(platform: str) -> tuple[float, float]:
        settings = [one.where() for one in world.viewers(SEED, platform, 24)]
        light = np.std([np.hypot(*where.light) for where in settings])
        noise = np.mean([where.noise.std() for where in settings])
        return float(light), float(noise)

    laboratory, social, calls = (looks(platform) for platform in film.PLATFORMS)
    assert social[0] > 2 * laboratory[0]
    assert min(social[1], calls[1]) > 2 * laboratory[1]


def planned(builder: type[RecordBuilder], source: Path, protocol: str) -> Inputs:
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    words = [f"--source={source}", "--detector=none"]
    if protocol == "folds":
        words.append("--folds=2")
    return builder(config=protocol, options=parser.parse_args(words), data_dir=source).inputs


def test_the_laboratory_is_read_as_the_published_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    people = world.viewers(SEED, "laboratory", 6)
    videos = world.laboratory(tmp_path, people)
    for video in videos:  # a plan decodes none of them
        video.path.parent.mkdir(parents=True)
        video.path.write_text("x")
    plan = planned(neurobiosense.Builder, tmp_path, "folds")
    assert "24 rows read, 42 clips matched, 0 clips without a row, 0 rows without a clip" in (
        capsys.readouterr().out
    )
    assert not plan.skipped
    expected = {
        (f"neurobiosense/p{one.id}", one.content, f"a_{shown.ad}")
        + (EMOTIONS.index(shown.emotion), int(shown.interested), one.who.gender, one.who.age)
        for one in people
        for shown in one.reactions
    }
    keys = ("subject_id", "content", "stimulus_id", "emotion", "interest", "gender", "age")
    assert {tuple(row[key] for key in keys) for row in plan.rows} == expected


def test_links_name_the_parts_of_videos_and_some_of_them_lead_nowhere(tmp_path: Path):
    people = world.viewers(SEED, "social", 2)
    videos = world.social(tmp_path / "served", people)
    world.write_links(tmp_path / "links.csv", videos, "http://127.0.0.1:1")
    listed, refused, unused = read_links(tmp_path / "links.csv")
    assert [row.reason for row in refused] == ["duplicate"] and not unused
    assert len(listed) == 2 * len(EMOTIONS) + 2
    lost = [link.url.rpartition("/")[2] for link in listed[-2:]]
    assert lost == ["gone.mp4", "about.html"]
    world.render(videos[1])
    with Video(videos[1].path) as video:
        count = len(list(video.frames(every=1)))
    assert count == len(EMOTIONS) * film.NUM_FRAMES
    last = listed[-3]
    assert (last.start_s, last.end_s) == (12, 14) and count / film.FPS == 14
    shown = people[1].reactions[-1]
    assert (last.emotion, last.subject_id) == (shown.emotion, "P1100002")
    assert last.reaction_type == ("not_interested", "interested")[shown.interested]


def test_calls_are_read_by_their_manifest_and_rendering_goes_on(tmp_path: Path):
    videos = world.calls(tmp_path / "calls", world.viewers(SEED, "calls", 2))
    for video in videos[1:]:
        video.path.write_text("is there")
    assert sorted(world.render_all(videos, 1)) == sorted(video.path for video in videos)
    assert videos[0].path.stat().st_size > 5000 and videos[1].path.read_text() == "is there"
    plan = planned(clips.Builder, tmp_path / "calls", "folds")
    assert not plan.skipped and len(plan.rows) == len(videos) == 2 * len(EMOTIONS)
    labels = {(row["subject_id"], EMOTIONS[row["emotion"]]) for row in plan.rows}
    assert labels == {(f"clips/P110000{n}", emotion) for n in (1, 2) for emotion in EMOTIONS}


RENDERS = """
from pathlib import Path
from data_builders.demo import world
if __name__ == "__main__":
    videos = world.calls(Path({folder!r}), world.viewers(world.World(11), "calls", 40))
    for path in world.render_all(videos, 2):
        print(path, flush=True)
"""


def test_a_killed_program_leaves_no_process(tmp_path: Path):
    script = tmp_path / "renders.py"
    script.write_text(RENDERS.format(folder=str(tmp_path / "calls")))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as program:
        assert program.stdout and program.stdout.readline()
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        program.kill()
    assert len(children) >= 2
    deadline = time.monotonic() + 10
    while any(Path("/proc", child).exists() for child in children):
        assert time.monotonic() < deadline, "a process outlived its program"
        time.sleep(0.1)
