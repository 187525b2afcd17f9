"""Reads run directories, for tests that compare runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dppo.envs.leaves import as_leaves
from dppo.rundir.checkpoint import read_checkpoint


def metric_lines(run_dir: Path) -> list[dict[str, str]]:
    """metrics.jsonl without the clock figures; numbers as they are written, so that equal means equal to the byte."""
    lines = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
        lines.append({k: v for k, v in values.items() if not k.endswith(("_s", "_per_s"))})
    return lines


def first_difference(lines: list[dict[str, str]], others: list[dict[str, str]]) -> str:
    """Where the lines of two runs differ first, in a line; "" if they are equal."""
    for number, (a, b) in enumerate(zip(lines, others, strict=False)):
        if a != b:
            return f"line {number}: { ({k: (a.get(k), b.get(k)) for k in a | b if a.get(k) != b.get(k)}) }"
    return "" if len(lines) == len(others) else f"{len(lines)} lines and {len(others)}"


def count_lines(run_dir: Path) -> int:
    """Iterations in metrics.jsonl so far; 0 where there is none yet."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def summary(run_dir: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return values


def latest(run_dir: Path) -> Path:
    """The folder of the newest checkpoint."""
    return run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()


def checkpoint(run_dir: Path) -> dict[str, Any]:
    """All of the newest checkpoint but clock figures, by part."""
    saved = read_checkpoint(latest(run_dir))
    del saved.counters["train_s"]
    ranks = {f"rank {rank}": [row, *map(asdict, envs)] for rank, (row, envs) in saved.ranks.items()}
    named = {"next_segments": saved.next_segments, "missing_rows": saved.missing_rows}
    return {"state": saved.state, "counters": saved.counters, **named, **ranks}


def parameters(run_dir: Path) -> np.ndarray:
    vector: np.ndarray = checkpoint(run_dir)["state"]["parameters"]
    return vector


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ by a bit or more."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [line for k in {**a, **b} for line in differences(a.get(k), b.get(k), f"{where}/{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{where}/{i}")]
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype.names and b.dtype.names:  # what lies between the fields is not in the file
            return differences(as_leaves(a), as_leaves(b), where)
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    else:
        same = type(a) is type(b) and a == b
    return [] if same else [f"{where}: {a} and {b}"]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below `folder`: {path: (modification time, content)}."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }
