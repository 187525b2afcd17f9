"""Writes run directories as dppo.run leaves them, without running anything.

tests/test_report.py, tests/test_results.py and tests/storage/test_runs.py use it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dppo.rundir.recorders import write_json
from dppo.settings.flags import from_values
from dppo.settings.toml import to_toml

CURVE = ((1000, None), (2000, 20.0), (3000, 40.0))


def write_run(
    folder: Path,
    settings: dict[str, Any] | None = None,
    *,
    exit: str | None = "finished",
    curve: Sequence[tuple[int, float | None]] = CURVE,
    train_s: float = 2.0,
    metrics: dict[str, Any] | None = None,
    **summary: Any,
) -> Path:
    """A run with these settings (nested, as in TOML) and this learning curve; None: it has no summary.json. `metrics`
    are in each line of metrics.jsonl as well.
    """
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(from_values({"env": "Env-v0", **(settings or {})})))
    write_json(folder / "versions.json", {"attempts": []})
    lines = [
        json.dumps({"env_steps": steps, "return_mean_100": reached, **(metrics or {})}) + "\n"
        for steps, reached in curve
    ]
    (folder / "metrics.jsonl").write_text("".join(lines))
    steps, reached = curve[-1] if curve else (0, None)
    values = {"env_steps": steps, "return_mean_100": reached, "train_s": train_s, "exit": exit} | summary
    if exit is not None:
        write_json(folder / "summary.json", values)
    return folder
