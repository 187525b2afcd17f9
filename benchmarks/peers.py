"""How fast, and how well, beside others? dppo, Stable-Baselines3, CleanRL, Tianshou, Sample Factory on the same cores.

    .venv/bin/python benchmarks/peers.py [--study cartpole halfcheetah images pong] [--only NAME …]
                                         [--seeds 1 2 3 4 5] [--repeats 3] [--no-returns] [--smoke]

Each peer lives in a virtual environment of its own, .venv/peers/NAME (or $PEERS/NAME), which is made here from
benchmarks/peers/requirements-NAME.txt; one that cannot be installed is listed as such. What a second file,
requirements-NAME-alone.txt, names is installed without what it requires, which is too old for the rest.
Runs alternate: dppo, peer A, peer B, dppo, …. The clock starts at the first environment step, so imports and the start
of processes count nowhere. Each peer has one thread or two, whichever a short run found faster. Four studies:

cartpole: each trainer at its own best settings: steps/s of a run of fixed length, seconds and steps to a mean return of
475 over the last 100 training episodes. By default dppo steps a NumPy form of CartPole of its own, the others step
Gymnasium's environments one after another; two rows show dppo with those as well.
halfcheetah: equal work (2×64 tanh, 2,048 steps per process and iteration, 10 epochs, minibatches of 64, float32):
steps/s, and the return of the last 100 training episodes, those of the last 100,000 steps, after 300,000. dppo has two
workers: with minibatches of 64 on each it makes half as many updates, from 128 samples, and has twice the learning rate
(linear scaling, Goyal et al. 2017); with 64 in all it makes as many as the others, with theirs, 3e-4.
images, pong: equal work (8 environments, 84 × 84 × 4 bytes, one Nature encoder for policy and value, 128 steps, 4
epochs, minibatches of 256, float32): steps/s with an environment that costs nothing, and with Pong in Gymnasium's
wrappers, which needs ale-py. dppo's two workers have four environments each, and half of each minibatch.

Prints Markdown tables and writes them, with the figures of each run as JSON, to benchmarks/results/peers.{md,json}.
What is not run again keeps its last result.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

HERE = Path(__file__).parent
VENVS = Path(os.environ.get("PEERS", HERE.parent / ".venv" / "peers"))
RANKS = 3  # a server and a worker for each of two cores
EQUAL_WORK = (
    "--env HalfCheetah-v5 --num-envs 1 --horizon 2048 --ppo.epochs 10 --ppo.target-kl 0 --ppo.clip 0.2"
    " --ppo.gamma 0.99 --ppo.lam 0.95 --ppo.entropy-coef 0 --optim.no-anneal"
    " --model.hidden 64 64 --model.log-std-init -0.5"
)
EQUAL_IMAGES = (
    "--num-envs 4 --horizon 128 --ppo.epochs 4 --ppo.minibatches 4 --ppo.target-kl 0 --ppo.clip 0.1 --ppo.gamma 0.99"
    " --ppo.lam 0.95 --ppo.entropy-coef 0.01 --optim.lr 2.5e-4 --model.encoder nature --model.shared --model.hidden"
)


@dataclass(frozen=True)
class Row:
    """A trainer with its settings: of dppo, or of the peer whose virtual environment is `venv`."""

    name: str
    flags: str
    venv: str | None = None


ROWS = {
    "cartpole": (
        Row("dppo sync a3c", "--env CartPole-v1 --loss a3c"),
        Row("dppo async a3c", "--env CartPole-v1 --mode async"),
        Row("dppo sync ppo", "--env CartPole-v1"),
        Row("dppo sync a3c, Gymnasium's CartPole", "--env CartPole-v1 --loss a3c --vectorization sync"),
        Row("dppo sync ppo, Gymnasium's CartPole", "--env CartPole-v1 --vectorization sync"),
        Row("Stable-Baselines3", "", "sb3"),
        Row("Stable-Baselines3, RL Zoo", "--variant zoo", "sb3"),
        Row("Tianshou", "", "tianshou"),
        Row("Sample Factory", "", "sample-factory"),
    ),
    "halfcheetah": (
        Row("dppo, 64 a worker", f"{EQUAL_WORK} --ppo.minibatches 32 --optim.lr 6e-4"),
        Row("dppo, 64 in all", f"{EQUAL_WORK} --ppo.minibatches 64 --optim.lr 3e-4"),
        Row("Stable-Baselines3", "", "sb3"),
        Row("Tianshou", "", "tianshou"),
        Row("Sample Factory", "", "sample-factory"),
    ),
    "images": (
        Row("dppo", f"{EQUAL_IMAGES} --env pictures:Pictures"),
        Row("dppo, bfloat16", f"{EQUAL_IMAGES} --env pictures:Pictures --model.bf16"),
        Row("Stable-Baselines3", "", "sb3"),
        Row("CleanRL", "", "cleanrl"),
    ),
    "pong": (
        Row("dppo", f"{EQUAL_IMAGES} --env ALE/Pong-v5"),
        Row("dppo, bfloat16", f"{EQUAL_IMAGES} --env ALE/Pong-v5 --model.bf16"),
        Row("Stable-Baselines3", "", "sb3"),
        Row("CleanRL", "", "cleanrl"),
    ),
}
STEPS = {
    "cartpole": {"threads": 30_000, "speed": 200_000, "target": 200_000},
    "halfcheetah": {"threads": 12_000, "speed": 40_000, "return": 300_000},
    "images": {"threads": 3_072, "speed": 10_240},
    "pong": {"threads": 3_072, "speed": 10_240},
}
TARGET = 475.0
ENVIRONMENT = "HalfCheetah-v5 alone, random actions, two processes"


def install(venv: str) -> str | None:
    """Makes the peer's virtual environment unless it is there with these versions. Returns why it cannot."""
    place, requirements = VENVS / venv, HERE / "peers" / f"requirements-{venv}.txt"
    alone = requirements.with_name(f"requirements-{venv}-alone.txt")
    files = [requirements, *([alone] if alone.exists() else [])]
    stamp, wanted = place / "installed.txt", "".join(file.read_text() for file in files)
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    print(f"installing {venv}", flush=True)
    try:
        finish([sys.executable, "-m", "venv", str(place)], HERE, 300)
        for file in files:
            pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(file)]
            pip += ["--no-deps", "--ignore-requires-python"] if file == alone else []
            finish(["nice", "-n", "19", *pip], HERE, 3600)
    except RuntimeError as error:
        return str(error)
    stamp.write_text(wanted)
    return None


