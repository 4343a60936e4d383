"""Files on disk: written whole or not at all, appended to, checksummed, compared, locked.

A file is written under another name and renamed, so that a reader never sees half of it. A table
is appended to a line at a time; a line counts once it ends, so a run that was killed loses the
row it was writing and nothing else.
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import math
import os
import re
import socket
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fer_jax.errors import USER_FIXABLE_ERRNOS, InputError

CHECKSUMS_FILE = "SHA256SUMS"
LOCK_FILE = ".lock"
HASHING_THREADS = 4
MAX_TABLE_BYTES = 2 * 2**30
# The user of a URL, and values of names like those of secrets.
SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]+(?=@)"), "***"),
    (
        re.compile(
            r"(?i)(\b[\w.-]*(?:password|passwd|secret|token|api_?key|access_?key|credential|signature)"
            r"[\w.-]*[=:]|[?&]sig=)[^\s&;,]+"
        ),
        r"\1***",
    ),
)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write to; it becomes `path` when the block ends without error.

    The temporary file has the same ending and lies in the same folder, which is made.

    Args:
      path: the file to create or replace.
      durable: waits until the disk has the file; without it a power cut may lose the newest files.

    Raises:
      OSError: the file system refuses it; names `path`.
    """
    unique = f"{os.getpid()}-{threading.get_native_id()}"
    temporary = path.with_name(f".{path.stem}.{unique}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Writes a file in one piece or not at all; text as UTF-8.

    Raises:
      OSError: the file system refuses it; names `path`.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    """Returns rows as CSV: a missing value or NaN is empty, a float has six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV table in one piece or not at all; cells as in `to_csv`.

    Raises:
      OSError: the file system refuses it; names `path`.
    """
    write_atomically(path, to_csv(columns, rows, header=True))


def append_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a CSV table, all of them or none; begins it with its header.

    Raises:
      OSError: the file system refuses it; names `path`, which is as it was before.
    """
    append(path, to_csv(columns, rows, header=not path.is_file()))


def append(path: Path, lines: str) -> None:
    """Appends whole lines to a text file, all of them or none, and waits until the disk has them.

    Raises:
      OSError: the file system refuses it; names `path`, which is as it was before.
    """
    data = lines.encode()
    before = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("ab", buffering=0) as file:
            # A disk that fills up takes a part and fails at the next call.
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
    except OSError as error:
        if path.is_file():
            os.truncate(path, before)
            if not before:
                path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_table(path: Path, required: Collection[str] = ()) -> list[dict[str, str]]:
    """Returns the rows of a CSV table as text; [] if there is no file or no line.

    A last line without its end was being written when the run was stopped and is left out.

    Args:
      path: of the table.
      required: columns that it must have.

    Raises:
      InputError: it is over 2 GiB, is not UTF-8, lacks columns, or a line has too few or too many
        values; names the line.
    """
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise InputError(f"'{path}' is over {MAX_TABLE_BYTES // 2**30} GiB")
    try:
        text = _whole_lines(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text ({error})") from error
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines:
        return []
    header, *rows = lines
    if missing := [name for name in required if name not in header]:
        raise InputError(f"'{path}' lacks the columns {', '.join(missing)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"'{path}', line {number}: {len(row)} values, not {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def drop_torn_line(path: Path) -> None:
    """Removes a last line without its end, before the next one is appended."""
    if path.is_file():
        whole = len(_whole_lines(path))
        if whole != path.stat().st_size:
            os.truncate(path, whole)
        if not whole:
            path.unlink()


def _whole_lines(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS for all files below a folder; `sha256sum -c` reads it."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(_checksums(folder).items())]
    write_atomically(folder / CHECKSUMS_FILE, "".join(lines))


def find_corruption(folder: Path) -> str:
    """Compares a folder with its SHA256SUMS, byte for byte; returns what differs, or ""."""
    try:
        lines = [line.partition("  ") for line in (folder / CHECKSUMS_FILE).read_text().split("\n")]
        expected = {name: digest for digest, _, name in lines if name}
        found = _checksums(folder)
    except FileNotFoundError:
        return f"it has no {CHECKSUMS_FILE}, so it was not finished or has lost it"
    except (OSError, UnicodeDecodeError) as error:
        return f"it cannot be read ({error})"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{CHECKSUMS_FILE} does not name {name}"
        if expected[name] != found[name]:
            return f"{name} is not as it was written"
    return ""


def _checksums(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS_FILE]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        names = [path.relative_to(folder).as_posix() for path in paths]
        return dict(zip(names, pool.map(sha256, paths), strict=True))


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignored: Collection[str] = ()
) -> list[str]:
    """Returns "NAME (was X, now Y)" for every setting in which a resumed run differs."""
    return [
        f"{name} (was {before.get(name)}, now {now.get(name)})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in ignored
    ]


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps other processes from taking the same lock until the block ends.

    The operating system holds the lock and drops it when the process ends, however that happens.
    A folder that was made and got no file is removed again.

    Raises:
      InputError: another process holds it (names the process), or locks are not supported there.
    """
    file = folder / LOCK_FILE
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.seek(0)
            holder = opened.read().strip() or "another process"
            raise InputError(
                f"'{folder}' is in use by {holder}; wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            raise InputError(f"'{file}' cannot be locked: {error.strerror}") from error
        try:
            opened.truncate(0)
            opened.write(f"process {os.getpid()} on {socket.gethostname()}")
            opened.flush()
        except OSError as error:
            if error.errno not in USER_FIXABLE_ERRNOS:
                raise
            raise InputError(f"'{file}' cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            opened.truncate(0)
            if is_new and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                file.unlink()
                folder.rmdir()


def redact_secrets(text: str) -> str:
    """Returns a text that may be written to a workdir, which people share: secrets are "***"."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def check_links(workdir: Path) -> None:
    """Refuses a workdir with a link out of it, through which a run would write elsewhere.

    Raises:
      InputError: names the link.
    """
    inside = workdir.resolve()
    for folder, folders, files in os.walk(workdir):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise InputError(
                    f"'{path}' is a link out of the workdir; replace it by what it names"
                )
