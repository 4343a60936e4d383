"""Network files read as data: both families, every option, and nothing that runs."""

import pickle
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import PICKLES
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia_files import (
    CANARY,
    Module,
    Tensor,
    random_arrays,
    stand_ins,
    storage_bytes,
    tf_kwargs,
    tf_network,
    tf_variables,
    torch_kwargs,
    torch_module,
    write_tensorflow,
    write_torch,
)
from small_runs import network_file

from fer_jax.errors import InputError
from fer_jax.models import stylegan2
from fer_jax.weights import nvidia, pickles


@pytest.fixture(scope="module")
def files(shared: Path) -> Path:
    return shared / "golden" / "stylegan2"


@pytest.fixture(autouse=True)
def nothing_is_run() -> Iterator[None]:
    CANARY.unlink(missing_ok=True)
    yield
    assert not CANARY.exists(), "a network file was executed"


def refused(path: Path, match: str, names: tuple[str, ...] = ()) -> str:
    with pytest.raises(InputError, match=match) as caught:
        nvidia.read_networks(path, names)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert path.name in message
    return message


def same(found: nvidia.Network, config: Any, arrays: dict[str, np.ndarray]) -> None:
    assert comparable(found.config) == comparable(config)
    assert list(found.arrays) == list(stylegan2.shapes(config))
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
        assert found.arrays[name].dtype == np.float32


def comparable(config: Any) -> Any:
    """With the filter's gain, which means nothing, taken out of it."""
    taps = np.asarray(config.resample_filter)
    taps = np.round(taps / taps.sum(), 6).tolist()
    return vars(config) | {"resample_filter": taps}


# The published kinds


def test_both_families_hold_three_networks(files: Path):
    for name in ("uncond64", "cond64", "paper256s", "tf_uncond64"):
        networks = nvidia.read_networks(files / f"{name}.pkl")
        assert list(networks) == ["G_ema", "G", "D"]
        raw, average = (networks[key].arrays["synthesis.b4.const"] for key in ("G", "G_ema"))
        assert not np.array_equal(raw, average)
        assert list(nvidia.read_networks(files / f"{name}.pkl", ("D",))) == ["D"]


def test_converted_arrays_are_exactly_the_published_ones(files: Path):
    networks = nvidia.read_networks(files / "tf_uncond64.pkl")
    reference = np.load(files / "tf_uncond64.npz")
    keys = [key for key in reference.files if key.startswith(("G_ema/", "D/"))]
    assert len(keys) == len(networks["G_ema"].arrays) + len(networks["D"].arrays)
    for key in keys:
        network, _, name = key.partition("/")
        np.testing.assert_array_equal(networks[network].arrays[name], reference[key], err_msg=key)


def test_an_older_pythons_pickle_is_the_same_network(files: Path):
    new, old = (nvidia.read_networks(files / f"uncond64{s}.pkl") for s in ("", "_proto3"))
    for name, network in new.items():
        same(old[name], network.config, network.arrays)


def test_options_of_the_published_files(files: Path):
    cond = nvidia.read_networks(files / "cond64.pkl")
    mapping = cond["G_ema"].config.mapping
    assert mapping is not None
    assert (mapping.c_dim, mapping.embed_features, mapping.layer_features) == (7, 24, 40)
    config = nvidia.read_networks(files / "paper256s.pkl")["D"].config
    assert isinstance(config, stylegan2.DiscriminatorConfig)
    assert (config.conv_clamp, config.mbstd_group_size) == (256, 8)