def finish(command: list[str], folder: Path, timeout_s: float, **environment: str) -> str:
    """The command's output. Ends it with all its processes after `timeout_s`. Raises RuntimeError where it fails."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {timeout_s:,.0f} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(errors.strip().splitlines()[-1:])}")
    return output


def run(row: Row, study: str, seed: int, steps: int, target: float | None = None, threads: int = 1) -> dict[str, Any]:
    """One training run; its figures, or why there are none."""
    timeout_s = 120 + steps / 200  # every trainer makes several times as many steps/s
    try:
        if row.venv is None:
            figures = run_dppo(row, seed, steps, target, timeout_s)
        else:
            with tempfile.TemporaryDirectory() as folder:
                command = [str(VENVS / row.venv / "bin" / "python")]
                command += [str(HERE / "peers" / f"train_{row.venv.replace('-', '_')}.py"), *row.flags.split()]
                command += ["--study", study, "--seed", str(seed), "--steps", str(steps), "--folder", folder]
                command += ["--threads", str(threads), *([] if target is None else ["--target", str(target)])]
                output = finish(command, Path(folder), timeout_s, OMP_NUM_THREADS=str(threads))
                figures = json.loads(output.splitlines()[-1])
    except (RuntimeError, subprocess.SubprocessError, ValueError, IndexError) as error:
        figures = {"seed": seed, "failed": f"{(getattr(error, 'stderr', None) or '')[-500:]}{error}"}
    print(f"{study}, {row.name}:", json.dumps(figures), flush=True)
    return figures


def run_dppo(row: Row, seed: int, steps: int, target: float | None, timeout_s: float) -> dict[str, Any]:
    """One run of dppo, with the figures of a peer's. To a target, its preset says for how long at most."""
    end = f"--total-steps {steps} --target-return 1e9" if target is None else f"--target-return {target}"
    summary = common.train(RANKS, f"{row.flags} {end}", seed, timeout_s)
    met = summary["exit"] == "target"
    return {
        "seed": seed,
        "steps": summary["env_steps"],
        "seconds": summary["train_s"],
        "steps_per_s": summary["env_steps"] / summary["train_s"],
        "seconds_to_target": summary["train_s"] if met else None,
        "steps_to_target": summary["env_steps"] if met else None,
        "episodes": summary["episodes"],
        "return_at_end": summary["return_mean_100"],
    }


