"""The verb `report`: report.html of a run, a study or a generator, and their figures as files.

The page is one file that opens anywhere. Every number on it is in results.json, or for a
generator in metrics.jsonl.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_jax import compilations, figures, storage
from fer_jax.config import OneLineParser
from fer_jax.data.records import open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import predictions, results
from fer_jax.inference.explain import overlay
from fer_jax.inference.load import load
from fer_jax.media.images import resized
from fer_jax.report.generator_page import generator_figures, generator_page
from fer_jax.report.layout import data_uri
from fer_jax.report.run_page import run_figures, run_page
from fer_jax.report.study_page import study_figures, study_page

EXPLANATIONS = "explanations"
THUMBNAIL = 128  # pixels a side
THUMBNAIL_QUALITY = 80
# A probability that has moved by more is of another checkpoint, or of another picture.
SAME_PROBABILITY = 0.02


def report(
    workdir: Path,
    *,
    data_dir: Path | None = None,
    faces: bool = True,
    figure_format: str | None = None,
) -> Path:
    """Writes workdir/report.html and returns its path.

    Args:
      workdir: of an evaluated run, whose results.json is written anew, of a study, or of a
        generator.
      data_dir: where a run's datasets are, for the gallery of errors; None means where it
        trained from. Where they are missing, the errors are listed without pictures.
      faces: whether a run's page may show faces, and workdir/explanations hold them.
      figure_format: one of `figures.FORMATS`, in which workdir/figures is written too.

    Raises:
      InputError: there is no run and no study, or there are no predictions yet.
    """
    scored = _read_results(workdir)
    if "scenarios" in scored:
        page = study_page(workdir, scored)
        drawn = study_figures(scored) if figure_format else {}
    elif _is_generator(workdir):
        page = generator_page(workdir)
        drawn = generator_figures(workdir) if figure_format else {}
    elif not scored and (workdir / "runs").is_dir():
        raise InputError(f"'{workdir}' is a study without results; rerun `fer-jax study`")
    else:
        results.write(workdir)
        scored = _read_results(workdir)
        page = run_page(workdir, scored, _galleries(workdir, scored, data_dir) if faces else {})
        drawn = run_figures(workdir, scored) if figure_format else {}
    path = workdir / "report.html"
    storage.write_atomically(path, page, durable=False)
    for name, figure in drawn.items():
        with storage.replacing(
            workdir / "figures" / f"{name}.{figure_format}", durable=False
        ) as file:
            figures.save(figure, file)
    return path


def _read_results(workdir: Path) -> dict[str, Any]:
    file = workdir / "results.json"
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"'{file}' is damaged ({error}); remove it and evaluate again") from error


def _is_generator(workdir: Path) -> bool:
    file = workdir / "config.json"
    try:
        return file.is_file() and "num_images" in json.loads(file.read_text())
    except ValueError:
        return False  # the reader of a run's config reports the error


def _galleries(
    workdir: Path, scored: dict[str, Any], data_dir: Path | None
) -> dict[str, dict[str, Any]]:
    """The faces of each plain table's errors and where the network looked.

    Writes workdir/explanations: <predictions file>.<rank>.jpg, the face that glows where the
    network looked, and <predictions file>.json, the maps as numbers.

    Returns:
      {predictions file: {"pictures": [{"face", "looked": data URIs}, or {} where there is no
      picture], "why": what is missing, or None}}.
    """
    environment = workdir / "environment.json"
    if data_dir is None and environment.is_file():
        recorded = json.loads(environment.read_text()).get("data_dir")
        data_dir = Path(recorded) if recorded else None
    found: dict[str, dict[str, Any]] = {}
    wanted: list[tuple[str, int, dict[str, Any], np.ndarray]] = []
    for one in scored["sets"]:
        if one["variant"]:
            continue
        name = predictions.file_name(one["dataset"], one["split"])
        found[name] = {"pictures": [{} for _ in one["errors"]], "why": None}
        if data_dir is None:
            found[name]["why"] = "the run does not say where its data are; name it with --data_dir"
            continue
        try:
            records = open_records(one["dataset"], one["split"], data_dir)
            rows = {str(key): row for row, key in enumerate(records.columns["record_id"])}
            for rank, error in enumerate(one["errors"]):
                if error["record_id"] in rows:
                    face = records.image(rows[error["record_id"]])
                    wanted.append((name, rank, error, face))
                else:
                    found[name]["why"] = "some of these records are no longer in the dataset"
        except InputError as error:
            found[name]["why"] = str(error)
    for name, rank, _, face in wanted:
        found[name]["pictures"][rank] = {"face": _data_uri(resized(face, THUMBNAIL))}
    if wanted:
        _add_looks(workdir, scored["classes"], wanted, found)
    return found


def _add_looks(
    workdir: Path,
    classes: Sequence[str],
    wanted: Sequence[tuple[str, int, dict[str, Any], np.ndarray]],
    found: dict[str, dict[str, Any]],
) -> None:
    """Adds "looked" to the pictures in `found` and writes workdir/explanations."""
    given = [classes.index(error["given"]) for _, _, error, _ in wanted]
    try:
        model = load(workdir)
    except InputError as error:
        for name, _, _, _ in wanted:
            found[name]["why"] = f"where the network looked is not known: {error}"
        return
    faces = np.stack([resized(face, model.image_size) for _, _, _, face in wanted])
    maps, probabilities = model.explain(faces, np.asarray(given))
    folder = workdir / EXPLANATIONS
    folder.mkdir(exist_ok=True)
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _, _ in wanted}
    for name in kept:
        # What an earlier report left may be of errors that are none any more.
        for rank in range(1, results.WORST_ERRORS + 1):
            _picture_file(folder, name, rank).unlink(missing_ok=True)
    for (name, rank, error, face), heat, chances, answer in zip(
        wanted, maps, probabilities, given, strict=True
    ):
        if abs(chances[answer] - error["probability"]) > SAME_PROBABILITY:
            found[name]["why"] = (
                "the best checkpoint answers otherwise than these predictions say, so where it "
                "looked is left out; evaluate again"
            )
            continue
        picture = overlay(face, heat)
        found[name]["pictures"][rank]["looked"] = _data_uri(resized(picture, THUMBNAIL))
        _picture_file(folder, name, rank + 1).write_bytes(_jpeg(picture))
        kept[name].append(error | {"checkpoint": model.step, "map": heat.tolist()})
    for name, rows in kept.items():
        text = json.dumps(rows, indent=1) + "\n"
        (folder / name).with_suffix(".json").write_text(text)


def _picture_file(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name.removesuffix('.csv')}.{rank}.jpg"


def _jpeg(picture: np.ndarray) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    if not done:
        raise ValueError(f"could not encode a picture of shape {picture.shape}")
    return data.tobytes()


def _data_uri(picture: np.ndarray) -> str:
    return data_uri(_jpeg(picture), "jpeg")


def main(argv: list[str]) -> None:
    """Runs the verb `report`."""
    parser = OneLineParser(
        prog="fer-jax report",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, help="of an evaluated run, a study or a generator"
    )
    parser.add_argument("--data_dir", type=Path, help="default: where the run trained from")
    parser.add_argument(
        "--no_faces",
        action="store_true",
        help="list the most confident errors without their pictures",
    )
    parser.add_argument(
        "--figures",
        choices=figures.FORMATS,
        help="also write each figure to WORKDIR/figures in this format, for a paper",
    )
    arguments = parser.parse_args(argv)
    compilations.enable_compilation_cache()
    page = report(
        arguments.workdir,
        data_dir=arguments.data_dir,
        faces=not arguments.no_faces,
        figure_format=arguments.figures,
    )
    print(page.resolve())
