"""Checks one segment: its datasets and attributes are there, numbers are finite, and episodes follow from the steps.

No check raises for the content of a damaged file: each surprise is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mode
from typing import Any

import h5py
import numpy as np
from gymnasium import Space

from dppo.envs.cases import names_of
from dppo.envs.leaves import leaves
from dppo.errors import UsageError
from dppo.files import parse_json
from dppo.rundir.spaces import space_from_json
from dppo.trajectories.catalogue import SURPRISES, has_endless_heap, one_line, read
from dppo.trajectories.format import (  # fmt: skip
    ATTRIBUTES,
    FORMAT,
    FORMAT_VERSION,
    TEXTS,
    column_path,
    datasets,
    datasets_in,
    misfit,
    run_dir_of,
)
from dppo.trajectories.hdf5 import opened_hdf5
from dppo.trajectories.names import AGENTS, CASES, agents_in, cases_in
from dppo.trajectories.validate_episodes import Ends, Findings, Inspected, _episodes, _finals


def inspect(path: Path, findings: Findings, before: Ends | None) -> Inspected:
    """Checks everything in one segment; `before` has the ends of the segment before, where they are known. Raises
    UsageError where the segment's compression filter is not installed.
    """
    found = Inspected()
    try:
        if has_endless_heap(path):
            raise ValueError("its texts are damaged")
        with opened_hdf5(path, run_dir_of(path)) as file:
            _attributes(file, findings, found)
            spaces = _labels(file, findings, found)
            data = _datasets(file, findings)
            _surely(findings, "steps", lambda: _leaves(file, findings, spaces))
            _shapes(data, findings, found)
            _finite(data, findings)
            _rows(data, findings, found)
            _surely(findings, "episodes", lambda: _episodes(data, findings, found, before))
            _surely(findings, "final", lambda: _finals(data, findings))
    except UsageError:
        raise
    except SURPRISES as error:
        findings.add(None, None, f"cannot be read as HDF5: {one_line(error)}")
    return found


def _surely(findings: Findings, name: str, check: Callable[[], object]) -> None:
    """Runs a check whose arrays may not fit together; adds a finding for that if the file has none yet."""
    try:
        check()
    except SURPRISES as error:
        if not any(v.file == findings.file for v in findings.violations):
            findings.add(name, None, f"does not fit together: {one_line(error)}")


def _attributes(file: h5py.File, findings: Findings, found: Inspected) -> None:
    for name, kind in ATTRIBUTES.items():
        try:
            value = file.attrs[name]
        except SURPRISES:
            findings.add(None, None, f"has no attribute {name} that can be read")
            continue
        if not isinstance(value, str if kind is str else np.integer | np.bool_ | int):
            findings.add(None, None, f"its attribute {name} is {value!r}, of a wrong type")
            continue
        found.attrs[name] = value if isinstance(value, str) else int(value)
    version = found.attrs.get("format", FORMAT), found.attrs.get("format_version", FORMAT_VERSION)
    if version != (FORMAT, FORMAT_VERSION):
        findings.add(None, None, f"its format is {version}, this dppo knows {(FORMAT, FORMAT_VERSION)}")
    if found.attrs.get("complete") == 0:
        findings.add(None, None, "its attribute complete is false")


def _labels(file: h5py.File, findings: Findings, found: Inspected) -> dict[str, Space[Any]]:
    """Checks the texts. Returns {label: space} of those spaces that can be read."""
    spaces: dict[str, Space[Any]] = {}
    cases: list[Any] = []
    for name in TEXTS:
        try:
            text = file[name].asstr()[()]
        except SURPRISES as error:
            findings.add(name, None, f"cannot be read: {one_line(error)}")
            continue
        if name == "env_spec":
            continue
        try:
            values = parse_json(text)
        except ValueError as error:
            findings.add(name, None, f"is no JSON: {error}")
            continue
        if name == "config_json":
            values = values if isinstance(values, dict) else {}
            section, cases = values.get("trajectories"), values.get("cases", [])
            found.is_enabled = isinstance(section, dict) and section.get("enabled") is True
            continue
        try:
            spaces[name] = space_from_json(text)
        except ValueError as error:
            findings.add(name, None, str(error))
    _surely(findings, AGENTS, lambda: agents_in(file))
    _surely(findings, CASES, lambda: _cases(file, findings, found, cases))
    return spaces


def _cases(file: h5py.File, findings: Findings, found: Inspected, cases: list[Any]) -> None:
    """Checks that each environment has the case that the run's settings deal to it."""
    names, num_envs = cases_in(file), int(file["steps/rewards"].shape[1])
    expected = names_of(cases, found.attrs.get("first_env", 0), num_envs, max(1, len(agents_in(file))))
    if names != expected:
        findings.add(CASES, None, f"is {', '.join(names) or 'not there'}; the settings deal {', '.join(expected)}")