def test_the_file_is_not_copied(files: Path):
    path = files / "paper256s.pkl"
    tracemalloc.start()
    networks = nvidia.read_networks(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Once as bytes; the arrays are views. A file may cost three times its size.
    assert networks and peak < 1.8 * path.stat().st_size


# Every option, in files of our own


MAPPING: dict[str, Any] = {
    "z_dim": 6,
    "c_dim": 0,
    "w_dim": 7,
    "num_layers": 3,
    "embed_features": 0,
    "layer_features": 5,
}
CONDITIONAL: dict[str, Any] = {**MAPPING, "c_dim": 3, "embed_features": 4}
SMALL: dict[str, Any] = {"resolution": 16, "channel_base": 64, "channel_max": 6}
NO_CLASSES: dict[str, Any] = {**MAPPING, "z_dim": 0, "c_dim": 3, "w_dim": 8, "embed_features": 8}
KINDS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # of both networks, of the generator, of the discriminator
    ({}, {}, {}),
    ({"architecture": "skip", "conv_clamp": 3.5, "activation": "relu"}, {}, {}),
    ({"architecture": "resnet"}, {"use_noise": False}, {"mbstd_num_channels": 3}),
    ({"architecture": "orig", "resample_filter": (1.0,)}, {}, {"mbstd_num_channels": 0}),
    ({"resample_filter": (1.0, 2.0, 3.0), "img_channels": 1}, {}, {"mbstd_group_size": None}),
    ({"resample_filter": ((1.0, 0.0), (2.0, 5.0)), "activation": "linear"}, {}, {}),
    ({}, {"mapping": CONDITIONAL}, {"mapping": NO_CLASSES | {"layer_features": 8}}),
]


def configs(kind: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    both, own, critic = kind
    mapping = stylegan2.MappingConfig(**own.get("mapping", MAPPING))
    generator = stylegan2.GeneratorConfig(**{**SMALL, **both, **own, "mapping": mapping})
    projection = stylegan2.MappingConfig(**critic["mapping"]) if "mapping" in critic else None
    activation = {"epilogue_activation": both.get("activation", "lrelu")}
    options: dict[str, Any] = {**SMALL, **both, **activation, **critic, "mapping": projection}
    return {"G": generator, "D": stylegan2.DiscriminatorConfig(**options), "G_ema": generator}


def contents(kind: Any = KINDS[0]) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    made = configs(kind)
    return made, {name: random_arrays(c, seed) for seed, (name, c) in enumerate(made.items())}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_pytorch_file(kind: Any, protocol: int, tmp_path: Path):
    made, arrays = contents(kind)
    networks = nvidia.read_networks(write_torch(tmp_path / "x.pkl", made, arrays, protocol))
    for name, config in made.items():
        same(networks[name], config, arrays[name])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("protocol", [3, 5])
def test_every_kind_of_tensorflow_file(kind: Any, protocol: int, tmp_path: Path):
    made, arrays = contents(kind)
    # The numbers are those after TensorFlow's "- 1" and back again.
    for network in arrays.values():
        for name in network:
            if name.endswith("affine.bias"):
                network[name] = (network[name] - np.float32(1)) + np.float32(1)
    path = write_tensorflow(tmp_path / "x.pkl", made, arrays, protocol)
    networks = nvidia.read_networks(path)
    for name, config in made.items():
        same(networks[name], config, arrays[name])


def write(path: Path, make: Callable[[], Any], protocol: int = 4) -> Path:
    with stand_ins():
        path.write_bytes(pickle.dumps(make(), protocol=protocol))
    return path


def generator_file(path: Path, **how: Any) -> Path:
    """A file with one generator, changed by the arguments of `torch_module`."""
    made, arrays = contents()
    how = {"arrays": arrays["G_ema"]} | how

    def make() -> Any:
        kwargs = how.pop("kwargs", None) or torch_kwargs(made["G_ema"])
        for change in how.pop("changes", ()):
            change(kwargs)
        return {"G_ema": torch_module("Generator", kwargs=kwargs, **how)}

    return write(path, make)


def test_layers_know_better_than_the_options(tmp_path: Path):
    layers = [f"synthesis.b{s}.{c}" for s in (4, 8, 16) for c in ("conv0", "conv1", "torgb")][1:]
    attributes: dict[str, dict[str, Any]] = {
        name: {"conv_clamp": 256, "activation": "linear" if "torgb" in name else "relu"}
        for name in layers
    }
    attributes["mapping"] = {"w_avg_beta": 0.998}
    attributes["mapping.fc0"] = {"bias_gain": 0.25, "activation": "tanh"}
    path = generator_file(tmp_path / "x.pkl", attributes=attributes)
    config = nvidia.read_networks(path)["G_ema"].config
    assert isinstance(config, stylegan2.GeneratorConfig)
    assert config.conv_clamp == 256 and config.activation == "relu"
    assert config.w_avg_beta == 0.998
    assert config.mapping.activation == "tanh"
    assert config.mapping.lr_multiplier == 0.25
    attributes["synthesis.b8.conv1"]["conv_clamp"] = 2
    refused(generator_file(tmp_path / "y.pkl", attributes=attributes), "different conv_clamp")


def test_options_without_names_and_defaults(tmp_path: Path):
    mapping = stylegan2.MappingConfig(
        **MAPPING | {"num_layers": 8, "layer_features": MAPPING["w_dim"]}
    )
    config = stylegan2.GeneratorConfig(**SMALL, mapping=mapping)
    sizes = {"synthesis_kwargs": {"channel_base": 64, "channel_max": 6}}
    path = generator_file(
        tmp_path / "x.pkl",
        arrays=random_arrays(config),
        args=(MAPPING["z_dim"], 0, MAPPING["w_dim"], 16, 3),
        kwargs=sizes,
    )
    same(nvidia.read_networks(path)["G_ema"], config, random_arrays(config))


def test_synthesis_options_one_level_up(tmp_path: Path):
    # As StyleGAN3's code writes its StyleGAN2 networks.
    made, arrays = contents(KINDS[1])

    def make() -> Any:
        kwargs = torch_kwargs(made["G_ema"])
        kwargs |= kwargs.pop("synthesis_kwargs")
        return {"G_ema": torch_module("Generator", arrays["G_ema"], kwargs)}

    found = nvidia.read_networks(write(tmp_path / "x.pkl", make))
    same(found["G_ema"], made["G_ema"], arrays["G_ema"])


def test_a_filter_of_the_layers_and_its_size(tmp_path: Path):
    _, arrays = contents()
    taps = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16
    long = np.arange(1, 9, dtype=np.float32) / 36  # 1-d from eight taps on
    for buffer, expected in ((taps, (0.25, 0.5, 0.25)), (long, tuple(long.tolist()))):
        changed = arrays["G_ema"] | {
            f"synthesis.b{size}.{layer}resample_filter": buffer if layer != "conv1." else taps * 0
            for size in (8, 16)
            for layer in ("", "conv0.", "conv1.")
        }
        path = generator_file(tmp_path / "x.pkl", arrays=changed)
        assert nvidia.read_networks(path)["G_ema"].config.resample_filter == expected
    changed["synthesis.b8.resample_filter"] = taps * 2
    refused(generator_file(tmp_path / "y.pkl", arrays=changed), "different resample_filter")


def test_other_layouts_and_precisions_of_tensors(tmp_path: Path):
    _, arrays = contents()
    expected = {name: array.astype(np.float16) for name, array in arrays["G_ema"].items()}
    last = {
        name: array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) if array.ndim == 4 else array
        for name, array in expected.items()
    }
    assert (
        last["synthesis.b8.conv1.weight"].strides != expected["synthesis.b8.conv1.weight"].strides
    )
    found = nvidia.read_networks(generator_file(tmp_path / "x.pkl", arrays=last))["G_ema"]
    for name, array in expected.items():
        np.testing.assert_array_equal(found.arrays[name], array.astype(np.float32))


