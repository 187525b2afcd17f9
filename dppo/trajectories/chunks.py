"""Writes a segment's datasets in chunks of one environment each, compressed one by one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py

CHUNK_ROWS, CHUNK_ROWS_IMAGE, SMALL_BYTES = 1024, 64, 4096


def write_dataset(file: h5py.File, path: str, data: np.ndarray | list[np.ndarray], how: dict[str, Any]) -> None:
    """Writes a dataset of a segment, chunked by rows and environments. A small dataset has no chunks, because they need
    an index of several kilobytes. Parts of data leave their list as they are written.
    """
    data = data if isinstance(data, list) else [data]
    length, rest = sum(map(len, data)), data[0].shape[1:]
    if sum(part.nbytes for part in data) <= SMALL_BYTES:
        file.create_dataset(path, data=np.concatenate(data))
        return
    is_final = path.startswith("final/")
    rows = min(length, CHUNK_ROWS_IMAGE if len(rest) >= (3 if is_final else 4) else CHUNK_ROWS)
    each = rest if is_final else (*(1,) * (len(rest) > 0), *rest[1:])
    maxshape = (None, *rest)
    dataset = file.create_dataset(path, (length, *rest), data[0].dtype, chunks=(rows, *each), maxshape=maxshape, **how)
    for number, slab in enumerate(_slabs(data, rows)):
        _write_rows(dataset, number * rows, slab)


def _slabs(data: list[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yields copies of `rows` rows, and of the rest: none is compressed twice, and memory never holds all data twice.
    Parts of data leave their list.
    """
    data.reverse()
    held: list[np.ndarray] = []
    while data:
        part = data.pop()
        while len(part):
            missing = rows - sum(map(len, held))
            held.append(part[:missing])
            part = part[missing:]
            if len(held[-1]) == missing:
                yield np.concatenate(held)
                held = []
    if held:
        yield np.concatenate(held)


def _write_rows(dataset: h5py.Dataset, start: int, values: np.ndarray) -> None:
    """Writes a row of chunks. Compresses gzip itself, because HDF5's own filter takes two to three times as long."""
    if dataset.compression != "gzip":
        dataset[start : start + len(values)] = values
        return
    shape = dataset.chunks
    if len(values) < shape[0]:  # the last chunks: readers ignore what lies beyond the dataset
        values = np.concatenate((values, np.zeros((shape[0] - len(values), *values.shape[1:]), values.dtype)))
    if len(shape) == 1 or shape[1] == values.shape[1]:
        dataset.id.write_direct_chunk((start, *(0,) * (len(shape) - 1)), _deflated(values))
        return
    for n in range(values.shape[1]):
        dataset.id.write_direct_chunk((start, n, *(0,) * (len(shape) - 2)), _deflated(values[:, n]))


def _deflated(chunk: np.ndarray) -> bytes:
    """Compresses a chunk as HDF5's filters shuffle and deflate do. In the shuffled bytes of floats only runs repeat, so
    zlib looks for nothing else there.
    """
    shuffled = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).reshape(-1, chunk.itemsize).T.tobytes()
    strategy = zlib.Z_RLE if chunk.dtype.kind == "f" else zlib.Z_DEFAULT_STRATEGY
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return deflate.compress(shuffled) + deflate.flush()
