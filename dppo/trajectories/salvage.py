"""Saves what can be saved of a damaged or half-written HDF5 file, in a new one.

Uses h5py and, for a segment of a dump, the format; `python -m dppo.trajectories recover` calls it. The damaged file is
only read. A file that was cut off is read as if zeros followed, and what lies in those counts as lost.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dppo.files import RefusedFileError, open_regular
from dppo.settings.flags import UsageError
from dppo.trajectories.catalogue import SURPRISES, endless_heaps, load_filters
from dppo.trajectories.export.selection import appearing
from dppo.trajectories.format import FORMAT, checksum_problem, compression_filter, expected_datasets, write_dataset
from dppo.trajectories.hdf5 import FILE_BYTES, RAW_BYTES, check_link, check_source

if TYPE_CHECKING:
    import h5py

_BLOCK_BYTES = 16 * 2**20
_MAX_LOOKUPS = 100_000
"""Chunks that are looked up one by one where their list is damaged."""


class HopelessError(Exception):
    """Nothing of a file can be read."""


@dataclass(slots=True)
class Salvage:
    """What came of it."""

    path: Path
    """Of the new file."""
    datasets: int = 0
    """That were saved, wholly or in part."""
    lost: list[str] = field(default_factory=list)
    """A line for each thing that was not."""


class _Padded(io.RawIOBase):
    """A file with zeros behind its end, and with other numbers where HDF5 would stumble for ever."""

    def __init__(self, path: Path, size: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 (closed with this)
        self._size, self._at = size, 0
        self._patches = [(at, number.to_bytes(8, "little")) for at, number in endless_heaps(path, size=size)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        self._file.seek(self._at)
        data = self._file.read(count)
        view[:count] = data.ljust(count, b"\0")
        for start, number in self._patches:
            first, last = max(start, self._at), min(start + len(number), self._at + count)
            if first < last:
                view[first - self._at : last - self._at] = number[first - start : last - start]
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def recover(path: Path, out: Path | None = None) -> Salvage:
    """Writes what can be read of `path` to `out` (FILE.recovered.h5), with the attribute `complete` false.

    Raises:
      UsageError: there is no such file, or `out` exists.
      HopelessError: HDF5 cannot open it at all, or no dataset in it.
    """
    import h5py

    out = out or path.with_name(path.name + ".recovered.h5")
    try:
        open_regular(path, max_bytes=FILE_BYTES).close()
    except OSError as error:
        raise UsageError(str(error) if isinstance(error, RefusedFileError) else f"{path} is no file") from error
    if not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written: {out.parent} is no folder: make it, or name another file with -o")
    salvage = Salvage(out)
    with appearing(out) as part:
        stream, source = _open(path, salvage)
        try:
            with source, h5py.File(part, "w", libver=("earliest", "v110")) as target:
                _copy_file(path, source, target, salvage)
        finally:
            if stream is not None:
                stream.close()
    return salvage


def _copy_file(path: Path, source: h5py.File, target: h5py.File, salvage: Salvage) -> None:
    end = path.stat().st_size
    if _is_segment(source):
        if (problem := checksum_problem(path)) is not None:
            salvage.lost.append(f"the file: {problem}: what HDF5 could read without an error may still be wrong")
        _copy_segment(source, target, end, salvage)
    else:
        _copy_group(source, target, end, salvage, set())
    if not salvage.datasets:
        raise HopelessError(f"{path}: no dataset can be read, nothing can be saved")
    target.attrs["complete"] = False
    target.flush()


def _open(path: Path, salvage: Salvage) -> tuple[_Padded | None, h5py.File]:
    import h5py

    try:
        if endless_heaps(path):
            stream = _Padded(path, path.stat().st_size)
            salvage.lost.append("the file: zeros in a heap of texts: those behind them are lost")
            return stream, h5py.File(stream, "r")
        return None, h5py.File(path, "r", locking=False)
    except SURPRISES as error:
        reason = _said(error)
    cut = re.search(r"truncated file: eof = (\d+), sblock->base_addr = (\d+), stored_eof = (\d+)", reason)
    size = path.stat().st_size
    if cut is not None:
        whole = int(cut[2]) + int(cut[3])
        if size < whole < 1000 * size:
            stream = _Padded(path, whole)
            try:
                file = h5py.File(stream, "r")
                salvage.lost.append(f"the file: the last {whole - size} of {whole} bytes are missing")
                return stream, file
            except SURPRISES as error:
                reason = f"{reason}; {_said(error)}"
                stream.close()
    hint = "; `h5clear -s FILE` on a copy may open it" if "already open" in reason else ""
    raise HopelessError(f"{path} cannot be opened as HDF5, nothing can be saved: {reason}{hint}")


def _said(error: BaseException) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def _is_segment(file: h5py.File) -> bool:
    try:
        return bool(file.attrs["format"] == FORMAT) and "steps" in file
    except SURPRISES:
        return False


# -- reading what is damaged --------------------


def _intact_rows(dataset: h5py.Dataset, end: int, *, all_written: bool = False) -> tuple[int, str | None]:
    """(how many leading rows lie wholly before byte `end` of the file, why no more)."""
    length = int(dataset.shape[0])
    if dataset.chunks is None:
        offset, size = dataset.id.get_offset(), dataset.id.get_storage_size()
        if offset is None or not size:  # within the header, or nowhere
            import h5py

            nowhere = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS and dataset.size
            return (0, "it was never written") if nowhere and all_written else (length, None)
        if offset + size <= end:
            return length, None
        row = max(1, size // max(1, length))
        return max(0, min(length, (end - offset) // row)), "the rest lies behind the file's end"
    stored = _stored_chunks(dataset)
    if stored is None:
        return _looked_up_rows(dataset, end, all_written=all_written)
    behind = [offset[0] for offset, end_byte in stored if end_byte > end]
    rows, reason = min([length, *behind]), "the rest lies behind the file's end" if behind else None
    if all_written:
        each = math.prod(-(-n // c) for n, c in zip(dataset.shape[1:], dataset.chunks[1:], strict=True))
        counts = Counter(offset[0] for offset, _ in stored)
        for row in range(0, rows, dataset.chunks[0]):
            if counts[row] < each:
                return row, "the rest was never written"
    return rows, reason


def _stored_chunks(dataset: h5py.Dataset) -> list[tuple[tuple[int, ...], int]] | None:
    """(where it lies in the dataset, its end in the file) of each chunk that was written; None where their list is
    damaged.
    """
    out: list[tuple[tuple[int, ...], int]] = []
    try:
        dataset.id.chunk_iter(lambda chunk: out.append((chunk.chunk_offset, chunk.byte_offset + chunk.size)))
    except SURPRISES:
        return None
    within = all(all(0 <= at < n for at, n in zip(offset, dataset.shape, strict=True)) for offset, _ in out)
    return out if within else None


def _looked_up_rows(dataset: h5py.Dataset, end: int, *, all_written: bool) -> tuple[int, str | None]:
    """As `_intact_rows`, by the chunks one by one: their list may be damaged further on only."""
    length = int(dataset.shape[0])
    ranges = [range(0, n, c) for n, c in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)]
    lookups = 0
    for row in range(0, length, dataset.chunks[0]):
        for rest in itertools.product(*ranges):
            lookups += 1
            if lookups > _MAX_LOOKUPS:
                return row, "the list of its chunks is damaged"
            try:
                chunk = dataset.id.get_chunk_info_by_coord((row, *rest))
            except SURPRISES as error:
                return row, _said(error)
            if chunk.byte_offset is None:
                if all_written:
                    return row, "the rest was never written"
            elif chunk.byte_offset + chunk.size > end:
                return row, "the rest lies behind the file's end"
    return length, None


def _row_bytes(dataset: h5py.Dataset) -> int:
    return max(1, math.prod(dataset.shape[1:]) * dataset.dtype.itemsize)


def _blocks(dataset: h5py.Dataset, rows: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The leading rows, some chunks at a time. Raises where one cannot be read."""
    chunk = dataset.chunks[0] if dataset.chunks else 1
    step = chunk if dataset.chunks else max(1, _BLOCK_BYTES // _row_bytes(dataset))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        yield part, dataset[part]


def _leading(dataset: h5py.Dataset, end: int) -> tuple[np.ndarray, str | None]:
    """(the leading rows that can be read, why no more) of a segment's dataset."""
    rows, reason = _intact_rows(dataset, end, all_written=True)
    if rows > (most := RAW_BYTES // _row_bytes(dataset)):
        rows, reason = most, "no segment has so much"
    parts = [np.empty((0, *dataset.shape[1:]), dataset.dtype)]
    try:
        for _, values in _blocks(dataset, rows):
            parts.append(values)
    except SURPRISES as error:
        reason = _said(error)
    return np.concatenate(parts), reason


# -- any file --------------------


def _copy_group(source: h5py.Group, target: h5py.Group, end: int, salvage: Salvage, seen: set[Any]) -> None:
    import h5py

    _copy_attributes(source, target, salvage)
    try:
        names = list(source)
    except SURPRISES as error:
        salvage.lost.append(f"{source.name}: what is in it cannot be listed: {_said(error)}")
        return
    for name in names:
        path = f"{source.name.rstrip('/')}/{name}"
        try:
            check_link(source, name)
            item = source[name]
            address = h5py.h5g.get_objinfo(source.id, name.encode()).objno if isinstance(item, h5py.Group) else path
        except SURPRISES as error:
            salvage.lost.append(f"{path}: {_said(error)}")
            continue
        if address in seen:
            salvage.lost.append(f"{path}: is another name of what is saved already")
            continue
        seen.add(address)
        if isinstance(item, h5py.Group):
            _copy_group(item, target.create_group(name), end, salvage, seen)
        elif isinstance(item, h5py.Dataset):
            _copy_dataset(item, target, name, end, salvage)
        else:
            salvage.lost.append(f"{path}: is neither a group nor a dataset")


def _copy_dataset(source: h5py.Dataset, target: h5py.Group, name: str, end: int, salvage: Salvage) -> None:
    """As far as it can be read, block by block."""
    import h5py

    try:
        if h5py.check_ref_dtype(source.dtype) is not None:
            raise ValueError("references to places in the old file mean nothing in a new one")
        check_source(source)
        load_filters(source)
        if not source.shape:
            if source.id.get_offset() is not None and source.id.get_offset() + source.id.get_storage_size() > end:
                raise ValueError("it lies behind the file's end")
            copy = target.create_dataset(name, data=source[()], dtype=source.dtype)
        else:
            rows, reason = _intact_rows(source, end)
            copy = _like(source, target, name, rows)
            saved = 0
            try:
                for place, whole in _written_parts(source, rows):
                    saved = whole
                    copy[place] = source[place]
                saved = rows
            except SURPRISES as error:
                reason = _said(error)
            if saved < source.shape[0]:
                salvage.lost.append(f"{source.name}: rows {saved} to {source.shape[0] - 1}: {reason}")
            if saved < rows or (not saved and source.shape[0]):
                del target[name]
                if not saved:
                    return
                copy = _like(source, target, name, saved)
                for place, _ in _written_parts(source, saved):
                    copy[place] = source[place]
    except SURPRISES as error:
        salvage.lost.append(f"{source.name}: {_said(error)}")
        if name in target:
            del target[name]
        return
    salvage.datasets += 1
    _copy_attributes(source, copy, salvage)


def _like(source: h5py.Dataset, target: h5py.Group, name: str, rows: int) -> h5py.Dataset:
    """A new dataset, of the leading rows only; what is not written to it takes no space, as in the old one."""
    import h5py

    how: dict[str, Any] = {}
    if source.chunks is not None:
        how = {"chunks": source.chunks, "maxshape": source.maxshape, "shuffle": source.shuffle}
        if source.maxshape == source.shape:  # then a chunk may not be larger
            how |= {"maxshape": None, "chunks": tuple(map(min, source.chunks, (max(1, rows), *source.shape[1:])))}
        if source.compression in ("gzip", "lzf"):
            how |= {"compression": source.compression, "compression_opts": source.compression_opts}
    is_chosen = source.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    if is_chosen and source.dtype.kind in "biufS":
        how["fillvalue"] = source.fillvalue
    return target.create_dataset(name, (rows, *source.shape[1:]), source.dtype, **how)


def _written_parts(source: h5py.Dataset, rows: int) -> Iterator[tuple[tuple[slice, ...], int]]:
    """(a part of the leading rows that was written, rows before which all has come by then), in order."""
    if source.chunks is None:
        import h5py

        is_plain = source.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        if is_plain and not source.id.get_storage_size():
            return
        step = max(1, _BLOCK_BYTES // _row_bytes(source))
        for start in range(0, rows, step):
            yield (slice(start, min(start + step, rows)),), start
        return
    limits = (rows, *source.shape[1:])
    offsets: Iterator[tuple[int, ...]]
    stored = _stored_chunks(source)
    if stored is None:
        ranges = [range(0, n, c) for n, c in zip(limits, source.chunks, strict=True)]
        lookups = itertools.product(*ranges)
        offsets = (at for at in lookups if source.id.get_chunk_info_by_coord(at).byte_offset is not None)
    else:
        offsets = iter(sorted(offset for offset, _ in stored if offset[0] < rows))
    for offset in offsets:
        place = [slice(a, min(a + c, n)) for a, c, n in zip(offset, source.chunks, limits, strict=True)]
        yield tuple(place), offset[0]


def _copy_attributes(source: Any, target: Any, salvage: Salvage) -> None:
    try:
        names = list(source.attrs)
    except SURPRISES as error:
        salvage.lost.append(f"{source.name}: its attributes: {_said(error)}")
        return
    for name in names:
        try:
            target.attrs[name] = source.attrs[name]
        except SURPRISES as error:
            salvage.lost.append(f"{source.name}: its attribute {name}: {_said(error)}")


# -- a segment --------------------


def _copy_segment(source: h5py.File, target: h5py.File, end: int, salvage: Salvage) -> None:
    """Its leading rows, as many as all datasets of steps/ can give, with the ends and the episodes in them."""
    import h5py

    _copy_attributes(source, target, salvage)
    for name in ("config_json", "env_spec", "observation_space", "action_space"):
        try:
            if name not in source:
                raise ValueError("is missing")
            check_link(source, name)
            dataset = source[name]
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError("is no dataset")
        except SURPRISES as error:
            salvage.lost.append(f"/{name}: {_said(error)}")
            continue
        _copy_dataset(dataset, target, name, end, salvage)
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in ("steps", "final", "episodes")}
    limits: dict[str, tuple[int, int, str | None]] = {}
    for group, data in groups.items():
        try:
            check_link(source, group)
            names = list(source[group])
        except SURPRISES:  # some may be found by their names all the same
            names = [path.removeprefix(f"{group}/") for path in expected_datasets() if path.startswith(f"{group}/")]
        for name in names:
            try:
                check_link(source[group], name)
                check_source(source[group][name])
                load_filters(source[group][name])
                data[name], reason = _leading(source[group][name], end)
                limits[f"/{group}/{name}"] = len(data[name]), int(source[group][name].shape[0]), reason
            except UsageError:
                raise
            except SURPRISES as error:
                salvage.lost.append(f"/{group}/{name}: {_said(error)}")
    steps, final, table = groups.values()
    for path, (have, had, reason) in limits.items():
        if have < had:
            salvage.lost.append(f"{path}: rows {have} to {had - 1} cannot be read: {reason}")
            if not have:  # it is gone as a whole, and need not take the others with it
                _, group, name = path.split("/")
                del groups[group][name]
    rows = min((len(values) for values in steps.values()), default=0)
    kept = np.arange(min((len(values) for values in final.values()), default=0))
    if steps:
        had = max(n for path, (_, n, _) in limits.items() if path.startswith("/steps/"))
        rows, kept = _with_ends(steps, final, rows)
        if rows < had:
            salvage.lost.append(f"steps: {rows} of {had} rows are kept, which all of steps/ and final/ can give")
    how = compression_filter("gzip")
    for name, values in steps.items():
        write_dataset(target, f"steps/{name}", [values[:rows]], how)
    for name, values in final.items():
        write_dataset(target, f"final/{name}", [values[kept]], how)
    listed = min((len(values) for values in table.values()), default=0)
    table = {name: values[:listed] for name, values in table.items()}
    if steps and set(_NEEDED) <= set(table):
        table = _cut_episodes(table, steps.get("rewards"), rows)
    for name, values in table.items():
        write_dataset(target, f"episodes/{name}", [values], how)
    salvage.datasets += len(steps) + len(final) + len(table)


_NEEDED = ("start", "length", "env", "offset", "return", "terminated", "truncated", "complete")


def _with_ends(steps: dict[str, np.ndarray], final: dict[str, np.ndarray], rows: int) -> tuple[int, np.ndarray]:
    """(rows before the first end whose last observation is lost, indices of final/ before that)."""
    count = min((len(values) for values in final.values()), default=0)
    if not {"terminations", "truncations"} <= set(steps) or not {"row", "env"} <= set(final):
        return rows, np.arange(count)
    held = set(zip(final["row"][:count].tolist(), final["env"][:count].tolist(), strict=True))
    ended = np.argwhere(steps["terminations"][:rows] | steps["truncations"][:rows])
    rows = min((int(t) for t, n in ended if (int(t), int(n)) not in held), default=rows)
    return rows, np.flatnonzero(final["row"][:count] < rows)


def _cut_episodes(table: dict[str, np.ndarray], rewards: np.ndarray | None, rows: int) -> dict[str, np.ndarray]:
    """The episodes of the leading rows; one that is cut there has not ended. A return that cannot be told is NaN."""
    table = {name: values[table["start"] < rows].copy() for name, values in table.items()}
    for i in np.flatnonzero(table["start"] + table["length"] > rows):
        start, stop, env = int(table["start"][i]), int(table["start"][i] + table["length"][i]), int(table["env"][i])
        if rewards is None or (table["offset"][i] and stop > len(rewards)):
            table["return"][i] = np.nan
        elif table["offset"][i]:
            table["return"][i] -= rewards[rows:stop, env].astype(np.float64).sum()
        else:
            table["return"][i] = rewards[start:rows, env].astype(np.float64).sum()
        table["length"][i] = rows - start
        for name in ("terminated", "truncated", "complete"):
            table[name][i] = False
    return table
