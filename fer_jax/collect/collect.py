"""The verb `collect`: a list of links becomes a folder of videos and a manifest of how each went.

Each link ends as done or failed with a reason, and the same command again goes on with what is
not done. Only this process writes manifest.csv and videos/; downloads happen in processes of
their own (`download.run`) that write into partial/.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import fcntl
import json
import multiprocessing
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fer_jax.collect import manifest
from fer_jax.collect.download import PERMANENT, REASONS, TRANSIENT, Limits, run
from fer_jax.collect.links import Link, Refusal, read_links, video_key
from fer_jax.collect.manifest import (
    DONE,
    FAILED,
    LEDGER,
    MANIFEST,
    PENDING,
    STATE_COLUMNS,
    UNLISTED,
    State,
    file_is_there,
)
from fer_jax.config import OneLineParser
from fer_jax.errors import InputError

MAX_ATTEMPTS = 3  # at one link in one run


@dataclasses.dataclass
class Job:
    """One URL on its way to a video."""

    url: str
    attempts: int = 0
    not_before: float = 0.0
    spent_s: float = 0.0
    started: float = 0.0
    downloaded: int = 0


def collect(
    list_file: Path,
    output: Path,
    limits: Limits,
    *,
    workers: int = 4,
    retry_failed: bool = False,
    dry_run: bool = False,
) -> collections.Counter[str]:
    """Downloads every listed video that is not there yet.

    Args:
      list_file: see `links.read_links`.
      output: receives videos/, manifest.csv, ledger.csv and partial/; the same again goes on.
      limits: of each download; `rate_limit` is of all of them together.
      workers: downloads at the same time.
      retry_failed: try again what failed for a reason in `download.PERMANENT` too.
      dry_run: say what would be done and write nothing.

    Returns:
      Rows of the list by status: done, failed, pending, refused. Their sum is its length.

    Raises:
      InputError: an unusable list or folder, another run in the same folder, or a full disk.
    """
    links, refused, unused = read_links(list_file)
    if unused:
        print(f"columns that are not used: {', '.join(unused)}")
    if output.exists() and not output.is_dir():
        raise InputError(f"'{output}' is a file; --output is a folder")
    states = {row["url"]: row for row in manifest.read(output)}
    states |= {url: _current(output, url, state, retry_failed) for url, state in states.items()}
    for link in links:
        states.setdefault(link.url, _state(link.url, PENDING))
    listed = dict.fromkeys(link.url for link in links)
    jobs = [Job(url) for url in listed if states[url]["status"] == PENDING]
    if dry_run:
        print(f"would download {len(jobs)} of {len(listed)} videos to {output}")
        print(table(list_file, links, refused, states))
        return _counts(links, refused, states)

    with _ctrl_c_noted() as pressed, _alone(output):
        manifest.write(output, links, refused, states)

        def settle(job: Job, result: dict[str, Any]) -> None:
            attempts = int(states[job.url]["attempts"] or 0) + job.attempts
            states[job.url] = _settled(output, job.url, result) | {"attempts": str(attempts)}
            manifest.write(output, links, refused, states)

        if limits.rate_limit:
            share = max(1024, limits.rate_limit // workers)
            limits = dataclasses.replace(limits, rate_limit=share)
        try:
            if jobs:
                _download(jobs, output, limits, workers, settle, pressed)
        finally:
            print(table(list_file, links, refused, states))
            print(f"  -> {output / MANIFEST}; what is not done is in {output / LEDGER}")
    return _counts(links, refused, states)


def _download(
    jobs: list[Job],
    output: Path,
    limits: Limits,
    workers: int,
    settle: Callable[[Job, dict[str, Any]], None],
    pressed: list[int],
) -> None:
    """Runs jobs in up to `workers` processes; transient failures wait and are tried again."""
    context = _forking()
    waiting = list(jobs)
    running: dict[connection.Connection, tuple[Job, Any]] = {}
    counts = collections.Counter[str]()
    finished_bytes = 0

    def end(channel: connection.Connection, result: dict[str, Any]) -> None:
        nonlocal finished_bytes
        job, process = running.pop(channel)
        process.kill()
        process.join()
        channel.close()
        job.spent_s += time.monotonic() - job.started
        if result.get("reason") == "disk_full":
            raise InputError(f"no space left in '{output}'; make some, the same command continues")
        retry = result.get("reason") in TRANSIENT and job.attempts < MAX_ATTEMPTS
        if retry and job.spent_s < limits.deadline_s:
            pause = limits.retry_wait_s * 2 ** (job.attempts - 1) * random.uniform(1, 1.5)
            job.not_before = time.monotonic() + pause
            waiting.append(job)
            return
        settle(job, result)
        finished_bytes += result.get("bytes", 0)
        counts[FAILED if "reason" in result else DONE] += 1
        progress.update()

    with tqdm(total=len(jobs), desc="collect", unit="link", disable=None) as progress:
        try:
            while waiting or running:
                if pressed:
                    raise KeyboardInterrupt
                now = time.monotonic()
                for job in [job for job in waiting if job.not_before <= now]:
                    if len(running) == workers:
                        break
                    waiting.remove(job)
                    channel, process = _start(context, job, output, limits)
                    running[channel] = job, process
                for channel in connection.wait(list(running), timeout=0.2):
                    assert isinstance(channel, connection.Connection)  # not a bare descriptor
                    job, process = running[channel]
                    said: dict[str, Any]
                    try:
                        said = json.loads(channel.recv_bytes())
                    except (EOFError, ConnectionError):
                        process.join()
                        how = f"the download process ended with code {process.exitcode}"
                        said = {"reason": "other", "detail": how}
                    if "downloaded" in said:
                        job.downloaded = said["downloaded"]
                    else:
                        end(channel, said)
                for channel, (job, _) in list(running.items()):
                    if job.spent_s + time.monotonic() - job.started > limits.deadline_s:
                        late = f"not finished in {limits.deadline_s:g} s"
                        end(channel, {"reason": "network", "detail": late})
                moved = finished_bytes + sum(job.downloaded for job, _ in running.values())
                progress.set_postfix_str(
                    f"{counts[DONE]} done, {counts[FAILED]} failed, {moved / 1e6:.1f} MB"
                )
                if not running and waiting:
                    time.sleep(0.05)
        finally:
            for _, process in running.values():
                process.kill()
                process.join()


def _forking() -> Any:
    """Where download processes come from: forked from one that has yt-dlp ready."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fer_jax.collect.download", "fer_jax.collect.extractors"])
    resource_tracker.ensure_running()  # now, because starting it unblocks what is blocked below
    # Ctrl-C goes to all processes of a terminal; these inherit that it is not for them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextlib.contextmanager
