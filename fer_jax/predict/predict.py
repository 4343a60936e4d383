"""The verb `predict`: a trained model on pictures, folders of them, clips, or a camera.

Every face becomes a row of faces.csv and faces.jsonl, every person of a clip one of clips.csv,
and every input one of ledger.csv, with the reason where it was not answered, or not wholly.
Beside them stand the pictures and clips with boxes, labels and bars of probabilities, and a plot
over time of each clip. The same command again goes on with what is not in the ledger.

Without --out the rows of faces.jsonl are printed, and nothing is written.
"""

import argparse
import collections
import contextlib
import dataclasses
import glob
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from fer_jax import compilations
from fer_jax.config import OneLineParser
from fer_jax.errors import InputError
from fer_jax.inference.load import ENGINES
from fer_jax.inference.recognizer import FACES, FaceCrop, Prediction, Recognizer, load
from fer_jax.media import camera, faces, images
from fer_jax.media.video import VIDEO_SUFFIXES, Frame, Video
from fer_jax.predict.answers import Answers, Input
from fer_jax.predict.drawing import Shown, annotate
from fer_jax.predict.timeline import Timeline

CAMERA = "webcam"
PICTURE_SIZE, FRAME_SIZE = 1920, 1280  # at most, at the longer side, of what is drawn on
FACE_SIZE = 256  # of a face beside where the network looked
CAMERA_FPS = 10.0
MAX_REPEATS = 250  # of a frame, where the next one is long in coming


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is to be done; a folder of answers is of one.

    Attributes:
      faces: as in `Recognizer.predict`.
      every: of a clip, every so many-th frame.
      start: of a clip, nothing earlier, in seconds.
      end: of a clip, nothing from here on, in seconds.
      smooth: of a clip, as in `Timeline`.
      explain: whether to draw where the network looked.
      draw: whether to draw anything.
    """

    faces: str = "detect"
    every: int = 1
    start: float = 0.0
    end: float = math.inf
    smooth: float = 0.0
    explain: bool = False
    draw: bool = True


def predict(
    recognizer: Recognizer, inputs: Sequence[Input], answers: Answers, settings: Settings
) -> None:
    """Answers what is not answered yet.

    Args:
      recognizer: from `load`.
      inputs: from `inputs_of`.
      answers: receives all of it.
      settings: how.
    """
    waiting = [one for one in inputs if one.name not in answers.ledger]
    total = sum(_num_pictures(one, settings) for one in waiting)
    with tqdm(total=total, desc="predict", unit="picture", disable=None) as progress:
        for kind, some in itertools.groupby(waiting, lambda one: one.kind):
            if kind == "picture":
                _pictures(recognizer, some, answers, settings, progress)
                continue
            for one in some:
                if kind == "":
                    suffix = one.path.suffix
                    named = f"its name ends in {suffix}" if suffix else "its name has no ending"
                    answers.finish(one, reason=f"neither a picture nor a clip: {named}")
                else:
                    _clip(recognizer, one, answers, settings, progress)


def inputs_of(words: Iterable[str]) -> list[Input]:
    """What is behind the words of a command line, each file once.

    Args:
      words: files, folders (with all that is in them), patterns such as 'DATA/**/*.jpg', and
        "webcam" or "webcam:1".

    Raises:
      InputError: nothing is there by a name, or matches a pattern.
    """
    found: dict[Path, Input] = {}
    for word in words:
        path = Path(word)
        number = word.removeprefix(CAMERA).removeprefix(":") or "0"
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if not p.is_dir() or p.is_symlink())
            some = [(p, p.relative_to(path)) for p in below]
            if not some:
                raise InputError(f"nothing is in the folder '{word}'")
        elif path.exists():
            some = [(path, Path(path.name))]
        elif word.startswith(CAMERA) and number.isdecimal():
            found[path] = Input(path, word, f"{CAMERA}_{number}", "camera")
            continue
        elif glob.has_magic(word):
            some = [(Path(p), Path(Path(p).name)) for p in sorted(glob.glob(word, recursive=True))]
            some = [(p, place) for p, place in some if p.is_file()]
            if not some:
                raise InputError(f"no file matches '{word}'")
        else:
            raise InputError(f"'{word}' does not exist")
        for file, place in some:
            suffix = file.suffix.lower()
            kind = "clip" if suffix in VIDEO_SUFFIXES else ""
            kind = "picture" if suffix in images.IMAGE_SUFFIXES else kind
            # Names that are not UTF-8 are written as what they are, byte by byte.
            name, place = (
                os.fsencode(p.as_posix()).decode(errors="backslashreplace") for p in (file, place)
            )
            found.setdefault(file.resolve(), Input(file, name, place, kind))
    return list(found.values())


def _num_pictures(one: Input, settings: Settings) -> int:
    """How many there will be, as far as that is known before."""
    if one.kind != "clip":
        return int(one.kind == "picture")
    try:
        with Video(one.path) as video:
            start = settings.start * video.fps
            end = min(settings.end * video.fps, video.claimed)
    except InputError:
        return 0
    return max(0, math.ceil((end - start) / settings.every))


def _pictures(
    recognizer: Recognizer,
    some: Iterable[Input],
    answers: Answers,
    settings: Settings,
    progress: tqdm,
) -> None:
    answered = recognizer.stream(
        some,
        faces=settings.faces,
        decode=lambda one: cv2.cvtColor(images.read(one.path), cv2.COLOR_RGB2BGR),
        keep_size=PICTURE_SIZE if settings.draw and answers.out else 0,
    )
    for answer in answered:
        one = answer.item
        progress.update()
        if answer.reason:
            answers.finish(one, reason=answer.reason)
            continue
        described = recognizer.to_dicts(answer)
        answers.write_faces(
            {"file": one.name, "face": number} | face for number, face in enumerate(described, 1)
        )
        drawn = None
        if answer.picture is not None:
            drawn = answers.place(one, "pictures", ".jpg")
            _write_picture(drawn, _drawn(recognizer, answer, [""] * len(described)))
        if settings.explain and answers.out and answer.found:
            numbered = dict(enumerate(answer.found, 1))
            _write_looks(recognizer, one, answers, numbered, answer.probabilities)
        num_faces = len(described)
        answers.finish(
            one, pictures=1, with_faces=min(1, num_faces), num_faces=num_faces, drawn=drawn
        )


def _clip(
    recognizer: Recognizer, one: Input, answers: Answers, settings: Settings, progress: tqdm
) -> None:
    """A clip or a camera, until it ends; Ctrl-C ends a camera, as its --end does."""
    counts: collections.Counter[str] = collections.Counter()
    missing: list[int] = []
    timeline = Timeline(recognizer.network.task, start_s=settings.start, smooth_s=settings.smooth)
    drawn = answers.place(one, "clips", ".webm") if settings.draw else None
    before, reason = progress.n, ""
    expected = _num_pictures(one, settings)
    try:
        frames, fps = _frames(one, settings)
        with _Drawing(drawn, fps) as drawing:
            for answer in recognizer.stream(
                frames,
                faces=settings.faces,
                decode=_frame_image,
                search_size=faces.LARGE_FACES,
                keep_size=FRAME_SIZE if drawn else 0,
            ):
                frame: Frame = answer.item
                progress.update()
                if answer.reason:
                    missing.append(frame.index)
                    continue
                counts["pictures"] += 1
                counts["with_faces"] += bool(answer.found)
                counts["faces"] += len(answer.found)
                tracks = timeline.add(
                    frame.timestamp_s,
                    [found.face for found in answer.found],
                    answer.probabilities,
                    answer.found if settings.explain else [],
                )
                smoothed = np.array([track.smoothed for track in tracks])
                answers.write_faces(
                    _row(one, frame, face, track.number, smoothed_row, recognizer, settings)
                    for face, track, smoothed_row in zip(
                        recognizer.to_dicts(answer), tracks, smoothed, strict=True
                    )
                )
                if answer.picture is not None:
                    answer = answer._replace(probabilities=smoothed)
                    names = [str(track.number) for track in tracks]
                    drawing.write(_drawn(recognizer, answer, names), frame.timestamp_s)
    except InputError as error:
        reason = str(error)
    except KeyboardInterrupt:
        if one.kind != "camera":
            raise
    if missing and counts["pictures"]:
        # Those that a file lacks are mostly the last ones.
        reason = f"{len(missing)} wanted frames missing ({missing[0]} to {missing[-1]})"
        reason += ": the file ends early, or is damaged there"
    elif missing:
        reason = "no frame of it could be decoded"
    elif not reason and not counts["pictures"]:
        reason = "no frame between --start and --end"
    progress.total = max(progress.n, progress.total + progress.n - before - expected)
    people = timeline.finish()
    if answers.out and counts["pictures"]:
        plot = answers.place(one, "timelines", ".svg") if settings.draw else None
        if plot:
            plot.write_text(timeline.plot(one.name), encoding="utf-8")
        if settings.explain:
            numbered = {one.number: one.clearest[1] for one in timeline.plotted if one.clearest}
            totals = [track.total for track in timeline.plotted]
            _write_looks(recognizer, one, answers, numbered, totals)
    answers.finish(
        one,
        pictures=counts["pictures"],
        with_faces=counts["with_faces"],
        num_faces=counts["faces"],
        people=people,
        drawn=drawn if drawn and drawn.is_file() else None,
        reason=reason,
    )


def _frames(one: Input, settings: Settings) -> tuple[Iterator[Frame], float]:
    """(the wanted frames, how many there are a second)."""
    if one.kind == "camera":
        number = int(one.place.rpartition("_")[2])
        return camera.frames(number, fps=CAMERA_FPS, end_s=settings.end), CAMERA_FPS
    video = Video(one.path)

    def frames() -> Iterator[Frame]:
        with video:
            yield from video.frames(
                every=settings.every, start_s=settings.start, end_s=settings.end
            )

    return frames(), video.fps / settings.every


def _frame_image(frame: Frame) -> np.ndarray:
    if frame.image is None:
        raise InputError("the file ends before this frame")
    return frame.image


def _row(
    one: Input,
    frame: Frame,
    face: dict[str, Any],
    number: int,
    smoothed: np.ndarray,
    recognizer: Recognizer,
    settings: Settings,
) -> dict[str, Any]:
    """A face of a clip, for the tables."""
    where = {"file": one.name, "frame": frame.index, "timestamp_s": round(frame.timestamp_s, 4)}
    row = where | {"face": number} | face
    if settings.smooth:
        row[recognizer.network.task] = recognizer.classes[int(np.argmax(smoothed))]
        row["smoothed"] = dict(zip(recognizer.classes, map(float, smoothed), strict=True))
    return row


class _Drawing:
    """A clip that is written frame by frame, and there only when it is whole."""

    def __init__(self, path: Path | None, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._size, self._written, self._first_s = (0, 0), 0, 0.0

    def __enter__(self) -> "_Drawing":
        return self

    def write(self, picture: np.ndarray, timestamp_s: float) -> None:
        """Adds a frame, as often as keeps the clip in time where frames come unevenly."""
        if self._path is None:
            return
        if self._writer is None:
            # The format wants an even number of pixels.
            self._size = (picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2)
            self._first_s = timestamp_s
            temporary = self._path.with_suffix(".tmp.webm")
            with _silenced_stderr():
                code = cv2.VideoWriter.fourcc(*"VP80")
                self._writer = cv2.VideoWriter(str(temporary), code, self._fps, self._size)
            if not self._writer.isOpened():
                raise InputError(f"'{temporary}' cannot be written as a clip")
        width, height = self._size
        if picture.shape[1::-1] != self._size:
            near = abs(picture.shape[1] - width) < 2 and abs(picture.shape[0] - height) < 2
            picture = picture[:height, :width] if near else cv2.resize(picture, self._size)
        due = round((timestamp_s - self._first_s) * self._fps) + 1
        for _ in range(self._written, min(due, self._written + MAX_REPEATS)):
            self._writer.write(picture)
            self._written += 1

    def __exit__(self, kind: Any, *error: object) -> None:
        if self._writer is None or self._path is None:
            return
        self._writer.release()
        temporary = self._path.with_suffix(".tmp.webm")
        if kind is None or kind is KeyboardInterrupt:
            temporary.replace(self._path)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _silenced_stderr() -> Iterator[None]:
    """OpenCV prints that WebM files bear no FourCC, each time, past all of its settings."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _drawn(recognizer: Recognizer, answer: Prediction, names: Sequence[str]) -> np.ndarray:
    assert answer.picture is not None
    shown = [
        Shown([value * answer.scale for value in found.face.box], name, row)
        for found, name, row in zip(answer.found, names, answer.probabilities, strict=True)
    ]
    return annotate(answer.picture, shown, recognizer.network.task)


