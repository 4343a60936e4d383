"""Reads a pickle as data: an interpreter that builds containers and arrays, and runs nothing.

A pickle is a program for a stack machine, and Python's own reader imports and calls what it names.
Here a global is only a name; a few stand for containers and arrays (of PyTorch, NumPy and NVIDIA's
libraries) and are interpreted below, and a call of any other ends the reading. What is built is
never larger than the file.
"""

import dataclasses
import io
import math
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fer_jax.errors import InputError

# A published 1024 px file has about 60,000 and nests about 20 deep. An instruction is as short
# as one byte and can make an object of 200.
MAX_INSTRUCTIONS = 300_000
MAX_DEPTH = 100
MAX_DIMENSIONS = 8
MAX_NAME = 200
MAX_BITS = 80  # PyTorch's magic number has 77

# Classes whose instances are returned as `Object`.
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
NETWORK = "dnnlib.tflib.network.Network"

_BEGINNINGS = {
    b"\x1f\x8b": "is gzip-ed; unpack it first (gunzip)",
    b"PK\x03\x04": "is a zip archive (PyTorch's newer format?), not one of NVIDIA's pickles",
    b"\x89HDF": "is an HDF5 file, not one of NVIDIA's pickles",
    b"<": "is an HTML page, not a network: the server sent a page instead of the file",
    b"version https://git-lfs": "is a Git LFS pointer, not the file that it points to",
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9": "is a PyTorch checkpoint, not one of NVIDIA's pickles",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_EMPTIES = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_NUMBERED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "|b1",
}
_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001
_TRUNCATED = "ends in the middle: it was not downloaded completely"


@dataclasses.dataclass(frozen=True)
class Name:
    """A global of the pickle, which is never looked up."""

    dotted: str


@dataclasses.dataclass(eq=False)
class Object:
    """An instance: the name of its class, and its state as data."""

    name: str
    state: Any = None


class _Refused(Exception):
    """What is wrong with the pickle; `read_pickle` adds the file and the place."""


def read_pickle(path: Path) -> Any:
    """Reads a pickle of protocol 2 to 5, as NVIDIA's network files are.

    Returns Python's dicts, lists, tuples, sets, strings, bytes, numbers and None. PyTorch's tensors
    are read-only `np.ndarray`, NumPy's arrays too after `as_array`, neither of them copied.
    Instances are `Object` of the class `PERSISTENT` (with the meta dict of NVIDIA's PyTorch
    modules) or `NETWORK` (with the state of a TensorFlow network); classes are `Name`. Raises
    InputError: no such file, another kind of file, or a pickle that is damaged or asks for anything
    else, with the byte.
    """
    if not path.is_file():
        raise InputError(f"no network file '{path}'")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64).lstrip()
        for beginning, what in _BEGINNINGS.items():
            if start.startswith(beginning):
                raise InputError(f"'{path}' {what}")
        if not size:
            raise InputError(f"'{path}' is empty")
        if not start.startswith(b"\x80"):
            raise InputError(f"'{path}' is not a pickle, so not one of NVIDIA's network files")
        file.seek(0)
        machine = _Machine(size)
        try:
            root = machine.run(_Bounded(file, size))
            _check_depth(root)
        except _Refused as error:
            raise InputError(f"'{path}' {error} (byte {machine.position})") from error
    return root


def as_array(value: Any) -> np.ndarray | None:
    """Returns a tensor, a NumPy array or a number of the pickle as an array, else None."""
    if isinstance(value, Object) and value.name == "numpy.ndarray":
        value = value.state
    if isinstance(value, (int, float)):
        value = np.asarray(value)
    return value if isinstance(value, np.ndarray) else None


