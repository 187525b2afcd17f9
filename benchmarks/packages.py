"""Do environments of other packages, as these register them, go through all that dppo does with its own?

    cp -a .venv /tmp/packages
    cd /tmp/packages
    bin/python -m pip uninstall -y mujoco mujoco-core mujoco-studio
    bin/python -m pip install -c PINS 'mujoco<3.12' ale-py minigrid flappy-bird-gymnasium highway-env mo-gymnasium \
        gym-anytrading mobile-env gymnasium-robotics opencv-python-headless
    bin/python ROOT/benchmarks/packages.py [--steps 20000] [--only NAME ...]

PINS holds the lines of constraints.txt for gymnasium and numpy, which no package may replace. Each environment is
trained on 3 ranks, which record every step, and resumed for a tenth more; it is evaluated; its dump is validated and
exported. A row says how far that went, and of what failed the last line that the user sees. Rows of packages that are
not installed, and with --only those of other names, stay as they are. Prints a table and writes it, as far as it is, to
benchmarks/results/packages.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from common import MPIRUN, machine, markdown_table, save, stored

RANKS = 3
ROOT = Path(__file__).parents[1]
LINEAR = "--wrappers mo_gymnasium.wrappers:LinearReward"
NO_MISSION = "--wrappers benchmarks.wrappers:WithoutMission"
ATARI = "--env-kwargs frameskip=1 --wrappers gymnasium.wrappers:AtariPreprocessing --ppo.epochs 1"
COARSE = "--env-kwargs 'config={simulation_frequency = 5, duration = 20}'"
FEW_CARS = "--env-kwargs 'config={vehicles_count = 10, simulation_frequency = 5}'"


class Env(NamedTuple):
    package: str
    """As pip calls it."""
    name: str
    flags: str = ""
    forms: str = "minari csv"
    """What the dump is exported to: images are too wide for a table."""


LISTED = (
    Env("flappy-bird-gymnasium", "FlappyBird-v0"),
    Env("flappy-bird-gymnasium", "FlappyBird-v0", "--env-kwargs use_lidar=false"),
    Env("highway-env", "highway-v0", FEW_CARS),
    Env("highway-env", "parking-v0"),
    Env("highway-env", "lane-keeping-v0"),
    Env("highway-env", "racetrack-v0", COARSE),
    Env("minigrid", "MiniGrid-Empty-5x5-v0", NO_MISSION, "minari"),
    Env("minigrid", "BabyAI-GoToRedBall-v0", NO_MISSION, "minari"),
    Env("minigrid", "MiniGrid-FourRooms-v0", "--wrappers minigrid.wrappers:FlatObsWrapper", "minari d4rl"),
    Env("gymnasium-robotics", "FetchReach-v4"),
    Env("gymnasium-robotics", "PointMaze_UMaze-v3"),
    Env("mo-gymnasium", "minecart-v0", LINEAR),
    Env("mo-gymnasium", "deep-sea-treasure-v0", LINEAR),
    Env("gym-anytrading", "forex-v0"),
    Env("gym-anytrading", "stocks-v0", "--env-kwargs window_size=10 'frame_bound=[10, 300]'"),
    Env("mobile-env", "mobile-small-central-v0"),
    Env("mobile-env", "mobile-small-central-v0", "--wrappers benchmarks.wrappers:SeededMobileEnv"),
    Env("ale-py", "ALE/Pong-v5", ATARI, "minari d4rl"),
    Env("ale-py", "ALE/Breakout-v5", "--wrappers --env-kwargs obs_type=ram frameskip=4"),
)
"""Environments that must pass."""
OTHERS = (
    Env("PyFlyt", "PyFlyt/QuadX-Hover-v1"),
    Env("PyFlyt", "PyFlyt/QuadX-Waypoints-v1"),
    Env("panda-gym", "PandaReach-v3"),
    Env("gym-pusht", "gym_pusht/PushT-v0"),
    Env("gym-pusht", "gym_pusht/PushT-v0", "--env-kwargs obs_type=pixels --ppo.epochs 1", "minari d4rl"),
    Env("minatar", "minatar.gym:BaseEnv", "--env-kwargs game=breakout", "minari d4rl"),
    Env("bsuite", "bsuite/catch-v0"),
    Env("bsuite", "bsuite/deep_sea-v0", "--env-kwargs size=5"),
    Env("dm_control", "dm_control/cartpole-balance-v0"),
    Env("metaworld", "Meta-World/MT1", "--env-kwargs env_name=reach-v3"),
    Env("gym-trading-env", "gym_trading_env:TradingEnv"),
    Env("gym-trading-env", "benchmarks.wrappers:trading"),
    Env("highway-env", "merge-v0", COARSE),
    Env("minigrid", "MiniGrid-DoorKey-5x5-v0", "--wrappers minigrid.wrappers:ImgObsWrapper", "minari d4rl"),
    Env("ale-py", "ALE/Pong-v5", "--ppo.epochs 1", "minari d4rl"),
    Env("crafter", "crafter:Env"),
    Env("gym-super-mario-bros", "gym_super_mario_bros:SuperMarioBros-v0"),
)
"""Environments that were tried afterwards, for a fifth of the steps; of some the row is what the user is told."""


class Row(NamedTuple):
    """What came of an environment."""

    package: str
    env: str
    flags: str
    steps_per_s: str = "-"
    resumed: str = "-"
    evaluated: str = "-"
    valid: str = "-"
    exported: str = "-"
    told: str = ""
    """What the user is told of the first command that failed."""


class Failed(Exception):
    """A command that failed, or that told of a traceback; the text is what the user sees last."""


def run(command: Sequence[str], folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a command in the root of the repository. Raises Failed where it fails."""
    variables = os.environ | {"MINARI_DATASETS_PATH": str(folder / "minari")}
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=variables, timeout=timeout_s, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed(f"took more than {timeout_s:g} s") from None
    if ended.returncode or "Traceback" in ended.stderr:
        print(ended.stderr, file=sys.stderr)
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("dppo: ")] or lines or ["nothing"]
        has_traceback = "a traceback and " if "Traceback" in ended.stderr else ""
        raise Failed(f"code {ended.returncode}, {has_traceback}`{told[-1].replace('|', '/')}`")
    return ended


