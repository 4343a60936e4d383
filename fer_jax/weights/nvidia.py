"""NVIDIA's StyleGAN2 network files as data: a config and arrays for each network in them.

There are two families: dicts of PyTorch modules (StyleGAN2-ADA and later), which keep the
options they were built with and every layer's own attributes; and TensorFlow tuples (G, D, Gs),
which keep the options that differed from the defaults of their time. Both are returned in the
names and layouts of the PyTorch family: convolutions [out, in, height, width], dense weights
[out, in].
"""

import dataclasses
import functools
import operator
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fer_jax.errors import InputError, did_you_mean
from fer_jax.models import stylegan2
from fer_jax.weights import pickles

NAMES = ("G_ema", "G", "D")
# A published 1024 px network has about 80 modules with at most 30 entries and short names. A
# hostile file can let the same few modules contain each other a million times.
MAX_MODULES = 2000
MAX_ENTRIES = 1000
MAX_NAME = 100
# Every layer has a filter; those of layers that do not resample are not used.
_IGNORED = re.compile(r".*\.resample_filter")
_OPTIONAL_INT, _OPTIONAL_FLOAT = (int, type(None)), (float, type(None))

Config = stylegan2.GeneratorConfig | stylegan2.DiscriminatorConfig


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a file."""

    config: Config  # everything but the arrays
    # Float32, by the dotted names of `stylegan2.shapes`, in NVIDIA's layouts; read-only views of
    # the file where its layout allows it.
    arrays: dict[str, np.ndarray]


def read_networks(path: Path, names: tuple[str, ...] = ()) -> dict[str, Network]:
    """Reads some of `NAMES` (empty: all that there are) of a file without running anything in it.

    Raises InputError: not such a file, a missing network or one that is not a StyleGAN2, parameters
    that are missing or superfluous: one line.
    """
    root = pickles.read_pickle(path)
    try:
        found = _networks(root)
        names = names or tuple(name for name in NAMES if name in found)
        for name in names:
            if name not in found:
                raise InputError(f"has no network {name}{did_you_mean(name, found)}")
        if not names:
            raise InputError("is a pickle, but has no network G, D or G_ema")
        return {name: _network(name, found[name]) for name in names}
    except InputError as error:
        raise InputError(f"'{path}' {error}") from error


def to_our_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Converts an array of `stylegan2.shapes` from NVIDIA's layout to this project's, as a view.

    [out, in, height, width] becomes [height, width, in, out], [out, in] [in, out], a constant
    [channels, 4, 4] [1, 4, 4, channels], noise [h, w] [1, h, w, 1]; others stay as they are.
    """
    if name.endswith(".const") and array.ndim == 3:
        return array.transpose(1, 2, 0)[None]
    if name.endswith(".noise_const") and array.ndim == 2:
        return array[None, :, :, None]
    if name.endswith(".weight"):
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return array


def to_their_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Does the inverse of `to_our_layout`."""
    if name.endswith(".const"):
        return array[0].transpose(2, 0, 1)
    if name.endswith(".noise_const"):
        return array[0, :, :, 0]
    if name.endswith(".weight"):
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return array


def from_trees(config: Config, params: Mapping[str, Any], buffers: Mapping[str, Any]) -> Network:
    """Does the inverse of `to_trees`; a discriminator's buffers are empty."""
    arrays = {}
    for name in stylegan2.shapes(config):
        *blocks, last = name.split(".")
        if last == "w_avg":
            value = buffers["w_avg"]
        elif last == "noise_const":
            value = buffers["noise"]["_".join(blocks[1:])]
        else:
            value = functools.reduce(operator.getitem, [*blocks, last], params)
        arrays[name] = to_their_layout(name, np.asarray(value))
    return checked(config, arrays)