class _Bounded:
    """A file of `size` bytes; reading more, and so allocating it, is refused."""

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.size = size
        self.tell = file.tell

    def read(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise _Refused(_TRUNCATED)
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise _Refused(_TRUNCATED)
        return line


class _Machine:
    """The stack machine; `position` is the byte of the current instruction."""

    def __init__(self, size: int):
        self.position = 0
        self.instructions_left = MAX_INSTRUCTIONS
        self.left = {"arrays": size, "copies": size}  # bytes that may still be built
        self.calls: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": lambda: {},
            "builtins.set": self._set,
            "builtins.bytes": lambda: b"",
            "_codecs.encode": self._encoded,
            PERSISTENT: _persistent,
            "numpy.dtype": _dtype,
            "numpy.core.multiarray._reconstruct": _unfinished_array,
            "numpy.core.multiarray.scalar": lambda dtype, data: self._array(data, dtype, (), "C"),
            "numpy.core.numeric._frombuffer": self._buffered_array,
            "torch.storage._load_from_bytes": self._storage,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": _parameter,
        }

    def run(self, file: Any, persistent: Callable[[Any], Any] | None = None) -> Any:
        """Interprets one pickle up to its STOP; `persistent` resolves persistent ids."""
        stack: list[Any] = []
        marked: list[list[Any]] = []
        memo: dict[int, Any] = {}

        def pop(count: int = 1) -> list[Any]:
            if len(stack) < count:
                raise _Refused("is a damaged pickle: its stack is empty")
            taken = stack[-count:]
            del stack[-count:]
            return taken

        for name, argument in self._instructions(file, nested=persistent is not None):
            if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                    raise _Refused(f"has a whole number of more than {MAX_BITS} bits")
                stack.append(argument)
            elif name in _EMPTIES:
                stack.append(_EMPTIES[name]())
            elif name in _NUMBERED_TUPLES:
                stack.append(tuple(pop(_NUMBERED_TUPLES[name])))
            elif name == "MARK":
                marked.append(stack)
                stack = []
            elif name in ("TUPLE", "SETITEMS", "APPENDS", "ADDITEMS"):
                if not marked:
                    raise _Refused("is a damaged pickle: a mark is missing")
                items, stack = stack, marked.pop()
                if name == "TUPLE":
                    stack.append(tuple(items))
                else:
                    stack.append(_extended(pop()[0], items, name))
            elif name in ("SETITEM", "APPEND"):
                items = pop(2 if name == "SETITEM" else 1)
                stack.append(_extended(pop()[0], items, f"{name}S"))
            elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
                stack.extend(top := pop())
                memo[len(memo) if argument is None else argument] = top[0]
            elif name in ("BINGET", "LONG_BINGET"):
                if argument not in memo:
                    raise _Refused("is a damaged pickle: it recalls what it never stored")
                stack.append(memo[argument])
            elif name == "GLOBAL":
                stack.append(_name(*argument.split(" ", 1)))
            elif name == "STACK_GLOBAL":
                stack.append(_name(*pop(2)))
            elif name == "REDUCE":
                function, arguments = pop(2)
                stack.append(self._called(function, arguments))
            elif name == "NEWOBJ":
                stack.append(_new(*pop(2)))
            elif name == "BUILD":
                stack.append(self._build(*pop(2)))
            elif name == "BINPERSID" and persistent is not None:
                stack.append(persistent(pop()[0]))
            elif name == "STOP":
                return pop()[0]
            elif name == "PROTO" and argument > 5:
                raise _Refused(f"is a pickle of protocol {argument}; 2 to 5 can be read")
            elif name not in ("PROTO", "FRAME"):
                raise _Refused(f"uses the pickle instruction {name}, which no network file needs")
        raise _Refused(_TRUNCATED)

    def _instructions(self, file: Any, nested: bool) -> Iterator[tuple[str, Any]]:
        try:
            for opcode, argument, position in pickletools.genops(file):
                if not nested:
                    self.position = position or 0
                self.instructions_left -= 1
                if self.instructions_left < 0:
                    raise _Refused(f"has more than {MAX_INSTRUCTIONS} pickle instructions")
                yield opcode.name, argument
        except ValueError as error:
            raise _Refused("is a damaged pickle, or none") from error

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise _Refused("is a damaged pickle: it calls what is no function")
        interpret = self.calls.get(function.dotted)
        if interpret is None:
            raise _asks_for(function)
        return _interpreted(function.dotted, interpret, *arguments)

    def _build(self, built: Any, state: Any) -> Any:
        if not isinstance(built, Object) or built.name == PERSISTENT:
            raise _Refused("sets the state of what is no object")
        _interpreted(built.name, self._set_state, built, state)
        return built

    def _set_state(self, built: Object, state: Any) -> None:
        if built.name == NETWORK:
            _require(isinstance(state, dict) and built.state is None)
            built.state = state
        elif built.name == "numpy.dtype":
            _, order, *plain = state[:5]
            _require(order in ("<", ">", "|", "=") and plain == [None, None, None])
            built.state = built.state.newbyteorder(order)
        else:
            _require(built.state is None)
            _, shape, dtype, fortran, data = state
            built.state = self._array(data, dtype, shape, "F" if fortran is True else "C")

    def _array(self, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        if not (isinstance(dtype, Object) and dtype.name == "numpy.dtype"):
            raise _Refused("has an array without a type")
        if not isinstance(data, (bytes, bytearray)) or not _are_sizes(shape):
            raise _Refused("has an array that is not made of bytes")
        if math.prod(shape) * dtype.state.itemsize != len(data):
            raise _Refused(f"has an array of shape {shape} in {len(data)} bytes")
        self._spend("arrays", len(data))
        array = np.frombuffer(data, dtype.state).reshape(shape, order="F" if order == "F" else "C")
        array.flags.writeable = False
        return array

    def _buffered_array(
        self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
    ) -> np.ndarray:
        # How protocol 5 writes arrays, with axes if their order is neither C's nor Fortran's.
        array = self._array(data, dtype, shape, order)
        return array if axes is None else array.transpose(axes)

    def _set(self, items: Any) -> set[Any]:
        # The same list may be used many times: it counts each time.
        _require(isinstance(items, list))
        self.instructions_left -= len(items)
        return set(map(_key, items))

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        # How protocol 2 writes bytes.
        _require(isinstance(text, str) and encoding == "latin1")
        self._spend("copies", len(text))
        return text.encode("latin1")

    def _storage(self, data: Any) -> np.ndarray:
        """Reads a storage as PyTorch saved it before 2020: five pickles, a count, the elements."""
        _require(isinstance(data, bytes))
        file = io.BytesIO(data)
        bounded = _Bounded(file, len(data))
        named: list[tuple[np.dtype, str, int]] = []

        def persistent(identity: Any) -> None:
            kind, storage, key, _, count, *view = identity
            _require(kind == "storage" and view in ([], [None]) and isinstance(storage, Name))
            if storage.dotted not in _STORAGES:
                raise _asks_for(storage)
            _require(_are_sizes((count,)) and isinstance(key, str))
            named.append((np.dtype(_STORAGES[storage.dotted]), key, count))

        magic, protocol, system, _, keys = (self.run(bounded, persistent) for _ in range(5))
        if (magic, protocol) != (_TORCH_MAGIC, _TORCH_PROTOCOL):
            raise _Refused("has a storage that is not PyTorch's")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise _Refused("was written on a big-endian machine, which is not supported")
        if len(named) != 1 or keys != [named[0][1]]:
            raise _Refused("has a storage that is not exactly one")
        dtype, _, count = named[0]
        stated = int.from_bytes(bounded.read(8), "little")
        if not stated == count == (len(data) - file.tell()) / dtype.itemsize:
            raise _Refused(f"has a storage of {count} elements in {len(data)} bytes")
        return np.frombuffer(data, dtype, count, file.tell())

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, *___: Any
    ) -> np.ndarray:
        _require(isinstance(storage, np.ndarray) and storage.ndim == 1)
        _require(_are_sizes(shape) and _are_sizes(strides) and _are_sizes((offset,)))
        _require(len(shape) == len(strides))
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        count = math.prod(shape)
        if count > storage.size or (count and last >= storage.size):
            raise _Refused(f"has a tensor of shape {shape} in {storage.size} elements")
        self._spend("arrays", count * storage.itemsize)
        steps = [step * storage.itemsize for step in strides]
        start = storage[min(offset, storage.size) :]
        return np.lib.stride_tricks.as_strided(start, shape, steps, writeable=False)

    def _spend(self, what: str, count: int) -> None:
        self.left[what] -= count
        if self.left[what] < 0:
            raise _Refused(f"has {what} that are together larger than the file")