def test_frozen_weights_are_among_the_buffers(tmp_path: Path):
    made, arrays = contents()

    def make() -> Any:
        network = torch_module("Discriminator", arrays["D"], torch_kwargs(made["D"]))
        state = network.state["_modules"]["b16"].state["_modules"]["conv0"].state
        state["_buffers"]["weight"] = Tensor(state["_parameters"].pop("weight").array)
        return {"D": network}

    found = nvidia.read_networks(write(tmp_path / "x.pkl", make))
    same(found["D"], made["D"], arrays["D"])


def test_what_is_not_exactly_the_network_is_refused(tmp_path: Path):
    path = tmp_path / "x.pkl"
    _, arrays = contents()
    less = {name: a for name, a in arrays["G_ema"].items() if name != "synthesis.b8.conv1.bias"}
    refused(generator_file(path, arrays=less), "lacks the parameters synthesis.b8.conv1.bias")
    more = arrays["G_ema"] | {"synthesis.b8.conv9.weight": np.ones(3, np.float32)}
    refused(generator_file(path, arrays=more), "that StyleGAN2 does not: 'synthesis.b8.conv9")
    other = arrays["G_ema"] | {"synthesis.b8.conv1.bias": np.ones(5, np.float32)}
    refused(generator_file(path, arrays=other), r"synthesis.b8.conv1.bias of shape \(5,\)")
    bias = arrays["G_ema"]["synthesis.b8.conv1.bias"] * np.float32(np.nan)
    damaged = arrays["G_ema"] | {"synthesis.b8.conv1.bias": bias}
    refused(generator_file(path, arrays=damaged), "synthesis.b8.conv1.bias that are not finite")
    shared = arrays["G_ema"] | {"mapping.fc1.bias": arrays["G_ema"]["mapping.fc0.bias"]}

    def make() -> Any:
        network = torch_module("Generator", shared, torch_kwargs(contents()[0]["G"]))
        layers = network.state["_modules"]["mapping"].state["_modules"]
        layers["fc1"].state["_parameters"]["bias"] = layers["fc0"].state["_parameters"]["bias"]
        return {"G": network}

    refused(write(path, make), "the same array for several")