def _write_looks(
    recognizer: Recognizer,
    one: Input,
    answers: Answers,
    numbered: dict[int, FaceCrop],
    chances: Sequence[np.ndarray] | np.ndarray,
) -> None:
    """For each face a picture of it beside where the network looked, for the likeliest class."""
    likeliest = [int(np.argmax(row)) for row in chances]
    looks = recognizer.heatmaps(list(numbered.values()), likeliest)
    for (number, found), look in zip(numbered.items(), looks, strict=True):
        pair = np.concatenate([images.resized(half, FACE_SIZE) for half in (found.view, look)], 1)
        place = answers.place(one, "explanations", f".{number}.jpg")
        _write_picture(place, cv2.cvtColor(pair, cv2.COLOR_RGB2BGR))


def _write_picture(path: Path | None, picture: np.ndarray) -> None:
    """Writes a BGR picture as a JPEG; where the folder cannot be written, that is said."""
    assert path is not None
    path.write_bytes(images.encode_jpeg(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)))


def summary(answers: Answers, inputs: Sequence[Input]) -> str:
    """What became of the inputs; the counts add up."""
    rows = [answers.ledger[one.name] for one in inputs if one.name in answers.ledger]
    answered = [row for row in rows if int(row["pictures"])]
    whole = sum(not row["reason"] for row in answered)
    pictures, with_faces, num_faces = (
        sum(int(row[key]) for row in answered) for key in ("pictures", "with_faces", "faces")
    )
    lines = [
        f"{len(rows)} inputs: {len(answered)} answered ({len(answered) - whole} not to the end), "
        f"{len(rows) - len(answered)} not",
        f"  {pictures} pictures, {with_faces} with a face, {num_faces} faces",
    ]
    reasons = collections.Counter(row["reason"] for row in rows if not int(row["pictures"]))
    lines += [f"  {count} not answered: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The verb `predict`."""
    parser = OneLineParser(
        prog="fer-jax predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="files, folders, 'patterns*', or webcam"
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="a run's workdir, a checkpoint, an export"
    )
    parser.add_argument("--out", type=Path, help="folder of the answers [prints the rows]")
    parser.add_argument("--engine", default="", choices=ENGINES, help="[by the model's file]")
    parser.add_argument(
        "--faces", default="detect", choices=FACES, help="crop: each picture is a face [detect]"
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="of clips, every N-th frame [1]"
    )
    parser.add_argument("--start", type=float, default=0.0, help="of clips, in seconds [0]")
    parser.add_argument("--end", type=float, default=math.inf, help="of clips, in seconds")
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="average each face's probabilities over time, with this time constant [0: do not]",
    )
    parser.add_argument("--explain", action="store_true", help="draw where the network looked")
    parser.add_argument("--no_pictures", action="store_true", help="write the tables only")
    parser.add_argument("--overwrite", action="store_true", help="drop what is in --out")
    parser.add_argument("--detector_model", default="", help="YuNet's file [fetched once]")
    arguments = parser.parse_args(argv)
    settings = Settings(
        faces=arguments.faces,
        every=arguments.every,
        start=arguments.start,
        end=arguments.end,
        smooth=arguments.smooth,
        explain=arguments.explain,
        draw=not arguments.no_pictures,
    )
    _check(settings, arguments.out)
    inputs = inputs_of(arguments.inputs)
    compilations.enable_compilation_cache()
    recognizer = load(arguments.model, arguments.engine, detector_model=arguments.detector_model)
    network = recognizer.network
    if settings.explain and network.engine != "jax":
        raise InputError(f"--explain needs the engine jax, not {network.engine}")
    if settings.faces == "detect":
        # FaceCrop or fetched now, so that a missing file stops nothing half-way.
        recognizer.detector()
    about = {
        "model": str(arguments.model.resolve()),
        "step": network.step,
        "engine": network.engine,
        "task": network.task,
        "classes": list(network.classes),
        **dataclasses.asdict(settings),
        "end": settings.end if math.isfinite(settings.end) else None,
    }
    answers = Answers(arguments.out, about, inputs, overwrite=arguments.overwrite)
    try:
        predict(recognizer, inputs, answers, settings)
    finally:
        answers.close()
    if arguments.out:
        print(summary(answers, inputs))
        print(f"-> {arguments.out}")
    return 0 if any(int(row["pictures"]) for row in answers.ledger.values()) else 1


def _check(settings: Settings, out: Path | None) -> None:
    if settings.every < 1:
        raise InputError(f"--every must be at least 1, not {settings.every}")
    if not 0 <= settings.start < math.inf:
        raise InputError(f"--start must be at least 0 seconds, not {settings.start}")
    if not settings.end > settings.start:
        raise InputError(f"--end must be after --start, not {settings.end}")
    if not 0 <= settings.smooth < math.inf:
        raise InputError(f"--smooth must be at least 0 seconds, not {settings.smooth}")
    if settings.explain and (out is None or not settings.draw):
        raise InputError("--explain draws pictures; it needs --out, and no --no_pictures")
