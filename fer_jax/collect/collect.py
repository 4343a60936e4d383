"""Download the videos of a list of links, and record the result of each link.

Each link ends as done, or as failed with a reason, in manifest.csv. Rerun the same command to
resume.
"""

# Only this process writes manifest.csv and videos/. Each download is a process of its own
# (`download.run`) that writes to partial/.

import argparse
import collections
import contextlib
import dataclasses
import heapq
import io
import json
import multiprocessing
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from fer_jax import storage
from fer_jax.collect import manifest
from fer_jax.collect.failures import DISK_FULL, NOW, ON_REQUEST, REASONS, DownloadLimits
from fer_jax.collect.links import Link, RefusedRow, read_links, video_key
from fer_jax.collect.manifest import DONE, FAILED, PENDING, STATE_COLUMNS, UNLISTED, State
from fer_jax.config import OneLineParser, output_path
from fer_jax.errors import InputError
from fer_jax.schema import canonical_url

MAX_ATTEMPTS = 3  # at one link in one run
MAX_PAUSE_S = 3600.0  # of a host; a longer one is not waited for


@dataclasses.dataclass
class Download:
    """The attempts at one URL; each is a process that sends messages."""

    url: str
    attempts: int = 0
    not_before: float = 0.0  # the next attempt, in seconds of `time.monotonic`
    spent_s: float = 0.0  # by the attempts that ended
    started: float = 0.0
    downloaded: int = 0  # bytes
    channel: Any = None
    process: Any = None

    @property
    def host(self) -> str:
        """The site, to which pauses apply."""
        return urlsplit(self.url).hostname or ""

    def start(self, context: Any, output: Path, limits: DownloadLimits) -> None:
        """Begins the next attempt."""
        self.attempts += 1
        self.channel, other_end = context.Pipe(duplex=False)
        arguments = (other_end, self.url, _partial(output, self.url), limits)
        self.process = context.Process(target=_run, args=arguments, daemon=True)
        self.process.start()
        other_end.close()
        self.started = time.monotonic()

    def poll(self, limits: DownloadLimits) -> dict[str, Any] | None:
        """Returns the result of the attempt (see `download.run`), or None while it runs."""
        try:
            while self.channel.poll():
                message = json.loads(self.channel.recv_bytes())
                if "downloaded" not in message:
                    return message
                self.downloaded = message["downloaded"]
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            return {"reason": "other", "detail": f"the download process ended with code {code}"}
        if self.spent_s + time.monotonic() - self.started > limits.deadline_s:
            return {"reason": "network", "detail": f"not finished in {limits.deadline_s:g} s"}
        return None

    def stop(self) -> None:
        """Ends the attempt, whether or not it has a result."""
        self.process.kill()
        self.process.join()
        self.channel.close()
        self.spent_s += time.monotonic() - self.started


def _run(*arguments: Any) -> None:
    # Imported here: only the server that downloads are forked from loads yt-dlp.
    from fer_jax.collect import download

    download.run(*arguments)


def _partial(output: Path, url: str) -> Path:
    return output / "partial" / video_key(url)


