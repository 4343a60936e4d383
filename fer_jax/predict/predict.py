"""Apply a trained model to photos, folders, clips or a camera.

Each face becomes a row of faces.csv and faces.jsonl, each tracked face of a clip a row of
clips.csv, and each input a row of ledger.csv, with the reason if it was not fully processed.
Beside them are the photos and clips with boxes, labels and bars of probabilities, and a plot over
time for each clip. Rerun the same command to resume.

Without --out the rows of faces.jsonl are printed, and nothing is written.
"""

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

from fer_jax import compilations, storage
from fer_jax.config import OneLineParser, output_path
from fer_jax.errors import InputError
from fer_jax.inference import promises
from fer_jax.inference.network import ENGINES
from fer_jax.inference.recognizer import FACES, FaceCrop, Prediction, Recognizer, load
from fer_jax.media import faces, images
from fer_jax.media.video import VIDEO_SUFFIXES, Frame, Video, camera_frames, frame_image
from fer_jax.predict.output import DrawnFace, Input, Output, annotate
from fer_jax.predict.timeline import Timeline

CAMERA = "webcam"
KINDS = dict.fromkeys(VIDEO_SUFFIXES, "clip") | dict.fromkeys(images.IMAGE_SUFFIXES, "picture")
PICTURE_SIZE, FRAME_SIZE = 1920, 1280  # the largest longer side of drawn pictures, in pixels
FACE_SIZE = 256  # of a face beside its heatmap
CAMERA_FPS = 10.0
MAX_REPEATS = 250  # of a frame until the next one


@dataclasses.dataclass(frozen=True)
class Settings:
    """How inputs are processed; all predictions in a folder have the same settings."""

    faces: str = "detect"  # as in `Recognizer.predict`
    every: int = 1  # of a clip, every k-th frame
    start: float = 0.0  # of a clip, in seconds
    end: float = math.inf
    smooth: float = 0.0  # of a clip, as in `Timeline`
    certainty: float | None = None  # as in `Recognizer.predict`
    explain: bool = False  # whether heatmaps are drawn
    draw: bool = True  # whether anything is drawn


def predict(
    recognizer: Recognizer, inputs: Sequence[Input], output: Output, settings: Settings
) -> None:
    """Processes the inputs, from `find_inputs`, that are not in the output's ledger yet."""
    waiting = [one for one in inputs if one.name not in output.ledger]
    total = sum(_num_pictures(one, settings) for one in waiting)
    with tqdm(total=total, desc="predict", unit="picture", disable=None) as progress:
        run = _Run(recognizer, output, settings, progress)
        for kind, some in itertools.groupby(waiting, lambda one: one.kind):
            if kind == "picture":
                run.process_pictures(some)
                continue
            for one in some:
                if kind:
                    run.process_clip(one)
                else:
                    named = f"ends in {one.path.suffix}" if one.path.suffix else "has no ending"
                    output.finish(one, reason=f"neither a picture nor a clip: its name {named}")


def find_inputs(words: Iterable[str]) -> list[Input]:
    """Returns the inputs that arguments name, each file once.

    They are files, folders (with everything in them), patterns such as 'DATA/**/*.jpg', and
    "webcam" or "webcam:1". InputError if one names or matches nothing.
    """
    found: dict[Path, Input] = {}
    for word in words:
        path = Path(word)
        number = word.removeprefix(CAMERA).removeprefix(":") or "0"
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if not p.is_dir() or p.is_symlink())
        elif path.exists():
            files = [path]
        elif word.startswith(CAMERA) and number.isdecimal():
            found[path] = Input(path, word, f"{CAMERA}_{number}", "camera")
            continue
        elif glob.has_magic(word):
            # Brackets in the name of a folder that is there are no pattern.
            folder = next(parent for parent in path.parents if parent.is_dir())
            pattern = os.path.join(glob.escape(str(folder)), path.relative_to(folder))
            matches = map(Path, sorted(glob.glob(pattern, recursive=True)))
            files = [match for match in matches if match.is_file()]
        else:
            raise InputError(f"'{word}' does not exist")
        if not files:
            raise InputError(f"no file {'is in' if path.is_dir() else 'matches'} '{word}'")
        for file in files:
            relative = file.relative_to(path) if path.is_dir() else Path(file.name)
            # Bytes of names that are not UTF-8 are written as escapes.
            names = (os.fsencode(p).decode(errors="backslashreplace") for p in (file, relative))
            kind = KINDS.get(file.suffix.lower()) or ("picture" if images.is_picture(file) else "")
            # Not `Path.resolve`, which raises RuntimeError of a link to itself.
            real = Path(os.path.realpath(file))
            found.setdefault(real, Input(file, *names, kind=kind))
    return list(found.values())


