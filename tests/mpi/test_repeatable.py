"""Synchronous runs repeat to the bit, and a run that was stopped goes on as if it had never been."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from dppo.training.policy import load_policy
from tests.any_space import KINDS
from tests.launch import Job, Launcher, flags, train_in_one_start
from tests.parts import probe
from tests.run_directory import checkpoint, count_lines, differences, latest, metric_lines, summary

pytestmark = pytest.mark.timeout(600)
"""A test that is the first to ask for a fixture waits for all of its runs."""

CARTPOLE = {"env": "CartPole-v1", "num-envs": 4, "horizon": 64}
PENDULUM = {"env": "Pendulum-v1", "num-envs": 2, "horizon": 64}
CHEETAH = {"env": "HalfCheetah-v5", "num-envs": 2, "horizon": 64}

RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "allreduce-ppo-CartPole": (3, {"exchange": "allreduce", "loss": "ppo", **CARTPOLE}),
    # three workers: the sum of two does not show in which order they came
    "p2p-ppo-Pendulum": (4, {"exchange": "p2p", "loss": "ppo", **PENDULUM}),
    "allreduce-a3c-Pendulum": (3, {"exchange": "allreduce", "loss": "a3c", **PENDULUM}),
    "p2p-a3c-CartPole": (3, {"exchange": "p2p", "loss": "a3c", **CARTPOLE}),
    "one-rank-ppo-CartPole": (1, {"loss": "ppo", **CARTPOLE}),
}
if importlib.util.find_spec("mujoco") is not None:
    RUNS["allreduce-ppo-HalfCheetah"] = (3, {"exchange": "allreduce", "loss": "ppo", **CHEETAH})
WITHOUT_ANNEALING = "without-annealing"
ITERATIONS = 60


def settings(name: str, run_dir: Path) -> dict[str, Any]:
    """Of a run of RUNS; a checkpoint every seven iterations."""
    anneal = name != WITHOUT_ANNEALING
    ranks, chosen = RUNS["allreduce-ppo-CartPole" if name == WITHOUT_ANNEALING else name]
    per_iteration = chosen["num-envs"] * chosen["horizon"] * max(1, ranks - 1)
    return {
        **chosen, "seed": 11, "run-dir": str(run_dir), "log": {"tensorboard": False},
        "ppo": {"epochs": 2, "minibatches": 4}, "optim": {"lr": 1e-3, "anneal": anneal},
        "checkpoint": {"every": 7 * per_iteration}, "total-steps": ITERATIONS * per_iteration,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run twice, NAME and NAME-again, never stopped; in one start, because starts are what takes the time."""
    folder = tmp_path_factory.mktemp("whole")
    jobs = []
    for name in (*RUNS, WITHOUT_ANNEALING):
        ranks = RUNS[name][0] if name in RUNS else 3
        for suffix in ("", "-again"):
            jobs.append({"ranks": ranks, "flags": flags(settings(name, folder / (name + suffix)))})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launcher = Launcher(folder)
    launcher.run(4, folder / "jobs.json", program="train_layouts.py", timeout=280)
    launcher.close()
    return folder


def assert_same(run_dir: Path, other: Path) -> None:
    """The same lines to the byte, apart from clock figures, and the same last checkpoint to the bit."""
    assert metric_lines(run_dir) == metric_lines(other)
    assert differences(checkpoint(run_dir), checkpoint(other)) == []
    a, b = summary(run_dir), summary(other)
    for key in ("env_steps", "updates", "episodes", "return_mean_100", "exit", "world_size", "env"):
        assert a[key] == b[key], key


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_identical_runs_are_the_same_to_the_byte(name: str, whole: Path) -> None:
    assert count_lines(whole / name) == ITERATIONS
    assert_same(whole / name, whole / f"{name}-again")


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_and_preempted_ends_as_one_never_stopped(
    name: str, whole: Path, launch: Launcher, tmp_path: Path
) -> None:
    """SIGKILL to all between two checkpoints, then SIGUSR1 to mpirun: lines after the checkpoint come again, once."""
    ranks = RUNS[name][0] if RUNS[name][0] > 1 else None
    run_dir = tmp_path / "run"
    job = launch.start(ranks, *flags(settings(name, run_dir)))
    job.until(lambda: count_lines(run_dir) >= 10)
    job.kill()
    killed_at = count_lines(run_dir)
    assert summary(run_dir)["exit"] == "running"

    job = launch.start(ranks, "--resume", "--run-dir", run_dir)
    job.until(lambda: (run_dir / "summary.json").exists() and summary(run_dir)["attempt"] == 2)
    job.until(lambda: count_lines(run_dir) > max(killed_at, 20))
    job.send(signal.SIGUSR1)
    ended = job.wait()
    assert ended.code == 75, ended
    assert summary(run_dir)["exit"] == "preempted"
    lines = metric_lines(run_dir)
    assert lines == metric_lines(whole / name)[: len(lines)]
    assert killed_at < len(lines) < count_lines(whole / name)

    launch.run(ranks, "--resume", "--run-dir", run_dir)
    assert summary(run_dir)["attempt"] == 3
    assert_same(whole / name, run_dir)


