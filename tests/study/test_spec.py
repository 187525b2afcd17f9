"""A sweep's tasks: their order, what is drawn, and which files are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dppo.errors import UsageError
from dppo.settings.flags import as_flags, parse
from dppo.study.spec import (
    DEFAULTS,
    SEARCH_DEFAULTS,
    Sweep,
    as_text,
    config_of,
    flatten,
    is_law,
    numbers,
    read_sweep,
    submit_line,
    task_folder,
)


def sweep_of(tmp_path: Path, text: str) -> Sweep:
    path = tmp_path / "s.toml"
    path.write_text(text)
    return read_sweep(path)


def message(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        sweep_of(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 's.toml'}: ") and "\n" not in said
    return said.removeprefix(f"{tmp_path / 's.toml'}: ")


# -- the grid --------------------


def test_the_last_key_varies_fastest(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "[grid]\nseed = [1, 2]\noptim.lr = [3e-4, 1e-3]\n[fixed]\ntotal_steps = 7\n")
    assert sweep.fixed == {"total-steps": 7}
    assert sweep.varied == [
        {"seed": 1, "optim.lr": 3e-4},
        {"seed": 1, "optim.lr": 1e-3},
        {"seed": 2, "optim.lr": 3e-4},
        {"seed": 2, "optim.lr": 1e-3},
    ]
    assert sweep.settings(2) == {"total-steps": 7, "seed": 2, "optim.lr": 3e-4}


def test_keys_may_be_dotted_quoted_or_in_tables(tmp_path: Path) -> None:
    texts = ("ppo.target_kl = [1, 2]", '"ppo.target-kl" = [1, 2]', "[grid.ppo]\ntarget-kl = [1, 2]")
    assert {str(sweep_of(tmp_path, f"[grid]\n{text}\n").varied) for text in texts} == {
        "[{'ppo.target-kl': 1}, {'ppo.target-kl': 2}]"
    }


def test_arguments_of_the_environment_may_vary_under_their_own_names(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        "[fixed.env-kwargs]\nits_map = {a_b = 1, c = {}}\n[grid]\nenv-kwargs.num-cars = [1, 2]\n"
        "[random]\nsamples = 1\n[random.env_kwargs]\nits_gain = {choice = [0.5]}\n",
    )
    assert sweep.fixed == {"env-kwargs.its_map": {"a_b": 1, "c": {}}}
    assert sweep.varied == [{"env-kwargs.its_gain": 0.5, "env-kwargs.num_cars": n} for n in (1, 2)]
    config = config_of({"env": "X-v0"} | sweep.settings(1))
    assert config.env_kwargs == {"its_map": {"a_b": 1, "c": {}}, "its_gain": 0.5, "num_cars": 2}
    whole = sweep_of(tmp_path, '[grid]\nenv-kwargs = [{a = 1}, {b = "x"}]\n')
    assert [config_of({"env": "X-v0"} | v).env_kwargs for v in whole.varied] == [{"a": 1}, {"b": "x"}]
    assert [as_text(v["env-kwargs"]) for v in whole.varied] == ["{a = 1}", '{b = "x"}']
    twice = "[fixed]\nenv-kwargs.a_b = 1\n[grid]\nenv-kwargs.a-b = [1]\n"
    assert message(tmp_path, twice) == "env-kwargs.a_b is both in [fixed] and in [grid]: leave one out"


def test_fixed_alone_is_one_task(tmp_path: Path) -> None:
    assert sweep_of(tmp_path, "[fixed.ppo]\nclip = 0.1\n") == Sweep({"ppo.clip": 0.1}, [{}])


@pytest.mark.parametrize("task", [-1, 2])
def test_there_is_no_other_task(tmp_path: Path, task: int) -> None:
    with pytest.raises(UsageError, match=f"no task {task}: the sweep has 2, 0 to 1"):
        sweep_of(tmp_path, "[grid]\nseed = [1, 2]\n").settings(task)


# -- what is drawn --------------------

LAWS = """
[random]
samples = 50
seed = 3
optim.lr = {log = [1e-4, 1e-2]}
ppo.clip = {uniform = [0.1, 0.3]}
ppo.epochs = {integer = [3, 5]}
[random.model]
hidden = {choice = [[64, 64], [128]]}
[grid]
seed = [1, 2]
"""


def test_each_sample_is_run_with_the_whole_grid(tmp_path: Path) -> None:
    varied = sweep_of(tmp_path, LAWS).varied
    assert len(varied) == 100
    for one, two in zip(varied[::2], varied[1::2], strict=True):
        assert one | {"seed": 2} == two and one["seed"] == 1


def test_draws_lie_in_their_bounds_and_reach_all_of_them(tmp_path: Path) -> None:
    drawn = sweep_of(tmp_path, LAWS.replace("50", "400")).varied[::2]
    lrs, clips = [[d[key] for d in drawn] for key in ("optim.lr", "ppo.clip")]
    assert 1e-4 <= min(lrs) < 1.1e-4 and 0.9e-2 < max(lrs) <= 1e-2
    assert 0.45 < sum(lr < 1e-3 for lr in lrs) / 400 < 0.55  # uniform in the logarithm
    assert 0.1 <= min(clips) < 0.105 and 0.295 < max(clips) <= 0.3
    assert {d["ppo.epochs"] for d in drawn} == {3, 4, 5}
    assert {as_text(d["model.hidden"]) for d in drawn} == {"64 64", "128"}
    assert all(float(f"{lr:.6g}") == lr for lr in lrs)


def test_the_same_on_every_machine(tmp_path: Path) -> None:
    """Literal values: a change of them would renumber the tasks of sweeps that are under way."""
    assert sweep_of(tmp_path, LAWS).varied[2] == {
        "optim.lr": 0.000137717,
        "ppo.clip": 0.211114,
        "ppo.epochs": 4,
        "model.hidden": [64, 64],
        "seed": 1,
    }


def test_more_samples_and_more_keys_leave_what_is_there(tmp_path: Path) -> None:
    before = sweep_of(tmp_path, LAWS).varied
    assert sweep_of(tmp_path, LAWS.replace("50", "60")).varied[:100] == before
    more = sweep_of(tmp_path, LAWS.replace("[random.model]", "optim.eps = {log = [1e-8, 1e-5]}\n[random.model]")).varied
    assert [{k: v for k, v in m.items() if k != "optim.eps"} for m in more] == before
    assert sweep_of(tmp_path, LAWS.replace("seed = 3", "seed = 4")).varied != before


def test_bounds_that_meet_are_exact(tmp_path: Path) -> None:
    text = "[random]\nsamples = 1\noptim.lr = {log = [0.123456789, 0.123456789]}\nppo.epochs = {integer = [4, 4]}\n"
    assert sweep_of(tmp_path, text).varied == [{"optim.lr": 0.123456789, "ppo.epochs": 4}]


# -- what is no sweep --------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gird]\nseed = [1]", "gird: a sweep has the tables fixed, grid, random and search only; did you mean grid?"),
        ("grid = 3", "grid=3 must be a table, [grid]"),
        ("[grid]\nseed = 3", "grid.seed=3 must be a list of values, [a, b, …]"),
        ("[grid]\nseed = []", "grid.seed=[] must be a list of values, [a, b, …]"),
        ("[grid]\nseed = [1, 2, 1]", "grid.seed=[1, 2, 1] holds 1 twice: the same runs would be made again"),
        ("[grid]\nnum-envs = [1]\nnum_envs = [2]", "grid.num-envs is there twice"),
        ("[fixed]\nseed = 1\n[grid]\nseed = [1]", "seed is both in [fixed] and in [grid]: leave one out"),
        ("[fixed]\nrun_dir = 'x'", "run-dir is not for a sweep, whose tasks have run directories of their own"),
        ("[random]\nsamples = 0\nppo.clip = {uniform = [0, 1]}", "random.samples=0 must be a whole number of at least"),
        ("[random]\nppo.clip = {uniform = [0, 1]}", "random.samples=0 must be a whole number of at least 1"),
        ("[random]\nseed = {integer = [0, 9]}", "seeds of runs stand in [grid]"),
        ("[random]\nsamples = 3", "random.samples=3 needs something to draw"),
        ("[random]\nsamples = 3\nppo.clip = [1, 2]", "random.ppo.clip=[1, 2] must say how it is drawn"),
        ("[random]\nsamples = 3\nppo.clip = {normal = [1, 2]}", "random.ppo.clip.normal=[1, 2] must say how"),
        ("[random]\nsamples = 3\nppo.clip = {uniform = [2, 1]}", "must be [a, b], two numbers, the smaller one first"),
        ("[random]\nsamples = 3\nppo.clip = {uniform = [nan, 1]}", "must be [a, b], two numbers"),
        ("[random]\nsamples = 3\nppo.clip = {log = [0, 1]}", "must be [a, b], two positive numbers"),
        ("[random]\nsamples = 3\nppo.epochs = {integer = [1, 2.0]}", "must be [a, b], two whole numbers"),
        ("[random]\nsamples = 3\nppo.epochs = {choice = []}", "random.ppo.epochs.choice=[] must be a list of values"),
        ("[grid", "is not valid TOML"),
        (f"[grid]\nseed = {list(range(3000))}\nppo.epochs = [1, 2, 3, 4]", "12000 tasks (3000 values x 4 values)"),
        ("[random]\nsamples = 1_000_000_000\nppo.clip = {uniform = [0, 1]}", "1000000000 tasks (1000000000 samples)"),
        ("[random]\nsamples = 5001\nppo.clip = {uniform = [0, 1]}\n[grid]\nseed = [1, 2]", "a sweep has at most 10000"),
        (f"[random]\nsamples = {10**30}\nppo.clip = {{uniform = [0, 1]}}", "a whole number of at least 1, below"),
        (f"[random]\nseed = {2**63}", "must be a whole number of at least 0, below 2**63"),
        (f"[grid]\nseed = {[1] * 20_000}", "grid.seed holds 20000 values, and a sweep has at most 10000 tasks"),
        (f"[grid]\nseed = {[*range(9000), 8999.0]}", "holds 8999.0 twice"),
        (f"[grid]\n{'a.' * 5000}b = [1]", "too deeply"),
        (f"[fixed]\nseed = {'[' * 5000}{']' * 5000}", "is not valid TOML"),
    ],
)  # fmt: skip
def test_the_file_is_refused_with_the_repair(tmp_path: Path, text: str, said: str) -> None:
    assert said in message(tmp_path, text)


# -- one task --------------------


def test_a_task_has_its_preset_below_it() -> None:
    config = config_of({"env": "CartPole-v1", "optim.lr": 3e-4, "model.hidden": [32]})
    assert (config.total_steps, config.target_return) == (1_000_000, 475.0)
    assert (config.optim.lr, config.model.hidden, config.exchange) == (3e-4, (32,), "allreduce")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ppo.epoch": 3}, "ppo.epoch: no such setting; did you mean epochs?"),
        ({"ppo.epochs": 3.5}, "ppo.epochs=3.5 must be of type int"),
        ({"ppo": 3}, "ppo is a section, but 3 was given"),
        ({"ppo": 3, "ppo.clip": 0.1}, "ppo is a section, but 3 was given"),
        ({"ppo.clip": 0.1, "ppo": 3}, "ppo is a section, but 3 was given"),
        ({"mode": "async", "exchange": "allreduce"}, "mode=async exchanges gradients p2p"),
        ({"model.factory": "a:b\nc"}, "model.factory='a:b\\nc' holds a line break"),
    ],
)
def test_what_cannot_be_run(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(settings)
    assert said in str(caught.value)


# -- names --------------------


def test_flatten() -> None:
    nested = {"a_b": 1, "c": {"d_e": [1], "f": {"g": 2}}, "h": {}}
    assert flatten(nested) == {"a-b": 1, "c.d-e": [1], "c.f.g": 2}
    assert flatten({"log": {"log": [1]}}, is_value=is_law) == {"log": {"log": [1]}}
    assert flatten({"log": {"x": {"log": [1]}}}, is_value=is_law) == {"log.x": {"log": [1]}}


@pytest.mark.parametrize(
    ("tasks", "text"), [([3], "3"), ([0, 1], "0-1"), ([7, 0, 2, 1, 5, 6], "0-2,5-7"), ([2, 4, 6], "2,4,6")]
)
def test_numbers_as_sbatch_takes_them(tasks: list[int], text: str) -> None:
    assert numbers(tasks) == text
    assert submit_line(tasks, Path("jobs/sweep.toml")) == f"sbatch --array={text} jobs/sweep.sbatch"


@pytest.mark.parametrize(
    ("file", "folder", "variables"),
    [
        ("jobs/sweep.toml", None, ""),
        ("./jobs//sweep.toml", "runs/../runs/sweep/", ""),
        ("my.toml", None, "SWEEP=my.toml "),
        ("my.toml", "runs/sweep", "SWEEP=my.toml "),
        ("jobs/sweep.toml", "runs/lr", "SWEEP_DIR=runs/lr "),
        ("/home/me/jobs/sweep.toml", "/tmp/a b", "SWEEP=/home/me/jobs/sweep.toml SWEEP_DIR='/tmp/a b' "),
    ],
)
def test_the_line_names_what_is_not_the_scripts_default(file: str, folder: str | None, variables: str) -> None:
    line = submit_line([3], Path(file), None if folder is None else Path(folder))
    assert line == f"{variables}sbatch --array=3 jobs/sweep.sbatch"


@pytest.mark.parametrize("defaults", [DEFAULTS, SEARCH_DEFAULTS])
def test_the_defaults_are_those_of_the_script(defaults: dict[str, str]) -> None:
    script = (Path(__file__).parents[2] / defaults["script"]).read_text()
    for name in ("SWEEP", "SWEEP_DIR"):
        assert f"=${{{name}:-{defaults[name]}}}\n" in script


def test_folders_of_tasks() -> None:
    assert [task_folder(Path("s"), n).name for n in (3, 1234)] == ["task_003", "task_1234"]


def test_the_tasks_of_a_sweep_may_have_cases(tmp_path: Path) -> None:
    text = """
[fixed]
env = "X-v0"
[[fixed.cases]]
name = "cold"
[[fixed.cases]]
name = "hot"
env-kwargs = {bath = 0.9}
[grid]
env-kwargs.size = [1, 2]
"""
    sweep = sweep_of(tmp_path, text)
    for task, size in enumerate((1, 2)):
        config = config_of(sweep.settings(task))
        assert config.env_kwargs == {"size": size} and config.cases[1]["env_kwargs"] == {"bath": 0.9}
        assert parse(as_flags(sweep.settings(task)))[0] == config
