"""Files that would harm whoever reads them without checks: pickles, Keras' .h5, JSON."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

# How files of JSON are broken; each is called with the path.
JSON: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda path: path.write_bytes(b"{"),
    "a list": lambda path: path.write_bytes(b"[]\n"),
    "empty": lambda path: path.write_bytes(b""),
    "infinity": lambda path: path.write_bytes(b'{"config": Infinity}\n'),
    "1e999": lambda path: path.write_bytes(b'{"config": 1e999}\n'),
    "nested": lambda path: path.write_bytes(b"[" * 100_000 + b"\n"),
    "nested objects": lambda path: path.write_bytes(b'{"a":' * 100_000 + b"\n"),
    "no UTF-8": lambda path: path.write_bytes(b'{"a": "\xff"}\n'),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "200 GiB": lambda path: (path.touch(), os.truncate(path, 200 * 2**30)),
}

# Instructions of a pickle after its first, PROTO 4, by how the error says what is wrong.
PICKLES = {
    "a name of more than 200 letters": b"\x8c\xff" + b"a" * 255 + b"\x94\x8c\x01a\x93.",
    "asks for 'posix.system'": b"cposix\nsystem\n(X\x02\x00\x00\x00idtR.",
    "'posix.system', which is": b"cposix\nsystem\n)\x81.",
    "instruction INST": b"(iposix\nsystem\n.",
    "instruction OBJ": b"(cposix\nsystem\nX\x02\x00\x00\x00ido.",
    "instruction EXT1": b"\x82\x01.",
    "instruction PERSID": b"Pxyz\n.",
    "instruction BINPERSID": b"K\x01Q.",
    "instruction NEWOBJ_EX": b"\x8c\x01a)}\x92.",
    "instruction LONG4": b"\x8b\x01\x00\x00\x00\x01.",
    "instruction DUP": b"K\x012.",
    "calls what is no function": b"K\x01)R.",
    "sets the state of what is no object": b"}}b.",
    "contains itself": b"]\x94h\x00a.",
    "recalls what it never stored": b"h\x05.",
    "its stack is empty": b"a.",
    "a mark is missing": b"K\x01u.",
    "SETITEMS without its dict": b"](K\x01K\x02u.",
    "without its dict": b"}(K\x01u.",
    "a key is neither": b"}]K\x01s.",
    "a name is not text": b"K\x01K\x01\x93.",
    "ends in the middle": b"]",
    "ends in the middle: it": b"B\xff\xff\xff\x7fabc",
    "not downloaded completely": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc",
    "a damaged pickle, or none": b"\xff\xfe.",
    "nests more than 100 deep": b"]" * 300 + b"a" * 299 + b".",
    "'collections.OrderedDict'": b"ccollections\nOrderedDict\nK\x01\x85R.",
    "wrong arguments for 'numpy.dtype'": b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",
    "wrong arguments for '_codecs.encode'": b"c_codecs\nencode\nX\x01\x00\x00\x00a"
    b"X\x03\x00\x00\x00hex\x86R.",
}


def _external(group: h5py.Group, target: Path) -> None:
    group.create_dataset("0", (3, 3, 3, 32), "f4", external=[(str(target), 0, h5py.h5f.UNLIMITED)])


def _virtual(group: h5py.Group, target: Path) -> None:
    layout = h5py.VirtualLayout((3, 3, 3, 32), "f4")
    layout[...] = h5py.VirtualSource(target, "x", (3, 3, 3, 32), "f4")
    group.create_virtual_dataset("0", layout)


def _linked(link: Any) -> Any:
    return lambda group, target: group.__setitem__("0", link(target))


def _stored(shape: Any = (3, 3, 3, 32), dtype: str = "f4", value: Any = 0, **options: Any) -> Any:
    return lambda group, target: group.create_dataset("0", shape, dtype, fillvalue=value, **options)


def _many(group: h5py.Group, target: Path) -> None:
    for number in range(100):
        group.create_dataset(f"{number}", (2**25,), "f4", chunks=(2**20,))


def _long_name(group: h5py.Group, target: Path) -> None:
    _stored()(group, target)
    group.attrs.create("name", np.bytes_(b"a"), (), "S8000000")


# What an array of Keras' weights is instead: (function of the group and of the file to read, how
# the error says it).
H5: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "external storage": (_external, "in another file"),
    "a virtual dataset": (_virtual, "in another file"),
    "an external link": (_linked(lambda target: h5py.ExternalLink(target, "x")), "a link"),
    "a soft link": (_linked(lambda target: h5py.SoftLink("/elsewhere")), "a link"),
    "a group as an array": (
        lambda group, target: group.create_group("0"),
        "not an array of floats",
    ),
    "576 GiB": (_stored((2**19, 2**18), chunks=(64, 64)), "claims the shape"),
    "a large chunk": (_stored((4, 4), maxshape=(None,) * 2, chunks=(2**14,) * 2), "claims the"),
    "integers": (_stored(dtype="i4"), "not an array of floats"),
    "texts": (_stored(dtype="S8", value=b"x"), "not an array of floats"),
    "no numbers": (_stored(value=np.nan), "not finite"),
    "many large arrays": (_many, "together are larger"),
    "a long name": (_long_name, "attribute 'name' is too large"),
    "a cycle": (lambda group, target: group.__setitem__("0", group), "not an array of floats"),
    "an unusual filter": (_stored(compression="lzf"), "a filter that is not supported"),
}


def write_h5(path: Path, what: str, *, before: int = 0) -> Path:
    """Writes a crafted file of one kind, with so many valid layers before the crafted array.

    What it leads to is 7.0 throughout.
    """
    secret = np.full((3, 3, 3, 32), 7, np.float32)
    target = path.with_name("secret.h5")
    if what == "external storage":
        target.write_bytes(secret.tobytes())
    else:
        with h5py.File(target, "w") as file:
            file["x"] = secret
    with h5py.File(path, "w", libver="latest") as file:
        file["elsewhere"] = secret
        for layer in range(before):
            _stored()(file.create_group(f"layers/conv2d_{layer}/vars"), target)
        H5[what][0](file.create_group(f"layers/conv2d_{before}/vars"), target)
    return path
