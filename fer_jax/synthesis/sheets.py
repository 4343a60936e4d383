"""Pictures of pictures: the contact sheet, truncation sweeps, style mixing, interpolation."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.data.synthetic import Row, group_of, write_whole
from fer_jax.errors import InputError
from fer_jax.media import images
from fer_jax.synthesis.render import Renderer

CELL = 112  # pixels a side of a face on a sheet
CAPTION = 16
PER_CLASS = 10
MAX_SHEET_FACES = 1000
FRAMES_PER_SECOND = 30


def sheet(
    faces: Sequence[Sequence[tuple[np.ndarray, str]]], titles: Sequence[str], cell: int = CELL
) -> np.ndarray:
    """Rows of faces with a caption under each and a title before each row.

    Args:
      faces: rows of (uint8 RGB [h, w, 3], caption); they may differ in length.
      titles: one for each row.
      cell: pixels a side of a face.

    Returns:
      uint8 RGB [height, width, 3], white where there is no face.
    """
    side = max((_text_width(title) for title in titles), default=0) + 12
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
    font, black = cv2.FONT_HERSHEY_SIMPLEX, (0, 0, 0)
    cv2.putText(page, text, (x, y), font, 0.35, black, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.35, 1)[0][0]


def contact_sheet(out: Path, rows: Sequence[Row], groups: Sequence[str]) -> Path:
    """Writes contact_sheet.jpg: the first faces of each class, with seed and confidence.

    Args:
      out: the folder of the run.
      rows: of its records.csv.
      groups: the classes, a row each.

    Raises:
      InputError: a picture cannot be read, or the sheet not written.
    """
    lines = []
    for group in groups:
        line = []
        for row in [row for row in rows if group_of(row) == group][:PER_CLASS]:
            confidence = f" {float(row['confidence']):.2f}" if row["confidence"] else ""
            face = images.decode((out / row["file"]).read_bytes())
            line.append((face, f"{row['seed']}{confidence}"))
        lines.append(line)
    page = sheet(lines, [group or "unlabelled" for group in groups])
    write_whole(out / "contact_sheet.jpg", images.encode_jpeg(page))
    return out / "contact_sheet.jpg"


def sweep(
    renderer: Renderer, out: Path, seeds: Sequence[int], psis: Sequence[float], batch_size: int
) -> Path:
    """Writes truncation.jpg: a row for each seed, a column for each psi."""
    _check_count(len(seeds) * len(psis))
    columns = []
    for psi in psis:
        truncated = dataclasses.replace(renderer, psi=psi)
        columns.append(_made(truncated, _ws(truncated, seeds, batch_size), seeds, batch_size))
    lines = [
        [(column[row], f"psi {psi:g}") for column, psi in zip(columns, psis, strict=True)]
        for row in range(len(seeds))
    ]
    page = sheet(lines, [f"seed {seed}" for seed in seeds])
    write_whole(out / "truncation.jpg", images.encode_jpeg(page))
    return out / "truncation.jpg"


def mix(
    renderer: Renderer,
    out: Path,
    seeds: tuple[Sequence[int], Sequence[int]],
    layers: tuple[int, int],
    batch_size: int,
) -> Path:
    """Writes mixing.jpg: the face of each row takes some layers' w from that of each column.

    Args:
      renderer: of the network.
      out: the folder.
      seeds: of the rows and of the columns.
      layers: first and last that come from the column.
      batch_size: pictures at once.
    """
    rows, columns = seeds
    _check_count((len(rows) + 1) * (len(columns) + 1))
    row_ws, column_ws = (_ws(renderer, some, batch_size) for some in seeds)
    mixed = np.repeat(row_ws[:, None], len(columns), axis=1)
    mixed[:, :, layers[0] : layers[1] + 1] = column_ws[None, :, layers[0] : layers[1] + 1]
    owners = np.repeat(np.asarray(rows), len(columns))
    made = _made(renderer, mixed.reshape(-1, *row_ws.shape[1:]), owners, batch_size)
    first = _made(renderer, column_ws, columns, batch_size)
    own = _made(renderer, row_ws, rows, batch_size)
    blank = np.full_like(own[0], 255)
    lines = [[(blank, ""), *zip(first, [f"seed {seed}" for seed in columns], strict=True)]]
    for index, seed in enumerate(rows):
        part = made[index * len(columns) : (index + 1) * len(columns)]
        lines.append([(own[index], f"seed {seed}"), *((face, "") for face in part)])
    titles = [f"layers {layers[0]}-{layers[1]} of", *["into"] * len(rows)]
    write_whole(out / "mixing.jpg", images.encode_jpeg(sheet(lines, titles)))
    return out / "mixing.jpg"


def check_layers(layers: tuple[int, int] | None, num_ws: int) -> tuple[int, int]:
    """The layers that are mixed; None: the first half, where the shape of a face is made.

    Raises:
      InputError: the network has other layers.
    """
    first, last = layers or (0, num_ws // 2 - 1)
    if not 0 <= first <= last < num_ws:
        raise InputError(f"--mix_layers is FIRST-LAST within 0-{num_ws - 1}, not {first}-{last}")
    return first, last


def interpolate(
    renderer: Renderer, out: Path, seeds: Sequence[int], frames: int, batch_size: int
) -> Path:
    """Writes interpolation.mp4: from seed to seed along straight lines in w.

    Args:
      renderer: of the network.
      out: the folder.
      seeds: the stations, two or more.
      frames: from one station to the next.
      batch_size: pictures at once.

    Raises:
      InputError: the video cannot be written.
    """
    stations = _ws(renderer, seeds, batch_size)
    shares = np.arange(frames, dtype=np.float32) / frames
    between = [
        start + share * (stop - start)
        for start, stop in zip(stations, stations[1:], strict=False)
        for share in shares
    ]
    path = np.stack([*between, stations[-1]])
    # One noise for the whole way: with noise by seed the picture would flicker.
    owners = np.full(len(path), seeds[0])
    target = out / "interpolation.mp4"
    temporary = out / ".interpolation.part.mp4"
    out.mkdir(parents=True, exist_ok=True)
    size = renderer.generator.resolution
    writer = cv2.VideoWriter(
        str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), FRAMES_PER_SECOND, (size, size)
    )
    try:
        for face in _stream(renderer, path, owners, batch_size):
            writer.write(cv2.cvtColor(face, cv2.COLOR_RGB2BGR))
        writer.release()
        # The writer reports no errors: what it wrote is counted.
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
        temporary.replace(target)
    finally:
        writer.release()
        temporary.unlink(missing_ok=True)
    return target


def _check_count(count: int) -> None:
    if count > MAX_SHEET_FACES:
        raise InputError(f"a sheet of {count} faces is too large; at most {MAX_SHEET_FACES}")


def _ws(renderer: Renderer, seeds: Sequence[int], batch_size: int) -> np.ndarray:
    """The first choice's w of seeds: float32 [n, num_ws, w_dim]."""
    parts = []
    for first in range(0, len(seeds), batch_size):
        part = list(seeds[first : first + batch_size])
        padded = part + part[-1:] * (batch_size - len(part))
        parts.append(np.asarray(renderer.ws(padded, [0] * batch_size))[: len(part)])
    return np.concatenate(parts)


def _stream(renderer: Renderer, ws: np.ndarray, seeds: Sequence[int] | np.ndarray, batch_size: int):
    for first in range(0, len(ws), batch_size):
        count = len(ws[first : first + batch_size])
        chosen = np.minimum(np.arange(first, first + batch_size), len(ws) - 1)
        made = renderer.images(jnp.asarray(ws[chosen]), np.asarray(seeds)[chosen].tolist())
        yield from np.asarray(jax.device_get(made))[:count]


def _made(
    renderer: Renderer, ws: np.ndarray, seeds: Sequence[int] | np.ndarray, batch_size: int
) -> list[np.ndarray]:
    return list(_stream(renderer, ws, seeds, batch_size))