def _num_pictures(one: Input, settings: Settings) -> int:
    """Returns how many pictures an input has, as far as that is known before it is decoded."""
    if one.kind != "clip":
        return int(one.kind == "picture")
    try:
        with Video(one.path) as video:
            length_s = min(settings.end, video.expected_s) - settings.start
            return max(0, math.ceil(length_s * video.fps / settings.every))
    except InputError:
        return 0


@dataclasses.dataclass(frozen=True)
class _Run:
    recognizer: Recognizer
    output: Output
    settings: Settings
    progress: tqdm

    def process_pictures(self, some: Iterable[Input]) -> None:
        output, draw = self.output, self.settings.draw and self.output.folder
        for prediction in self.recognizer.stream(
            some,
            faces=self.settings.faces,
            decode=lambda one: cv2.cvtColor(images.read(one.path), cv2.COLOR_RGB2BGR),
            keep_size=PICTURE_SIZE if draw else 0,
        ):
            one, found, drawn = prediction.item, prediction.found, None
            self.progress.update()
            if prediction.reason:
                output.finish(one, reason=prediction.reason)
                continue
            rows = self.recognizer.to_dicts(prediction, self.settings.certainty)
            output.append_faces(
                {"file": one.name, "face": n} | row for n, row in enumerate(rows, 1)
            )
            if draw:
                drawn = output.path_of(one, "pictures", ".jpg")
                names = [""] * len(found)
                _write_picture(drawn, self._annotate(prediction, names, prediction.probabilities))
            if self.settings.explain and output.folder:
                self._write_heatmaps(one, dict(enumerate(found, 1)), prediction.probabilities)
            with_faces = min(1, len(found))
            output.finish(one, pictures=1, with_faces=with_faces, num_faces=len(found), drawn=drawn)

    def process_clip(self, one: Input) -> None:
        """Processes a clip or a camera until it ends; Ctrl-C ends a camera."""
        settings, output = self.settings, self.output
        task = self.recognizer.network.task
        timeline = Timeline(task, start_s=settings.start, smooth_s=settings.smooth)
        counts: collections.Counter[str] = collections.Counter()
        missing: list[int] = []
        drawn = output.path_of(one, "clips", ".webm") if settings.draw else None
        reason, expected_end = "", self.progress.n + _num_pictures(one, settings)
        try:
            frames, fps = _frames(one, settings)
            with _ClipWriter(drawn, fps) as writer:
                for prediction in self.recognizer.stream(
                    frames,
                    faces=settings.faces,
                    decode=frame_image,
                    search_size=faces.LARGE_FACES,
                    keep_size=FRAME_SIZE if drawn else 0,
                ):
                    self.progress.update()
                    if prediction.reason:
                        missing.append(prediction.item.index)
                        continue
                    found = prediction.found
                    counts.update(pictures=1, with_faces=min(1, len(found)), num_faces=len(found))
                    self._process_frame(one, prediction, timeline, writer)
        except InputError as error:
            reason = str(error)
        except KeyboardInterrupt:
            if one.kind != "camera":
                raise
        if missing and counts["pictures"]:
            reason = (
                f"{len(missing)} frames missing ({missing[0]} to {missing[-1]}): the file ends "
                "early, or is damaged there"
            )
        elif missing:
            reason = "no frame could be decoded"
        elif not reason and not counts["pictures"]:
            reason = "no frame between --start and --end"
        self.progress.total += self.progress.n - expected_end
        people = timeline.finish()
        if output.folder and counts["pictures"]:
            self._draw_timeline(one, timeline)
        drawn = drawn if drawn and drawn.is_file() else None
        output.finish(one, **counts, people=people, drawn=drawn, reason=reason)

    def _process_frame(
        self, one: Input, prediction: Prediction, timeline: Timeline, writer: "_ClipWriter"
    ) -> None:
        frame: Frame = prediction.item
        classes, task = self.recognizer.classes, self.recognizer.network.task
        tracks = timeline.add(
            frame.timestamp_s,
            faces.add_looks(frame_image(frame), [found.face for found in prediction.found]),
            prediction.probabilities,
            prediction.found if self.settings.explain else [],
        )
        rows = []
        described = self.recognizer.to_dicts(prediction, self.settings.certainty)
        where = {"file": one.name, "frame": frame.index, "timestamp_s": round(frame.timestamp_s, 4)}
        for track, face in zip(tracks, described, strict=True):
            row = where | {"face": track.number} | face
            if self.settings.smooth:
                row[task] = classes[int(np.argmax(track.smoothed))]
                row["smoothed"] = dict(zip(classes, map(float, track.smoothed), strict=True))
            rows.append(row)
        self.output.append_faces(rows)
        if prediction.picture is not None:
            names = [str(track.number) for track in tracks]
            smoothed = [track.smoothed for track in tracks]
            writer.write(self._annotate(prediction, names, smoothed), frame.timestamp_s)

    def _draw_timeline(self, one: Input, timeline: Timeline) -> None:
        plot = self.output.path_of(one, "timelines", ".svg") if self.settings.draw else None
        if plot:
            plot.write_text(timeline.plot(one.name), encoding="utf-8")
        if self.settings.explain:
            clearest = {t.number: t.clearest[1] for t in timeline.plotted if t.clearest}
            self._write_heatmaps(one, clearest, [track.total for track in timeline.plotted])

    def _annotate(
        self, prediction: Prediction, names: Sequence[str], probabilities: Iterable[np.ndarray]
    ) -> np.ndarray:
        assert prediction.picture is not None
        shown = [
            DrawnFace([value * prediction.scale for value in found.face.box], name, row)
            for found, name, row in zip(prediction.found, names, probabilities, strict=True)
        ]
        return annotate(prediction.picture, shown, self.recognizer.network.task)

    def _write_heatmaps(
        self, one: Input, numbered: dict[int, FaceCrop], probabilities: Iterable[np.ndarray]
    ) -> None:
        likeliest = [int(np.argmax(row)) for row in probabilities]
        heatmaps = self.recognizer.heatmaps(list(numbered.values()), likeliest)
        for (number, found), heatmap in zip(numbered.items(), heatmaps, strict=True):
            pair = [images.resized(half, FACE_SIZE) for half in (found.view, heatmap)]
            path = self.output.path_of(one, "explanations", f".{number}.jpg")
            _write_picture(path, cv2.cvtColor(np.concatenate(pair, 1), cv2.COLOR_RGB2BGR))


