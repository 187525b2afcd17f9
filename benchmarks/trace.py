"""What does a timeline cost?

    .venv/bin/python benchmarks/trace.py [--rounds 5] [--seed S]

Each environment trains on 3 ranks with and without --log.trace, in time slices, round after round; compared within a
round are steps per second. Prints a table and writes it to benchmarks/results/trace.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import machine, markdown_table, save, spread
from in_turns import SLICE_S, steps_per_s

ENVS = {
    "CartPole-v1": "--env CartPole-v1 --total-steps 500000",
    "CartPole-v1, p2p": "--env CartPole-v1 --total-steps 400000 --exchange p2p",
    "CartPole-v1, async": "--env CartPole-v1 --total-steps 400000 --mode async",
    "Pendulum-v1": "--env Pendulum-v1 --total-steps 250000",
    "HalfCheetah-v5": "--env HalfCheetah-v5 --total-steps 200000",
}
COMMON = "--log.no-tensorboard --optim.schedule constant"
RANKS = 3


def measure(flags: str, seed: int) -> dict[str, Any]:
    """Trains with and without a timeline. Returns the steps per second of each, and the timeline's bytes and spans."""
    given = {"off": flags.split(), "on": [*flags.split(), "--log.trace"]}
    names = sorted(given, reverse=seed % 2 == 0)  # neither is always the first
    with tempfile.TemporaryDirectory() as scratch:
        runs = {name: (Path(scratch) / name, [*given[name], "--seed", str(seed)]) for name in names}
        found: dict[str, Any] = dict(steps_per_s(runs, RANKS))
        trace = Path(scratch) / "on" / "trace.json"
        events = json.loads(trace.read_text())["traceEvents"]
        return found | {"bytes": trace.stat().st_size, "spans": sum(event["ph"] == "X" for event in events)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows, data = [], dict[str, Any]()
    for name, flags in ENVS.items():
        given = f"{flags} {COMMON} --target-return 1e9"
        rounds = []
        for number in range(args.rounds):
            rounds.append(pair := measure(given, args.seed + number))
            print(name, pair, flush=True)
        data[name] = rounds
        rows.append([
            name,
            spread((pair["off"] for pair in rounds), ",.0f"),
            spread((pair["on"] for pair in rounds), ",.0f"),
            spread((pair["on"] / pair["off"] for pair in rounds), ".3f"),
            f"{max(pair['spans'] for pair in rounds):,}",
            f"{max(pair['bytes'] for pair in rounds) / 1e6:.1f}",
        ])  # fmt: skip
    runs = "\n".join(f"- {name}: `{flags} {COMMON} --target-return 1e9`" for name, flags in ENVS.items())
    head = ["environment", "steps/s off", "steps/s on", "on / off, same round", "spans", "trace.json, MB"]
    text = (
        f"# Timelines\n\n`.venv/bin/python benchmarks/trace.py` on {machine()}.\n\n`mpirun -n {RANKS}`, with and"
        f" without `--log.trace`:\n\n{runs}\n\nThe two take turns in slices of {SLICE_S} s."
        f" Medians [least, most] of {args.rounds} rounds.\n\n"
    )
    save("trace", text + markdown_table(head, rows), data)


if __name__ == "__main__":
    main()
