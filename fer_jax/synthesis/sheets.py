"""Sheets of faces (contact sheet, truncation sweep, style mixing) and an interpolation video."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fer_jax.data.synthetic import Row, group_of
from fer_jax.errors import InputError
from fer_jax.media import images
from fer_jax.storage import replacing, write_atomically
from fer_jax.synthesis.generator import Renderer

CELL = 112  # pixels a side of a face on a sheet
CAPTION = 16
FONT, TEXT_SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.35
PER_CLASS = 10
MAX_SHEET_FACES = 1000
FRAMES_PER_SECOND = 30


def draw_sheet(
    faces: Sequence[Sequence[tuple[np.ndarray, str]]], titles: Sequence[str], cell: int = CELL
) -> np.ndarray:
    """Draws rows of (face uint8 RGB [h, w, 3], caption) with titles on white; `cell` in pixels."""
    widths = [cv2.getTextSize(title, FONT, TEXT_SIZE, 1)[0][0] for title in titles]
    side = max(widths, default=0) + 12
    columns = max((len(row) for row in faces), default=0)
    height = cell + CAPTION
    page = np.full((max(1, len(faces) * height), side + columns * (cell + 4), 3), 255, np.uint8)
    for row, (line, title) in enumerate(zip(faces, titles, strict=True)):
        _write(page, title, 6, row * height + cell // 2)
        for column, (face, caption) in enumerate(line):
            top, left = row * height, side + column * (cell + 4)
            page[top : top + cell, left : left + cell] = images.resized(face, cell)
            _write(page, caption, left, top + cell + 11)
    return page


def _write(page: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(page, text, (x, y), FONT, TEXT_SIZE, (0, 0, 0), 1, cv2.LINE_AA)


def _save(path: Path, sheet: np.ndarray) -> Path:
    write_atomically(path, images.encode_jpeg(sheet))
    return path


def contact_sheet(out: Path, rows: Sequence[Row], groups: Sequence[str]) -> Path:
    """Writes contact_sheet.jpg: the first faces of each class, with seed and confidence."""
    lines = []
    for group in groups:
        line = []
        for row in [row for row in rows if group_of(row) == group][:PER_CLASS]:
            confidence = f" {float(row['confidence']):.2f}" if row["confidence"] else ""
            face = images.decode((out / row["file"]).read_bytes())
            line.append((face, f"{row['seed']}{confidence}"))
        lines.append(line)
    titles = [group or "unlabelled" for group in groups]
    return _save(out / "contact_sheet.jpg", draw_sheet(lines, titles))


def sweep(
    renderer: Renderer, out: Path, seeds: Sequence[int], psis: Sequence[float], batch_size: int
) -> Path:
    """Writes truncation.jpg: a row for each seed, a column for each psi."""
    _check_count(len(seeds) * len(psis))
    columns = []
    for psi in psis:
        truncated = dataclasses.replace(renderer, psi=psi)
        ws = truncated.map_seeds(seeds, batch_size)
        columns.append(list(truncated.render(ws, seeds, batch_size)))
    lines = [
        [(column[row], f"psi {psi:g}") for column, psi in zip(columns, psis, strict=True)]
        for row in range(len(seeds))
    ]
    return _save(out / "truncation.jpg", draw_sheet(lines, [f"seed {seed}" for seed in seeds]))


def mix(
    renderer: Renderer,
    out: Path,
    seeds: tuple[Sequence[int], Sequence[int]],
    layers: tuple[int, int],
    batch_size: int,
) -> Path:
    """Writes mixing.jpg: each row's face with the w of each column's in layers first to last."""
    rows, columns = seeds
    _check_count((len(rows) + 1) * (len(columns) + 1))
    row_ws, column_ws = (renderer.map_seeds(some, batch_size) for some in seeds)
    mixed = np.repeat(row_ws[:, None], len(columns), axis=1)
    mixed[:, :, layers[0] : layers[1] + 1] = column_ws[None, :, layers[0] : layers[1] + 1]
    row_seeds = np.repeat(rows, len(columns)).tolist()
    faces, column_faces, row_faces = (
        list(renderer.render(ws, noise_seeds, batch_size))
        for ws, noise_seeds in (
            (mixed.reshape(-1, *row_ws.shape[1:]), row_seeds),
            (column_ws, columns),
            (row_ws, rows),
        )
    )
    blank = np.full_like(row_faces[0], 255)
    captions = [f"seed {seed}" for seed in columns]
    lines = [[(blank, ""), *zip(column_faces, captions, strict=True)]]
    for index, seed in enumerate(rows):
        part = faces[index * len(columns) : (index + 1) * len(columns)]
        lines.append([(row_faces[index], f"seed {seed}"), *((face, "") for face in part)])
    titles = [f"layers {layers[0]}-{layers[1]} of", *["into"] * len(rows)]
    return _save(out / "mixing.jpg", draw_sheet(lines, titles))


def interpolate(
    renderer: Renderer, out: Path, seeds: Sequence[int], frames: int, batch_size: int
) -> Path:
    """Writes interpolation.mp4: `frames` from each seed to the next, along straight lines in w."""
    stations = renderer.map_seeds(seeds, batch_size)
    shares = np.arange(frames, dtype=np.float32) / frames
    between = [
        start + share * (stop - start)
        for start, stop in zip(stations, stations[1:], strict=False)
        for share in shares
    ]
    path = np.stack([*between, stations[-1]])
    # The same noise in all frames: with noise by seed the video would flicker.
    noise_seeds = [seeds[0]] * len(path)
    target = out / "interpolation.mp4"
    size = renderer.generator.resolution
    with replacing(target) as temporary:
        writer = cv2.VideoWriter(
            str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_PER_SECOND, (size, size)
        )
        try:
            for face in renderer.render(path, noise_seeds, batch_size):
                writer.write(cv2.cvtColor(face, cv2.COLOR_RGB2BGR))
        finally:
            writer.release()
        # The writer reports no errors, so the frames in the file are counted.
        capture = cv2.VideoCapture(str(temporary.resolve()), cv2.CAP_FFMPEG)
        written = 0
        while capture.grab():
            written += 1
        capture.release()
        if written != len(path):
            raise InputError(
                f"'{target}' could not be written ({written} of {len(path)} frames); is the disk "
                "full?"
            )
    return target


def _check_count(count: int) -> None:
    if count > MAX_SHEET_FACES:
        raise InputError(f"a sheet of {count} faces is too large; at most {MAX_SHEET_FACES}")