def deep_list() -> list[Any]:
    """Few lists in the file, many numbers for whoever unfolds them."""
    numbers: list[Any] = [1]
    for _ in range(3):
        numbers = [numbers] * 50
    return numbers


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda k: k.update(magnitude_ema_beta=0.5), "'magnitude_ema_beta'=0.5, which StyleGAN2"),
        (lambda k: k.update(z_dim="6"), "option z_dim='6', which should be int"),
        (lambda k: k.update(resolution_h=32), "resolution_h=32 beside the resolution 16"),
        (lambda k: k.update(img_resolution=48), "resolution must be a power of two"),
        (lambda k: k["synthesis_kwargs"].update(architecture="unet"), "architecture cannot be"),
        (lambda k: k["synthesis_kwargs"].update(activation="gelu"), "activation cannot be 'gelu'"),
        (lambda k: k["synthesis_kwargs"].update(conv_clamp=-1), "conv_clamp must be above 0"),
        (lambda k: k["synthesis_kwargs"].update(kernel_size=5), "'kernel_size'=5, which"),
        (lambda k: k["synthesis_kwargs"].update(resample_filter="box"), "resample filter 'box'"),
        (lambda k: k["synthesis_kwargs"].update(resample_filter=[1] * 99), "at most 64 numbers"),
        (lambda k: k["synthesis_kwargs"].update(resample_filter=deep_list()), "at most 64 numbers"),
        (lambda k: k["synthesis_kwargs"].update(resample_filter=[2**600]), "more than 80 bits"),
        (lambda k: k["synthesis_kwargs"].update(conv_clamp=2**70), "should be float or None"),
        (lambda k: k["synthesis_kwargs"].update(resample_filter=[1, -1]), "must not sum to 0"),
        (lambda k: k["mapping_kwargs"].update(num_layers=10**9), "num_layers cannot be"),
        (lambda k: k["mapping_kwargs"].update(lr_multiplier=0), "lr_multiplier must be above 0"),
    ],
)
def test_options_that_make_no_network_are_refused(change: Any, match: str, tmp_path: Path):
    refused(generator_file(tmp_path / "x.pkl", changes=[change]), match)


def test_tensorflow_files_that_are_not_stylegan2(tmp_path: Path):
    made, arrays = contents()

    def file(variables: Any = (), options: Any = (), version: int = 5, drop: str = "") -> Path:
        def make() -> Any:
            kept = tf_variables(arrays["D"])[""] | dict(variables)
            kept.pop(drop, None)
            network = tf_network("D", kept, tf_kwargs(made["D"]) | dict(options), version=version)
            return network, network, network

        return write(tmp_path / "x.pkl", make, protocol=3)

    assert list(nvidia.read_networks(file({"lod": np.zeros(())}), ("D",))) == ["D"]
    size = made["D"].resolution
    square = file(options={"resolution_w": size, "resolution_h": float(size)})
    assert list(nvidia.read_networks(square, ("D",))) == ["D"]
    refused(file(options={"resolution_w": 2 * size}), f"resolution_w={2 * size} beside", ("D",))
    refused(file({"8x8/Noise/weight": np.zeros(2)}), "not: '8x8/Noise/weight'", ("D",))
    refused(file(drop="4x4/Conv/bias"), "lacks the variable 4x4/Conv/bias", ("D",))
    refused(file(options={"fmap_decay": 0.5}), "fmap_decay=0.5, which is not supp", ("D",))
    refused(file(options={"use_attention": 1}), "'use_attention'=1, which StyleGAN2", ("D",))
    refused(file(version=3), "older than StyleGAN2", ("D",))
    # What was left out meant a group of four, and later the whole batch.
    for version, expected in ((4, 4), (5, None)):
        changed = tf_kwargs(made["D"])
        del changed["mbstd_group_size"]
        kept = tf_variables(arrays["D"])[""]

        def make(changed: Any = changed, kept: Any = kept, version: int = version) -> Any:
            return (tf_network("D", kept, changed, version=version),) * 3

        config = nvidia.read_networks(write(tmp_path / "y.pkl", make, 3), ("D",))["D"].config
        assert isinstance(config, stylegan2.DiscriminatorConfig)
        assert config.mbstd_group_size == expected


