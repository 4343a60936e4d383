"""Writes network files of the two published families: the same pickles, with other contents.

Python's own pickler writes them, with stand-ins for the classes of PyTorch and NVIDIA that the
published files name; so the instructions in them are those of the real ones.
"""

import collections
import contextlib
import io
import math
import pickle
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.models import stylegan2

# What the hostile goldens leave behind, too, when somebody runs them.
CANARY = Path(tempfile.gettempdir()) / "PWNED"
SOURCE_TEXT = f"open({str(CANARY)!r}, 'w').close()\nraise RuntimeError('this text was run')\n"


def random_arrays(config: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a network in NVIDIA's layouts, none of them zero."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(to_published(name, rng.standard_normal(shape).astype(np.float32)))
        for name, shape in stylegan2.shapes(config).items()
    }


def to_published(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `nvidia.to_our_layout`."""
    if name.endswith(".const"):
        return array[0].transpose(2, 0, 1)
    if name.endswith(".noise_const"):
        return array[0, :, :, 0]
    if name.endswith(".weight"):
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return array


# PyTorch


class Tensor:
    """Pickles as a `torch.Tensor` does, or as an `nn.Parameter`."""

    def __init__(self, array: np.ndarray, parameter: bool = False):
        self.array, self.parameter = array, parameter

    def __reduce__(self) -> Any:
        utils = sys.modules["torch._utils"]
        array = self.array
        strides = tuple(step // array.itemsize for step in array.strides)
        hooks = collections.OrderedDict()
        if self.parameter:
            data = Tensor(self.array)
            return utils._rebuild_parameter, (data, False, hooks)
        # In the order of memory, so that another layout keeps its strides.
        flat = np.sort(np.asarray(strides))[::-1]
        order = np.argsort(np.asarray(strides), kind="stable")[::-1]
        stored = array.transpose(order).reshape(-1) if len(flat) else array.reshape(-1)
        return utils._rebuild_tensor_v2, (
            *(Storage(stored), 0, array.shape, strides, False, hooks),
        )


class Storage:
    """Pickles as PyTorch's storages did before the zip format: a file within the file."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __reduce__(self) -> Any:
        return sys.modules["torch.storage"]._load_from_bytes, (storage_bytes(self.array),)


def storage_bytes(array: np.ndarray, count: int | None = None) -> bytes:
    """The legacy format; `count` is a lie about the number of elements."""
    kind = getattr(
        sys.modules["torch"], {"f": "FloatStorage", "e": "HalfStorage"}[array.dtype.char]
    )
    count = array.size if count is None else count

    class WithStorage(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", kind, "1234", "cpu", count, None) if obj is array else None

    file = io.BytesIO()
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    for value in (0x1950A86A20F9469CFC6C, 1001, system):
        pickle.dump(value, file, protocol=2)
    WithStorage(file, protocol=2).dump(array)
    pickle.dump(["1234"], file, protocol=2)
    return file.getvalue() + count.to_bytes(8, "little") + array.tobytes()


class Module:
    """Pickles as one of NVIDIA's persistent modules."""

    def __init__(self, kind: str, attributes: dict[str, Any] | None = None):
        self.kind = kind
        self.state: dict[str, Any] = {
            "training": False,
            "_parameters": {},
            "_buffers": {},
            "_non_persistent_buffers_set": set(),
            "_forward_hooks": collections.OrderedDict(),
            "_modules": {},
            **(attributes or {}),
        }

    def __reduce__(self) -> Any:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE_TEXT,
            "class_name": self.kind,
            "state": self.state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


BUFFERS = ("w_avg", "noise_const", "resample_filter")


def torch_module(
    kind: str,
    arrays: dict[str, np.ndarray],
    kwargs: dict[str, Any],
    *,
    args: tuple[Any, ...] = (),
    attributes: dict[str, dict[str, Any]] | None = None,
) -> Module:
    """A network of nested modules.

    Args:
      kind: "Generator" or "Discriminator".
      arrays: by dotted name, in NVIDIA's layouts.
      kwargs: what the network was built with.
      args: the same, without names.
      attributes: of the modules, by their dotted paths.
    """
    attributes = attributes or {}
    root = Module(kind, {"_init_args": args, "_init_kwargs": kwargs} | attributes.get("", {}))
    for name, array in arrays.items():
        *path, last = name.split(".")
        module = root
        for depth, part in enumerate(path):
            here = ".".join(path[: depth + 1])
            children = module.state["_modules"]
            if part not in children:
                children[part] = Module("Layer", attributes.get(here))
            module = children[part]
        group = "_buffers" if last in BUFFERS else "_parameters"
        module.state[group][last] = Tensor(array, group == "_parameters")
    for path, values in attributes.items():
        module = root
        for part in path.split(".") if path else []:
            module = module.state["_modules"].setdefault(part, Module("Layer", values))
    return root


def torch_kwargs(config: Any) -> dict[str, Any]:
    """What a network of this config was built with, nothing left to a default."""
    shared = {
        "img_resolution": config.resolution,
        "img_channels": config.img_channels,
    }
    sizes = {"channel_base": config.channel_base, "channel_max": config.channel_max}
    mapping = (
        {
            "num_layers": config.mapping.num_layers,
            "embed_features": config.mapping.embed_features or None,
            "layer_features": config.mapping.layer_features,
            "activation": config.mapping.activation,
            "lr_multiplier": config.mapping.lr_multiplier,
        }
        if config.mapping
        else {}
    )
    taps = np.asarray(config.resample_filter).tolist()
    if isinstance(config, stylegan2.GeneratorConfig):
        return shared | {
            "z_dim": config.mapping.z_dim,
            "c_dim": config.mapping.c_dim,
            "w_dim": config.mapping.w_dim,
            "mapping_kwargs": easy(mapping | {"w_avg_beta": config.w_avg_beta}),
            "synthesis_kwargs": easy(
                sizes
                | {
                    "num_fp16_res": 2,
                    "architecture": config.architecture,
                    "resample_filter": taps,
                    "conv_clamp": config.conv_clamp,
                    "use_noise": config.use_noise,
                    "activation": config.activation,
                }
            ),
        }
    return (
        shared
        | sizes
        | {
            "c_dim": config.mapping.c_dim if config.mapping else 0,
            "cmap_dim": config.mapping.w_dim if config.mapping else None,
            "architecture": config.architecture,
            "conv_clamp": config.conv_clamp,
            "block_kwargs": easy({"activation": config.activation, "resample_filter": taps}),
            "mapping_kwargs": easy(mapping),
            "epilogue_kwargs": easy(
                {
                    "mbstd_group_size": config.mbstd_group_size,
                    "mbstd_num_channels": config.mbstd_num_channels,
                    "activation": config.epilogue_activation,
                }
            ),
        }
    )


def easy(values: dict[str, Any]) -> Any:
    """An EasyDict, as the options are in the published files."""
    return sys.modules["dnnlib.util"].EasyDict(values)


# TensorFlow


class Network:
    """Pickles as a TensorFlow network; the class is renamed while writing."""

    def __init__(self, state: dict[str, Any]):
        self.state = state

    def __getstate__(self) -> dict[str, Any]:
        return self.state


def tf_network(
    name: str,
    variables: dict[str, Any],
    kwargs: dict[str, Any],
    components: dict[str, Any] | None = None,
    version: int = 5,
) -> Any:
    """A network with its variables."""
    state = {
        "version": version,
        "name": name,
        "static_kwargs": easy(kwargs),
        "components": components or {},
        "build_module_src": SOURCE_TEXT,
        "build_func_name": name,
        "variables": [(key, np.asarray(value)) for key, value in variables.items()],
    }
    return sys.modules["dnnlib.tflib.network"].Network(state)


def tf_kwargs(config: Any) -> dict[str, Any]:
    """The static options of a TensorFlow network of this config."""
    mapping = config.mapping
    shared = {
        "num_channels": config.img_channels,
        "resolution": config.resolution,
        "label_size": mapping.c_dim if mapping else 0,
        "fmap_base": config.channel_base // 2,
        "fmap_max": config.channel_max,
        "architecture": config.architecture,
        "nonlinearity": config.activation,
        "conv_clamp": config.conv_clamp,
        "resample_kernel": np.asarray(config.resample_filter).tolist(),
    }
    if isinstance(config, stylegan2.GeneratorConfig):
        return shared | {
            "latent_size": mapping.z_dim,
            "dlatent_size": mapping.w_dim,
            "mapping_layers": mapping.num_layers,
            "mapping_fmaps": mapping.layer_features,
            "label_fmaps": mapping.embed_features or None,
            "mapping_lrmul": mapping.lr_multiplier,
            "use_noise": config.use_noise,
            "truncation_psi": 0.5,
        }
    shared |= {
        "mbstd_group_size": config.mbstd_group_size,
        "mbstd_num_features": config.mbstd_num_channels,
    }
    if mapping:
        shared |= {
            "mapping_layers": mapping.num_layers,
            "mapping_fmaps": mapping.w_dim,
            "mapping_lrmul": mapping.lr_multiplier,
        }
    return shared


def tf_variables(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays in NVIDIA's PyTorch names as TensorFlow's variables, by component ("" is the parent).

    Written from the description of the published files, the opposite way of the reader.
    """
    parts: dict[str, dict[str, np.ndarray]] = {"": {}, "synthesis": {}, "mapping": {}}
    generator = any(name.startswith("synthesis.") for name in arrays)
    for name, array in arrays.items():
        words = name.split(".")
        if name == "mapping.w_avg":
            parts[""]["dlatent_avg"] = array
        elif words[0] == "mapping":
            layer = "LabelEmbed" if words[1] == "embed" else words[1]
            layer = layer.replace("fc", "Dense" if generator else "Mapping")
            parts["mapping" if generator else ""][f"{layer}/{words[2]}"] = array.T
        elif words[0] == "synthesis":
            parts["synthesis"] |= _tf_generator_variable(words[1:], array)
        else:
            parts[""] |= _tf_discriminator_variable(words, array)
    return parts


def _tf_generator_variable(words: list[str], array: np.ndarray) -> dict[str, np.ndarray]:
    size = int(words[0][1:])
    scope = f"{size}x{size}"
    if words[1] == "const":
        return {f"{scope}/Const/const": array[None]}
    if words[2] == "noise_const":
        index = round(2 * math.log2(size)) - (5 if words[1] == "conv0" else 4)
        return {f"noise{index}": array[None, None]}
    names = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB", "skip": "Skip"}
    layer = f"{scope}/{'Conv' if scope == '4x4' and words[1] == 'conv1' else names[words[1]]}"
    if words[2] == "affine":
        value = array.T if words[3] == "weight" else array - np.float32(1)
        return {f"{layer}/mod_{words[3]}": value}
    if words[2] == "weight":
        array = array.transpose(2, 3, 1, 0)
        if words[1] in ("conv0", "skip"):
            array = array[::-1, ::-1]
    return {f"{layer}/{words[2]}": array}


def _tf_discriminator_variable(words: list[str], array: np.ndarray) -> dict[str, np.ndarray]:
    size = int(words[0][1:])
    names = {
        **{"fromrgb": "FromRGB", "conv0": "Conv0", "conv1": "Conv1_down", "skip": "Skip"},
        **{"conv": "Conv", "fc": "Dense0"},
    }
    layer = "Output" if words[1] == "out" else f"{size}x{size}/{names[words[1]]}"
    if words[2] == "weight":
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return {f"{layer}/{words[2]}": array}


# Files


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Modules of the names that the published files use, while something is being written."""

    def function(module: str, name: str) -> Any:
        def stand_in(*_: Any) -> None:
            raise RuntimeError("nobody calls this: a file is only written")

        stand_in.__module__, stand_in.__qualname__ = module, name
        return stand_in

    def kind(module: str, name: str, *bases: type) -> Any:
        return type(name, bases, {"__module__": module, "__qualname__": name})

    contents = {
        "torch": {
            name: kind("torch", name, object)
            for name in ("FloatStorage", "HalfStorage", "QInt8Storage")
        },
        "torch._utils": {
            name: function("torch._utils", name)
            for name in ("_rebuild_tensor_v2", "_rebuild_parameter")
        },
        "torch.storage": {"_load_from_bytes": function("torch.storage", "_load_from_bytes")},
        "torch_utils": {},
        "torch_utils.persistence": {
            "_reconstruct_persistent_obj": function(
                "torch_utils.persistence", "_reconstruct_persistent_obj"
            )
        },
        "dnnlib": {},
        "dnnlib.util": {"EasyDict": kind("dnnlib.util", "EasyDict", dict)},
        "dnnlib.tflib": {},
        "dnnlib.tflib.network": {"Network": kind("dnnlib.tflib.network", "Network", Network)},
    }
    before = {name: sys.modules.get(name) for name in contents}
    for name, values in contents.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_torch(
    path: Path,
    configs: dict[str, Any],
    arrays: dict[str, dict[str, np.ndarray]],
    protocol: int = 4,
) -> Path:
    """A file of the PyTorch family that says everything in its options."""
    with stand_ins():
        networks = {
            name: torch_module(
                "Discriminator" if name == "D" else "Generator",
                arrays[name],
                torch_kwargs(config),
            )
            for name, config in configs.items()
        }
        value = {"training_set_kwargs": easy({"path": "x.zip"}), **networks, "augment_pipe": None}
        path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def write_tensorflow(
    path: Path,
    configs: dict[str, Any],
    arrays: dict[str, dict[str, np.ndarray]],
    protocol: int = 3,
) -> Path:
    """A file of the TensorFlow family."""
    with stand_ins():
        networks = []
        for name in ("G", "D", "G_ema"):
            variables, kwargs = tf_variables(arrays[name]), tf_kwargs(configs[name])
            components = {
                part: tf_network(part, variables[part], kwargs)
                for part in ("synthesis", "mapping")
                if name != "D"
            }
            networks.append(tf_network(name, variables[""], kwargs, components))
        path.write_bytes(pickle.dumps(tuple(networks), protocol=protocol))
    return path
