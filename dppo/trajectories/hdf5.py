"""Opens HDF5 files that others may have made, if nothing in them leads out of them and all of it fits into memory.

An HDF5 file may name other files (external links, external storage, virtual datasets), and a few kilobytes of it may
expand to terabytes (chunks that were never written, zeros that were compressed).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dppo.files import open_regular

if TYPE_CHECKING:
    import h5py

FILE_BYTES, RAW_BYTES = 4 * 2**30, 2 * 2**30
"""The most bytes of a file, and of its datasets in memory; the writer keeps to both limits."""
ZSTD = 32015
"""HDF5's number of the zstd filter."""
_SHUFFLE, _DEFLATE = 2, 1
_RATIOS = {_DEFLATE: 1100, ZSTD: 2**16}
"""The most bytes that a filter can make of one byte, when all are zeros."""
_ANY_BYTES = 2**16
"""The most bytes of a dataset whose storage is not checked, because it is small."""
MAX_LEAVES, MAX_NESTING = 2000, 32
"""The most leaves of a Dict or Tuple, and the most spaces that lie within each other; the writer keeps to both."""
_MAX_OBJECTS, _MAX_INDEXED, _MAX_DEPTH = 8 * MAX_LEAVES, 10**6, MAX_NESTING + 4


@contextmanager
def opened_hdf5(path: Path, root: Path | None, *, is_index: bool = False) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading, also while a run still writes others.

    Args:
      root: the folder that the file must lie in, as in `open_regular`.
      is_index: whether its datasets are virtual; the caller checks their sources before it reads them.

    Raises:
      OSError: the file is not regular, lies elsewhere, or is no HDF5.
      ValueError: the file leads out of itself, or would not fit into memory.
    """
    import h5py

    open_regular(path, root, FILE_BYTES).close()
    with h5py.File(path, "r", locking=False) as file:
        _check_file(file, is_index=is_index)
        yield file


def dataset_names(group: h5py.Group) -> list[str]:
    """Lists the paths of all datasets below a group, relative to it, in the order in which they were written."""
    import h5py

    names: list[str] = []
    for name in group:
        item = group[name]
        names += [f"{name}/{inner}" for inner in dataset_names(item)] if isinstance(item, h5py.Group) else [name]
    return names


def _check_file(file: h5py.File, *, is_index: bool) -> None:
    import h5py

    for name in file.attrs:
        if h5py.h5a.open(file.id, name.encode()).shape != ():
            raise ValueError(f"its attribute {name} is no single value")
    objects, total, most = 0, 0, _MAX_INDEXED if is_index else _MAX_OBJECTS
    groups: list[tuple[h5py.Group, int]] = [(file, 0)]
    while groups:
        group, depth = groups.pop()
        for name in group:
            objects += 1
            place = f"{group.name.rstrip('/')}/{name}"
            if objects > most or depth > _MAX_DEPTH:
                raise ValueError(f"{place}: more than {most:,} objects, or one in another too deeply")
            if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise ValueError(f"{place}: a link to elsewhere is not followed")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append((item, depth + 1))
            elif not isinstance(item, h5py.Dataset):
                raise ValueError(f"{place} is neither a group nor a dataset")
            elif not is_index:
                total += _checked_bytes(item)
            elif not item.is_virtual:
                raise ValueError(f"{place} is not made of other datasets, as all in an index are")
    if total > RAW_BYTES:
        raise ValueError(f"its datasets would take {total:,} bytes of memory, at most {RAW_BYTES:,} are plausible")


def _checked_bytes(dataset: h5py.Dataset) -> int:
    """Returns a dataset's bytes in memory. Raises ValueError where its values lie in other files or datasets, or its
    bytes on the disk cannot hold so much.
    """
    import h5py

    plist = dataset.id.get_create_plist()
    if plist.get_external_count():
        raise ValueError(f"{dataset.name} lies in other files ({dataset.external[0][0]}), which are not read")
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{dataset.name} is made of other datasets, which are not read")
    dtype, shape = dataset.dtype, dataset.shape
    if shape is None:
        raise ValueError(f"{dataset.name} holds nothing")
    if dtype.hasobject and (shape or h5py.check_string_dtype(dtype) is None):
        raise ValueError(f"{dataset.name} is of type {dtype}, which no trajectory has")
    size = math.prod(shape) * dtype.itemsize
    if dataset.chunks is not None and math.prod(dataset.chunks) * dtype.itemsize > RAW_BYTES:
        raise ValueError(f"{dataset.name} has chunks of {dataset.chunks}, which no trajectory has")
    if size <= _ANY_BYTES or dtype.hasobject:
        return size
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if len(set(filters)) < len(filters) or not set(filters) <= {_SHUFFLE, *_RATIOS}:
        raise ValueError(f"{dataset.name} is compressed by {filters}; gzip or zstd, once each, are expected")
    stored = dataset.id.get_storage_size()
    if size > stored * math.prod(_RATIOS.get(number, 1) for number in filters):
        raise ValueError(f"{dataset.name} has {shape} values, which {stored:,} bytes on the disk cannot hold")
    return size