# What is no network file


def test_what_it_is_instead(files: Path, tmp_path: Path):
    cases = {
        "gzip-ed; unpack it first": b"\x1f\x8b\x08\x00rest of it",
        "an HTML page": b"\n <!DOCTYPE html><html>quota exceeded</html>",
        "a zip archive": b"PK\x03\x04 and so on",
        "a PyTorch checkpoint": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"...",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "an HDF5 file": b"\x89HDF\r\n\x1a\n",
        "not a pickle": b"RIFF....",
        "is empty": b"",
    }
    for match, data in cases.items():
        path = tmp_path / "x.pkl"
        path.write_bytes(data)
        refused(path, match)
    refused(tmp_path / "absent.pkl", "no network file")
    for value, match in (([1, 2], "neither a dict nor"), ({"a": 1}, "no network G, D or G_ema")):
        refused(write(tmp_path / "y.pkl", lambda v=value: v), match)
    refused(files / "uncond64.pkl", "no network G_emma", ("G_emma",))


def test_stylegan3_is_named(tmp_path: Path):
    path = tmp_path / "x.pkl"
    arrays = {"synthesis.input.weight": np.ones((2, 2), np.float32)}
    refused(generator_file(path, arrays=arrays), r"\(G_ema\) is a StyleGAN3 network")

    def make() -> Any:
        network = Module("Generator")
        reduced = network.__reduce__()
        reduced[1][0]["module_src"] = "class SynthesisInput(torch.nn.Module):"
        network.__class__ = type("Kept", (Module,), {"__reduce__": lambda _: reduced})
        return {"G_ema": network}

    refused(write(path, make), r"\(G_ema\) is a StyleGAN3 network")


def test_hostile_files_run_nothing(files: Path):
    refused(files / "malicious.pkl", r"asks for 'posix.system'.*\(byte \d+\)")
    refused(files / "malicious_nested_storage.pkl", "asks for 'posix.system'")
    refused(files / "malicious_module_src.pkl", r"\(G_ema\) has")


@pytest.mark.parametrize("match", PICKLES)
def test_hostile_instructions_are_refused(match: str, tmp_path: Path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04" + PICKLES[match])
    refused(path, match)


def test_a_name_from_the_file_stays_on_one_line(tmp_path: Path):
    path = tmp_path / "x.pkl"
    name = b"a\nb" * 50
    path.write_bytes(b"\x80\x04X" + struct.pack("<I", len(name)) + name + b"\x8c\x01a\x93)R.")
    refused(path, "asks for")


def test_more_instructions_than_any_network_has(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 5000)
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04" + b"}" * 100_000 + b".")
    refused(path, "more than 5000 pickle instructions")


def tensor(data: Any, *arguments: Any) -> Any:
    """A tensor of a storage, with any offset, shape and strides."""
    utils, storage = sys.modules["torch._utils"], sys.modules["torch.storage"]

    class Raw:
        def __reduce__(self) -> Any:
            return storage._load_from_bytes, (data,)

    class Rebuilt:
        def __reduce__(self) -> Any:
            return utils._rebuild_tensor_v2, (Raw(), *arguments, False, {})

    return Rebuilt()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, (10**6, 10**6), (0, 0)), r"tensor of shape \(1000000, 1000000\) in 12"),
        ((9, (4,), (1,)), r"shape \(4,\) in 12 elements"),
        ((0, (4,), (4,)), r"shape \(4,\) in 12 elements"),
        ((0, (4,), (-1,)), "wrong arguments for 'torch._utils._rebuild_tensor_v2'"),
        ((0, (4, 3), (1,)), "wrong arguments for 'torch._utils._rebuild_tensor_v2'"),
        ((0, (1,) * 40, (1,) * 40), "wrong arguments for 'torch._utils._rebuild_tensor_v2'"),
        ((-1, (4,), (1,)), "wrong arguments for 'torch._utils._rebuild_tensor_v2'"),
    ],
)
def test_tensors_stay_within_their_storage(arguments: Any, match: str, tmp_path: Path):
    def make() -> Any:
        return {"G": tensor(storage_bytes(np.arange(12, dtype=np.float32)), *arguments)}

    refused(write(tmp_path / "x.pkl", make), match)