def _asks_for(name: Name) -> _Refused:
    return _Refused(f"asks for {_shown(name)}, which is neither a container nor an array")


def _shown(name: Name) -> str:
    # Text of the file may be long and may have line ends.
    return repr(name.dotted[:100])


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _interpreted(name: str, interpret: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return interpret(*arguments)
    except (TypeError, ValueError) as error:
        # The arguments can be anything, and are checked as they are used.
        raise _Refused(f"has wrong arguments for {_shown(Name(name))}") from error


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**48 for size in value)
    )


def _name(module: Any, name: Any = None) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refused("is a damaged pickle: a name is not text")
    if len(module) + len(name) > MAX_NAME:
        raise _Refused(f"has a name of more than {MAX_NAME} letters: {(module + name)[:40]!r}")
    # Renamed between versions of Python and NumPy.
    module = "builtins" if module == "__builtin__" else module
    return Name(f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1))


def _new(kind: Any, arguments: Any) -> Any:
    if not isinstance(kind, Name):
        raise _Refused("is a damaged pickle: it makes an instance of what is no class")
    plain = isinstance(arguments, tuple) and not arguments
    if kind.dotted == "dnnlib.util.EasyDict" and plain:
        return {}
    if kind.dotted == NETWORK and plain:
        return Object(NETWORK)
    raise _asks_for(kind)