def random_actions(seconds: float) -> float:
    """Steps/s of HalfCheetah-v5 alone, one environment in this process."""
    import gymnasium  # here, so that a run of dppo does not wait for it

    env = gymnasium.make("HalfCheetah-v5")
    env.action_space.seed(os.getpid())
    actions = [env.action_space.sample() for _ in range(1000)]  # an episode
    env.reset(seed=0)
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for action in actions:
            env.step(action)
        env.reset()
        steps += len(actions)
    return steps / (time.perf_counter() - begun)


class Books:
    """All results, written after every run. {study: {row: {measure: [figures of each run]}}}"""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_text()) if path and path.exists() else {}
        self.begun: set[tuple[str, str, str]] = set()

    def add(self, study: str, name: str, measure: str, figures: Any) -> None:
        """Another run; the first of this session replaces what earlier ones left."""
        book = self.data.setdefault(study, {}).setdefault(name, {})
        if (study, name, measure) not in self.begun:
            book[measure] = []
        self.begun.add((study, name, measure))
        book[measure].append(figures)
        if self.path:
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(json.dumps(self.data, indent=1) + "\n")


def run_study(study: str, rows: list[Row], books: Books, args: argparse.Namespace) -> None:
    """Each peer's threads, then the speed of all, then what they learn."""
    steps = {measure: max(n // 20, 5000) if args.smoke else n for measure, n in STEPS[study].items()}
    threads: dict[str, int] = {}
    for row in rows:
        if row.venv:
            trials = [run(row, study, 1, steps["threads"], threads=n) for n in (1, 2)]
            for figures in trials:
                books.add(study, row.name, "threads", figures)
            threads[row.name] = max(trials, key=lambda figures: figures.get("steps_per_s", 0)).get("threads", 1)
    for repeat in range(args.repeats):
        for row in rows:
            figures = run(row, study, repeat + 1, steps["speed"], threads=threads.get(row.name, 1))
            books.add(study, row.name, "speed", figures)
        if study == "halfcheetah":
            with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, None, os.chdir, (folder,)) as pool:
                rates = list(pool.map(random_actions, [5.0, 5.0]))  # in a folder, because MuJoCo writes a log
            books.add(study, ENVIRONMENT, "speed", {"steps_per_s": sum(rates)})
    if study == "cartpole":
        for seed in args.seeds:
            for row in rows:
                figures = run(row, study, seed, steps["target"], TARGET, threads.get(row.name, 1))
                books.add(study, row.name, "target", figures)
    elif study == "halfcheetah" and args.returns:  # not timed: of the peers, with one thread, two run at a time
        jobs = [(row, seed) for seed in args.seeds for row in rows]
        for here, at_once in (([job for job in jobs if not job[0].venv], 1), ([job for job in jobs if job[0].venv], 2)):
            with ThreadPoolExecutor(at_once) as waiting:
                runs = waiting.map(lambda job: run(job[0], study, job[1], steps["return"]), here)
                for (row, _), figures in zip(here, runs, strict=True):
                    books.add(study, row.name, "return", figures)


def table(study: str, data: dict[str, Any], machine: str) -> str:
    """Medians over runs [least, most], how dppo compares, and what else a reader must know, in Markdown."""

    def values(name: str, measure: str, key: str) -> list[float]:
        runs = data.get(name, {}).get(measure, [])
        return [figures[key] for figures in runs if figures.get(key) is not None]

    def cell(name: str, measure: str, key: str, form: str) -> str:
        found = values(name, measure, key)
        return common.spread(found, form) if found else "–"

    def ratio(over: str, under: str, measure: str, key: str) -> str:
        top, bottom = values(over, measure, key), values(under, measure, key)
        return f"{statistics.median(top) / statistics.median(bottom):.2f}" if top and bottom else "–"

    # Compared with: the synchronous ones, as otherwise the table gets too wide.
    ours = [r.name for r in ROWS[study] if r.venv is None and "async" not in r.name and "Gymnasium" not in r.name]
    head = ["trainer", "threads", "steps/s with learning", *[f"{our} / this" for our in ours]]
    if study == "cartpole":
        head += ["seconds to 475", *[f"this / {our}" for our in ours], "steps to 475", "reached by"]
    elif study == "halfcheetah":
        head += ["return at 300,000 steps"]
    lines, notes = [], []
    for row in (row for row in ROWS[study] if row.name in data):
        book = data[row.name]
        threads = values(row.name, "speed", "threads")
        line = [row.name, f"{RANKS} ranks" if row.venv is None else f"{threads[0]}" if threads else "–"]
        line += [cell(row.name, "speed", "steps_per_s", ",.0f")]
        line += [ratio(our, row.name, "speed", "steps_per_s") for our in ours]
        if study == "cartpole":
            line += [cell(row.name, "target", "seconds_to_target", ",.2f")]
            line += [ratio(row.name, our, "target", "seconds_to_target") for our in ours]
            line += [cell(row.name, "target", "steps_to_target", ",.0f")]
            line += [f"{len(values(row.name, 'target', 'steps_to_target'))} of {len(book.get('target', []))}"]
        elif study == "halfcheetah":
            line += [cell(row.name, "return", "return_at_end", ",.0f")]
        lines.append(line)
        note = [f"`{row.flags}`"] if row.flags else []
        if trials := book.get("threads"):
            rates = " and ".join(f"{figures.get('steps_per_s', 0):,.0f}" for figures in trials)
            versions: dict[str, str] = next((figures["versions"] for figures in trials if "versions" in figures), {})
            note += [", ".join(f"{name} {version}" for name, version in versions.items())]
            note += [f"{rates} steps/s with one thread and with two in a short run"]
        failures = [figures["failed"] for runs in book.values() for figures in runs if "failed" in figures]
        note += [f"{len(failures)} failed: {failures[0]}"] if failures else []
        notes.append(f"- {row.name}: {'; '.join(note)}.\n")
    if alone := values(ENVIRONMENT, "speed", "steps_per_s"):
        share = ratio(ours[0], ENVIRONMENT, "speed", "steps_per_s")
        notes.append(f"- {ENVIRONMENT}: {common.spread(alone, ',.0f')} steps/s; dppo learns at {share} of that.\n")
    repeats = max((len(book.get("speed", [])) for book in data.values()), default=0)
    seeds = max((len(book.get(m, [])) for book in data.values() for m in ("target", "return")), default=0)
    title = f"## {study}\n\nSteps/s: {STEPS[study]['speed']:,} steps, {repeats} runs."
    title += f" Learning: {seeds} seeds." if seeds else ""
    return f"{title} On {machine}.\n\n{common.markdown_table(head, lines)}\n{''.join(notes)}"


def main() -> None:
    """Installs, runs what was asked for, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--study", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of rows' names")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3, 4, 5], help="of what is learnt")
    parser.add_argument("--repeats", type=int, default=3, help="of the runs for steps/s")
    parser.add_argument("--returns", action=argparse.BooleanOptionalAction, default=True, help="of HalfCheetah")
    parser.add_argument("--smoke", action="store_true", help="a twentieth of the steps; saves nothing")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(HERE / "peers")  # where ranks find pictures.py
    books = Books(None if args.smoke else common.RESULTS / "peers.json")
    try:
        for study in args.study:
            rows = [row for row in ROWS[study] if row.name.startswith(tuple(args.only))]
            for row in tuple(rows):
                if reason := install(row.venv) if row.venv else None:
                    books.add(study, row.name, "threads", {"failed": f"not installed: {reason}"})
                    rows.remove(row)
            run_study(study, rows, books, args)
    finally:
        machines = books.data.setdefault("machines", {})
        machines |= dict.fromkeys(args.study, common.machine())
        tables = [table(study, books.data[study], machines[study]) for study in ROWS if study in books.data]
        text = "Medians over runs [least, most].\n\n" + "\n".join(tables)
        if args.smoke:
            print(text)
        else:
            common.save("peers", text, books.data)


if __name__ == "__main__":
    main()
