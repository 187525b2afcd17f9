"""Presets, TOML and flags: which wins, what is refused, and what --resume takes from the run."""

from __future__ import annotations

import os
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import dppo
from dppo.config import CheckpointConfig, Config, EvalConfig, LogConfig, PPOConfig
from dppo.errors import HelpShown, UsageError
from dppo.settings.commands import Parser
from dppo.settings.flags import answer, as_flags, flag_names, from_values, in_python, parse
from dppo.settings.resolve import check_world, resolve
from dppo.settings.resume import resumed
from dppo.settings.toml import load_config, to_toml
from dppo.settings.values import as_dict, updated

PRESET = """
total-steps = 111
target-return = 11.0
num-envs = 4
[ppo]
epochs = 3
clip = 0.11
lam = 0.91
"""


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One preset in the place of dppo's own: of Env-v0 with ppo."""
    folder = tmp_path / "package" / "presets"
    folder.mkdir(parents=True)
    (folder / "Env-v0.ppo.toml").write_text(PRESET)
    monkeypatch.setattr(resources, "files", lambda package: tmp_path / "package")


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def message(*argv: str) -> str:
    """The one message of wrong use."""
    with pytest.raises(UsageError) as caught:
        parse(argv)
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- which wins --------------------


@pytest.mark.usefixtures("presets")
def test_flags_win_over_toml_over_the_preset_over_defaults(tmp_path: Path) -> None:
    toml = write(tmp_path / "c.toml", 'env = "Env-v0"\n[ppo]\nclip = 0.22\nlam = 0.92\n')
    config, notes = parse([toml, "--ppo.lam", "0.93"])
    assert config.ppo.lam == 0.93
    assert config.ppo.clip == 0.22
    assert config.ppo.epochs == 3
    assert config.ppo.gamma == Config().ppo.gamma
    assert notes == ["preset Env-v0.ppo.toml", f"settings from {toml}"]
    behind_a_scripts_flags = [
        "--log.stall-abort-s",
        "600",
        "--run-dir",
        str(tmp_path / "runs.toml"),
        toml,
        "--ppo.lam",
        "0.93",
    ]
    assert parse(behind_a_scripts_flags)[0].ppo == config.ppo


@pytest.mark.usefixtures("presets")
@pytest.mark.parametrize("how", ["--env=Env-v0", "--env Env-v0"])
def test_the_preset_is_that_of_environment_and_loss(how: str) -> None:
    assert parse(how.split())[0].num_envs == 4
    for others in ("--loss a3c", "--mode async"):
        config, notes = parse([*how.split(), *others.split()])
        assert config.num_envs == Config().num_envs
        assert notes == ["no preset for Env-v0 with a3c: the defaults"]
    assert parse([*how.split(), "--mode", "async", "--loss", "ppo"])[0].num_envs == 4


@pytest.mark.usefixtures("presets")
def test_a_preset_of_a_namespace_is_for_all_its_environments(tmp_path: Path) -> None:
    (tmp_path / "package" / "presets" / "games.ppo.toml").write_text("num-envs = 7")
    config, notes = parse(["--env", "games/Chess-v5"])
    assert (config.num_envs, notes) == (7, ["preset games.ppo.toml"])
    assert parse(["--env", "games/Chess-v5", "--loss", "a3c"])[1] == [
        "no preset for games/Chess-v5 with a3c: the defaults"
    ]
    assert parse(["--env", "others/Chess-v5"])[1] == ["no preset for others/Chess-v5 with ppo: the defaults"]


@pytest.mark.usefixtures("presets")
def test_total_steps_of_ones_own_replace_the_presets_target_as_well(tmp_path: Path) -> None:
    env = ["--env", "Env-v0"]
    assert (parse(env)[0].total_steps, parse(env)[0].target_return) == (111, 11.0)
    config = parse([*env, "--total-steps", "500"])[0]
    assert (config.total_steps, config.target_return) == (500, None)
    config = parse([*env, "--total-steps=500", "--target-return=5"])[0]
    assert (config.total_steps, config.target_return) == (500, 5.0)
    toml = write(tmp_path / "c.toml", "total_steps = 500")
    assert parse([toml, *env])[0].target_return is None


def test_environments_of_ones_own_have_no_preset() -> None:
    config, notes = parse(["--env", "my.module:ns/Env-v0"])
    assert config == resolve(Config(env="my.module:ns/Env-v0"))
    assert "no preset for my.module:ns/Env-v0" in notes[0]