def _extended(container: Any, items: list[Any], how: str) -> Any:
    kind = {"SETITEMS": dict, "APPENDS": list, "ADDITEMS": set}[how]
    if type(container) is not kind or (how == "SETITEMS" and len(items) % 2):
        raise _Refused(f"is a damaged pickle: {how} without its {kind.__name__}")
    if isinstance(container, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            container[_key(key)] = value
    elif isinstance(container, list):
        container.extend(items)
    else:
        container.update(map(_key, items))
    return container


def _key(value: Any) -> Any:
    if not isinstance(value, (str, bytes, int, float, type(None))):
        raise _Refused("is a damaged pickle: a key is neither text nor number")
    return value


def _persistent(meta: Any) -> Object:
    _require(isinstance(meta, dict))
    return Object(PERSISTENT, meta)


def _dtype(code: Any, *_: Any) -> Object:
    _require(code in _DTYPES)
    return Object("numpy.dtype", np.dtype(code))


def _unfinished_array(kind: Any, shape: Any, code: Any) -> Object:
    _require(kind == Name("numpy.ndarray") and shape == (0,))
    return Object("numpy.ndarray")


def _parameter(data: Any, *_: Any) -> np.ndarray:
    _require(isinstance(data, np.ndarray))
    return data


def _check_depth(root: Any) -> None:
    """Refuses what contains itself or nests too deep, so that the readers may recurse."""
    heights: dict[int, int] = {}
    unfinished: set[int] = set()
    stack = [(root, False)]
    while stack:
        value, visited = stack.pop()
        children = _children(value)
        if not children:
            continue
        if visited:
            unfinished.discard(id(value))
            heights[id(value)] = 1 + max(heights.get(id(child), 0) for child in children)
            if heights[id(value)] > MAX_DEPTH:
                raise _Refused(f"nests more than {MAX_DEPTH} deep")
        elif id(value) in unfinished:
            raise _Refused("contains itself")
        elif id(value) not in heights:
            unfinished.add(id(value))
            stack.append((value, True))
            stack.extend((child, False) for child in children)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    return [value.state] if isinstance(value, Object) else []
