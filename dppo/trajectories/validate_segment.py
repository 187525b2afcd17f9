"""Checks one segment: its datasets and attributes are there, numbers are finite, and episodes follow from the steps.

No check raises for the content of a damaged file: each surprise is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dppo.errors import UsageError
from dppo.files import parse_json
from dppo.rundir.spaces import space_from_json
from dppo.trajectories.catalogue import SURPRISES, has_endless_heap, load_filters
from dppo.trajectories.format import ATTRIBUTES, FORMAT, FORMAT_VERSION, TEXTS, datasets, run_dir_of
from dppo.trajectories.hdf5 import opened_hdf5
from dppo.trajectories.validate_episodes import Ends, Findings, Inspected, _episodes, _finals

if TYPE_CHECKING:
    import h5py


def inspect(path: Path, findings: Findings, before: Ends | None) -> Inspected:
    """Checks everything in one segment.

    Args:
      before: the ends of the segment before, where they are known.

    Raises:
      UsageError: the segment's compression filter is not installed.
    """
    found = Inspected()
    try:
        if has_endless_heap(path):
            raise ValueError("its texts are damaged")
        with opened_hdf5(path, run_dir_of(path)) as file:
            _attributes(file, findings, found)
            _labels(file, findings, found)
            data = _datasets(file, findings)
            _shapes(data, findings, found)
            _finite(data, findings)
            _rows(data, findings, found)
            _surely(findings, "episodes", lambda: _episodes(data, findings, found, before))
            _surely(findings, "final", lambda: _finals(data, findings))
    except UsageError:
        raise
    except SURPRISES as error:
        findings.add(None, None, f"cannot be read as HDF5: {_said(error)}")
    return found


def _surely(findings: Findings, name: str, check: Callable[[], None]) -> None:
    """Runs a check whose arrays may not fit together; adds a finding for that if the file has none yet."""
    known = len(findings.violations)
    try:
        check()
    except SURPRISES as error:
        if len(findings.violations) == known and not any(v.file == findings.file for v in findings.violations):
            findings.add(name, None, f"does not fit together: {_said(error)}")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _attributes(file: h5py.File, findings: Findings, found: Inspected) -> None:
    for name, kind in ATTRIBUTES.items():
        try:
            value = file.attrs[name]
        except SURPRISES:
            findings.add(None, None, f"has no attribute {name} that can be read")
            continue
        is_right = isinstance(value, str) if kind is str else isinstance(value, np.integer | np.bool_ | int)
        if not is_right:
            findings.add(None, None, f"its attribute {name} is {value!r}, of a wrong type")
            continue
        found.attrs[name] = value if isinstance(value, str) else int(value)
    version = found.attrs.get("format", FORMAT), found.attrs.get("format_version", FORMAT_VERSION)
    if version != (FORMAT, FORMAT_VERSION):
        findings.add(None, None, f"its format is {version}, this dppo knows {(FORMAT, FORMAT_VERSION)}")
    if found.attrs.get("complete") == 0:
        findings.add(None, None, "its attribute complete is false")


def _labels(file: h5py.File, findings: Findings, found: Inspected) -> None:
    for name in TEXTS:
        try:
            text = file[name].asstr()[()]
        except SURPRISES as error:
            findings.add(name, None, f"cannot be read: {_said(error)}")
            continue
        if name != "env_spec":
            try:
                values = parse_json(text)
            except ValueError as error:
                findings.add(name, None, f"is no JSON: {error}")
                continue
            if name.endswith("_space"):
                try:
                    space_from_json(text)
                except ValueError as error:
                    findings.add(name, None, str(error))
            if name == "config_json" and isinstance(values, dict):
                section = values.get("trajectories")
                found.is_enabled = isinstance(section, dict) and section.get("enabled") is True


def _datasets(file: h5py.File, findings: Findings) -> dict[str, np.ndarray]:
    """Reads all datasets. Returns those that can be read and are of the right type."""
    data: dict[str, np.ndarray] = {}
    for name, column in datasets().items():
        dtype, ndim = column.dtype, column.ndim
        try:
            if name not in file:
                if not column.only_with_raw_actions:
                    findings.add(name, None, "is missing")
                continue
            load_filters(file[name])
            values = file[name][()]
        except UsageError:
            raise
        except SURPRISES as error:
            findings.add(name, None, f"cannot be read: {_said(error)}")
            continue
        if dtype is not None and values.dtype != dtype:
            findings.add(name, None, f"is of type {values.dtype}, not {dtype}")
        elif (ndim is not None and values.ndim != ndim) or (ndim is None and values.ndim < 1):
            findings.add(name, None, f"has the shape {values.shape}; {ndim or 'two or more'} axes are expected")
        else:
            data[name] = values
    return data


def _shapes(data: dict[str, np.ndarray], findings: Findings, found: Inspected) -> None:
    """Checks that the shapes of the datasets fit together. Removes datasets of steps/ that do not fit."""
    if "steps/rewards" in data:
        found.num_envs = data["steps/rewards"].shape[1]
    columns = datasets()
    lead = next((values.shape for name, values in data.items() if columns[name].axes == "TN"), None)
    rows = len(data["steps/row"]) if "steps/row" in data else None if lead is None else lead[0]
    if rows == 0:
        findings.add("steps/row", None, "has no rows")
    for name in [n for n in data if n.startswith("steps/")]:
        shape = data[name].shape
        expected = (rows,) if data[name].ndim == 1 or lead is None else (rows, lead[1])
        if shape[: len(expected)] != expected or (columns[name].ndim is None and len(shape) < 2):
            findings.add(name, None, f"has the shape {shape}; it should begin with {expected}")
            del data[name]
    if "steps/actions" in data and "steps/actions_raw" in data:
        shapes = data["steps/actions"].shape, data["steps/actions_raw"].shape
        if shapes[0] != shapes[1]:
            findings.add("steps/actions_raw", None, f"has the shape {shapes[1]}, steps/actions has {shapes[0]}")
    for group in ("final", "episodes"):
        names = [n for n in data if n.startswith(f"{group}/")]
        lengths = [len(data[n]) for n in names]
        for name in names:
            usual = max(set(lengths), key=lengths.count)
            if len(data[name]) != usual:
                findings.add(name, None, f"has {len(data[name])} entries, the others of {group}/ have {usual}")
    for name in data:
        if name.startswith("steps/") and columns[name].dtype is None:
            found.shapes[name] = data[name].dtype.str, data[name].shape[2:]
    final = data.get("final/observations")
    if final is not None and "steps/observations" in found.shapes:
        one = final.dtype.str, final.shape[1:]
        if one != found.shapes["steps/observations"]:
            findings.add(
                "final/observations", None, f"holds {one}, steps/observations {found.shapes['steps/observations']}"
            )


def _finite(data: dict[str, np.ndarray], findings: Findings) -> None:
    valid = data.get("steps/valid")
    for name, values in data.items():
        if values.dtype.kind not in "fc":
            continue
        bad = ~np.isfinite(values)
        if name.startswith("steps/") and name != "steps/observations" and valid is not None and bad.ndim > 1:
            bad &= valid.reshape(*valid.shape, *(1,) * (bad.ndim - 2))  # only valid steps need finite values
        if bad.any():
            where = np.argwhere(bad)
            count = f"; {len(where)} such values in all" if len(where) > 1 else ""
            at = tuple(where[0].tolist())
            findings.add(name, at[0], f"holds {values[at]} at {list(at)}{count}")


def _rows(data: dict[str, np.ndarray], findings: Findings, found: Inspected) -> None:
    rows, versions = data.get("steps/row"), data.get("steps/policy_version")
    if rows is not None and len(rows):
        steps = np.diff(rows)
        every = found.attrs.get("every", 1)
        wrong = np.flatnonzero(steps < 1 if every > 1 else steps != 1)
        if len(wrong):
            i = int(wrong[0])
            findings.add("steps/row", i + 1, f"row {rows[i + 1]} follows on row {rows[i]}")
        first = found.attrs.get("first_env_step")
        if None not in (first, found.num_envs) and first != rows[0] * found.num_envs:
            findings.add(
                None, None, f"its first_env_step is {first}; row {rows[0]} of {found.num_envs} environments makes "
                f"{rows[0] * found.num_envs}",
            )  # fmt: skip
        found.rows = rows
    if versions is not None:
        wrong = np.flatnonzero(np.diff(versions) < 0)
        if len(wrong):
            i = int(wrong[0])
            findings.add("steps/policy_version", i + 1, f"version {versions[i + 1]} follows on {versions[i]}")
        found.versions = versions
