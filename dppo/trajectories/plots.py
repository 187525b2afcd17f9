"""Draws a dump: returns, lengths and policy lag over environment steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dppo.errors import UsageError
from dppo.trajectories.catalogue import Catalogue, opened, read
from dppo.trajectories.export.selection import appearing, refuse_existing, refuse_inside_dump
from dppo.trajectories.reader import Trajectories

POINTS = 500
"""The most points of the policy lag per segment."""


def plot(trajectories: Trajectories, path: Path) -> None:
    """Draws the picture `path`, in the format that its suffix names. Raises UsageError where Matplotlib is missing or
    cannot write the format, or `path` exists.
    """
    if not path.suffix:
        raise UsageError(f"{path} has no suffix that says the format: name it {path.name or 'returns'}.png")
    refuse_inside_dump(path)
    refuse_existing(path)
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("plot needs Matplotlib: pip install 'dppo[analysis]'") from error
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    catalogue = trajectories.catalogue
    steps_per_row = sum({s.rank: s.num_envs for s in catalogue.segments}.values())
    figure = Figure(figsize=(9, 9), layout="constrained")
    returns, lengths, lags = figure.subplots(3, 1, sharex=True)
    table = trajectories.table()
    ended = table["terminated"] | table["truncated"]
    for rank, (rows, lag) in policy_lag(catalogue).items():
        mine = ended & (table["rank"] == rank)
        x = (table["last_row"][mine] + 1) * steps_per_row
        (line,) = lags.plot((rows + 1) * steps_per_row, lag, lw=1, label=f"rank {rank}")
        style = {"ls": "", "marker": ".", "ms": 3, "color": line.get_color(), "label": f"rank {rank}"}
        returns.plot(x, table["return"][mine], **style)
        lengths.plot(x, (table["offset"] + table["length"])[mine], **style)
    returns.set_ylabel("return")
    lengths.set_ylabel("length, steps")
    lags.set_ylabel("policy lag, versions behind the newest")
    lags.set_xlabel("environment steps of all ranks")
    if len({s.rank for s in catalogue.segments}) <= 16:
        lags.legend(fontsize="small")
    try:
        with appearing(path) as part:
            figure.savefig(part, format=path.suffix[1:])
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written: {error}") from error


def policy_lag(catalogue: Catalogue) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Returns {rank: (rows, how far its version was behind the newest of any rank in that row)}, at some rows."""
    parts: dict[int, list[np.ndarray]] = {}
    for segment in catalogue.segments:
        some = slice(None, None, -(-segment.num_rows // POINTS))
        with opened(segment.path) as file:
            part = np.stack([read(file, f"steps/{name}", some) for name in ("row", "policy_version")])
        parts.setdefault(segment.rank, []).append(part)
    held = {rank: np.concatenate(each, axis=1) for rank, each in parts.items()}
    out: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for rank, (rows, versions) in held.items():
        newest = versions.copy()
        for other_rows, others in held.values():
            there = np.searchsorted(other_rows, rows, side="right") - 1
            newest = np.where(there >= 0, np.maximum(newest, others[there]), newest)
        out[rank] = rows, newest - versions
    return out