def test_without_arguments_it_trains_cartpole_to_475() -> None:
    config, notes = parse([])
    assert (config.env, config.target_return) == ("CartPole-v1", 475.0)
    assert notes == ["preset CartPole-v1.ppo.toml"]


def shipped() -> list[str]:
    folder = resources.files("dppo.settings") / "presets"
    return sorted(file.name for file in folder.iterdir() if file.name.endswith(".toml"))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_preset_is_found_by_its_name_and_is_valid(name: str) -> None:
    env, loss, _ = name.rsplit(".", 2)
    for mode in ("sync", "async"):
        config, notes = parse(["--env", env, "--loss", loss, "--mode", mode])
        assert notes == [f"preset {name}"]
        assert (config.env, config.loss, config.mode) == (env, loss, mode)


def test_arguments_win_one_by_one_over_those_of_the_file(tmp_path: Path) -> None:
    text = (
        'env = "X-v0"\nwrappers = ["a:b"]\n[env-kwargs]\nfirst_size = 1\nmode = "fast"\nmap = {a-b = [1, {c_d = 2}]}\n'
    )
    toml = write(tmp_path / "c.toml", text)
    config = parse([toml, "--env-kwargs", "first-size=2", "new=true"])[0]
    assert config.env_kwargs == {"first_size": 2, "mode": "fast", "map": {"a-b": [1, {"c_d": 2}]}, "new": True}
    assert config.wrappers == ("a:b",)
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "config.toml", to_toml(config))
    assert load_config(tmp_path / "run") == config, "a constructor's names keep their underscores"


CASES = """
env = "X-v0"
[[cases]]
name = "cold"
[[cases]]
name = "hot"
env-kwargs = {its-bath = 0.9, sizes = [1, 2]}
"""


def test_cases_come_from_a_file_or_flags_and_stay(tmp_path: Path) -> None:
    config = parse([write(tmp_path / "c.toml", CASES)])[0]
    hot = {"name": "hot", "env_kwargs": {"its_bath": 0.9, "sizes": [1, 2]}}
    assert config.cases == ({"name": "cold", "env_kwargs": {}}, hot)
    flags = as_flags({"env": "X-v0", "cases": as_dict(config)["cases"]})
    assert flags[2:4] == ["--cases", '{name = "cold", env-kwargs = {}}']
    assert parse([*flags, "--seed", "3"])[0].cases == config.cases
    (tmp_path / "run").mkdir()
    text = to_toml(config)
    assert text.endswith("[cases.env-kwargs]\nits_bath = 0.9\nsizes = [\n    1,\n    2,\n]\n")
    write(tmp_path / "run" / "config.toml", text)
    assert load_config(tmp_path / "run") == config
    assert "cases" not in to_toml(parse([])[0])


def test_a_resumed_run_keeps_its_cases_in_their_order(tmp_path: Path) -> None:
    toml = write(tmp_path / "c.toml", CASES)
    write(tmp_path / "config.toml", to_toml(parse([toml])[0]))
    resume = ["--resume", "--run-dir", str(tmp_path)]
    assert parse(resume)[0] == parse([toml, *resume])[0]
    cold, hot = '{name="cold"}', '{name="hot",env-kwargs={its_bath=0.9,sizes=[1,2]}}'
    assert parse([*resume, "--cases", cold, hot])[0] == parse(resume)[0]
    said = message(*resume, "--cases", cold, hot.replace("0.9", "0.8"))
    assert said.startswith(
        'cases[1]={name = "hot", env-kwargs = {its_bath = 0.8, sizes = [1, 2]}} differs from the run\'s {name'
    )
    assert message(*resume, "--cases", cold).startswith("cases[1]=none differs from")
    assert message(*resume, "--cases", hot, cold).startswith('cases[0]={name = "hot"')
    with pytest.raises(UsageError, match=r"^cases\[2\]=.*'more'|more"):
        resumed(
            Config(env="X-v0", cases=(*parse(resume)[0].cases, {"name": "more"}), run_dir=str(tmp_path), resume=True)
        )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--cases", '{name="a"}'], 'none is named: write env = "…", or give --env'),
        (["--env", "X-v0", "--cases", "cold"], "--cases 'cold' is no table of TOML"),
        (["--env", "X-v0", "--cases", "{name=1}"], "cases[0].name=1 must have"),
        (["--env", "X-v0", "--cases", '{name="a"}', "--vectorization", "native"], "leave cases out"),
    ],
)  # fmt: skip
def test_wrong_cases_are_refused_in_one_message(flags: list[str], said: str) -> None:
    assert said in message(*flags) and not message(*flags).startswith("Error")