def train(folder: Path, flags: Iterable[str]) -> str:
    """Trains on all ranks. Returns what was said on standard error."""
    ranks = [str(MPIRUN), "--oversubscribe", "-n", str(RANKS)]
    command = [*ranks, sys.executable, "-m", "dppo.run", "--run-dir", str(folder / "run"), *flags]
    return run(command, folder, 1500).stderr


def through_all(env: Env, steps: int, folder: Path) -> Row:
    """Takes an environment through all commands, as far as they pass."""
    row = Row(f"{env.package} {metadata.version(env.package)}", env.name, env.flags)
    run_dir = str(folder / "run")

    def command(name: str, *arguments: str) -> str:
        return run([sys.executable, "-m", f"dppo.{name}", *arguments], folder, 300).stdout

    try:
        flags = ("--trajectories.enabled", "--log.no-tensorboard", *shlex.split(env.flags))
        train(folder, ["--env", env.name, "--total-steps", str(steps), *flags])
        summary = json.loads((folder / "run" / "summary.json").read_text())
        row = row._replace(steps_per_s=f"{summary['steps_per_s']:,.0f}")
        said = train(folder, ["--resume", "--total-steps", str(steps + steps // 10)])
        cut = sum("replayed" in line for line in said.splitlines())
        row = row._replace(resumed=f"{cut} episodes cut" if cut else "exactly")
        played = json.loads(command("evaluate", run_dir, "--episodes", "4", "--max-steps", "300", "--json"))
        row = row._replace(evaluated=f"{played['ended']} ended, {played['cut']} cut")
        command("trajectories", "validate", run_dir)
        row = row._replace(valid="yes")
        for form in env.forms.split():
            command("trajectories", "export", run_dir, "--to", form)
            row = row._replace(exported=f"{row.exported}, {form}".removeprefix("-, "))
    except Failed as failed:
        row = row._replace(told=str(failed))
    return row


def is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--only", nargs="+", help="parts of packages, names or flags")
    args = parser.parse_args()
    told = []
    for env in LISTED + OTHERS:
        is_chosen = args.only is None or any(part in f"{env.package} {key(env)}" for part in args.only)
        if is_chosen and is_installed(env.package):
            steps = args.steps // (1 if env in LISTED else 5)
            with tempfile.TemporaryDirectory() as folder:
                row = through_all(env, steps, Path(folder))
            rows = {k: Row(*r) for k, r in stored("packages").get("rows", {}).items()} | {key(env): row}
            save("packages", report(rows, args.steps), {"steps": args.steps, "machine": machine(), "rows": rows})
            told += [row.told] if env in LISTED else []
    raise SystemExit(any(told))


def key(env: Env) -> str:
    return f"{env.name} {env.flags}".strip()


def report(rows: dict[str, Row], steps: int) -> str:
    head = ("package", "environment", "flags", "steps/s", "resumed", "evaluated", "valid", "exported to", "told")
    listed, others = (
        markdown_table(head, ([f"`{cell}`" if cell and i in (1, 2) else cell for i, cell in enumerate(rows[key(env)])]
                              for env in envs if key(env) in rows))
        for envs in (LISTED, OTHERS)
    )  # fmt: skip
    missing = ", ".join(f"`{key(env)}`" for env in LISTED + OTHERS if key(env) not in rows) or "none"
    return (
        f"# Environments of other packages\n\n`benchmarks/packages.py --steps {steps}`; {machine()}.\n\nEach row is"
        f" `mpirun -n {RANKS} python -m dppo.run --env ENVIRONMENT FLAGS --total-steps {steps} --trajectories.enabled`,"
        f" resumed to {steps + steps // 10:,} steps. An episode of the evaluation is cut after 300 steps. Where a"
        " command failed, those after it were not tried, and the last column has the last line that the user sees. The"
        f" machine was shared with other jobs.\n\n{listed}\n## Others\n\nTrained"
        f" for {steps // 5:,} steps.\n\n{others}\nNot run yet: {missing}."
    )


if __name__ == "__main__":
    main()
