"""Faces in labelled clips of one's own, or of a published collection such as RAVDESS."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_builders import layouts
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder, protocols
from fer_jax.errors import InputError
from fer_jax.media import extraction
from fer_jax.media.clips import Job
from fer_jax.media.images import is_still


class Builder(RecordBuilder):
    """Faces in clips that a manifest, their names or class folders label."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = protocols("grouped", "folds", "given", "content")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "A folder of clips with manifest.csv, or with class folders."
    SOURCE = "folder of the clips"
    UNIT = "clip"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the builder's options."""
        super().add_arguments(parser)
        layouts.add_arguments(parser)
        splits.add_arguments(parser)
        extraction.add_arguments(parser, clips=True, detector="yunet")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.record_info(f"Faces in clips of {self.name}.")

    def list_inputs(self) -> Inputs:
        """Finds the clips and their labels."""
        folder = Path(self.options.source)
        if not folder.is_dir():
            raise InputError(f"--source '{folder}' is not a folder")
        source = layouts.open_folder(folder)
        stills = [(name, "a picture, not a clip") for name in source.files if is_still(name)]
        source = source._replace(
            files=[name for name in source.files if not is_still(name)],
            skipped=source.skipped + stills,
        )
        found = layouts.label_files(source, self.options, self.protocol)
        if twice := [row["_path"] for row in found.rows if "_face" in row]:
            raise InputError(f"the manifest names clips twice, such as '{twice[0]}'")
        print(found.note)
        inputs = layouts.to_inputs(self, source, found)
        for row in inputs.rows:
            row["_job"] = Job(str((folder / row["_path"]).resolve()), row["record_id"])
            row.setdefault("clip_id", row["record_id"])
        return inputs

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        return self.examples(rows)