def _datasets(file: h5py.File, findings: Findings) -> dict[str, np.ndarray]:
    """Reads all datasets. Returns those that can be read and are of the right type."""
    data: dict[str, np.ndarray] = {}
    for name, column in datasets_in(file).items():
        try:
            if name in file:
                data[name] = read(file, name)
            is_leaf = name != column_path(name)
            problem = misfit(column, data[name], is_leaf=is_leaf) if name in file else column.absence
        except UsageError:
            raise
        except SURPRISES as error:
            problem = f"cannot be read: {one_line(error)}"
        if problem is not None:
            findings.add(name, None, problem)
            data.pop(name, None)
    return data


_OF_SPACES = {
    "observation_space": ("steps/observations", "final/observations"),
    "action_space": ("steps/actions", "steps/actions_raw"),
}  # fmt: skip
"""The columns whose values are of a space, by its label."""


def _leaves(file: h5py.File, findings: Findings, spaces: dict[str, Space[Any]]) -> None:
    """Checks that the file has the leaves of its spaces, and no others."""
    there = {path for path in datasets_in(file) if path in file}
    for label, space in spaces.items():
        names = [leaf.name for leaf in leaves(space)]
        for column in _OF_SPACES[label]:
            found = {path for path in there if column_path(path) == column}
            expected = {f"{column}/{name}".removesuffix("/") for name in names}
            if found and found != expected:
                more, less = sorted(found - expected), sorted(expected - found)
                what = [*(f"{path} is there" for path in more), *(f"{path} is missing" for path in less)]
                findings.add(column, None, f"is not of the {label}: {', '.join(what)}")


def _shapes(data: dict[str, np.ndarray], findings: Findings, found: Inspected) -> None:
    """Checks that the shapes of the datasets fit together. Removes datasets that do not fit."""
    columns = datasets()
    axes = {name: columns[column_path(name)].axes.rstrip("*") for name in data}
    sizes: dict[str, list[int]] = {}
    for name in data:
        for axis, size in zip(axes[name], data[name].shape, strict=False):
            sizes.setdefault(axis, []).append(size)
    usual = {axis: mode(listed) for axis, listed in sizes.items()}
    found.num_envs = usual.get("N")
    if usual.get("T") == 0:
        findings.add("steps/row", None, "has no rows")
    for name, values in list(data.items()):
        expected = tuple(usual.get(axis) for axis in axes[name])
        if values.shape[: len(expected)] != expected:
            group = name.partition("/")[0]
            what = f"has {len(values)} entries, the others of {group}/ have {expected[0]}"
            if group == "steps":
                what = f"has the shape {values.shape}; it should begin with {expected}"
            findings.add(name, None, what)
            del data[name]
    for name, raw in data.items():
        sent = data.get(name.replace("/actions_raw", "/actions", 1), raw)
        if sent.shape != raw.shape:
            findings.add(name, None, f"has the shape {raw.shape}, steps/actions has {sent.shape}")
    found.shapes = {
        name: (values.dtype.str, values.shape[2:])
        for name, values in data.items()
        if column_path(name) in ("steps/observations", "steps/actions")
    }
    for name, one in found.shapes.items():
        final = data.get(name.replace("steps/", "final/", 1))
        if final is not None and (last := (final.dtype.str, final.shape[1:])) != one:
            findings.add(name.replace("steps/", "final/", 1), None, f"holds {last}, {name} {one}")


def _finite(data: dict[str, np.ndarray], findings: Findings) -> None:
    valid = data.get("steps/valid")
    for name, values in data.items():
        if values.dtype.kind not in "fc":
            continue
        bad = ~np.isfinite(values)
        if (
            name.startswith("steps/")
            and column_path(name) != "steps/observations"
            and valid is not None
            and bad.ndim > 1
        ):
            bad &= valid.reshape(*valid.shape, *(1,) * (bad.ndim - 2))  # only valid steps need finite values
        if bad.any():
            where = np.argwhere(bad)
            count = f"; {len(where)} such values in all" if len(where) > 1 else ""
            at = tuple(where[0].tolist())
            findings.add(name, at[0], f"holds {values[at]} at {list(at)}{count}")


def _rows(data: dict[str, np.ndarray], findings: Findings, found: Inspected) -> None:
    found.rows = rows = data.get("steps/row", found.rows)
    found.versions = versions = data.get("steps/policy_version", found.versions)
    steps = np.diff(rows)
    for i in np.flatnonzero(steps < 1 if found.attrs.get("every", 1) > 1 else steps != 1)[:1].tolist():
        findings.add("steps/row", i + 1, f"row {rows[i + 1]} follows on row {rows[i]}")
    first, num_envs = found.attrs.get("first_env_step"), found.num_envs
    if len(rows) and None not in (first, num_envs) and first != rows[0] * num_envs:
        said = f"row {rows[0]} of {num_envs} environments makes {rows[0] * num_envs}"
        findings.add(None, None, f"its first_env_step is {first}; {said}")
    for i in np.flatnonzero(np.diff(versions) < 0)[:1].tolist():
        findings.add("steps/policy_version", i + 1, f"version {versions[i + 1]} follows on {versions[i]}")