def _ctrl_c_noted() -> Iterator[list[int]]:
    """A list that is no longer empty after Ctrl-C: it comes between two steps, never in one."""
    pressed: list[int] = []
    # Only the main thread may; and a run in the background that ignores Ctrl-C still does.
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _start(
    context: Any, job: Job, output: Path, limits: Limits
) -> tuple[connection.Connection, Any]:
    channel, child = context.Pipe(duplex=False)
    stem = output / "partial" / video_key(job.url)
    process = context.Process(target=run, args=(child, job.url, stem, limits), daemon=True)
    process.start()
    child.close()
    job.attempts += 1
    job.started = time.monotonic()
    return channel, process


def _settled(output: Path, url: str, result: dict[str, Any]) -> State:
    """The state of a URL after its last attempt; moves a finished file to its place."""
    leftovers = list((output / "partial").glob(f"{video_key(url)}_*"))
    if "reason" in result:
        if result["reason"] in PERMANENT:
            for file in leftovers:
                file.unlink()
        return _state(url, FAILED, reason=result["reason"], detail=result["detail"])
    file = Path("videos") / f"{video_key(url)}{result['suffix']}"
    Path(result["path"]).replace(output / file)
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    known = {key: str(result[key]) for key in STATE_COLUMNS if key in result}
    return _state(url, DONE, file=file.as_posix(), **known)


def _state(url: str, status: str, **known: str) -> State:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return dict.fromkeys(STATE_COLUMNS, "") | {"url": url, "status": status, "when": now} | known