@pytest.mark.parametrize(
    ("ranks", "settings", "repair"),
    [
        (1, {"num_envs": 2}, "3 cases are dealt to 2 environment(s), 2 for each of 1 worker(s)"),
        (1, {"num_envs": 2}, "mpirun -n 3, or use num_envs=3"),
        (3, {"num_envs": 1}, "mpirun -n 4, or use num_envs=2"),
        (5, {"num_envs": 1, "env_ranks": 2}, "mpirun -n 7, or use num_envs=2"),
    ],
)
def test_fewer_environments_than_cases_are_refused(ranks: int, settings: dict[str, Any], repair: str) -> None:
    cases = tuple({"name": name} for name in "abc")
    config = Config(env="X-v0", cases=cases, **settings)
    with pytest.raises(ValueError) as caught:
        check_world(config, ranks)
    assert repair in str(caught.value)
    check_world(config, ranks + 2 * config.env_ranks)


def test_a_file_behind_arguments_is_the_file_and_the_value_of_one_is_none(tmp_path: Path) -> None:
    toml = write(tmp_path / "lr=0.1.toml", "seed = 5")
    config = parse(["--env", "X-v0", "--env-kwargs", "a=1", f"map={tmp_path}/level.toml", toml])[0]
    assert (config.seed, config.env_kwargs) == (5, {"a": 1, "map": f"{tmp_path}/level.toml"})


# -- flags --------------------


def test_every_setting_is_a_flag() -> None:
    names = flag_names()
    assert {"env", "total-steps", "ppo.clip", "optim.lr", "checkpoint.grace-s", "log.stall-after-s"} <= set(names)
    assert len(names) == len(set(names))


def test_every_flag_is_understood() -> None:
    """All at once, each with a value that is not its default."""
    names = [n for n in flag_names() if n not in ("resume", "optim.anneal")]
    values = {
        "mode": "async", "exchange": "p2p", "loss": "ppo", "optim.name": "sgd", "optim.schedule": "kl",
        "ppo.clip-schedule": "linear", "ppo.entropy-schedule": "cosine", "a3c.entropy-schedule": "linear",
        "model.hidden": "3 4", "run-dir": "D",
        "model.factory": "a:b", "model.activation": "relu", "model.core": "None",
        "model.encoder": "impala", "init-from": "R", "model.backend": "torch", "server.staleness": "scale",
        "vectorization": "sync", "device": "cpu", "on-worker-error": "abort", "on-env-error": "restart",
        "ppo.objective": "kl", "env": "X-v0", "env-kwargs": "size=7", "wrappers": "a:b", "ppo.minibatches": "1",
        "log.recorder": "a:b",
        "trajectories.compression": "none",
        "server.drop": "0", "preempt-fraction": "0.0", "env-ranks": "1", "cases": '{name="a"}',
    }  # fmt: skip
    argv: list[str] = []
    for name in names:
        current = as_plain(Config(), name)
        if name == "vtrace":  # a switch that can also be left open
            argv.append("--vtrace")
        elif isinstance(current, bool):
            section, _, last = name.rpartition(".")
            argv.append(f"--{section}.no-{last}" if current else f"--{name}")
        else:
            argv += [f"--{name}", *values.get(name, "0.625" if isinstance(current, float) else "7").split()]
    config, _ = parse(argv)
    unchanged = [n for n in names if as_plain(config, n) == as_plain(Config(), n)]
    assert sorted(unchanged) == ["env-ranks", "model.core", "on-worker-error", "preempt-fraction", "server.drop"]
    assert parse(["--model.core", "lstm"])[0].model.core == "lstm", "there is none beside a factory"


