"""Writes files atomically, appends to tables, checks sums, compares settings, locks folders.

A file is written under another name and renamed, so that a reader never sees half of it. A table
is appended to a line at a time; a line counts once it ends, so a killed run loses only the row it
was writing. Errors of the file system are OSErrors that name the file.
"""

import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from fer_jax.errors import USER_FIXABLE_ERRNOS, InputError
from fer_jax.forms import Form, check_form

CHECKSUMS_FILE = "SHA256SUMS"
LOCK_FILE = ".lock"
HASHING_THREADS = 4
MAX_TABLE_BYTES = 2**29
MAX_ROWS = 2_000_000  # of a CSV that others wrote
MAX_JSON_BYTES = 64 * 2**20
_SECRET_NAME = (
    r"[\w.-]{0,40}(?:pass(?:word|wd|phrase)|pwd|secret|token|credential|signature"
    r"|apikey|(?:access|account|private|auth)key|[\w.][_-]key)[\w.-]{0,40}"
)
_QUOTE = r"""(?:\\?["']|%2[27])?"""
_SECRET_VALUE = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s&;,"']+)"""
# The user of a URL, whose password may have "@" and "/" (but not be a port and a path), values of
# names like those of secrets, and what is a secret by its form.
SECRETS = (
    (re.compile(r"(?<=://)(?:[^\s/@:]*:(?!\d+/)\S{0,999}|[^/@\s]+)@"), "***@"),
    (re.compile(r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|$)"), "***"),
    (re.compile(rf"(?i)(authorization{_QUOTE}\s*[=:]\s*)[^\"'\n]+"), r"\1***"),
    (re.compile(r"(?i)(\b(?:set-)?cookie:\s*).+"), r"\1***"),
    (
        re.compile(
            rf"(?i)((?:\b{_SECRET_NAME}|\bpass|[?&#](?:sig|key|auth|code|policy)){_QUOTE}\s*"
            rf"(?:[=:]|%3[ad])\s*(?:\\[\"']|%2[27])?){_SECRET_VALUE}"
        ),
        r"\1***",
    ),
    (re.compile(rf"(?i)(--{_SECRET_NAME}\s+|\bbearer\s+)(?!--){_SECRET_VALUE}"), r"\1***"),
    # On the command lines of curl and sshpass, and in .netrc.
    (re.compile(r"((?:^|\s)(?:-u|--user)[\s=]+['\"]?[^\s:]+:)\S+"), r"\1***"),
    (re.compile(r"(\bsshpass\s+-p\s*|\blogin\s+\S+\s+password\s+)\S+"), r"\1***"),
    (re.compile(r"(\bhooks\.slack\.com/services/|/api/webhooks/)\S+"), r"\1***"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"), "***"),
    (
        re.compile(
            r"\b(?:gh[oprsu]_|github_pat_|hf_|glpat-|xox[abeprs]-|A[KS]IA|AIza|ya29\.|[rs]k[-_]"
            r"|npm_|pypi-|dckr_pat_)[\w-]{16,}"
        ),
        "***",
    ),
)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write to; it becomes `path` when the block ends without error.

    The temporary file has the same ending and is in the same folder, which is created. `durable`
    waits until the disk has the file; without it a power cut may lose the newest files.
    """
    unique = f"{process_name()}-{threading.get_native_id()}"
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


def process_name() -> str:
    """Returns HOST_PID, for the names of temporary files and folders."""
    return f"{socket.gethostname().partition('.')[0]}_{os.getpid()}"


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Removes temporary files and folders of processes of this host that were killed."""
    host = re.escape(process_name().rpartition("_")[0])
    for path in paths:
        found = re.search(rf"[._]{host}_(\d+)(?=-|$)", path.name)
        if found and not Path(f"/proc/{found[1]}").exists() and Path("/proc/self").exists():
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Writes a file completely or not at all; text as UTF-8."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def why_not_writable(path: Path) -> str:
    """Returns why the system would not write a file or folder, or create it; "" if it would."""
    folder = path
    try:
        # Not `Path.exists`, which does not know a link to itself.
        while not os.path.lexists(folder):
            folder = folder.parent
        if folder != path and not folder.is_dir():
            return f"'{folder}' is not a folder"
        with tempfile.TemporaryDirectory(dir=folder if folder.is_dir() else folder.parent):
            return ""
    except OSError as error:
        return str(error.strerror)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Lines(io.StringIO):
    """Ends lines in a line feed alone; csv quotes a cell that has a sign of the line's end."""

    def write(self, line: str) -> int:
        return super().write(line.removesuffix("\r\n") + "\n")


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool) -> str:
    """Returns rows as CSV: a missing value or NaN is empty, a float has six digits."""
    text = _Lines()
    writer = csv.writer(text, lineterminator="\r\n")
    if header:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV table completely or not at all; cells as in `to_csv`."""
    write_atomically(path, to_csv(columns, rows, header=True))


def append_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a CSV table, all of them or none; a new table gets its header."""
    append(path, to_csv(columns, rows, header=not path.is_file()))


def append(path: Path, lines: str, *, durable: bool = True) -> None:
    """Appends lines, each with its end, to a text file, all of them or none.

    `durable` waits until the disk has them.
    """
    data = lines.encode()
    if path.exists() and not path.is_file():
        # A pipe without a reader would be waited for.
        raise InputError(f"'{path}' is not a file, so nothing can be appended; remove it")
    before = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("ab", buffering=0) as file:
            # A disk that becomes full accepts a part and fails at the next call.
            while data:
                data = data[file.write(data) :]
            if durable:
                os.fsync(file.fileno())
    except OSError as error:
        if path.is_file():
            os.truncate(path, before)
            if not before:
                path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_table(
    path: Path, required: Collection[str] = (), *, appended: bool = True
) -> list[dict[str, str]]:
    """Returns the rows of a CSV table as text; [] if there is no file, or no line is appended yet.

    If rows are `appended` one by one, a last line without its end was not written completely and is
    skipped. InputError if it is over 512 MiB, is not UTF-8, lacks `required` columns, or a line has
    another number of values (names it).
    """
    if not path.is_file():
        return []
    try:
        text = (_whole_lines(path) if appended else _read(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text ({error})") from error
    try:
        header, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except csv.Error as error:
        raise InputError(f"'{path}' is not a CSV table: {error}") from error
    if appended and not header:
        return []
    if missing := [name for name in required if name not in header]:
        raise InputError(f"'{path}' lacks the columns {', '.join(missing)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"'{path}', line {number}: {len(row)} values, not {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_json(file: Path, remedy: str = "", form: Form | None = None) -> dict[str, Any]:
    """Reads an object from a JSON file; {} if there is no file.

    InputError, whose message `remedy` ends, if the file is no regular one, too large, no JSON
    (Infinity and NaN are none), nested too deeply, or has no object, or none of this `form`.
    """
    if not file.exists():
        return {}
    with _naming(file, remedy):
        if not file.is_file() or file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"not a file of at most {MAX_JSON_BYTES >> 20} MiB")
        text = file.read_text(encoding="utf-8")
        return _object(text, form, parse_constant=_finite, parse_float=_finite)


@contextlib.contextmanager
def _naming(file: Path, remedy: str) -> Iterator[None]:
    """Makes an InputError that names the file of an error in its JSON."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        end = f"; {remedy}" if remedy else ""
        raise InputError(f"'{file}' is damaged ({str(error).splitlines()[0]}){end}") from error


def _object(text: str | bytes, form: Form | None, **options: Any) -> dict[str, Any]:
    content = json.loads(text, **options)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    check_form(content, form or {})
    return content


def _finite(number: str) -> float:
    # Python reads 1e999 as infinity.
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is no finite number")
    return value


def json_lines(
    path: Path, remedy: str = "", *, form: Form | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a JSON Lines file one by one, without a torn last line.

    Nothing, if there is no file. A row may have NaN. Raises InputError if it is no regular file, or
    if a line (which it names) has no object, or none of this `form`; `remedy` ends the message.
    """
    if not path.exists():
        return
    with _naming(path, remedy):
        if not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as lines:
            read_line = functools.partial(lines.readline, MAX_JSON_BYTES)
            for number, line in enumerate(iter(read_line, b""), 1):
                if len(line) == MAX_JSON_BYTES:
                    raise ValueError(f"line {number} has over {MAX_JSON_BYTES >> 20} MiB")
                if not line.endswith(b"\n"):
                    return
                try:
                    row = _object(line, form)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number}: {error}") from error
                yield row


def read_json_lines(path: Path, form: Form | None = None) -> list[dict[str, Any]]:
    """Returns the rows of a JSON Lines file, as `json_lines` yields them."""
    return list(json_lines(path, form=form))


def read_cells(data: bytes, name: str, *, errors: str = "strict") -> Iterator[list[str]]:
    """Yields the rows of a CSV that others wrote; the separator may be a comma, ; or a tab.

    `data` is in UTF-8 or, as Excel's "Unicode text", in UTF-16; `errors` says what becomes of other
    bytes, as in `bytes.decode`. InputError, with the file's `name`, for other bytes, no CSV, or
    over two million rows.
    """
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if data[:2].count(0) == 1:  # without its mark
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    head = data[:20_000].decode(encoding, "ignore").splitlines()
    separator = max(
        ",;\t", key=next((line for line in head if re.search("[,;\t]", line)), "").count
    )
    text = io.TextIOWrapper(io.BytesIO(data), encoding, errors, newline="")
    try:
        for number, row in enumerate(csv.reader(text, delimiter=separator)):
            if number == MAX_ROWS:
                raise InputError(f"'{name}' has over {MAX_ROWS:,} rows")
            yield row
    except (UnicodeDecodeError, csv.Error) as error:
        remedy = "save it as 'CSV UTF-8', and mind that every quote is closed"
        raise InputError(f"'{name}' is not a CSV in UTF-8; {remedy}") from error


def read_rows(data: bytes, name: str) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the header of a CSV that others wrote and its rows; absent cells are empty."""
    lines = read_cells(data, name)
    header = next(lines, [])
    filled = (line + [""] * len(header) for line in lines if line)
    return header, [dict(zip(header, line, strict=False)) for line in filled]


def drop_torn_line(path: Path) -> None:
    """Removes a last line without its end, before the next one is appended."""
    if path.is_file():
        whole = len(_whole_lines(path))
        if whole != path.stat().st_size:
            os.truncate(path, whole)
        if not whole:
            path.unlink()


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise InputError(f"'{path}' is over {MAX_TABLE_BYTES >> 20} MiB")
    return path.read_bytes()


def _whole_lines(path: Path) -> bytes:
    data = _read(path)
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
    if not (folder / CHECKSUMS_FILE).is_file():  # a pipe would be waited for
        return f"it has no {CHECKSUMS_FILE}: it was not finished, or the file is lost"
    try:
        lines = [line.partition("  ") for line in (folder / CHECKSUMS_FILE).read_text().split("\n")]
        expected = {name: digest for digest, _, name in lines if name}
        found = _checksums(folder)
    except (OSError, UnicodeDecodeError) as error:
        return f"it cannot be read ({error})"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not in {CHECKSUMS_FILE}"
        if expected[name] != found[name]:
            return f"{name} has changed"
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
def lock(folder: Path, *, keep_file: bool = True) -> Iterator[None]:
    """Creates a folder and locks it against other processes until the block ends.

    Without `keep_file` its lock file is removed then, of a folder that is passed on. The operating
    system releases the lock when the process ends, even if it is killed. Temporary files of such
    processes are removed, and a folder that was created and got no file. InputError if the folder
    is a file, another process has the lock (names it), or locks are not supported there.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"'{folder}' is a file; name a folder")
    file = folder / LOCK_FILE
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if file.is_symlink() or (file.exists() and not file.is_file()):
        # A link would be followed to a file that is then overwritten.
        raise InputError(f"'{file}' is not a file; remove it")
    with file.open("a+") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.seek(0)
            holder = opened.readline(200).strip() or "another process"
            raise InputError(
                f"'{folder}' is in use by {holder}; wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            raise InputError(f"'{file}' cannot be locked: {error.strerror}") from error
        if not _is_at(opened, file):
            raise InputError(f"'{folder}' was in use until now; rerun the same command")
        try:
            opened.truncate(0)
            opened.write(f"process {os.getpid()} on {socket.gethostname()}")
            opened.flush()
        except OSError as error:
            if error.errno not in USER_FIXABLE_ERRNOS:
                raise
            raise InputError(f"'{file}' cannot be written: {error.strerror}") from error
        remove_unfinished([*folder.glob(".*.tmp*"), *folder.glob("*/.*.tmp*")])
        try:
            yield
        finally:
            opened.truncate(0)
            is_empty = is_new and [path.name for path in folder.iterdir()] == [LOCK_FILE]
            if is_empty or not keep_file:
                file.unlink(missing_ok=True)
            if is_empty:
                folder.rmdir()


def _is_at(opened: IO[str], file: Path) -> bool:
    """Returns whether an open file is what has its name: who had the lock may have removed it."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), file.stat())
    except FileNotFoundError:
        return False


def redact_secrets(text: str) -> str:
    """Replaces secrets by "***", for files in a workdir, which people share."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def check_links(workdir: Path) -> None:
    """Refuses a workdir with a link out of it (InputError), which a run would write through."""
    inside = Path(os.path.realpath(workdir))
    for folder, folders, files in os.walk(workdir):
        for path in (Path(folder, name) for name in (*folders, *files)):
            # Not `Path.resolve`, which raises RuntimeError of a loop.
            target = Path(os.path.realpath(path))
            if path.is_symlink() and (target == path or not target.is_relative_to(inside)):
                raise InputError(f"'{path}' is a link out of the workdir; replace it by its target")
