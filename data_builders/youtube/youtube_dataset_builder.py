"""Faces in videos that `collect` downloaded, from YouTube or any other site."""

import argparse
import collections
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fer_jax import schema, storage
from fer_jax.collect import manifest
from fer_jax.collect.links import video_key
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder, not_listed, protocols
from fer_jax.errors import InputError
from fer_jax.media import extraction
from fer_jax.media.clips import Job


class Builder(RecordBuilder):
    """Faces in videos that `fer-jax collect` downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = protocols("grouped", "content", "folds")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folder that `fer-jax collect --output` wrote."
    SOURCE = "folder that `fer-jax collect --output` wrote"
    UNIT = "clip"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the builder's options."""
        super().add_arguments(parser)
        parser.add_argument("--source_kind", default="social", help="of the records: social, ...")
        splits.add_arguments(parser)
        extraction.add_arguments(parser, clips=True, detector="yunet")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.record_info("Faces in videos from the web.")

    def list_inputs(self) -> Inputs:
        """Reads the manifest."""
        options, source = self.options, Path(self.options.source)
        links = manifest.read(source)
        if not links:
            raise InputError(
                f"'{source}' has no {manifest.MANIFEST}; write it with `fer-jax collect`"
            )
        rows, skipped = [], []
        for link in links:
            try:
                rows.append(_row(link, source, self.name, options.source_kind))
            except InputError as error:
                item = " ".join(filter(None, (link["url"], _window(link))))
                skipped.append((item, str(error)))
        rows, outside = assign(rows, self.protocol, self.name, options)
        settings = {
            "source": source.name,
            "source_kind": options.source_kind,
            "faces": extraction.recorded(self.extraction),
        } | splits.recorded(self.protocol, options)
        others, ignored = not_listed(source, {link["file"] for link in links}, manifest.MANIFEST)
        refused = [
            (f"line {row['line']} of the list: {row['item']}", f"refused: {row['reason']}")
            for row in storage.read_table(source / manifest.LEDGER)
            if row["status"] == "refused"
        ]
        return Inputs(rows, skipped + outside + others, settings, ignored, refused)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # `fer-jax collect` has downloaded everything
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        return self.examples(rows)


def _row(link: Mapping[str, str], source: Path, name: str, source_kind: str) -> dict[str, Any]:
    if link["status"] == manifest.UNLISTED:
        raise InputError("no longer on the list")
    if link["status"] != manifest.DONE:
        raise InputError(f"not downloaded: {link['reason'] or link['status']}")
    if not manifest.file_is_there(source, link):
        raise InputError("its file is gone or has another size; run collect again")
    try:
        start_s = float(link["start_s"] or 0)
        end_s = float(link["end_s"] or "inf")
    except ValueError as error:
        raise InputError("start_s or end_s is not a number of seconds") from error
    clip = "/".join(filter(None, (name, video_key(link["url"]), _window(link))))
    row: dict[str, Any] = {
        "record_id": clip,
        "clip_id": clip,
        "source": source_kind,
        "content": link["category"],
        "subject_id": f"{name}/{link['subject_id']}" if link["subject_id"] else "",
        "url": schema.canonical_url(link["url"]),
        "_job": Job(str((source / link["file"]).resolve()), clip, start_s, end_s),
        "_site_id": link["site_id"],
        "_sha256": link["sha256"],
    }
    if link["emotion"]:
        row["emotion"] = schema.emotion_index(link["emotion"])
    if link["reaction_type"]:
        row["interest"] = schema.interest_index(link["reaction_type"])
    return row


def _window(link: Mapping[str, str]) -> str:
    """The part of the video that a row is about: "1.5-3", "1.5-end", or empty for all of it."""
    if not link["start_s"] and not link["end_s"]:
        return ""
    return f"{link['start_s'] or '0'}-{link['end_s'] or 'end'}"


def assign(
    rows: list[dict[str, Any]], protocol: str, namespace: str, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Gives every row its split as `splits.assign` does.

    Windows of one video and videos of one person stay together.
    """
    videos = _videos(rows)
    leaders = _leaders(rows, videos)
    keyed = [
        row | {"subject_id": subject, "clip_id": video}
        for row, (subject, video) in zip(rows, leaders, strict=True)
    ]
    kept, skipped = splits.assign(keyed, protocol, namespace, options)
    part = {row["record_id"]: row["split"] for row in kept}
    assigned = [row | {"split": part[row["record_id"]]} for row in rows if row["record_id"] in part]
    if protocol != "content":
        return assigned, skipped
    # Only windows of different categories can lie in several parts: none of them can be used.
    parts: dict[str, set[str]] = collections.defaultdict(set)
    for row in assigned:
        parts[videos[row["record_id"]]].add(row["split"])
    torn = [row for row in assigned if len(parts[videos[row["record_id"]]]) > 1]
    skipped += [(row["record_id"], "its video is in several parts") for row in torn]
    assigned = [row for row in assigned if len(parts[videos[row["record_id"]]]) == 1]
    return assigned, skipped


def _videos(rows: list[dict[str, Any]]) -> dict[str, str]:
    """record_id -> the key of its video's first URL: a site may show one video under several."""
    first: dict[str, str] = {}
    for row in rows:
        same = row["_site_id"] or row["_sha256"]
        first[same] = min(first.get(same, "~"), video_key(row["url"]))
    return {row["record_id"]: first[row["_site_id"] or row["_sha256"]] for row in rows}


def _leaders(rows: list[dict[str, Any]], videos: Mapping[str, str]) -> list[tuple[str, str]]:
    """For each row, who stands for all that share a person or a video with it, directly or not.

    Returns:
      (subject, "") where there is a person among them, so that the same person is on the same
      side of another dataset; else ("", video).
    """
    person, video = 0, 1  # the smallest stands for the others: a person before a video
    above: dict[tuple[int, str], tuple[int, str]] = {}

    def top(node: tuple[int, str]) -> tuple[int, str]:
        while above.setdefault(node, node) != node:
            node = above[node]
        return node

    for row in rows:
        ends = [top((video, videos[row["record_id"]]))]
        if row["subject_id"]:
            ends.append(top((person, row["subject_id"])))
        above |= dict.fromkeys(ends, min(ends))
    tops = [top((video, videos[row["record_id"]])) for row in rows]
    return [(name, "") if kind == person else ("", name) for kind, name in tops]