def as_plain(config: Any, name: str) -> Any:
    """The value that a flag stands for."""
    for part in name.replace("-", "_").split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--target-return -200", "target_return", -200.0),
        ("--target-return=-1e2", "target_return", -100.0),
        ("--total_steps 77", "total_steps", 77),
        ("--total-steps 1e6", "total_steps", 1_000_000),
        ("--total_steps=2.5e3", "total_steps", 2500),
        ("--model.hidden 1e2 64", "model.hidden", (100, 64)),
        ("--horizon 1_0 --ppo.minibatches 1", "horizon", 10),
        ("--server.max-staleness 1e1", "server.max_staleness", 10),
        ("--optim.anneal", "optim.schedule", "linear"),
        ("--no-optim.anneal", "optim.schedule", "constant"),
        ("--optim.no-anneal", "optim.schedule", "constant"),
        ("--optim.anneal=False", "optim.schedule", "constant"),
        ("--optim.no-anneal --optim.schedule constant", "optim.anneal", None),
        ("--vtrace", "vtrace", True),
        ("--no-vtrace", "vtrace", False),
        ("--vtrace=True", "vtrace", True),
        ("--dry-run", "dry_run", True),
        ("--no-dry-run", "dry_run", False),
        ("--ppo.no-normalize-advantages", "ppo.normalize_advantages", False),
        ("--no-ppo.normalize-advantages", "ppo.normalize_advantages", False),
        ("--no-log.tensorboard", "log.tensorboard", False),
        ("--moments.no-observations", "moments.observations", False),
        ("--model.hidden 32 16", "model.hidden", (32, 16)),
        ("--optim.name sgd", "optim.name", "sgd"),
        ("--seed 1 --seed 2", "seed", 2),
        ("--wrappers a:b c.d:e", "wrappers", ("a:b", "c.d:e")),
        ("--log.recorder a:b c.d:e", "log.recorder", ("a:b", "c.d:e")),
        ("--log.wandb walking --log.mlflow running", "log.mlflow", "running"),
        ("--env-kwargs a=1 b=x", "env_kwargs", {"a": 1, "b": "x"}),
        ("--env_kwargs a=1 --seed 2 --env-kwargs b=2", "env_kwargs", {"a": 1, "b": 2}),
        ("--env-kwargs=a=-1 --seed 2", "env_kwargs", {"a": -1}),
        ("--env-kwargs --seed 2", "env_kwargs", {}),
    ],
)
def test_flags_in_all_their_forms(flags: str, name: str, value: Any) -> None:
    assert as_plain(parse(["--env", "X-v0", *flags.split()])[0], name) == value


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--horizn 8", "--horizn: no such flag; did you mean --horizon?"),
        ("--ppo.epoch 8", "--ppo.epoch: no such flag; did you mean --ppo.epochs?"),
        ("--epochs 8", "did you mean --ppo.epochs?"),
        ("--lr 1e-3", "--lr: no such flag; did you mean --optim.lr?"),
        ("--server.lr 1e-3", "did you mean --optim.lr?"),
        ("--stall_after_s=3", "did you mean --log.stall-after-s?"),
        ("--gamma 0.9", "did you mean --ppo.gamma or --a3c.gamma?"),
        ("--no-tensorboard", "did you mean --no-log.tensorboard?"),
        ("--total-steps 1.5e0", "--total-steps"),
        ("--target-return nan", "target_return=nan must lie in"),
        (f"--num-envs {'9' * 5000}", "--num-envs"),
        ("--num-envs 1000000000 --ppo.minibatches 7", "num_envs=1000000000 must be at least 1, and at most 100000"),
        ("--horizon 9999991 --num-envs 10 --ppo.minibatches 7", "the nearest that does is 5"),
        ("--ppo.clp=0.1", "--ppo.clp: no such flag; did you mean --ppo.clip?"),
        ("--no-such-thing", "--no-such-thing: no such flag"),
        ("--seed x", "Error parsing --seed: invalid literal for int() with base 10: 'x'"),
        ("--seed", "Missing value for argument '--seed'"),
        ("--mode both", "invalid choice 'both' for argument '--mode'. Expected one of ('sync', 'async')."),
        ("--seed -1", "seed=-1 must lie in"),
        ("--mode async --exchange allreduce", "leave exchange out, or set mode=sync"),
        ("--horizon 10 --num-envs 1 --ppo.minibatches 4", "the nearest that does is 5"),
        ("--seed 1 surplus", "Unrecognized options: surplus"),
        ("--env-kwargs size", "--env-kwargs size must have the form KEY=VALUE"),
        ("--env-kwargs a=1 --env-kwargs a=1", "--env-kwargs a is there twice: leave one out"),
        ("--env-kwargs a=inf", "env-kwargs.a=inf must be finite"),
        ("--env-kwargs.size 3", "--env-kwargs.size: no such flag; write --env-kwargs size=VALUE"),
        ("--env-kwarg a=1", "--env-kwarg: no such flag; did you mean --env-kwargs?"),
        ("--log.recorder Diary", "log.recorder='Diary' must have the form module:callable"),
        ("--wrappers FlattenObservation", "wrappers='FlattenObservation' must have the form module:callable"),
        ("--wrappers a:b --vectorization native", "set vectorization=sync, or leave wrappers out"),
    ],
)
def test_a_wrong_flag_gives_one_message(flags: str, expected: str) -> None:
    assert expected in message("--env", "X-v0", *flags.split())


def test_help_lists_the_flags_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HelpShown):
        parse(["--help"])
    shown = capsys.readouterr().out
    assert "--total-steps" in shown and "--ppo.clip" in shown


def shown_by(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(HelpShown):
        parse(argv)
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_help_shows_arguments_as_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["--env", "X-v0", "--env-kwargs", "a=1", "--help"]):
        assert "--env-kwargs [KEY=VALUE [KEY=VALUE ...]]" in shown_by(capsys, *argv)


def test_help_shows_the_arguments_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    toml = write(tmp_path / "c.toml", 'env = "X-v0"\nenv-kwargs = {a = 1, b = "x y"}')
    assert default_of("env-kwargs", shown_by(capsys, toml, "--help")) == "a=1 'b=\"x y\"'", "as a shell takes it"


def default_of(flag: str, shown: str) -> str:
    """What help says of a flag behind `default:`."""
    found = re.search(rf" --{re.escape(flag)} .*?\(default: (.*?)\)", shown)
    assert found
    return found[1]


def test_help_shows_the_defaults_and_names_the_presets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = shown_by(capsys, "--help")
    assert (default_of("total-steps", shown), default_of("optim.lr", shown)) == (str(Config.total_steps), "None")
    assert (
        "CartPole-v1, the environment where no other is named, has a preset" in shown
        and "Pendulum-v1" in shown
        and "ALE/…" in shown
    )
    for how in (["--env", "Pendulum-v1", "--help"], ["-h", "--env=Pendulum-v1"]):
        shown = shown_by(capsys, *how)
        assert (default_of("env", shown), default_of("total-steps", shown)) == ("Pendulum-v1", "200000")
        assert "What is shown is set with Pendulum-v1 (preset Pendulum-v1.ppo.toml)." in shown
    shown = shown_by(capsys, write(tmp_path / "c.toml", 'env = "Pendulum-v1"\nseed = 9'), "--help", "--resume")
    assert (default_of("seed", shown), default_of("ppo.gamma", shown)) == ("9", "0.95")
    assert "no preset for my:X-v0" in shown_by(capsys, "--env", "my:X-v0", "--help")


def test_every_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    from dppo import evaluate, job, report, requeue, sweep, verdict
    from dppo.trajectories import __main__ as trajectories

    for command in (evaluate, job, report, requeue, sweep, trajectories, verdict):
        with pytest.raises(SystemExit) as ended:
            command.main(["--version"])
        assert (ended.value.code, capsys.readouterr().out) == (0, f"dppo {dppo.__version__}\n")
    assert answer(["--version", "--nonsense"], is_first=True) == 0
    assert capsys.readouterr().out == f"dppo {dppo.__version__}\n"
    assert (answer(["--version"], is_first=False), answer(["--horizn", "-h"], is_first=False)) == (0, 2)
    assert capsys.readouterr() == ("", "")