def collect(
    list_file: Path,
    output: Path,
    limits: DownloadLimits,
    *,
    workers: int = 4,
    retry_failed: bool = False,
    dry_run: bool = False,
) -> collections.Counter[str]:
    """Downloads every listed video that is not in `output` yet.

    Returns the number of rows that are done, failed, pending and refused, which are all rows.
    InputError for an unusable list or folder, another run in the same folder, or a full disk.
    """
    links, refused, unused = read_links(list_file)
    if unused:
        print(f"columns that are not used: {', '.join(unused)}")
    if output.exists() and not output.is_dir():
        raise InputError(f"'{output}' is a file; --output must be a folder")
    states = {
        canonical_url(row["url"]): _updated(output, row, retry_failed=retry_failed)
        for row in manifest.read(output)
    }
    for link in links:
        states.setdefault(link.url, manifest.new_state(link.url, PENDING))
    listed: dict[str, list[Link]] = {}
    for link in links:
        listed.setdefault(link.url, []).append(link)
    downloads = [Download(url) for url in listed if states[url]["status"] == PENDING]
    if dry_run:
        print(f"would download {len(downloads)} of {len(listed)} videos to {output}")
        print(table(list_file, links, refused, states))
        return _counts(links, refused, states)

    with _delayed_ctrl_c() as pressed, storage.lock(output):
        for name in ("videos", "partial"):
            (output / name).mkdir(exist_ok=True)
        manifest.write(output, links, refused, states)

        def finish(download: Download, result: dict[str, Any]) -> None:
            before = int(states[download.url]["attempts"] or 0)
            attempts = str(before + download.attempts)
            states[download.url] = _finished(output, download.url, result, attempts)
            manifest.append(output, listed[download.url], states[download.url])

        if limits.rate_limit:
            share = max(1024, limits.rate_limit // workers)
            limits = dataclasses.replace(limits, rate_limit=share)
        try:
            if downloads:
                _download(downloads, output, limits, workers, finish, pressed)
        finally:
            manifest.write(output, links, refused, states)
            print(table(list_file, links, refused, states))
            print(f"  -> {output / manifest.MANIFEST}; rows not done: {output / manifest.LEDGER}")
    return _counts(links, refused, states)


def _updated(output: Path, row: State, *, retry_failed: bool) -> State:
    """Returns the state of an earlier run's row now: done, failed for good, or pending again."""
    state = {key: row[key] for key in ("url", *STATE_COLUMNS)}
    detail = ""
    if state["status"] in (DONE, UNLISTED):
        if manifest.file_is_there(output, state):
            return state | {"status": DONE}
        detail = "its file is gone or has another size"
    elif state["status"] == FAILED and not retry_failed:
        if state["reason"] in REASONS and REASONS[state["reason"]].retry == ON_REQUEST:
            return state
    attempts = state["attempts"]
    return manifest.new_state(state["url"], PENDING, detail=detail, attempts=attempts)


def _finished(output: Path, url: str, result: dict[str, Any], attempts: str) -> State:
    """Returns the state of a URL after its last attempt; moves a downloaded file to videos/."""
    partial = _partial(output, url)
    ours = f"{partial.name}_"
    leftovers = [file for file in partial.parent.iterdir() if file.name.startswith(ours)]
    if reason := result.get("reason"):
        state = manifest.new_state(
            url, FAILED, reason=reason, detail=result["detail"], attempts=attempts
        )
        # A partial file is kept only if the download may be resumed by itself.
        leftovers = leftovers if REASONS[reason].retry == ON_REQUEST else []
    else:
        file = f"videos/{video_key(url)}{result['suffix']}"
        Path(result["path"]).replace(output / file)
        known = {key: str(result[key]) for key in STATE_COLUMNS if key in result}
        state = manifest.new_state(url, DONE, file=file, attempts=attempts, **known)
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return state


def _download(
    downloads: list[Download],
    output: Path,
    limits: DownloadLimits,
    workers: int,
    finish: Callable[[Download, dict[str, Any]], None],
    pressed: list[int],
) -> None:
    """Runs up to `workers` downloads at a time; transient failures wait and are tried again."""
    context, pauses = _forkserver(), dict[str, _Pause]()
    waiting, later = collections.deque(downloads), list[tuple[float, int, Download]]()
    running, moved = list[Download](), 0
    counts = collections.Counter[str]()

    def end(one: Download, result: dict[str, Any]) -> None:
        nonlocal moved
        finish(one, result)
        moved += result.get("bytes", 0)
        counts[FAILED if "reason" in result else DONE] += 1
        progress.update()

    with tqdm(total=len(downloads), desc="collect", unit="link", disable=None) as progress:
        try:
            while waiting or later or running:
                if pressed:
                    raise KeyboardInterrupt
                now = time.monotonic()
                while later and later[0][0] <= now:
                    waiting.append(heapq.heappop(later)[2])
                while waiting and len(running) < workers:
                    one = waiting.popleft()
                    pause = pauses.get(one.host, _Pause())
                    if pause.seconds > MAX_PAUSE_S:
                        asked = f"the site asks to wait for {pause.seconds:.0f} s"
                        end(one, {"reason": "rate_limited", "detail": asked})
                    elif max(one.not_before, pause.until) > now:
                        due = max(one.not_before, pause.until)
                        heapq.heappush(later, (due, id(one), one))
                    else:
                        one.start(context, output, limits)
                        running.append(one)
                connection.wait([one.channel for one in running], timeout=0.2)
                for one in list(running):
                    result = one.poll(limits)
                    if result is None:
                        continue
                    running.remove(one)
                    one.stop()
                    if result.get("reason") == "rate_limited":
                        pause = pauses.setdefault(one.host, _Pause())
                        if pause.grow(result, limits):
                            note = f"{one.host}: too many requests; {pause.seconds:.0f} s of pause"
                            tqdm.write(note, file=sys.stderr)
                    elif "reason" not in result:
                        pauses.pop(one.host, None)
                    if _try_again(one, result, limits):
                        waiting.append(one)
                        continue
                    if result.get("reason") == DISK_FULL:
                        raise InputError(
                            f"no space left in '{output}'; free some, then rerun the same command"
                        )
                    end(one, result)
                size = moved + sum(one.downloaded for one in running)
                progress.set_postfix_str(
                    f"{counts[DONE]} done, {counts[FAILED]} failed, {size / 1e6:.1f} MB",
                    refresh=False,
                )
        finally:
            for one in running:
                one.stop()


@dataclasses.dataclass
class _Pause:
    """Until when a host is left alone, in seconds of `time.monotonic`, and how long that is."""

    until: float = 0.0
    seconds: float = 0.0

    def grow(self, result: dict[str, Any], limits: DownloadLimits) -> bool:
        """Doubles the pause, or takes the longer one that the host asks for.

        Returns whether it began; downloads that ran side by side are refused together.
        """
        begins = time.monotonic() >= self.until
        if begins:
            self.seconds = max(2 * self.seconds, limits.host_pause_s)
        self.seconds = max(self.seconds, result["retry_after_s"])
        self.until = time.monotonic() + self.seconds
        return begins


def _try_again(download: Download, result: dict[str, Any], limits: DownloadLimits) -> bool:
    """Returns whether a failure is transient and may be tried again now, and sets when."""
    reason = REASONS.get(result.get("reason", ""))
    if not reason or reason.retry != NOW or download.attempts >= MAX_ATTEMPTS:
        return False
    pause = limits.retry_wait_s * 2 ** (download.attempts - 1) * random.uniform(1, 1.5)
    download.not_before = time.monotonic() + pause
    return download.spent_s < limits.deadline_s


def _forkserver() -> Any:
    """Returns a context whose processes are forked from one that has loaded yt-dlp."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fer_jax.collect.download"])
    resource_tracker.ensure_running()  # now, because starting it unblocks the signal below
    # A terminal sends Ctrl-C to all its processes; these inherit that it is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextlib.contextmanager
def _delayed_ctrl_c() -> Iterator[list[int]]:
    """Yields a list that Ctrl-C adds to, so that it acts between two steps and never within one."""
    pressed: list[int] = []
    # Only the main thread may set a handler, and a background run that ignores Ctrl-C keeps to it.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _counts(
    links: list[Link], refused: list[RefusedRow], states: dict[str, State]
) -> collections.Counter[str]:
    counts = collections.Counter(states[link.url]["status"] for link in links)
    counts["refused"] = len(refused)
    return counts


def table(
    list_file: Path, links: list[Link], refused: list[RefusedRow], states: dict[str, State]
) -> str:
    """Returns the rows of a list by status and reason, with what to do."""
    counts = _counts(links, refused, states)
    done = {link.url: states[link.url] for link in links if states[link.url]["status"] == DONE}
    size = sum(int(state["bytes"]) for state in done.values())
    lines = [f"{list_file}: {len(links) + len(refused)} rows"]
    lines.append(f"  done     {counts[DONE]:>6}   {len(done)} videos, {size / 1e6:.1f} MB")
    for status in (FAILED, PENDING):
        lines.append(f"  {status:<8} {counts[status]:>6}")
        reasons = collections.Counter(
            states[link.url]["reason"] for link in links if states[link.url]["status"] == status
        )
        lines += [
            f"    {count} x {reason}: {REASONS[reason].remedy}"
            for reason, count in sorted(reasons.items())
            if reason
        ]
    lines.append(f"  refused  {counts['refused']:>6}")
    grouped = collections.Counter(row.reason for row in refused)
    lines += [f"    {count} x {reason}" for reason, count in grouped.most_common()]
    return "\n".join(lines)


def _size(text: str) -> int:
    """Returns bytes of a text such as 500K, 20M or 2G (powers of 1024)."""
    parts = re.fullmatch(r"([1-9]\d{0,14})([KMG]?)", text, re.ASCII)
    if not parts:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 500K, 20M or 2G")
    return int(parts[1]) * 1024 ** " KMG".index(parts[2] or " ")


def _read_cookies(file: Path | None) -> str:
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


def _browser_cookies(browser: str) -> str:
    """Returns the cookies of a browser on this machine as the text of a cookies file."""
    # Imported here: only who asks for cookies waits for yt-dlp.
    from yt_dlp.cookies import SUPPORTED_BROWSERS, extract_cookies_from_browser
    from yt_dlp.utils import YoutubeDLError

    name, _, profile = browser.partition(":")
    if name not in SUPPORTED_BROWSERS:
        raise InputError(
            f"--cookies_from_browser must be BROWSER or BROWSER:PROFILE with one of "
            f"{', '.join(sorted(SUPPORTED_BROWSERS))}, got '{browser}'"
        )
    text: Any = io.StringIO()  # the hint of `save` says a file's name
    try:
        extract_cookies_from_browser(name, profile or None).save(text)
    except (OSError, ValueError, YoutubeDLError) as error:
        raise InputError(f"--cookies_from_browser '{browser}' cannot be read: {error}") from error
    return text.getvalue()


def main(argv: list[str]) -> int:
    """Runs the verb `collect`; the exit code is 1 if no video of the list is there."""
    parser = OneLineParser("fer-jax collect", __doc__)
    parser.add_argument(
        "links", type=Path, help="CSV with the columns url and reaction_type or emotion"
    )
    parser.add_argument(
        "--output", type=output_path, required=True, help="folder of the videos and of manifest.csv"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be downloaded, and write nothing"
    )
    on_request = [name for name, reason in REASONS.items() if reason.retry == ON_REQUEST]
    parser.add_argument(
        "--retry_failed",
        action="store_true",
        help="also try links again that were given up: " + ", ".join(on_request),
    )
    cookies = parser.add_mutually_exclusive_group()
    cookies.add_argument("--cookies", type=Path, help="cookies file in the Netscape format")
    cookies.add_argument(
        "--cookies_from_browser",
        default="",
        help="a browser to read cookies from: firefox, chrome:PROFILE, ...",
    )
    parser.add_argument(
        "--proxy", default="", help="URL of a proxy: http://HOST:PORT or socks5://HOST:PORT"
    )
    parser.add_argument(
        "--sleep",
        type=float,
        default=0.0,
        help="seconds to wait before each download and request [0]",
    )
    parser.add_argument(
        "--max_height",
        type=int,
        default=DownloadLimits.max_height,
        help=f"largest height, in pixels [{DownloadLimits.max_height}]",
    )
    parser.add_argument(
        "--max_bytes", type=_size, default="1G", help="largest size of a video [1G]"
    )
    parser.add_argument(
        "--rate_limit", type=_size, help="bytes per second of all downloads together, such as 2M"
    )
    parser.add_argument("--workers", type=int, default=4, help="downloads at the same time [4]")
    arguments = parser.parse_args(argv)
    for name, highest in (("max_height", 100_000), ("workers", 64)):
        value = getattr(arguments, name)
        if not 1 <= value <= highest:
            raise InputError(f"--{name} must be 1 to {highest}, got {value}")
    if not 0 <= arguments.sleep <= MAX_PAUSE_S:
        raise InputError(f"--sleep must be 0 to {MAX_PAUSE_S:g} seconds, got {arguments.sleep:g}")
    if arguments.proxy and not re.match(r"(https?|socks[45][ah]?)://[^\s/]", arguments.proxy):
        raise InputError(
            f"--proxy must be a URL such as http://HOST:PORT or socks5://HOST:PORT, got "
            f"'{arguments.proxy}'"
        )
    browser = arguments.cookies_from_browser
    counts = collect(
        arguments.links,
        arguments.output,
        DownloadLimits(
            max_height=arguments.max_height,
            max_bytes=arguments.max_bytes,
            rate_limit=arguments.rate_limit,
            cookies=_browser_cookies(browser) if browser else _read_cookies(arguments.cookies),
            sleep_s=arguments.sleep,
            proxy=arguments.proxy,
        ),
        workers=arguments.workers,
        retry_failed=arguments.retry_failed,
        dry_run=arguments.dry_run,
    )
    return int(not arguments.dry_run and not counts[DONE])