def _current(output: Path, url: str, before: State, retry_failed: bool) -> State:
    """What an earlier run's state of a URL is worth now."""
    state = {key: before[key] for key in ("url", *STATE_COLUMNS)}
    if state["status"] in (DONE, UNLISTED):
        if file_is_there(output, state):
            return state | {"status": DONE}
        again = {"status": PENDING, "detail": "its file is gone or has another size"}
    elif state["status"] == FAILED and state["reason"] in PERMANENT and not retry_failed:
        return state
    else:
        again = {"status": PENDING}
    return _state(url, PENDING) | again | {"attempts": state["attempts"]}


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Makes the folder and holds it: two runs would continue the same partial files."""
    try:
        (output / "videos").mkdir(parents=True, exist_ok=True)
        (output / "partial").mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"'{output}' cannot be written: {error.strerror}") from error
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another collect is writing to '{output}'") from error
        yield


def _counts(
    links: list[Link], refused: list[Refusal], states: dict[str, State]
) -> collections.Counter[str]:
    counts = collections.Counter(states[link.url]["status"] for link in links)
    counts["refused"] = len(refused)
    return counts


def table(
    list_file: Path, links: list[Link], refused: list[Refusal], states: dict[str, State]
) -> str:
    """The rows of a list by status and reason, with what to do; the counts add up."""
    counts = _counts(links, refused, states)
    urls = {link.url: states[link.url] for link in links if states[link.url]["status"] == DONE}
    size = sum(int(state["bytes"]) for state in urls.values())
    lines = [f"{list_file}: {len(links) + len(refused)} rows"]
    lines.append(f"  done     {counts[DONE]:>6}   {len(urls)} videos, {size / 1e6:.1f} MB")
    for status in (FAILED, PENDING):
        lines.append(f"  {status:<8} {counts[status]:>6}")
        reasons = collections.Counter(
            states[link.url]["reason"] for link in links if states[link.url]["status"] == status
        )
        lines += [
            f"    {count} x {reason}: {REASONS.get(reason, 'run the same command again')}"
            for reason, count in sorted(reasons.items())
            if reason
        ]
    lines.append(f"  refused  {counts['refused']:>6}")
    grouped = collections.Counter(row.reason for row in refused)
    lines += [f"    {count} x {reason}" for reason, count in grouped.most_common()]
    return "\n".join(lines)


def _size(text: str) -> int:
    """Bytes from words such as 500K, 20M, 2G (powers of 1024).

    Raises:
      ArgumentTypeError: not such a word, or 0.
    """
    word = re.fullmatch(r"([1-9]\d{0,14})([KMG]?)", text, re.ASCII)
    if not word:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 500K, 20M or 2G")
    return int(word[1]) * 1024 ** " KMG".index(word[2] or " ")


def _read_cookies(file: Path | None) -> str:
    """The text of a cookies file.

    Raises:
      InputError: there is none, or it is in another format.
    """
    if file is None:
        return ""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--cookies '{file}' cannot be read: {error}") from error
    if not re.match(r"# (Netscape )?HTTP Cookie File", text):
        raise InputError(
            f"--cookies '{file}' is not in the Netscape format; its first line must be "
            "'# Netscape HTTP Cookie File'"
        )
    return text


def main(argv: list[str]) -> int:
    """The verb `collect`; exit code 1 if the list gave no video at all."""
    parser = OneLineParser(
        prog="fer-jax collect",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "links", type=Path, help="CSV: url, category, reaction_type and/or emotion, ..."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for videos and manifest")
    parser.add_argument("--dry_run", action="store_true", help="say what would be downloaded")
    parser.add_argument(
        "--retry_failed",
        action="store_true",
        help="also try again what failed for a lasting reason: " + ", ".join(PERMANENT),
    )
    parser.add_argument("--cookies", type=Path, help="Netscape cookies file; it is only read")
    parser.add_argument("--max_height", type=int, default=Limits.max_height, help="lines")
    parser.add_argument("--max_bytes", type=_size, default="1G", help="of one video: 500M, 2G")
    parser.add_argument("--rate_limit", type=_size, help="bytes/s of all together: 500K, 2M")
    parser.add_argument("--workers", type=int, default=4, help="downloads at the same time")
    arguments = parser.parse_args(argv)
    for name, highest in (("max_height", 100_000), ("workers", 64)):
        if not 1 <= getattr(arguments, name) <= highest:
            raise InputError(f"--{name} must be 1 to {highest}, not {getattr(arguments, name)}")
    counts = collect(
        arguments.links,
        arguments.output,
        Limits(
            max_height=arguments.max_height,
            max_bytes=arguments.max_bytes,
            rate_limit=arguments.rate_limit,
            cookies=_read_cookies(arguments.cookies),
        ),
        workers=arguments.workers,
        retry_failed=arguments.retry_failed,
        dry_run=arguments.dry_run,
    )
    return int(not arguments.dry_run and not counts[DONE])