@pytest.mark.slow
def test_total_steps_may_be_reached_in_two_parts(whole: Path, launch: Launcher, tmp_path: Path) -> None:
    """Without annealing, which looks at the total, a third and then the rest is the whole."""
    run_dir = tmp_path / "run"
    launch.run(3, *flags(settings(WITHOUT_ANNEALING, run_dir)), "--total-steps", 512 * 20)
    assert count_lines(run_dir) == 20
    launch.run(3, "--resume", "--total-steps", 512 * ITERATIONS, "--run-dir", run_dir)
    assert_same(whole / WITHOUT_ANNEALING, run_dir)


@pytest.mark.slow
def test_resume_goes_on_with_another_number_of_ranks_and_says_so(whole: Path, launch: Launcher, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole / WITHOUT_ANNEALING, run_dir)
    workers = 2
    for ranks, iterations, said in ((2, 70, True), (4, 90, True), (4, 100, False)):
        ended = launch.run(ranks, "--resume", "--total-steps", 512 * iterations, "--run-dir", run_dir)
        if said:
            assert f"the checkpoint is of {workers} worker(s), this run has {ranks - 1}" in ended.messages[0]
        assert len(ended.messages) == said, f"no environment may lose its episode, or all must be named\n{ended}"
        assert summary(run_dir)["env_steps"] >= 512 * iterations
        assert summary(run_dir)["world_size"] == ranks
        workers = ranks - 1
    numbers = [int(line["iteration"]) for line in metric_lines(run_dir)]
    assert numbers == list(range(1, len(numbers) + 1))


OWN = ("masked", "composite", "embedding", "image")
"""Kinds that a network of the user's own is trained on as well; it has a constant buffer that is drawn at random."""
OF_CORES: dict[str, tuple[object, ...]] = {
    "gru": ("--model.core", "gru", "--model.core-size", 4, "--model.no-shared"),
    "lstm": ("--model.core", "lstm", "--model.core-size", 4, "--model.sequence", 3),
}
"""Policies with memory, of images: the policy's states and the value's; sequences that do not divide a rollout."""
SCHEDULED = (
    "--wrappers", "tests.curricula:Harder", "--optim.schedule", "kl", "--ppo.kl-target", 1e-5, "--ppo.clip-schedule",
    "linear", "--ppo.entropy-coef", 0.01, "--ppo.entropy-schedule", "cosine",
)  # fmt: skip
"""Everything that follows the run."""
STOPPED = (
    {"dict": ("kind=dict", *SCHEDULED)}
    | {kind: (f"kind={kind}",) for kind in ("image", "masked", "composite")}
    | {core: ("kind=image", *given) for core, given in OF_CORES.items()}
)
"""Kinds and cores of runs that are killed and preempted."""
EXCHANGES = ("allreduce", "p2p")


KIND = (
    "--env", "tests.any_space:Kind", "--num-envs", 2, "--horizon", 5, "--ppo.epochs", 1, "--ppo.minibatches", 2,
    "--seed", 3, "--model.hidden", 8, "--log.no-tensorboard",
)  # fmt: skip
"""Flags of the runs of kinds; an iteration of two workers has 20 steps."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of kinds that are not of STOPPED, in each exchange, in two starts. NAME and NAME-again are whole.
    NAME-resumed was stopped halfway, while an episode of four steps is under way. NAME-killed has the same checkpoint,
    and the files of a run that went on: lines lie beyond its newest checkpoint, as SIGKILL leaves them.
    """
    folder = tmp_path_factory.mktemp("kinds")
    cells = {kind: (f"kind={kind}",) for kind in KINDS if kind not in STOPPED}
    own = ("--model.factory", "tests.models.structured_networks:Everything")
    cells |= {f"own-{kind}": (f"kind={kind}", *own) for kind in OWN}
    whole, half, rest = {}, {}, {}
    for name, given in cells.items():
        for exchange in EXCHANGES:
            run = f"{name}-{exchange}"
            all_flags = (*KIND, "--optim.no-anneal", "--exchange", exchange, "--env-kwargs", *given)
            whole |= {each: (*all_flags, "--total-steps", 20 * 4) for each in (run, f"{run}-again")}
            half[f"{run}-resumed"] = (*all_flags, "--total-steps", 20 * 2)
            rest |= {f"{run}-{end}": ("--resume", "--total-steps", 20 * 4) for end in ("resumed", "killed")}
    train_in_one_start(folder, 3, whole | half, timeout=280)
    for stopped in half:
        run = stopped.removesuffix("-resumed")
        killed = folder / f"{run}-killed"
        shutil.copytree(folder / run, killed)
        shutil.rmtree(killed / "checkpoints")
        shutil.copytree(folder / stopped / "checkpoints", killed / "checkpoints")
        assert latest(killed).name == f"step_{20 * 2:09d}" and count_lines(killed) == 4
    train_in_one_start(folder, 3, rest, timeout=280)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind not in STOPPED), *(f"own-{kind}" for kind in OWN)])
