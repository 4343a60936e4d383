"""The limits of a download, and the reasons why a link gives no video with what to do about it."""

import dataclasses
import re
from typing import NamedTuple

# When a failed download is tried again: in the same run, by the next run, or with --retry_failed.
NOW, NEXT_RUN, ON_REQUEST = "now", "next run", "on request"


@dataclasses.dataclass(frozen=True)
class DownloadLimits:
    """Limits of one download."""

    max_height: int = 720  # in pixels; formats that are known to be larger are not chosen
    max_bytes: int = 2**30
    rate_limit: int | None = None  # bytes per second, of all downloads together; None: no limit
    cookies: str = ""  # the text of a cookies file, or empty
    sleep_s: float = 0  # before each download and between the requests that lead to it
    proxy: str = ""  # its URL, or empty
    socket_timeout_s: float = 20  # a server that is silent for longer has stalled
    deadline_s: float = 1800  # of all attempts at one link together
    retry_wait_s: float = 2  # before the second attempt; doubles with each
    host_pause_s: float = 30  # after "too many requests", if it names none; doubles with each


class Reason(NamedTuple):
    """When a link is tried again, what the user can do, and the HTTP statuses that mean it."""

    retry: str
    remedy: str
    statuses: tuple[int, ...] = ()


REASONS = {
    "network": Reason(NOW, "run the same command again", (407, 408)),
    "rate_limited": Reason(
        NOW, "wait an hour, then run the command again with --sleep=10 --workers=1", (429,)
    ),
    "blocked": Reason(NEXT_RUN, "wait, or give --cookies; then run the command again", (403,)),
    "live": Reason(NEXT_RUN, "run the same command again when it is over"),
    "members": Reason(NEXT_RUN, "give --cookies of a member, or take it off the list"),
    "private": Reason(NEXT_RUN, "give --cookies of an invited account, or take it off the list"),
    "login": Reason(NEXT_RUN, "give --cookies, or install a newer yt-dlp", (401,)),
    "age": Reason(NEXT_RUN, "give --cookies of an adult's account"),
    "geo": Reason(NEXT_RUN, "give --proxy of a country in which it is shown", (451,)),
    "unavailable": Reason(NEXT_RUN, "install a newer yt-dlp; if it stays, take it off the list"),
    "no_format": Reason(NEXT_RUN, "see its detail; --max_height or a newer yt-dlp may help"),
    "other": Reason(NEXT_RUN, "see its detail in manifest.csv; a newer yt-dlp may help"),
    "removed": Reason(ON_REQUEST, "take it off the list", (404, 410)),
    "drm": Reason(ON_REQUEST, "take it off the list"),
    "several_videos": Reason(ON_REQUEST, "list the URL of each video instead"),
    "too_large": Reason(ON_REQUEST, "use --max_bytes and --retry_failed"),
    "not_a_video": Reason(ON_REQUEST, "correct the URL"),
    "unsafe": Reason(ON_REQUEST, "correct the URL"),
}
# How sites say it, as yt-dlp passes it on, in lower case; the first that is found counts. Only
# certain words give a link up: an outdated yt-dlp gets "unavailable", too.
PHRASES = {
    "no_format": r"ffmpeg|requested format|no (video )?formats|only images are available",
    "unsafe": r"no connection adapters|unsupported url scheme|file:// urls",
    "rate_limited": r"rate.?limit|too many requests|try again later",
    "network": r"got error:|timed? ?out|connection (reset|refused|aborted)|bytes read",
    "blocked": r"not a (ro)?bot|captcha|unusual traffic",
    "age": r"confirm your age|\bage.?restrict|inappropriate for some|\bage.?verif",
    "members": r"members?.only|for members|channel's members|join this channel",
    "private": r"\bprivate\b|granted access",
    "geo": r"(your|this|the) (country|location|region)|geo.?(restrict|block)",
    "drm": r"\bdrm\b",
    "live": r"live (event|stream)|premiere|(is|currently) (not )?(currently )?live|will begin",
    "removed": r"(been|was|is) (removed|deleted|terminated)|removed (by|for)"
    r"|no longer (available|exist)|(does not|doesn't) exist",
    "login": r"\blog.?in|\bsign.?in|\bregistered|password|\b(pay|paid|rent|purchase)\b|subscri",
    "unavailable": r"not? .*found|unavailable|not available|isn't available",
}
DISK_FULL = "disk_full"  # ends the run


class Failure(Exception):
    """A link that gave no video: one of `REASONS` or `DISK_FULL`, and what the site said.

    `retry_after_s` is the pause that the server asks for, 0 if none.
    """

    def __init__(self, reason: str, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = clean(detail)
        self.retry_after_s = retry_after_s


def reason_of_status(status: int) -> str:
    """Returns the reason for an HTTP status."""
    known = (name for name, reason in REASONS.items() if status in reason.statuses)
    return next(known, "network" if status >= 500 else "other")


def reason_of_message(message: str) -> str:
    """Returns the reason for a message of a site or of yt-dlp."""
    text = message.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return next((name for name, phrase in PHRASES.items() if re.search(phrase, text)), "other")


def clean(text: str) -> str:
    """Returns a site's message as one short line that a terminal and a spreadsheet can show."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"^ERROR:|\[(download|generic)\]|; please report.*", "", text)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(text.split()).lstrip("=+-@ ")[:200]
