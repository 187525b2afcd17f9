"""The index RUN/trajectories/index.h5: an HDF5 file of virtual datasets that shows all segments of a rank as one.

HDF5 silently reads fill values where a source is missing; therefore the index can be checked.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import h5py

from dppo.errors import UsageError
from dppo.files import replacing
from dppo.rundir import paths
from dppo.trajectories.catalogue import SURPRISES, gaps, one_line, opened
from dppo.trajectories.format import rank_folders, segment_files, segment_path
from dppo.trajectories.hdf5 import dataset_names, opened_hdf5

FORMAT = "dppo-trajectories-index"
_SOURCE = re.compile(r"rank_\d{5,}/seg_\d{6,}\.h5")


def write_index(run_dir: Path) -> tuple[Path, list[str]]:
    """Writes the index of all segments. Returns its path, and lines that say which segments are missing among them.
    Raises UsageError where there is no segment, one cannot be read, or another file is in the index's place.
    """
    path = run_dir / paths.INDEX
    folders = {rank: segment_files(folder) for rank, folder in rank_folders(run_dir).items()}
    folders = {rank: files for rank, files in folders.items() if files}
    if not folders:
        raise UsageError(f"{run_dir} has no trajectories: no trajectories/rank_*/seg_*.h5")
    if os.path.lexists(path) and not _is_index(path):
        raise UsageError(f"{path} is no index that dppo has written, and is not overwritten: move it away")
    with replacing(path) as part, h5py.File(part, "w", libver=("v110", "v110")) as index:
        index.attrs["format"] = FORMAT
        for rank, files in folders.items():
            _add_rank(index, rank, list(files.values()))
    missing: list[str] = []
    for rank, files in folders.items():
        for first, last in gaps(files):
            name = segment_path(Path(paths.rank_name(rank)), first)
            more = "is missing" if first == last else f"to {segment_path(path, last).name} are missing"
            missing.append(f"{name} {more}")
    return path, missing


def _is_index(path: Path) -> bool:
    try:
        with opened_hdf5(path, path.parent, is_index=True) as file:
            return bool(file.attrs["format"] == FORMAT)
    except SURPRISES:
        return False


def _add_rank(index: h5py.File, rank: int, files: list[Path]) -> None:
    shapes: list[dict[str, tuple[tuple[int, ...], object]]] = []
    for path in files:
        with opened(path) as file:
            steps = file["steps"]
            shapes.append({name: (steps[name].shape, steps[name].dtype) for name in dataset_names(steps)})
    for name, ((_, *rest), dtype) in shapes[0].items():
        for path, here in zip(files, shapes, strict=True):
            if name not in here or list(here[name][0][1:]) != rest or here[name][1] != dtype:
                raise UsageError(f"{path}: steps/{name} is not like that of {files[0].name}; validate says more")
        layout = h5py.VirtualLayout((sum(here[name][0][0] for here in shapes), *rest), dtype)
        start = 0
        for path, here in zip(files, shapes, strict=True):
            shape, source = here[name][0], f"{path.parent.name}/{path.name}"  # relative, so that the run can be moved
            layout[start : start + shape[0]] = h5py.VirtualSource(source, f"steps/{name}", shape, dtype)
            start += shape[0]
        index.create_virtual_dataset(f"{paths.rank_name(rank)}/steps/{name}", layout)


def check_index(run_dir: Path) -> list[str]:
    """Lists what is wrong with the index: sources that are missing or have changed, and segments that it lacks. Raises
    UsageError where there is no index that can be read.
    """
    path = run_dir / paths.INDEX
    if not os.path.lexists(path):
        raise UsageError(f"{path} is not there: write it with `python -m dppo.trajectories index {run_dir}`")
    try:
        with opened_hdf5(path, run_dir, is_index=True) as index:
            wanted: dict[str, dict[str, tuple[int, ...]]] = {}
            for folder in index:
                for name in dataset_names(index[folder]["steps"]):
                    for source in index[folder]["steps"][name].virtual_sources():
                        first, last = source.vspace.get_select_bounds()
                        shape = tuple(int(b) - int(a) + 1 for a, b in zip(first, last, strict=True))
                        wanted.setdefault(source.file_name, {})[f"steps/{name}"] = shape
    except SURPRISES as error:
        raise UsageError(f"{path} cannot be read: {one_line(error)}; write it anew with `index`") from error
    problems: list[str] = []
    for name, shapes in sorted(wanted.items()):
        if not _SOURCE.fullmatch(name):
            problems.append(f"{name} is none of the dump's segments: write it anew")
            continue
        source_path = path.parent / name
        if not source_path.is_file():
            problems.append(f"{name} is missing: its rows read as fill values")
            continue
        try:
            with opened(source_path) as file:
                wrong = [d for d, shape in shapes.items() if d not in file or file[d].shape != shape]
        except UsageError as error:
            problems.append(str(error))
            continue
        if wrong:
            problems.append(f"{name} has another shape than the index says: {', '.join(wrong)}")
    there = {
        f"{f.parent.name}/{f.name}" for folder in rank_folders(run_dir).values() for f in segment_files(folder).values()
    }
    problems += [f"{name} is not in the index: write it anew" for name in sorted(there - set(wanted))]
    return problems
