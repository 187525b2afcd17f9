"""torch's file format without torch, whose import takes a second and 200 MB: a run starts and resumes without it.

    a ZIP file, nothing compressed: archive/{data.pkl, byteorder, data/0, data/1, …, version}

data.pkl is a pickle that names torch's functions; data/N are the tensors' bytes. What `to_bytes` writes,
torch.load(weights_only=True) reads; what torch.save writes of plain values and tensors, `from_bytes` reads, and as
little as weights_only does it run code. Uses NumPy; checkpoint.py uses it.

Source: PyTorch documentation, Serialization semantics, "Serialized file format for torch.save".
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

_STORAGES = {
    "bool": "BoolStorage", "uint8": "ByteStorage", "int8": "CharStorage", "int16": "ShortStorage",
    "int32": "IntStorage", "int64": "LongStorage", "float16": "HalfStorage", "float32": "FloatStorage",
    "float64": "DoubleStorage",
}  # fmt: skip
"""NumPy's name of a type -> torch's of the storage."""
_UNTYPED = ("uint16", "uint32", "uint64")
"""Types that torch learnt later: their storage says nothing of them, the tensor does."""
_FORMAT_VERSION = b"3\n"


def to_bytes(content: Any) -> bytes:
    """`content`, of dicts, lists, tuples, strings, numbers, None and arrays, as torch.save writes it with tensors for
    arrays; tuples become lists. Raises TypeError for anything else.
    """
    tensors: list[bytes] = []
    data = bytearray(pickle.PROTO + b"\x02")
    _write(content, data, tensors)
    data += pickle.STOP
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        parts = {"data.pkl": bytes(data), "byteorder": b"little"}
        parts |= {f"data/{key}": tensor for key, tensor in enumerate(tensors)}
        for name, part in (parts | {"version": _FORMAT_VERSION}).items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), part)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    """What `to_bytes` or torch.save has written, with arrays for tensors. Raises all kinds of errors for what is
    damaged, and pickle.UnpicklingError for what weights_only would refuse.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        return _Reader(archive, name.removesuffix("data.pkl")).load()


# -- writing --------------------


@dataclass(frozen=True)
class _Global:
    """Something of torch's, by name."""

    module: str
    name: str


class _Tuple(tuple[Any, ...]):
    """One that stays a tuple."""


def _write(value: Any, out: bytearray, tensors: list[bytes]) -> None:
    """Appends the pickle of `value` to `out`, with the opcodes of protocol 2 that weights_only knows."""
    if value is None:
        out += pickle.NONE
    elif isinstance(value, bool):
        out += pickle.NEWTRUE if value else pickle.NEWFALSE
    elif isinstance(value, int):
        number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        out += pickle.LONG1 + struct.pack("<B", len(number)) + number
    elif isinstance(value, float):
        out += pickle.BINFLOAT + struct.pack(">d", value)
    elif isinstance(value, str):
        text = value.encode()
        out += pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    elif isinstance(value, _Tuple):
        out += pickle.MARK
        for element in value:
            _write(element, out, tensors)
        out += pickle.TUPLE
    elif isinstance(value, list | tuple):
        out += pickle.EMPTY_LIST + pickle.MARK
        for element in value:
            _write(element, out, tensors)
        out += pickle.APPENDS
    elif isinstance(value, dict):
        out += pickle.EMPTY_DICT + pickle.MARK
        for key, element in value.items():
            _write(key, out, tensors)
            _write(element, out, tensors)
        out += pickle.SETITEMS
    elif isinstance(value, _Global):
        out += pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
    elif isinstance(value, np.ndarray):
        _write_array(value, out, tensors)
    else:
        raise TypeError(f"a {type(value).__name__} has no place in a checkpoint: {value!r}")


def _write_array(array: np.ndarray, out: bytearray, tensors: list[bytes]) -> None:
    """torch's _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks); strides count elements."""
    name = array.dtype.name
    array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    dtype: list[_Global] = []
    if name in _STORAGES:
        function, storage, size = "_rebuild_tensor_v2", _Global("torch", _STORAGES[name]), array.size
    elif name in _UNTYPED:
        function, storage, size = "_rebuild_tensor_v3", _Global("torch.storage", "UntypedStorage"), array.nbytes
        dtype = [_Global("torch", name)]
    else:
        raise TypeError(f"torch has no tensors of {array.dtype}")
    _write(_Global("torch._utils", function), out, tensors)
    out += pickle.MARK
    _write(_Tuple(("storage", storage, str(len(tensors)), "cpu", size)), out, tensors)
    out += pickle.BINPERSID
    strides = _Tuple(stride // array.itemsize for stride in array.strides)
    for value in (0, _Tuple(array.shape), strides, False, _Global("collections", "OrderedDict")):
        _write(value, out, tensors)
    out += pickle.EMPTY_TUPLE + pickle.REDUCE  # no hooks
    for value in dtype:
        _write(value, out, tensors)
    out += pickle.TUPLE + pickle.REDUCE
    tensors.append(array.tobytes())


# -- reading --------------------


def _array(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
) -> np.ndarray:
    """What a tensor shows of its storage; `rest`: requires_grad, hooks and, of an untyped storage, the type."""
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], np.dtype) else storage.dtype
    steps = [stride * dtype.itemsize for stride in strides]
    # NumPy refuses what lies outside of it
    return np.ndarray(shape, dtype, storage, offset * dtype.itemsize, steps).copy()


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _array,
    ("torch._utils", "_rebuild_tensor_v3"): _array,
    ("torch.storage", "UntypedStorage"): np.dtype("<u1"),
    **{("torch", storage): np.dtype(name).newbyteorder("<") for name, storage in _STORAGES.items()},
    **{("torch", name): np.dtype(name).newbyteorder("<") for name in (*_STORAGES, *_UNTYPED)},
}
"""All that a pickle may name."""


class _Reader(pickle.Unpickler):
    """Reads data.pkl of an archive in which everything lies under `root`."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._root}data/{key}"), dtype)
