"""Splits a checkpoint's values: what JSON holds exactly stays in JSON, arrays go to a safetensors file."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from dppo.files import MB, parse_json

HEADER_BYTES = 64 * MB
_ARRAY, _FLOAT, _PAIRS = "$array", "$float", "$pairs"
"""Keys of the JSON objects that replace an array, a number that is not finite, a dict whose keys are no texts."""


def split(value: Any, arrays: dict[str, np.ndarray], where: str = "") -> Any:
    """Converts dicts, lists, tuples, texts, numbers, None and arrays to values for JSON; tuples become lists.

    Args:
      arrays: receives the arrays in `value`, each under the path that leads to it.
      where: the path so far.

    Raises:
      TypeError: `value` holds anything else.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, np.ndarray):
        assert where not in arrays, f"two arrays are called {where}"
        arrays[where] = value
        return {_ARRAY: where}
    if isinstance(value, list | tuple):
        return [split(element, arrays, f"{where}/{i}") for i, element in enumerate(value)]
    if isinstance(value, dict):
        parts = {key: split(part, arrays, f"{where}/{key}" if where else str(key)) for key, part in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in parts):
            return parts
        return {_PAIRS: [[split(key, {}), part] for key, part in parts.items()]}
    raise TypeError(f"a {type(value).__name__} has no place in a checkpoint: {value!r}")


def join(plain: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Inverts `split`. Removes the arrays that it uses from `arrays`. Raises ValueError for a value that `split` did
    not write.
    """
    if isinstance(plain, list):
        return [join(element, arrays) for element in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1 or not next(iter(plain)).startswith("$"):
        return {key: join(part, arrays) for key, part in plain.items()}
    ((kind, content),) = plain.items()
    try:
        if kind == _ARRAY:
            return arrays.pop(content)
        if kind == _FLOAT:
            return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
        if kind == _PAIRS:
            return {key: join(part, arrays) for key, part in content}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{kind} stands for nothing: {error!r}") from error
    raise ValueError(f"{kind} is not known")


_ORDER = "order"
"""The entry of a file's metadata that lists the names of the arrays in their order, which the library forgets."""


def to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """Makes a safetensors file. Raises TypeError for a type of numbers that it cannot hold."""
    from safetensors import SafetensorError
    from safetensors.numpy import save

    try:
        # the library copies memory as it is, so it must be little-endian and in C order
        tensors = {name: np.asarray(a, a.dtype.newbyteorder("<"), order="C") for name, a in arrays.items()}
        return save(tensors, metadata={_ORDER: json.dumps(list(arrays))})
    except SafetensorError as error:
        raise TypeError(f"an array has no place in a checkpoint: {error}") from error


def from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays of a file whose head was checked, in the order in which `to_bytes` was given them. The leaves of
    a Dict or a Tuple need it: all arrays of one space have their fields in one order. Raises ValueError where the file
    is damaged or forged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        # the library takes the last of two equal names
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        order = json.loads(header.get("__metadata__", {}).get(_ORDER, "[]"))
        places = {name: place for place, name in enumerate(order)}
        return dict(sorted(load(data).items(), key=lambda item: (places.get(item[0], len(places)), item[0])))
    except (
        SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError,
    ) as error:  # fmt: skip
        raise ValueError(f"is no file of tensors: {error}") from error


def check_head(head: bytes, size: int) -> None:
    """Raises ValueError where the first 8 bytes are not those of a safetensors file of `size` bytes."""
    length = int.from_bytes(head, "little")
    if len(head) < 8 or not 2 <= length <= min(HEADER_BYTES, size - 8):
        raise ValueError(f"is no file of tensors: it has {size:,} bytes, its header {length:,}")


def to_json(value: Any) -> bytes:
    """Returns standard JSON of a value that `split` returned."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