def to_trees(network: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a network's arrays as `fer_jax.models.stylegan2` takes them: (params, buffers).

    Params are nested by the dots in the names: "mapping" and "synthesis" of a generator, "mapping",
    "b64", "b32", ... of a discriminator. Buffers are, of a generator that has them, "w_avg" [w_dim]
    and "noise" with "b4_conv1" [1, 4, 4, 1] and so on.
    """
    params: dict[str, Any] = {}
    buffers: dict[str, Any] = {"noise": {}}
    for name, array in network.arrays.items():
        value = jnp.asarray(to_our_layout(name, array))
        *blocks, last = name.split(".")
        if last == "w_avg":
            buffers["w_avg"] = value
        elif last == "noise_const":
            buffers["noise"]["_".join(blocks[1:])] = value
        else:
            node = params
            for block in blocks:
                node = node.setdefault(block, {})
            node[last] = value
    return params, buffers


def _networks(root: Any) -> dict[str, pickles.Object]:
    if isinstance(root, dict):
        return {
            name: root[name]
            for name in NAMES
            if isinstance(root.get(name), pickles.Object) and root[name].state is not None
        }
    if isinstance(root, tuple) and len(root) == 3:
        named: dict[str, Any] = dict(zip(("G", "D", "G_ema"), root, strict=True))
        if all(isinstance(value, pickles.Object) for value in named.values()):
            return named
    raise InputError("is a pickle, but neither a dict nor a triple of networks")


def _network(name: str, value: pickles.Object) -> Network:
    try:
        if value.name == pickles.PERSISTENT:
            return checked(*_from_torch(name, value))
        if value.name == pickles.NETWORK:
            return checked(*_from_tensorflow(name, value))
        raise InputError("is no network")
    except InputError as error:
        raise InputError(f"({name}) {error}") from error


def checked(config: Config, arrays: dict[str, np.ndarray]) -> Network:
    """Returns a network of exactly the arrays that its config requires, as float32, or raises."""
    arrays, found = dict(arrays), {}
    for name, shape in stylegan2.shapes(config).items():
        array = arrays.pop(name, None)
        if array is None:
            raise InputError(f"lacks the parameters {name}")
        if to_our_layout(name, array).shape != shape:
            raise InputError(
                f"has {name} of shape {array.shape}, which its options do not make: a "
                f"{config.resolution} px network with at most {config.channel_max} channels"
            )
        if array.dtype.kind != "f":
            raise InputError(f"has {name} of type {array.dtype}, not floating point")
        if not np.isfinite(array).all():
            raise InputError(f"has numbers in {name} that are not finite")
        found[name] = array
    if len({id(array) for array in found.values()}) < len(found):
        raise InputError("uses the same array for several parameters")
    for name in arrays:
        if not _IGNORED.fullmatch(name):
            raise InputError(f"has parameters that StyleGAN2 does not: {_shown(name)}")
    return Network(config, {name: a.astype(np.float32, copy=False) for name, a in found.items()})


@dataclasses.dataclass
class _Module:
    kind: str
    attributes: dict[str, Any]
    arrays: dict[str, np.ndarray]


class _Options:
    """Options of a network that are taken one by one; what is left at the end is refused.

    The layers of a PyTorch network (`modules`) have attributes, which take precedence: the same
    option had other defaults in later versions of NVIDIA's code, and every layer keeps its own.
    """

    def __init__(self, options: Any, where: str, modules: dict[str, _Module] | None = None):
        if not isinstance(options, dict):
            raise InputError(f"has no readable {where}")
        self.options = dict(options)
        self.where = where
        self.modules = modules or {}

    def take(
        self, name: str, default: Any, *kinds: type, layers: str = "", attribute: str = ""
    ) -> Any:
        """Returns an option of one of the kinds (default: the default's).

        With `layers`, a pattern of paths, the attribute that these layers have in common
        (default: of the option's name) is returned instead if there is one.
        """
        kinds, attribute = kinds or (type(default),), attribute or name
        option = _typed(self.options.pop(name, default), f"{self.where} {name}", kinds)
        values = [
            _typed(module.attributes[attribute], f"layer {path}: {attribute}", kinds)
            for path, module in self._layers(layers)
            if attribute in module.attributes
        ]
        if any(value != values[0] for value in values):
            raise InputError(f"has layers of different {attribute}, which is not supported")
        return values[0] if values else option

    def _layers(self, pattern: str) -> Iterator[tuple[str, _Module]]:
        if pattern:
            for path, module in self.modules.items():
                if re.fullmatch(pattern, path):
                    yield path, module

    def block(self, name: str) -> "_Options":
        """Returns the options within an option."""
        return _Options(self.options.pop(name, {}), name, self.modules)

    def filter(self, name: str, none: list[float], layers: str = "") -> stylegan2.Filter:
        """Returns the low-pass filter of the layers that resample, else of the option.

        `none` is what None in the option means.
        """
        value = self.options.pop(name, [1, 3, 3, 1])
        array = pickles.as_array(value)
        option = _filter(none if value is None else value if array is None else array)
        filters = [
            module.arrays["resample_filter"]
            for _, module in self._layers(layers)
            if "resample_filter" in module.arrays
        ]
        if any(not np.array_equal(taps, filters[0]) for taps in filters):
            raise InputError("has layers of different resample_filter, which is not supported")
        return _filter(filters[0]) if filters else option

    def ignore(self, *names: str) -> None:
        """Drops options that change no number in float32."""
        for name in names:
            self.options.pop(name, None)

    def square(self, resolution: int) -> None:
        """Takes width and height, which some forks add; they must be the resolution."""
        for name in ("resolution_w", "resolution_h"):
            side = self.take(name, resolution)
            if side != resolution:
                raise InputError(
                    f"has {self.where} {name}={side} beside the resolution {resolution}; images "
                    "must be square"
                )

    def finish(self) -> None:
        """Refuses options that were not taken."""
        for name, value in self.options.items():
            raise InputError(
                f"has {self.where} {_shown(name)}={_shown(value)}, which StyleGAN2 does not have"
            )


def _typed(value: Any, what: str, kinds: tuple[type, ...]) -> Any:
    """Returns a value of one of the kinds; NumPy's numbers and integral floats are converted."""
    if isinstance(value, (np.ndarray, pickles.Object)):
        array = pickles.as_array(value)
        if array is not None and array.ndim == 0:
            value = array.item()
    if float in kinds and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if int in kinds and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) not in kinds:
        words = {type(None): "None", str: "text", bool: "true or false"}
        expected = " or ".join(words.get(kind, kind.__name__) for kind in kinds)
        raise InputError(f"has {what}={_shown(value)}, which should be {expected}")
    return value


def _filter(value: Any) -> stylegan2.Filter:
    """Returns taps for both axes, or rows of a 2-d filter that is not the same along both."""
    limit = stylegan2.MAX_TAPS
    if isinstance(value, (list, tuple)):
        # Measured before NumPy unfolds them: a few lists that contain each other can be huge.
        rows = [row if isinstance(row, (list, tuple)) else [row] for row in value[: limit + 1]]
        numbers = [type(tap) in (int, float) for row in rows for tap in row[: limit + 1]]
        if not all(numbers) or len(rows) > limit or any(len(row) > limit for row in rows):
            raise InputError(f"has a resample filter that is not at most {limit} numbers a side")
    try:
        taps = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"has a resample filter {_shown(value)}") from error
    if taps.ndim > 2 or max(taps.shape) > limit:
        raise InputError(f"has a resample filter of shape {taps.shape}")
    if taps.ndim == 2 and np.isfinite(taps).all() and abs(taps.sum()) > 1e-6:
        taps = taps / taps.sum()
        rows = taps.sum(1)
        if taps.shape[0] != taps.shape[1] or not np.allclose(taps, np.outer(rows, rows), atol=1e-7):
            return tuple(tuple(row) for row in taps.tolist())
        taps = rows
    return tuple(taps.tolist())


def _shown(value: Any) -> str:
    # Text of the file may be long and may have line ends.
    if isinstance(value, str):
        return repr(value[:80])
    return repr(value) if isinstance(value, (int, float)) else type(value).__name__


# PyTorch


def _modules(root: pickles.Object) -> dict[str, _Module]:
    """Returns every module by its dotted path; the network itself is ""."""
    modules: dict[str, _Module] = {}
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if not isinstance(value, pickles.Object) or value.name != pickles.PERSISTENT:
            raise InputError(f"has a module {_shown(path)} that is not NVIDIA's")
        kind, state = value.state.get("class_name"), value.state.get("state")
        if not isinstance(kind, str) or not isinstance(state, dict):
            raise InputError(f"has a module {_shown(path)} without class_name or state")
        arrays = {}
        # A layer that was frozen in training has its weights among the buffers.
        for group in ("_parameters", "_buffers"):
            for name, entry in _entries(state, group, path):
                array = pickles.as_array(entry)
                if entry is not None and array is None:
                    raise InputError(f"has {_shown(path)} with {_shown(name)} that is no array")
                if array is not None:
                    arrays[name] = array
        modules[path] = _Module(kind, state, arrays)
        for name, child in _entries(state, "_modules", path):
            if child is not None:
                waiting.append((f"{path}.{name}" if path else name, child))
        if len(modules) + len(waiting) > MAX_MODULES:
            raise InputError(f"has more than {MAX_MODULES} modules")
    return modules


def _entries(state: dict[str, Any], group: str, path: str) -> Iterator[tuple[str, Any]]:
    entries = state.get(group)
    if not isinstance(entries, dict) or len(entries) > MAX_ENTRIES:
        raise InputError(f"has a module {_shown(path)} without readable {group}")
    for name, entry in entries.items():
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise InputError(f"has a module {_shown(path)} with a name {_shown(name)}")
        yield name, entry


def _from_torch(name: str, value: pickles.Object) -> tuple[Config, dict[str, np.ndarray]]:
    if _is_stylegan3(value):
        raise InputError("is a StyleGAN3 network; only StyleGAN2 can be read")
    modules = _modules(value)
    expected = "Discriminator" if name == "D" else "Generator"
    if modules[""].kind != expected:
        raise InputError(f"is a {_shown(modules[''].kind)}, not StyleGAN2's {expected}")
    config = _torch_discriminator(modules) if name == "D" else _torch_generator(modules)
    arrays = {
        f"{path}.{name}" if path else name: array
        for path, module in modules.items()
        for name, array in module.arrays.items()
    }
    return config, arrays


def _is_stylegan3(value: pickles.Object) -> bool:
    """Whether the source text in the file (read, never run) or its first module says so."""
    node: Any = value
    for step in ("state", "_modules", "synthesis", "state", "_modules"):
        meta = node.state if isinstance(node, pickles.Object) else node
        if not isinstance(meta, dict):
            return False
        text = meta.get("module_src")
        if isinstance(text, str) and "class SynthesisInput" in text:
            return True
        node = meta.get(step)
    return isinstance(node, dict) and "input" in node


def _init_options(modules: dict[str, _Module], positional: tuple[str, ...]) -> _Options:
    """Returns the network's constructor arguments; the first may have been given without names."""
    attributes = modules[""].attributes
    options = _Options(attributes.get("_init_kwargs"), "option", modules)
    arguments = attributes.get("_init_args", ())
    if not isinstance(arguments, (tuple, list)) or len(arguments) > len(positional):
        raise InputError("has _init_args that are not StyleGAN2's")
    options.options |= dict(zip(positional, arguments, strict=False))
    return options


def _torch_mapping(
    options: _Options, z_dim: int, c_dim: int, w_dim: int
) -> stylegan2.MappingConfig:
    embed = options.take("embed_features", None, *_OPTIONAL_INT)
    hidden = options.take("layer_features", None, *_OPTIONAL_INT)
    layers = r"mapping\.fc\d+"
    return stylegan2.MappingConfig(
        z_dim=z_dim,
        c_dim=c_dim,
        w_dim=w_dim,
        num_layers=options.take("num_layers", 8),
        embed_features=0 if not c_dim else w_dim if embed is None else embed,
        layer_features=w_dim if hidden is None else hidden,
        activation=options.take("activation", "lrelu", layers=layers),
        lr_multiplier=options.take("lr_multiplier", 0.01, layers=layers, attribute="bias_gain"),
    )


def _torch_generator(modules: dict[str, _Module]) -> stylegan2.GeneratorConfig:
    positional = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
    options = _init_options(modules, (*positional, "mapping_kwargs", "synthesis_kwargs"))
    z_dim, c_dim, w_dim, resolution, img_channels = (
        options.take(name, None, int) for name in positional
    )
    mapping, synthesis = options.block("mapping_kwargs"), options.block("synthesis_kwargs")
    # Files of StyleGAN3's code, which writes StyleGAN2 too, have these options one level up.
    synthesis.options |= options.options
    block = r"synthesis\.b\d+"
    convolutions, layers = rf"{block}\.conv\d", rf"{block}\.(conv\d|torgb)"
    config = stylegan2.GeneratorConfig(
        w_avg_beta=mapping.take("w_avg_beta", 0.995, *_OPTIONAL_FLOAT, layers="mapping"),
        mapping=_torch_mapping(mapping, z_dim, c_dim, w_dim),
        resolution=resolution,
        img_channels=img_channels,
        channel_base=synthesis.take("channel_base", 32768),
        channel_max=synthesis.take("channel_max", 512),
        architecture=synthesis.take("architecture", "skip", layers=block),
        activation=synthesis.take("activation", "lrelu", layers=convolutions),
        conv_clamp=synthesis.take("conv_clamp", None, *_OPTIONAL_FLOAT, layers=layers),
        use_noise=synthesis.take("use_noise", True, layers=convolutions),
        resample_filter=synthesis.filter("resample_filter", [1], rf"{block}(\.(conv0|skip))?"),
    )
    mapping.finish()
    synthesis.square(resolution)
    synthesis.ignore("num_fp16_res", "use_fp16", "fp16_channels_last", "channels_last")
    synthesis.ignore("fused_modconv_default")
    synthesis.finish()
    return config


def _torch_discriminator(modules: dict[str, _Module]) -> stylegan2.DiscriminatorConfig:
    named = ("c_dim", "img_resolution", "img_channels")
    options = _init_options(
        modules,
        (
            *(*named, "architecture", "channel_base", "channel_max", "num_fp16_res"),
            *("conv_clamp", "cmap_dim", "block_kwargs", "mapping_kwargs", "epilogue_kwargs"),
        ),
    )
    c_dim, resolution, img_channels = (options.take(name, None, int) for name in named)
    channel_base = options.take("channel_base", 32768)
    channel_max = options.take("channel_max", 512)
    cmap_dim = options.take("cmap_dim", None, *_OPTIONAL_INT)
    blocks, epilogue = options.block("block_kwargs"), options.block("epilogue_kwargs")
    mapping = options.block("mapping_kwargs")
    convolutions, deviation = r"b\d+\.(conv\d|conv)", r"b4\.mbstd"
    if cmap_dim is None:
        cmap_dim = min(channel_base // 4, channel_max)
    projection = None
    if c_dim:
        projection = _torch_mapping(mapping, 0, c_dim, cmap_dim)
        mapping.finish()
    config = stylegan2.DiscriminatorConfig(
        mapping=projection,
        resolution=resolution,
        img_channels=img_channels,
        channel_base=channel_base,
        channel_max=channel_max,
        architecture=options.take("architecture", "resnet", layers=r"b\d+"),
        activation=blocks.take("activation", "lrelu", layers=r"b\d+\.conv\d"),
        conv_clamp=options.take("conv_clamp", None, *_OPTIONAL_FLOAT, layers=convolutions),
        resample_filter=blocks.filter("resample_filter", [1], r"b\d+(\.(conv1|skip))?"),
        epilogue_activation=epilogue.take("activation", "lrelu", layers=r"b4\.(conv|fc)"),
        mbstd_group_size=epilogue.take(
            "mbstd_group_size", 4, *_OPTIONAL_INT, layers=deviation, attribute="group_size"
        ),
        mbstd_num_channels=epilogue.take(
            "mbstd_num_channels", 1, layers=deviation, attribute="num_channels"
        ),
    )
    options.square(resolution)
    options.ignore("num_fp16_res")
    blocks.ignore("freeze_layers", "use_fp16", "fp16_channels_last")
    for one in (options, blocks, epilogue):
        one.finish()
    return config


# TensorFlow

_LAYERS = {
    **{"conv": "Conv", "conv0": "Conv0", "conv1": "Conv1", "fc": "Dense0"},
    **{"torgb": "ToRGB", "fromrgb": "FromRGB", "skip": "Skip"},
}
# Options that change nothing in what is computed here.
_TF_IGNORED = (
    *("num_fp16_res", "dtype", "fused_modconv", "randomize_noise", "structure"),
    *("truncation_psi", "truncation_cutoff", "truncation_psi_val", "truncation_cutoff_val"),
    *("style_mixing_prob", "is_training", "is_validation", "is_template_graph"),
    *("return_dlatents", "force_clean_graph", "mapping_func", "synthesis_func"),
    *("freeze_layers", "nonfp16_channels_last", "fp16_channels_last"),
)


def _from_tensorflow(name: str, value: pickles.Object) -> tuple[Config, dict[str, np.ndarray]]:
    state = _tf_state(value, name)
    variables = _tf_variables(state)
    if name == "D":
        options = _Options(state["static_kwargs"], "option")
        config = _tf_discriminator(options, state["version"])
    else:
        for part in ("synthesis", "mapping"):
            component = _tf_state(state["components"].get(part), part)
            # A component has the network's options and perhaps its own.
            state["static_kwargs"] = state["static_kwargs"] | component["static_kwargs"]
            variables |= _tf_variables(component, f"{part}/")
        options = _Options(state["static_kwargs"], "option")
        config = _tf_generator(options)
    for option, neutral in (
        ("fmap_decay", (1.0,)),
        ("fmap_min", (1, 0)),
        ("normalize_latents", (True,)),
        ("use_spectral_norm", (False,)),
    ):
        value = options.take(option, neutral[0])
        if value not in neutral:
            raise InputError(f"has option {option}={_shown(value)}, which is not supported")
    options.ignore(*_TF_IGNORED)
    options.finish()
    arrays = {}
    for published in stylegan2.shapes(config):
        source = _tf_name(published, name == "D")
        if source not in variables:
            raise InputError(f"lacks the variable {source}")
        arrays[published] = _tf_array(published, source, variables.pop(source))
    variables.pop("lod", None)
    if variables:
        raise InputError(f"has a variable that StyleGAN2 does not: {_shown(min(variables))}")
    return config, arrays


def _tf_state(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, pickles.Object) or value.name != pickles.NETWORK:
        raise InputError(f"has no network {what}")
    state = value.state
    fields = {"version": int, "static_kwargs": dict, "components": dict, "variables": list}
    for field, kind in fields.items():
        if not isinstance(state, dict) or not isinstance(state.get(field), kind):
            raise InputError(f"has a network {what} without {field}")
    if state["version"] < 4:
        raise InputError(f"is of version {state['version']}, older than StyleGAN2")
    return dict(state)


def _tf_variables(state: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    variables = {}
    for entry in state["variables"]:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2 or type(entry[0]) is not str:
            raise InputError("has a variable that is not a name and an array")
        array = pickles.as_array(entry[1])
        if array is None:
            raise InputError(f"has a variable {_shown(entry[0])} that is no array")
        variables[prefix + entry[0]] = array
    return variables


def _tf_shared(options: _Options) -> dict[str, Any]:
    """Takes the options of both networks, with the defaults of their time."""
    resolution = options.take("resolution", 1024)
    options.square(resolution)
    return {
        "resolution": resolution,
        "img_channels": options.take("num_channels", 3),
        "channel_base": options.take("fmap_base", 16384) * 2,
        "channel_max": options.take("fmap_max", 512),
        "activation": options.take("nonlinearity", "lrelu"),
        "conv_clamp": options.take("conv_clamp", None, *_OPTIONAL_FLOAT),
        "resample_filter": options.filter("resample_kernel", [1, 1]),
    }


def _tf_generator(options: _Options) -> stylegan2.GeneratorConfig:
    c_dim, w_dim = options.take("label_size", 0), options.take("dlatent_size", 512)
    embed = options.take("label_fmaps", None, *_OPTIONAL_INT)
    hidden = options.take("mapping_fmaps", None, *_OPTIONAL_INT)
    options.ignore("dlatent_broadcast")
    mapping = stylegan2.MappingConfig(
        z_dim=options.take("latent_size", 512),
        c_dim=c_dim,
        w_dim=w_dim,
        num_layers=options.take("mapping_layers", 8),
        embed_features=0 if not c_dim else w_dim if embed is None else embed,
        layer_features=w_dim if hidden is None else hidden,
        activation=options.take("mapping_nonlinearity", "lrelu"),
        lr_multiplier=options.take("mapping_lrmul", 0.01),
    )
    return stylegan2.GeneratorConfig(
        **_tf_shared(options),
        mapping=mapping,
        architecture=options.take("architecture", "skip"),
        use_noise=options.take("use_noise", True),
        # Without a beta the mean exists, but does not move.
        w_avg_beta=options.take("dlatent_avg_beta", 0.995, *_OPTIONAL_FLOAT) or 1.0,
    )


def _tf_discriminator(options: _Options, version: int) -> stylegan2.DiscriminatorConfig:
    shared = _tf_shared(options)
    c_dim = options.take("label_size", 0)
    features = options.take("mapping_fmaps", None, *_OPTIONAL_INT)
    if features is None:
        features = min(shared["channel_base"] // 4, shared["channel_max"])
    num_layers = options.take("mapping_layers", 0)
    lr_multiplier = options.take("mapping_lrmul", 0.1)
    # From version 5 on the whole batch is one group, unless the options say otherwise.
    group_size = options.take("mbstd_group_size", 4 if version < 5 else None, *_OPTIONAL_INT)
    num_channels = options.take("mbstd_num_features", 1)
    if group_size is not None and group_size < 2 and version < 5:
        group_size, num_channels = None, 0
    mapping = None
    if c_dim:
        mapping = stylegan2.MappingConfig(
            z_dim=0,
            c_dim=c_dim,
            w_dim=features,
            num_layers=num_layers,
            embed_features=features,
            layer_features=features,
            activation=shared["activation"],
            lr_multiplier=lr_multiplier,
        )
    return stylegan2.DiscriminatorConfig(
        **shared,
        mapping=mapping,
        architecture=options.take("architecture", "resnet"),
        epilogue_activation=shared["activation"],
        mbstd_group_size=group_size,
        mbstd_num_channels=num_channels,
    )


def _tf_name(published: str, discriminator: bool) -> str:
    if published == "mapping.w_avg":
        return "dlatent_avg"
    *blocks, layer, field = published.split(".")
    mapping, synthesis = ("", "") if discriminator else ("mapping/", "synthesis/")
    if blocks == ["mapping"]:
        dense = "Mapping" if discriminator else "Dense"
        name = "LabelEmbed" if layer == "embed" else layer.replace("fc", dense)
        return f"{mapping}{name}/{field}"
    if layer == "out":
        return f"Output/{field}"
    if layer == "b4" and field == "const":
        return "synthesis/4x4/Const/const"
    if layer == "affine":
        layer, field = blocks.pop(), f"mod_{field}"
    size = int(blocks[-1][1:])
    if field == "noise_const":
        power = size.bit_length() - 1
        return f"{synthesis}noise{2 * power - (5 if layer == 'conv0' else 4)}"
    names = _LAYERS | ({"conv1": "Conv1_down"} if discriminator else {"conv0": "Conv0_up"})
    name = "Conv" if (layer, size, discriminator) == ("conv1", 4, False) else names[layer]
    return f"{synthesis}{size}x{size}/{name}/{field}"


def _tf_array(published: str, source: str, array: np.ndarray) -> np.ndarray:
    if published.endswith(".affine.bias"):
        return array + np.float32(1)  # TensorFlow's layers add the 1 themselves
    if published.endswith(".const") and array.ndim == 4:
        return array[0]
    if published.endswith(".noise_const") and array.ndim == 4:
        return array[0, 0]
    if published.endswith(".weight") and array.ndim == 4:
        if source.endswith("Conv0_up/weight"):
            array = array[::-1, ::-1]
        return array.transpose(3, 2, 0, 1)
    return array.T if published.endswith(".weight") else array