# -- TOML --------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sede = 3", "sede: no such setting; did you mean seed?"),
        ("[ppo]\nclp = 0.1", "ppo.clp: no such setting; did you mean clip?"),
        ("[pppo]\nclip = 0.1", "pppo: no such setting; did you mean ppo?"),
        ("lr = 1e-3", "lr: no such setting; did you mean optim.lr?"),
        ("[ppo]\nlr = 1e-3", "ppo.lr: no such setting; did you mean optim.lr?"),
        ("every = 3", "did you mean checkpoint.every or eval.every or trajectories.every?"),
        ("num-envs = 1\nnum_envs = 2", "num_envs is there twice: leave one out"),
        ("seed = 2026-01-01", "seed=datetime.date(2026, 1, 1) must be of type int"),
        ("seed = 1.5", "seed=1.5 must be of type int"),
        ("target-return = nan", "target-return=nan must lie in"),
        (f"seed = {'9' * 5000}", "is not valid TOML: Exceeds the limit"),
        (f"seed = {'9' * 4000}", "seed=9999"),
        (f"seed = {'[' * 5000}{']' * 5000}", "is not valid TOML"),
        (f"seed.{'a.' * 5000}b = 1", "seed"),
        (f"{'a.' * 5000}b = 1", "a: no such setting"),
        (f"{'a' * 5000} = 1", "aaa...: no such setting"),
        ('"a\\nb" = 1', "'a\\nb': no such setting"),
        (f"env = '{'x' * 5000}'", "env='xxxxx"),
        ('env = "\\u0000"', "holds a NUL character"),
        ("#" * 2**20 + "#", "has 1,048,577 bytes, at most 1,048,576 are plausible"),
        ('seed = "3"', "seed='3' must be of type int"),
        ("env = 3", "env=3 must be of type str"),
        ("resume = true\nrun-dir = 3", "3 holds no run"),
        ("ppo = 3", "ppo is a section, but 3 was given"),
        ("[seed]\nx = 1", "seed={'x': 1} must be of type int"),
        ("seed = ", "is not valid TOML"),
        ("[ppo]\nclip = -1.0", "ppo.clip=-1.0 must lie in"),
    ],
)
def test_a_wrong_toml_file_gives_one_message(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(write(tmp_path / "c.toml", text))


def test_a_missing_toml_file_is_named(tmp_path: Path) -> None:
    text = message(str(tmp_path / "none.toml"))
    assert "none.toml: cannot be read: No such file or directory" in text


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    for name in ("pipe.toml", "folder.toml", "device.toml"):
        assert f"{name} is no file but " in message(str(tmp_path / name))
        assert f"{name} is no file but " in message(str(tmp_path / name), "--help")
    assert "cannot be read" in message("a\0b.toml")
    assert "cannot be read: File name too long" in message(f"{'x' * 300}.toml")


def test_a_toml_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    assert "c.toml: is not valid TOML" in message(str(tmp_path / "c.toml"))


def test_config_toml_leads_back_to_the_same_settings(tmp_path: Path) -> None:
    config, _ = parse(["--env", "a.b:X-v0", "--model.hidden", "5", "--optim.lr", "1e-5", "--target-return", "-1"])
    text = to_toml(config)
    assert tomllib.loads(text)["optim"]["lr"] == 1e-5
    assert parse([write(tmp_path / "c.toml", text)])[0] == config
    for value in ('quo"ted', "back\\slash", "é"):
        written = to_toml(resolve(Config(env=value)))
        assert tomllib.loads(written)["env"] == value


def test_config_toml_leaves_out_what_belongs_to_one_start(tmp_path: Path) -> None:
    config, _ = parse(["--env", "X-v0", "--run-dir", str(tmp_path), "--dry-run"])
    assert not {"run-dir", "dry-run", "resume"} & set(tomllib.loads(to_toml(config)))


# -- --resume --------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a config.toml."""
    config, _ = parse(["--env", "X-v0", "--seed", "7", "--total-steps", "100", "--ppo.clip", "0.3"])
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "config.toml", to_toml(config))
    return tmp_path / "run"


def test_resume_takes_everything_from_the_run(run: Path) -> None:
    config, notes = parse(["--resume", "--run-dir", str(run)])
    assert (config.env, config.seed, config.total_steps, config.ppo.clip) == ("X-v0", 7, 100, 0.3)
    assert config.resume and config.run_dir == str(run)
    assert notes == [f"settings from {run}/config.toml"]
    assert load_config(run) == updated(config, {"resume": False, "run_dir": None})


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--total-steps 200", "total_steps", 200),
        ("--target-return 5", "target_return", 5.0),
        ("--time-limit-s 60", "time_limit_s", 60.0),
        ("--log.interval-s 1", "log.interval_s", 1.0),
        ("--checkpoint.keep 9", "checkpoint.keep", 9),
        ("--device cuda", "device", "cuda"),
        ("--device cuda", "model.backend", "auto"),  # the network stays the same
        ("--dry-run", "dry_run", True),
        ("--seed 7", "seed", 7),  # as it is
    ],
)
def test_some_settings_may_be_given_anew(run: Path, flags: str, name: str, value: Any) -> None:
    config, _ = parse(["--resume", "--run-dir", str(run), *flags.split()])
    assert as_plain(config, name) == value
    assert config.seed == 7


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--seed 8", "--seed=8 differs from the run's 7"),
        ("--env Y-v0", "--env=Y-v0 differs from the run's X-v0"),
        ("--ppo.clip 0.2", "--ppo.clip=0.2 differs from the run's 0.3"),
        ("--num-envs 3 --ppo.minibatches 1", "--num-envs=3 differs"),
        ("--mode async --exchange p2p", "--mode=async differs"),
    ],
)
def test_other_settings_may_not(run: Path, flags: str, expected: str) -> None:
    text = message("--resume", "--run-dir", str(run), *flags.split())
    assert expected in text
    assert "total-steps, target-return, time-limit-s, log.*, eval.* and checkpoint.* may be given anew" in text