def test_arrays_are_together_no_larger_than_the_file(tmp_path: Path):
    def make() -> Any:
        one = storage_bytes(np.zeros(1000, np.float32))
        return {"G": [tensor(one, 0, (1000,), (1,)) for _ in range(500)]}

    refused(write(tmp_path / "x.pkl", make), "arrays that are together larger than the file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[:-4], "storage of 3 elements in"),
        (lambda data: data.replace(b"little_endian", b"large_endian_"), "big-endian"),
        (lambda data: data.replace(b"FloatStorage", b"QInt8Storage"), "'torch.QInt8Storage'"),
        (lambda data: data[:15] + data[20:], "storage that is not|damaged|PyTorch|in the middle"),
        (lambda data: data.replace(b"1234", b"1235", 1), "not exactly one"),
        (lambda data: data[:20], "ends in the middle"),
        (lambda data: b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "'posix.system'"),
    ],
)
def test_storages_are_exactly_one_array(change: Any, match: str, tmp_path: Path):
    def make() -> Any:
        data = change(storage_bytes(np.ones(3, np.float32)))
        return {"G": tensor(data, 0, (3,), (1,))}

    refused(write(tmp_path / "x.pkl", make), match)


def test_a_storage_cannot_claim_more_than_it_has(tmp_path: Path):
    def make() -> Any:
        return {"G": tensor(storage_bytes(np.ones(3, np.float32), 2**40), 0, (3,), (1,))}

    refused(write(tmp_path / "x.pkl", make), "storage of 1099511627776 elements")


def test_what_is_recalled_counts_each_time(tmp_path: Path, monkeypatch: Any):
    path = tmp_path / "x.pkl"
    text = b"X" + struct.pack("<I", 9000) + b"a" * 9000 + b"\x94"
    encode = b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86R"
    path.write_bytes(b"\x80\x04" + text + encode * 3 + b".")
    refused(path, "copies that are together larger than the file")
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 5000)
    path.write_bytes(b"\x80\x04]\x94(" + b"K\x01" * 2000 + b"e" + b"cbuiltins\nset\nh\x00\x85R" * 3)
    refused(path, "more than 5000 pickle instructions")


def test_protocol_2_needs_its_bytes_twice(tmp_path: Path):
    # As text in the file and decoded, beside the arrays.
    config = stylegan2.DiscriminatorConfig(resolution=16, channel_max=64)
    arrays = random_arrays(config)
    path = write_torch(tmp_path / "x.pkl", {"D": config}, {"D": arrays}, protocol=2)
    same(nvidia.read_networks(path)["D"], config, arrays)


def test_modules_cannot_multiply(tmp_path: Path):
    # Ten levels of a hundred modules each, by naming the same one again and again.
    def make() -> Any:
        module = Module("Layer")
        for _ in range(10):
            outer = Module("Layer")
            outer.state["_modules"] = {str(index): module for index in range(100)}
            module = outer
        return {"G": module}

    refused(write(tmp_path / "x.pkl", make), "more than 2000 modules")


@given(st.booleans(), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused(tensorflow: bool, share: float):
    data = network_file(tensorflow)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pkl"
        path.write_bytes(data[: int(share * len(data))])
        refused(path, "ends in the middle|is empty|not a pickle")


@given(st.booleans(), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))))
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_read_or_refused(tensorflow: bool, changes: Any):
    data = bytearray(network_file(tensorflow))
    for place, value in changes:
        data[int(place * len(data))] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.pkl"
        path.write_bytes(data)
        try:
            nvidia.read_networks(path)
        except InputError as error:
            assert "\n" not in str(error)
