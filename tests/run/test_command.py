"""The command `python -m dppo.run`: what it accepts, what it refuses, and with which exit code.

Wrong use ends on any number of ranks with one message and code 2, and leaves the disk as it was.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from tests.launch import Ended, Launcher
from tests.run_directory import count_lines, snapshot, summary

RANKS = [pytest.param(None, id="alone"), pytest.param(3, id="n3")]

QUICK = (
    "--env", "CartPole-v1", "--num-envs", 2, "--horizon", 16, "--ppo.epochs", 1, "--ppo.minibatches", 1,
    "--log.no-tensorboard",
)  # fmt: skip


def assert_one_message(ended: Ended, *parts: str) -> None:
    """One line of ours on stderr, with all of `parts`; no traceback, nothing on stdout."""
    assert len(ended.messages) == 1, ended
    for part in parts:
        assert part in ended.messages[0], ended
    assert "Traceback" not in ended.stderr, ended
    assert ended.stdout.strip() == "", ended


NETWORKS = "tests.models.structured_networks"
WRONG: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "unknown flag": (("--sed", 3), ("--sed", "did you mean --seed?")),
    "unknown flag of a section": (("--ppo.clp", 0.1), ("--ppo.clp", "did you mean --ppo.clip?")),
    "value of another type": (("--seed", "many"), ("seed", "many")),
    "value out of range": (("--ppo.gamma", 1.5), ("ppo.gamma=1.5", "[0, 1]")),
    "no number": (("--target-return", "nan"), ("target_return=nan", "must lie in")),
    "no such choice": (("--mode", "both"), ("both", "sync", "async")),
    "missing file": (("nothing.toml",), ("nothing.toml", "cannot be read")),
    "unknown key in a file": (("key.toml",), ("ppo.epoch", "did you mean epochs?")),
    "wrong type in a file": (("type.toml",), ("num-envs", "'four'", "int")),
    "not a TOML file": (("broken.toml",), ("broken.toml", "not valid TOML")),
    "unknown environment": (("--env", "CartPol-v1"), ("CartPol-v1", "did you mean 'CartPole-v1'?")),
    "unknown module": (("--env", "no_such_module:Env-v0"), ("no_such_module", "cannot import")),
    "observation of words": (("--env", "odd_envs:odd/Words-v0"), ("Text", "'words'", "FilterObservation")),
    "pixels for a network of vectors": (
        ("--env", "odd_envs:odd/Image-v0", "--model.factory", "tests.models.networks_of_others:Plain"),
        ("networks_of_others:Plain: it takes vectors", "observation_space and action_heads", "FlattenObservation"),
    ),
    "a network with too many parameters": (
        ("--model.factory", f"{NETWORKS}:three_numbers"), ("width", "observation_space and"),
    ),
    "a network that looks for another leaf": (
        ("--env", "dppo.envs.probes_of_spaces:dppo/ProbeInputs-v0", "--model.factory", f"{NETWORKS}:LooksElsewhere"),
        ("LooksElsewhere: forward of {image: [2, 4, 4, 1] uint8, vector: [2, 2]} raised KeyError: 'camera'",),
    ),
    "a network whose buffer changes": (
        ("--env", "dppo.envs.probes_of_spaces:dppo/ProbeInputs-v0", "--model.factory", f"{NETWORKS}:CountsProbes"),
        ("CountsProbes: forward changes the buffer calls",),
    ),
    "lists as actions": (("--env", "odd_envs:odd/ListActions-v0"), ("Sequence", "part '1'")),
    "minibatches that do not divide": (
        ("--horizon", 10, "--num-envs", 3, "--ppo.minibatches", 7), ("minibatches=7", "30", "nearest that does is 6"),
    ),
    "nobody in the quorum": (("--exchange", "p2p", "--server.drop", 2), ("server.drop=2", "smaller than the number")),
    "async with allreduce": (("--mode", "async", "--exchange", "allreduce"), ("mode=async", "p2p")),
    "resume without a directory": (("--resume",), ("--run-dir",)),
    "resume from nothing": (("--resume", "--run-dir", "nothing"), ("nothing", "holds no run")),
    "run directory that is a file": (("--run-dir", "key.toml"), ("key.toml", "is a file")),
}  # fmt: skip


@pytest.fixture(scope="module")
def dry_run_s(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What a start of three ranks takes on this machine, up to the first step."""
    launcher = Launcher(tmp_path_factory.mktemp("dry"))
    ended = launcher.run(3, *QUICK, "--dry-run")
    launcher.close()
    return ended.wall_s


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_message_and_code_2_and_nothing_on_disk(
    name: str, launch: Launcher, dry_run_s: float, tmp_path: Path
) -> None:
    """Alone and on three ranks, at the same time; soon, which is about as soon as a start that succeeds."""
    (tmp_path / "key.toml").write_text("seed = 1\n[ppo]\nepoch = 3\n")
    (tmp_path / "type.toml").write_text('num-envs = "four"\n')
    (tmp_path / "broken.toml").write_text("seed = \n")
    before = snapshot(tmp_path)
    flags, parts = WRONG[name]
    for job in [launch.start(ranks, *flags) for ranks in (None, 3)]:
        ended = job.wait()
        assert ended.code == 2, ended
        assert_one_message(ended, *parts)
        assert ended.wall_s < 10 * dry_run_s, "no rank waits for another that has left"
    assert snapshot(tmp_path) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 ranks that has finished, with several checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    launcher = Launcher(folder)
    ended = launcher.run(
        3, *QUICK, "--total-steps", 64 * 5, "--run-dir", "run", "--checkpoint.every", 128, "--checkpoint.keep", 9
    )
    launcher.close()
    assert "finished" in ended.stdout
    return folder / "run"


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damage(checkpoint: Path) -> None:
    """Another byte in the middle of its state."""
    file = checkpoint / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_directory_that_holds_a_run_is_refused(ranks: int | None, run_dir: Path, launch: Launcher) -> None:
    before = snapshot(run_dir)
    ended = launch.run(ranks, *QUICK, "--run-dir", run_dir, code=2)
    assert_one_message(ended, "holds a run already", "--resume")
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "summary.json", "checkpoints"])
def test_each_of_its_parts_makes_a_run_directory(name: str, run_dir: Path, launch: Launcher) -> None:
    for part in run_dir.iterdir():
        if part.name != name:
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    before = snapshot(run_dir)
    assert_one_message(launch.run(None, *QUICK, "--run-dir", run_dir, code=2), "holds a run already", name)
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("ranks", RANKS)
def test_resume_with_other_settings_is_refused(ranks: int | None, run_dir: Path, launch: Launcher) -> None:
    before = snapshot(run_dir)
    ended = launch.run(ranks, "--resume", "--run-dir", run_dir, "--optim.lr", 0.5, code=2)
    assert_one_message(ended, "--optim.lr=0.5", "differs")
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("ranks", RANKS)
def test_resume_where_every_checkpoint_is_damaged_is_refused(
    ranks: int | None, run_dir: Path, launch: Launcher
) -> None:
    folders = [p for p in (run_dir / "checkpoints").iterdir() if p.is_dir()]
    for i, folder in enumerate(folders):
        damage(folder) if i % 2 else (folder / "manifest.json").unlink()
    before = snapshot(run_dir)
    ended = launch.run(ranks, "--resume", "--total-steps", 9999, "--run-dir", run_dir, code=2)
    assert_one_message(ended, "no valid checkpoint", *(f.name for f in folders), "checksum", "manifest.json")
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("ranks", RANKS)
def test_resume_skips_a_damaged_checkpoint_and_names_it(ranks: int | None, run_dir: Path, launch: Launcher) -> None:
    *_, older, newest = sorted(p for p in (run_dir / "checkpoints").iterdir() if p.is_dir())
    damage(newest)
    ended = launch.run(ranks, "--resume", "--total-steps", 64 * 8, "--run-dir", run_dir)
    assert newest.name in ended.messages[0] and "checksum" in ended.messages[0], ended
    steps = int(older.name.removeprefix("step_"))
    assert f"resumed at {steps} steps, iteration {steps // 64}, attempt 2" in ended.stdout
    assert summary(run_dir)["exit"] == "finished" and summary(run_dir)["env_steps"] == 64 * 8
    numbers = [json.loads(line)["env_steps"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(numbers) == len(set(numbers)) == count_lines(run_dir)


@pytest.mark.parametrize("ranks", RANKS)
def test_resume_of_a_finished_run_says_so_and_writes_nothing(
    ranks: int | None, run_dir: Path, launch: Launcher
) -> None:
    before = snapshot(run_dir)
    ended = launch.run(ranks, "--resume", "--run-dir", run_dir)
    assert ended.stdout.count("has finished already") == 1
    assert ended.messages == []
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("ranks", RANKS)
def test_what_may_be_given_anew_with_resume_is_taken(ranks: int | None, run_dir: Path, launch: Launcher) -> None:
    flags = ("--total-steps", 64 * 6, "--checkpoint.keep", 1, "--log.interval-s", 1, "--target-return", 1e6)
    launch.run(ranks, "--resume", "--run-dir", run_dir, *flags)
    assert summary(run_dir)["env_steps"] == 64 * 6
    assert len([p for p in (run_dir / "checkpoints").iterdir() if p.is_dir()]) == 1
    assert tomllib.loads((run_dir / "config.toml").read_text())["total-steps"] == 64 * 6


@pytest.mark.parametrize("ranks", RANKS)
def test_dry_run_checks_everything_and_writes_nothing(ranks: int | None, launch: Launcher, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    ended = launch.run(ranks, *QUICK, "--dry-run", "--run-dir", "new/run")
    assert "nothing was trained, nothing was written" in ended.stdout
    assert snapshot(tmp_path) == before
    launch.run(ranks, *QUICK, "--dry-run", "--env", "NoSuch-v0", code=2)


def test_a_dry_run_of_a_resume_writes_nothing_either(run_dir: Path, launch: Launcher) -> None:
    before = snapshot(run_dir)
    launch.run(3, "--resume", "--run-dir", run_dir, "--total-steps", 9999, "--dry-run")
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("ranks", RANKS)
def test_help_is_shown_once_with_code_0(ranks: int | None, launch: Launcher, tmp_path: Path) -> None:
    ended = launch.run(ranks, "--help")
    assert ended.stdout.count("usage: [mpirun -n N] python -m dppo.run") == 1
    for flag in ("--env", "--mode", "--total-steps", "--ppo.clip", "--a3c.gamma", "--server.drop", "--resume"):
        assert flag in ended.stdout, flag
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_one_rank_cannot_make_ends_all_with_its_rank(launch: Launcher, tmp_path: Path) -> None:
    ended = launch.run(3, "--env", "odd_envs:odd/Unmakeable-v0", "--run-dir", "run", code=2, timeout=30)
    assert_one_message(ended, "rank 2 on ", "no licence left on this node")
    assert not (tmp_path / "run").exists()


def test_a_second_run_from_python_is_one_error_that_speaks_python(launch: Launcher, run_dir: Path) -> None:
    """Alone, under mpirun, and where ranks may die, all at the same time; every rank leaves, with a code."""
    program = run_dir.with_name("train_it.py")
    program.write_text(f"import dppo\ndppo.train(dppo.Config(run_dir={str(run_dir)!r}))\n")
    before = snapshot(run_dir)
    ways: list[tuple[int | None, bool]] = [(None, False), (3, False), (3, True)]
    for job in [launch.start(ranks, program=str(program), survives=survives) for ranks, survives in ways]:
        ended = job.wait(30)
        assert ended.code != 0, ended
        assert ended.stderr.count("Traceback") == ended.stderr.count("holds a run already") == 1, ended
        assert f"Config(run_dir='{run_dir}', resume=True)" in ended.stderr and "--" not in ended.stderr.split("---")[0]
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("ranks", RANKS)
def test_a_resume_from_python_goes_on_with_the_runs_settings(
    ranks: int | None, launch: Launcher, run_dir: Path
) -> None:
    settings = (run_dir / "config.toml").read_text()
    program = run_dir.with_name("go_on.py")
    program.write_text(
        f"import dppo\nprint(dppo.train(dppo.Config(run_dir={str(run_dir)!r}, resume=True, total_steps=64 * 7)).exit)\n"
    )
    assert "finished" in launch.run(ranks, program=str(program)).stdout
    assert (run_dir / "config.toml").read_text() == settings.replace("total-steps = 320", "total-steps = 448")
    assert summary(run_dir)["env_steps"] == 448


@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_leaves_the_files_that_are_promised(ranks: int | None, launch: Launcher, tmp_path: Path) -> None:
    """Without --run-dir: under runs/, named after environment, cell and seed; settings from a file, flags winning."""
    (tmp_path / "mine.toml").write_text('env = "CartPole-v1"\nhorizon = 16\nseed = 5\n[ppo]\nminibatches = 2\n')
    ended = launch.run(ranks, "mine.toml", "--total-steps", 600, "--seed", 6)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("CartPole-v1-sync-allreduce-ppo-s6-")
    assert {p.name for p in folder.iterdir()} == {
        "config.toml", "versions.json", "spaces.json", "metrics.jsonl", "summary.json", "checkpoints", "tensorboard",
    }  # fmt: skip
    config = tomllib.loads((folder / "config.toml").read_text())
    assert (config["seed"], config["horizon"], config["ppo"]["minibatches"]) == (6, 16, 2)
    result = summary(folder)
    assert result["exit"] == "finished" and result["env_steps"] >= 600 and result["attempt"] == 1
    assert result["world_size"] == (ranks or 1)
    assert [p.name for p in (folder / "checkpoints").iterdir() if p.name.endswith("000")] == ["step_000000000"]
    assert "settings from mine.toml" in ended.stdout
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_a_run_ends_where_its_target_is_reached(launch: Launcher, tmp_path: Path) -> None:
    flags = ("--env", "dppo.envs.probes:dppo/ProbeConstant-v0", "--target-return", 1, "--total-steps", 100_000)
    ended = launch.run(3, *QUICK, *flags, "--run-dir", "run")
    assert "target reached" in ended.stdout
    result = summary(tmp_path / "run")
    assert result["exit"] == "target" and result["return_mean_100"] == 1.0
    assert result["env_steps"] == 128, "the first boundary with 100 episodes"