def _frames(one: Input, settings: Settings) -> tuple[Iterator[Frame], float]:
    if one.kind == "camera":
        number = int(one.relative.rpartition("_")[2])
        return camera_frames(number, fps=CAMERA_FPS, end_s=settings.end), CAMERA_FPS
    video = Video(one.path)

    def frames() -> Iterator[Frame]:
        with video:
            yield from video.frames(
                every=settings.every, start_s=settings.start, end_s=settings.end
            )

    return frames(), video.fps / settings.every


class _ClipWriter:
    """Writes a clip frame by frame; the file appears when it is complete."""

    def __init__(self, path: Path | None, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._size, self._written, self._first_s = (0, 0), 0, 0.0

    def __enter__(self) -> "_ClipWriter":
        return self

    def write(self, picture: np.ndarray, timestamp_s: float) -> None:
        """Writes a frame as often as keeps the clip in time if frames come unevenly."""
        if self._path is None:
            return
        if self._writer is None:
            # The format needs an even number of pixels.
            self._size = (picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2)
            self._first_s = timestamp_s
            temporary = self._path.with_suffix(".tmp.webm")
            with _silenced_stderr():
                code = cv2.VideoWriter.fourcc(*"VP80")
                self._writer = cv2.VideoWriter(str(temporary), code, self._fps, self._size)
            if not self._writer.isOpened():
                raise InputError(f"the clip '{temporary}' cannot be written")
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
    """Hides a note of OpenCV about each WebM file, which none of its settings silences."""
    original, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)


