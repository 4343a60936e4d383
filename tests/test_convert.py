"""A converted folder is the same network as the file it came from."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia_files import random_arrays, write_torch

from fer_jax import storage
from fer_jax.__main__ import main
from fer_jax.errors import InputError
from fer_jax.models import stylegan2
from fer_jax.weights import convert, nvidia


@pytest.fixture(scope="module")
def source(tmp_path_factory: Any) -> Path:
    """A conditional network, with an option of every type of JSON."""
    small: dict[str, Any] = {
        "resolution": 8,
        "channel_max": 4,
        "resample_filter": ((1.0, 0.0), (2.0, 1.0)),
    }
    mapping: dict[str, Any] = {
        "num_layers": 2,
        "embed_features": 3,
        "layer_features": 5,
        "c_dim": 2,
    }
    generator = stylegan2.GeneratorConfig(
        **small,
        conv_clamp=4.0,
        use_noise=False,
        mapping=stylegan2.MappingConfig(z_dim=6, w_dim=7, **mapping),
    )
    discriminator = stylegan2.DiscriminatorConfig(
        **small,
        mbstd_group_size=None,
        mapping=stylegan2.MappingConfig(z_dim=0, w_dim=4, **mapping),
    )
    configs = {"G": generator, "D": discriminator, "G_ema": generator}
    arrays = {name: random_arrays(config) for name, config in configs.items()}
    return write_torch(tmp_path_factory.mktemp("source") / "x.pkl", configs, arrays)


def same(found: dict[str, nvidia.Network], expected: dict[str, nvidia.Network]) -> None:
    assert list(found) == list(expected)
    for name, network in expected.items():
        assert found[name].config == network.config
        assert list(found[name].arrays) == list(network.arrays)
        for key, array in network.arrays.items():
            np.testing.assert_array_equal(found[name].arrays[key], array)
            assert found[name].arrays[key].shape == array.shape


def test_two_conversions_do_not_write_the_same_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["convert", str(source), str(tmp_path / "out")]
    with storage.lock(tmp_path / "out"):
        assert main(words) == 2
        assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert main(words) == 0 == main(words)
    assert "8 px" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"arrays.safetensors", "config.json"}


def test_a_folder_is_the_same_as_its_file(source: Path, tmp_path: Path):
    expected = nvidia.read_networks(source)
    same(convert.convert(source, tmp_path / "a" / "b"), expected)
    same(convert.read_networks(tmp_path / "a" / "b"), expected)
    same(convert.read_networks(source), expected)
    same(convert.read_networks(tmp_path / "a" / "b", ("D",)), {"D": expected["D"]})
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "arrays.safetensors",
        "config.json",
    ]


@pytest.mark.parametrize("name", ["uncond64", "cond64", "paper256s", "tf_uncond64"])
def test_published_kinds_come_back_exactly(name: str, shared: Path, tmp_path: Path):
    file = shared / "golden" / "stylegan2" / f"{name}.pkl"
    convert.convert(file, tmp_path)
    same(convert.read_networks(tmp_path), nvidia.read_networks(file))


def test_the_verb(source: Path, tmp_path: Path, capsys: Any):
    out = tmp_path / "out"
    assert main(["convert", str(source), str(out)]) == 0
    assert "G_ema: 8 px, skip, 2 classes" in capsys.readouterr().out
    # The same command again gives the same.
    assert main(["convert", str(source), str(out)]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["source"]["file"] == "x.pkl" and len(config["source"]["sha256"]) == 64
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert main(["convert", str(source), str(out)]) == 2
    assert main(["convert", str(source), str(source)]) == 2
    assert main(["convert", str(tmp_path / "absent.pkl"), str(tmp_path / "new")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "holds something else (notes.txt)" in errors[0]
    assert not (tmp_path / "new").exists()


def test_a_folder_that_was_changed_is_refused(source: Path, tmp_path: Path):
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            convert.read_networks(tmp_path, ("G_ema",))
        assert "\n" not in str(caught.value)

    refused("has no config.json and arrays.safetensors")
    convert.convert(source, tmp_path)
    config, arrays = tmp_path / "config.json", tmp_path / "arrays.safetensors"
    text, data = config.read_text(), arrays.read_bytes()
    for change, match in (
        (text[:40], "is damaged"),
        ("[]", "is damaged .not an object"),
        (text.replace('"fer_jax.stylegan2"', '"other"'), "not of the format"),
        (text.replace('"G_ema"', '"G_old"'), "has no network G_ema; it has G_old"),
        (text.replace('"resolution": 8', '"resolution": "8"'), "config.json that was changed"),
        (text.replace('"resolution": 8', '"resolution": 16'), "lacks the parameters"),
        (text.replace('"use_noise": false', '"use_moise": 1'), "config.json that was changed"),
        (text.replace('"skip"', '"skipp"'), "architecture cannot be 'skipp'"),
    ):
        assert change != text
        config.write_text(change)
        refused(match)
    config.write_text(text)
    for change in (data[:-100], data[:50], b"", b"\xff" * 8 + data[8:]):
        arrays.write_bytes(change)
        refused("is damaged")
    arrays.write_bytes(data)
    with pytest.raises(InputError, match="no network H"):
        convert.read_networks(tmp_path, ("H",))