def test_each_kind_of_space_repeats_and_resumes_to_the_byte(kind: str, exchange: str, kinds: Path) -> None:
    run = kinds / f"{kind}-{exchange}"
    assert count_lines(run) == 4
    for other in ("again", "resumed", "killed"):
        assert_same(run, run.with_name(f"{run.name}-{other}"))
    assert ("constants" in checkpoint(run)["state"]) == kind.startswith("own-")


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_each_kind_and_core_that_was_killed_and_preempted_ends_as_one_never_stopped(
    name: str, launch: Launcher, tmp_path: Path
) -> None:
    """In each exchange: killed between two checkpoints, resumed, asked to leave by SIGUSR1, and resumed to its end. A
    start trains several runs, one after another, because starts are what takes the time.
    """
    iterations = 20 if "kind=image" in STOPPED[name] else 40  # those of images take long enough to be met in
    more = ("--checkpoint.every", 20 * 5, "--total-steps", 20 * iterations, "--env-kwargs", *STOPPED[name])

    def begun(run_dir: Path, exchange: str) -> tuple[object, ...]:
        return (*KIND, "--exchange", exchange, *more, "--run-dir", run_dir)

    def start(*jobs: tuple[object, ...]) -> Job:
        listed = [{"ranks": 3, "flags": [str(flag) for flag in job]} for job in jobs]
        (tmp_path / "jobs.json").write_text(json.dumps(listed))
        return launch.start(3, tmp_path / "jobs.json", program="train_layouts.py")

    def kill(job: Job, run_dir: Path) -> None:
        job.until(lambda: count_lines(run_dir) >= 7)
        job.kill()
        assert summary(run_dir)["exit"] == "running" and count_lines(run_dir) < iterations

    def preempt(run_dir: Path, *then: tuple[object, ...]) -> Job:
        killed_at, resume = count_lines(run_dir), ("--resume", "--run-dir", run_dir)
        job = start(resume, resume, *then)
        job.until(lambda: summary(run_dir)["attempt"] == 2 and count_lines(run_dir) > killed_at)
        job.send(signal.SIGUSR1)
        return job

    a, b = (tmp_path / f"{each}-stopped" for each in EXCHANGES)
    kill(start(*(begun(tmp_path / each, each) for each in EXCHANGES), begun(a, EXCHANGES[0])), a)
    kill(preempt(a, begun(b, EXCHANGES[1])), b)
    assert preempt(b).wait().code == 0
    for each in EXCHANGES:
        assert count_lines(tmp_path / each) == iterations
        assert summary(tmp_path / f"{each}-stopped")["attempt"] == 3, "it was killed and preempted before its end"
        assert_same(tmp_path / each, tmp_path / f"{each}-stopped")


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_buffer_that_no_seed_decides_is_rank_zeros_everywhere_and_stays(
    exchange: str, launch: Launcher, tmp_path: Path
) -> None:
    """Each process draws other numbers; a run whose ranks differed would end with an error."""
    run_dir = tmp_path / "run"
    given = ("--env", probe("Inputs"), "--model.factory", "tests.models.structured_networks:Unseeded")
    short = ("--exchange", exchange, "--num-envs", 2, "--horizon", 8, "--optim.no-anneal", "--log.no-tensorboard")
    launch.run(3, *given, *short, "--run-dir", run_dir, "--total-steps", 64)
    drawn = checkpoint(run_dir)["state"]["constants"]["drawn"]
    launch.run(3, "--resume", "--run-dir", run_dir, "--total-steps", 128)
    assert summary(run_dir)["attempt"] == 2
    assert differences(drawn, checkpoint(run_dir)["state"]["constants"]["drawn"]) == []
    for _ in range(2):
        assert differences(drawn, load_policy(run_dir).actor_critic.flat.constants["drawn"]) == []
