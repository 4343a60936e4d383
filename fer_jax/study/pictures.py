"""Pictures of the demo's study: the matrix below faces of the test sets, and the way of a frame."""

from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from fer_jax import figures
from fer_jax.data.augment import Augmentation, augment
from fer_jax.data.records import open_records
from fer_jax.inference import network
from fer_jax.inference.recognizer import overlay
from fer_jax.media import images
from fer_jax.media.extraction import Extraction, crop_face, detect_faces
from fer_jax.media.video import Video
from fer_jax.report.study_page import ONE_FRAME, overview
from fer_jax.study import study
from fer_jax.study.scenarios import ScenarioRun

HAAR = Extraction(detector="haar")
NUM_AUGMENTED = 4
TRIED = 14  # frames of the video: two of each reaction


def write(
    workdir: Path, data_dir: Path, scored: dict[str, Any], video: Path, run: ScenarioRun
) -> None:
    """Writes overview.png, the matrix with six faces of each test set above it, and one_frame.png.

    `video` is the one whose first frame with a face is shown, `run` the network that looks at it.
    """
    above = []
    for one in scored["test_sets"]:
        faces = study.sample_faces(open_records(one["dataset"], one["split"], data_dir))
        above.append(cv2.vconcat([cv2.hconcat(faces[:3]), cv2.hconcat(faces[3:])]))
    _save(overview(scored, above), workdir / "overview.png")
    with Video(video) as opened:
        for _, _, frame in opened.frames(count=TRIED):
            if frame is not None and (found := detect_faces(frame, video.name, 0, HAAR)):
                _save(_way(frame, found[0], run), workdir / ONE_FRAME)
                return


def _save(figure: Any, file: Path) -> None:
    figure.patch.set_visible(True)  # white, also where a page is dark
    figures.save(figure, file, dpi=120)


def _way(frame: np.ndarray, face: Any, run: ScenarioRun) -> Any:
    """Draws the way of a BGR frame from its video to what the network looks at."""
    x, y, width, height = (round(value) for value in face.box)
    boxed = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    cv2.rectangle(boxed, (x, y), (x + width, y + height), (255, 220, 0), 2)
    aligned = images.decode(crop_face(frame, face, 0, HAAR)["image"])
    loaded = network.load(run.workdir, batch_sizes=(1,), devices=jax.local_devices()[:1])
    shown = images.resized(aligned, loaded.image_size)
    batch = jnp.repeat(shown[None], NUM_AUGMENTED, axis=0)
    targets = jnp.zeros((NUM_AUGMENTED, len(loaded.classes)))
    options = Augmentation(**run.config.augment)
    augmented = np.asarray(augment(batch, targets, jax.random.key(0), options)[0])
    probabilities = loaded.probabilities([aligned])[0]
    guess = int(probabilities.argmax())
    heat, _ = loaded.explain(shown[None], np.asarray([guess]))
    grid = cv2.vconcat([cv2.hconcat(list(augmented[:2])), cv2.hconcat(list(augmented[2:]))])
    named = f"{loaded.classes[guess]}, {probabilities[guess]:.0%}"
    return figures.strip(
        [boxed, aligned, grid, overlay(aligned, heat[0])],
        ["frame and face", "cropped", "augmented, for training", f"seen as {named}"],
        "The way of one frame",
    )