def _write_picture(path: Path | None, picture: np.ndarray) -> None:
    assert path is not None
    path.write_bytes(images.encode_jpeg(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)))


def summary(output: Output, inputs: Sequence[Input]) -> str:
    """Returns lines that count the inputs by what became of them."""
    rows = [output.ledger[one.name] for one in inputs if one.name in output.ledger]
    processed = [row for row in rows if int(row["pictures"])]
    partly = sum(bool(row["reason"]) for row in processed)
    pictures, with_faces, num_faces = (
        sum(int(row[key]) for row in processed) for key in ("pictures", "with_faces", "faces")
    )
    reasons = collections.Counter(row["reason"] for row in rows if not int(row["pictures"]))
    return "\n".join(
        [
            f"{len(rows)} inputs: {len(processed)} processed ({partly} of them in part), "
            f"{len(rows) - len(processed)} not",
            f"  {pictures} pictures, {with_faces} with a face, {num_faces} faces",
            *(f"  {count} not processed: {reason}" for reason, count in reasons.most_common()),
        ]
    )


def main(argv: list[str]) -> int:
    """The verb `predict`."""
    parser = OneLineParser("fer-jax predict", __doc__)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, folders, 'patterns*', or webcam")
    add("--model", type=Path, required=True, help="a run's workdir, a checkpoint, an export")
    add("--out", type=output_path, help="folder of the predictions [prints the rows]")
    add("--engine", default="", choices=ENGINES, help="[by the model's file]")
    add("--faces", default="detect", choices=FACES, help="crop: each picture is a face [detect]")
    add("--every", type=int, default=1, metavar="N", help="use every N-th frame of clips [1]")
    add("--start", type=float, default=0.0, help="where to begin in clips, in seconds [0]")
    add("--end", type=float, default=math.inf, help="where to end in clips, in seconds")
    add(
        "--smooth",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="average each face's probabilities over time, with this time constant [0: do not]",
    )
    add(
        "--certainty",
        type=float,
        metavar="SHARE",
        help="add the classes of which one is right as often as this, such as 0.8, and an answer, "
        "which may be that it is not known",
    )
    add("--explain", action="store_true", help="draw heatmaps of where the network looked")
    add("--no_pictures", dest="draw", action="store_false", help="write the tables only")
    add("--overwrite", action="store_true", help="replace the results in --out")
    add("--detector_model", default="", help="YuNet's file [downloaded once]")
    arguments = parser.parse_args(argv)
    fields = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(arguments, name) for name in fields})
    _check(settings, arguments.out)
    inputs = find_inputs(arguments.inputs)
    compilations.enable_compilation_cache()
    recognizer = load(arguments.model, arguments.engine, detector_model=arguments.detector_model)
    network = recognizer.network
    if settings.explain and network.engine != "jax":
        raise InputError(f"--explain needs the engine jax, got {network.engine}")
    if settings.certainty is not None:
        promises.of_model(network.about, settings.certainty)
    if settings.faces == "detect":
        # Found or downloaded now, so that a missing file does not stop the run half-way.
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
    with storage.lock(arguments.out) if arguments.out else contextlib.nullcontext():
        output = Output(arguments.out, about, inputs, overwrite=arguments.overwrite)
        try:
            predict(recognizer, inputs, output, settings)
        finally:
            output.close()
    if arguments.out:
        print(summary(output, inputs))
        print(f"-> {arguments.out}")
    return 0 if any(int(row["pictures"]) for row in output.ledger.values()) else 1


def _check(settings: Settings, out: Path | None) -> None:
    if settings.every < 1:
        raise InputError(f"--every must be at least 1, got {settings.every}")
    if not 0 <= settings.start < math.inf:
        raise InputError(f"--start must be at least 0 seconds, got {settings.start}")
    if not settings.end > settings.start:
        raise InputError(f"--end must be after --start, got {settings.end}")
    if not 0 <= settings.smooth < math.inf:
        raise InputError(f"--smooth must be at least 0 seconds, got {settings.smooth}")
    if settings.certainty is not None and settings.smooth:
        raise InputError("--certainty is of each picture by itself; leave out --smooth")
    if settings.explain and (out is None or not settings.draw):
        raise InputError("--explain draws pictures; it needs --out, and not --no_pictures")