def test_the_same_holds_for_settings_from_toml(run: Path, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.toml", "total-steps = 300"), write(tmp_path / "bad.toml", "seed = 8")
    assert parse([good, "--resume", "--run-dir", str(run)])[0].total_steps == 300
    assert "--seed=8 differs" in message(bad, "--resume", "--run-dir", str(run))


def test_resume_and_its_directory_may_stand_in_toml(run: Path, tmp_path: Path) -> None:
    toml = write(tmp_path / "again.toml", f'resume = true\nrun-dir = "{run}"')
    config, _ = parse([toml])
    assert (config.resume, config.seed) == (True, 7)


def test_resume_needs_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    assert "--resume needs --run-dir" in message("--resume")
    assert "holds no run: there is no config.toml in it" in message("--resume", "--run-dir", str(tmp_path / "none"))


def test_no_resume_starts_anew(run: Path) -> None:
    config, _ = parse(["--no-resume", "--run-dir", str(run), "--env", "X-v0"])
    assert (config.resume, config.seed) == (False, Config().seed)


def test_arguments_and_wrappers_of_a_resumed_run_stay(tmp_path: Path) -> None:
    config, _ = parse(["--env", "X-v0", "--env-kwargs", "size=5", "map={a=1,b=2}", "--wrappers", "a:b"])
    write(tmp_path / "config.toml", to_toml(config))
    resume = ["--resume", "--run-dir", str(tmp_path)]
    same = ["--env-kwargs", "size=5", "--env-kwargs=map={a=1,b=2}", "--wrappers", "a:b"]
    assert parse([*resume, *same])[0].env_kwargs == parse(resume)[0].env_kwargs == {"size": 5, "map": {"a": 1, "b": 2}}
    assert "--env-kwargs size=6 differs from the run's 5: a resumed" in message(*resume, "--env-kwargs", "size=6")
    assert "--env-kwargs new=6 differs from the run's None" in message(*resume, "--env-kwargs", "new=6")
    other = message(*resume, "--env-kwargs", "map={a=1}")
    assert "--env-kwargs map={a = 1} differs from the run's {'a': 1, 'b': 2}" in other
    assert "--wrappers=['c:d'] differs from the run's ['a:b']" in message(*resume, "--wrappers", "c:d")
    for given in (Config(), Config(env_kwargs={"map": {"b": 2, "a": 1}})):
        assert resumed(updated(given, {"run_dir": str(tmp_path), "resume": True})) == parse(resume)[0]
    with pytest.raises(UsageError, match="--env-kwargs size=6 differs from the run's 5"):
        resumed(Config(env_kwargs={"size": 6}, run_dir=str(tmp_path), resume=True))


def test_a_resumed_runs_settings_are_written_as_they_were(run: Path) -> None:
    before = (run / "config.toml").read_text()
    assert to_toml(parse(["--resume", "--run-dir", str(run)])[0]) == before
    assert as_dict(load_config(run)) == as_dict(parse([str(run / "config.toml")])[0])


# -- resume from Python --------------------


def test_a_resume_from_python_takes_everything_from_the_run(run: Path) -> None:
    config = resumed(Config(run_dir=str(run), resume=True))
    assert config == parse(["--resume", "--run-dir", str(run)])[0]
    assert to_toml(config) == (run / "config.toml").read_text()


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        (Config(total_steps=200), "total_steps", 200),
        (Config(target_return=5), "target_return", 5.0),
        (Config(log=LogConfig(interval_s=1)), "log.interval_s", 1.0),
        (Config(checkpoint=CheckpointConfig(keep=9)), "checkpoint.keep", 9),
        (Config(eval=EvalConfig(every=9)), "eval.every", 9),
        (Config(device="cpu"), "device", "cpu"),
        (Config(dry_run=True), "dry_run", True),
        (Config(seed=7, ppo=PPOConfig(clip=0.3)), "ppo.clip", 0.3),  # as they are
    ],
    ids=str,
)
def test_what_is_no_default_is_given_anew(run: Path, given: Config, name: str, value: Any) -> None:
    config = resumed(updated(given, {"run_dir": str(run), "resume": True}))
    assert as_plain(config, name) == value
    assert (config.seed, config.env, config.ppo.clip) == (7, "X-v0", 0.3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Config(seed=8), "--seed=8 differs from the run's 7"),
        (Config(mode="async"), "--mode=async differs from the run's sync"),
        (Config(ppo=PPOConfig(clip=0.1)), "--ppo.clip=0.1 differs from the run's 0.3"),
    ],
    ids=str,
)
def test_what_differs_from_the_run_is_refused(run: Path, given: Config, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resumed(updated(given, {"run_dir": str(run), "resume": True}))


def test_a_resume_from_python_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs --run-dir"):
        resumed(Config(resume=True))
    with pytest.raises(UsageError, match="holds no run"):
        resumed(Config(resume=True, run_dir=str(tmp_path)))
    (tmp_path / "config.toml").write_text("seed = nan")
    with pytest.raises(UsageError, match=r"config.toml: seed=nan must"):
        resumed(Config(resume=True, run_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("flags", "python"),
    [
        ("go on by --resume --run-dir runs/a-b, or", "go on by Config(run_dir='runs/a-b', resume=True), or"),
        ("--resume needs --run-dir, the", "resume=True needs run_dir, the"),
        ("--ppo.target-kl=1 (total-steps, log.* anew)", "ppo.target_kl=1 (total_steps, log.* anew)"),
        ("--run-dir runs/--seed: is a file", "run_dir runs/--seed: is a file"),
        ("/data/total-steps/x has it", "/data/total-steps/x has it"),
        ("raise --total-steps.", "raise total_steps."),
    ],
)
def test_messages_speak_python_to_those_who_call_train(flags: str, python: str) -> None:
    assert in_python(flags) == python


# -- for the other commands --------------------


@pytest.mark.parametrize(
    ("name", "value", "args"),
    [
        ("optim.lr", 3e-4, ["--optim.lr", "0.0003"]),
        ("optim.lr", 1, ["--optim.lr", "1"]),
        ("target-return", -1e-7, ["--target-return=-1e-07"]),
        ("time-limit-s", 1e9, ["--time-limit-s", "1000000000.0"]),
        ("env", "-odd name", ["--env=-odd name"]),
        ("model.hidden", [32, 16], ["--model.hidden", "32", "16"]),
        ("model.hidden", [], ["--model.hidden"]),
        ("vtrace", True, ["--vtrace"]),
        ("vtrace", False, ["--no-vtrace"]),
        ("log.tensorboard", False, ["--no-log.tensorboard"]),
        ("wrappers", ["a:b"], ["--wrappers", "a:b"]),
        ("env-kwargs", {"a": "5", "b": True}, ["--env-kwargs", 'a="5"', "b=true"]),
        ("env-kwargs.size", {"a": [1.5, "x"]}, ["--env-kwargs", 'size={a = [1.5, "x"]}']),
        ("cases", [], ["--cases"]),
    ],
)
def test_settings_as_flags_come_back_as_they_were(name: str, value: Any, args: list[str]) -> None:
    assert as_flags({name: value}) == args
    section, _, key = name.rpartition(".")
    values = {section: {key: value}} if section else {name: value}
    assert parse([*args, "--seed", "3"])[0] == from_values(values | {"seed": 3})


@pytest.mark.usefixtures("presets")
def test_values_alone_are_what_a_file_of_them_would_be(tmp_path: Path) -> None:
    toml = write(tmp_path / "c.toml", 'env = "Env-v0"\n[ppo]\nclip = 0.22\n')
    config = from_values({"env": "Env-v0", "ppo": {"clip": 0.22}})
    assert config == parse([toml])[0]
    assert (config.ppo.epochs, config.ppo.clip) == (3, 0.22)
    with pytest.raises(UsageError, match=r"ppo.clip=-1.0 must lie in"):
        from_values({"ppo": {"clip": -1.0}})


def test_a_parser_complains_in_one_line() -> None:
    with pytest.raises(UsageError, match="unrecognized arguments: --x; see it -h"):
        Parser(prog="it").parse_args(["--x"])
