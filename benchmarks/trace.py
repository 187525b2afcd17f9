"""What does a timeline cost?

    .venv/bin/python benchmarks/trace.py [--rounds 7] [--seed S]

Each environment trains on 3 ranks with and without --log.trace, in turn, round after round; compared within a round
are steps per second. Prints a table and writes it to benchmarks/results/trace.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import machine, markdown_table, mpirun, save, spread

ENVS = {
    "CartPole-v1": "--env CartPole-v1 --total-steps 1000000",
    "CartPole-v1, p2p": "--env CartPole-v1 --total-steps 600000 --exchange p2p",
    "CartPole-v1, async": "--env CartPole-v1 --total-steps 600000 --mode async",
    "Pendulum-v1": "--env Pendulum-v1 --total-steps 400000",
    "HalfCheetah-v5": "--env HalfCheetah-v5 --total-steps 400000",
}
COMMON = "--log.no-tensorboard --optim.schedule constant"
RANKS = 3


def once(flags: str, seed: int) -> dict[str, Any]:
    """Trains once. Returns steps per second, and the bytes and spans of the timeline, if there is one."""
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        mpirun(RANKS, ["-m", "dppo.run", *flags.split(), "--seed", str(seed), "--run-dir", str(run_dir)])
        found = {"steps_per_s": json.loads((run_dir / "summary.json").read_text())["steps_per_s"]}
        trace = run_dir / "trace.json"
        if trace.exists():
            events = json.loads(trace.read_text())["traceEvents"]
            found |= {"bytes": trace.stat().st_size, "spans": sum(event["ph"] == "X" for event in events)}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rows, data = [], dict[str, Any]()
    for name, flags in ENVS.items():
        given = f"{flags} {COMMON} --target-return 1e9"
        rounds = []
        for number in range(args.rounds):
            pair = {}
            for trace in ("", " --log.trace") if number % 2 else (" --log.trace", ""):  # neither is always the first
                pair["on" if trace else "off"] = once(given + trace, args.seed + number)
            rounds.append(pair)
            print(name, pair, flush=True)
        data[name] = rounds
        rows.append([
            name,
            spread((pair["off"]["steps_per_s"] for pair in rounds), ",.0f"),
            spread((pair["on"]["steps_per_s"] for pair in rounds), ",.0f"),
            spread((pair["on"]["steps_per_s"] / pair["off"]["steps_per_s"] for pair in rounds), ".3f"),
            f"{max(pair['on']['spans'] for pair in rounds):,}",
            f"{max(pair['on']['bytes'] for pair in rounds) / 1e6:.1f}",
        ])  # fmt: skip
    runs = "\n".join(f"- {name}: `{flags} {COMMON} --target-return 1e9`" for name, flags in ENVS.items())
    head = ["environment", "steps/s off", "steps/s on", "on / off, same round", "spans", "trace.json, MB"]
    text = (
        f"# Timelines\n\n`.venv/bin/python benchmarks/trace.py` on {machine()}.\n\n`mpirun -n {RANKS}`, with and"
        f" without `--log.trace`:\n\n{runs}\n\nMedians [least, most] of {args.rounds} rounds.\n\n"
    )
    save("trace", text + markdown_table(head, rows), data)


if __name__ == "__main__":
    main()
