"""Reads run directories, for tests that compare runs.

Uses torch to open checkpoints; tests/mpi/ and tests/test_run.py use it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


def metric_lines(run_dir: Path) -> list[dict[str, str]]:
    """metrics.jsonl without the clock figures; numbers as they are written, so that equal means equal to the byte."""
    lines = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line, parse_float=str, parse_int=str, parse_constant=str)
        lines.append({k: v for k, v in values.items() if not k.endswith(("_s", "_per_s"))})
    return lines


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
    """All of the newest checkpoint but clock figures: {file: content}, tensors as arrays."""
    files = {p.name: _plain(torch.load(p, weights_only=True)) for p in sorted(latest(run_dir).glob("*.pt"))}
    del files["state.pt"]["journal"]["train_s"]
    return files


def parameters(run_dir: Path) -> np.ndarray:
    vector: np.ndarray = checkpoint(run_dir)["state.pt"]["state"]["parameters"]
    return vector


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.numpy() if isinstance(value, torch.Tensor) else value


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ by a bit or more."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [line for k in {**a, **b} for line in differences(a.get(k), b.get(k), f"{where}/{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{where}/{i}")]
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
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
