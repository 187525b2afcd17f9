"""The configuration: what it refuses, with the repair, and what it fills in."""

from __future__ import annotations

import ast
import inspect
import itertools
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest

import dppo.config
from dppo.config import Config
from dppo.settings.resolve import check_world, num_workers, resolve
from dppo.settings.values import as_dict, nearest, updated

# -- one value at a time --------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"env": ""}, "env must name an environment"),
        ({"seed": -1}, r"seed=-1 must lie in \[0, 2\*\*63\)"),
        ({"seed": 2**63}, r"must lie in \[0, 2\*\*63\)"),
        ({"total_steps": 0}, "total_steps=0 must be at least 1"),
        ({"num_envs": 0}, "num_envs=0 must be at least 1"),
        ({"horizon": 0}, "horizon=0 must be at least 1"),
        ({"time_limit_s": 0.0}, "time_limit_s=0.0 must be positive"),
        ({"ppo": {"clip": 0.0}}, r"ppo.clip=0.0 must lie in \(0, 10\]"),
        ({"ppo": {"value_clip": -1.0}}, r"ppo.value_clip=-1.0 must be 0 \(off\) or positive"),
        ({"ppo": {"epochs": 0}}, "ppo.epochs=0 must be at least 1"),
        ({"ppo": {"minibatches": 0}}, "ppo.minibatches=0 must be at least 1"),
        ({"ppo": {"gamma": 1.01}}, r"ppo.gamma=1.01 must lie in \[0, 1\]"),
        ({"ppo": {"gamma": float("nan")}}, "ppo.gamma=nan must lie in"),
        ({"ppo": {"lam": -0.1}}, r"ppo.lam=-0.1 must lie in \[0, 1\]"),
        ({"ppo": {"target_kl": -0.1}}, "ppo.target_kl=-0.1 must be 0"),
        ({"ppo": {"kl_target": 0.0}}, "ppo.kl_target=0.0 must be positive"),
        ({"ppo": {"kl_coef": -1.0}}, "ppo.kl_coef=-1.0 must not be negative"),
        ({"ppo": {"kl_hinge": -1.0}}, "ppo.kl_hinge=-1.0 must not be negative"),
        ({"a3c": {"gamma": 2.0}}, "a3c.gamma=2.0 must lie in"),
        ({"a3c": {"lam": 2.0}}, "a3c.lam=2.0 must lie in"),
        ({"optim": {"lr": 0.0}}, "optim.lr=0.0 must be positive"),
        ({"optim": {"max_grad_norm": -1.0}}, "optim.max_grad_norm=-1.0 must be 0"),
        ({"optim": {"beta1": 1.0}}, r"optim.beta1=1.0 must lie in \[0, 1\)"),
        ({"optim": {"beta2": -0.1}}, r"optim.beta2=-0.1 must lie in \[0, 1\)"),
        ({"optim": {"alpha": 1.5}}, r"optim.alpha=1.5 must lie in \[0, 1\)"),
        ({"optim": {"momentum": 1.0}}, r"optim.momentum=1.0 must lie in \[0, 1\)"),
        ({"optim": {"eps": 0.0}}, "optim.eps=0.0 must be positive"),
        ({"model": {"hidden": [64, 0]}}, r"model.hidden=\(64, 0\) must hold positive sizes"),
        ({"model": {"factory": "my_module"}}, "model.factory='my_module' must have the form module:function"),
        ({"model": {"factory": "m:f", "backend": "numpy"}}, "leave model.backend at auto"),
        (
            {"model": {"core": "gru", "backend": "numpy"}},
            "model.core=gru is a torch network: leave model.backend at auto",
        ),
        ({"model": {"core": "lstm", "factory": "m:f"}}, "leave one of them out"),
        ({"model": {"core": "rnn"}}, "model.core='rnn' must be one of"),
        ({"model": {"core_size": 0}}, "model.core_size=0 must"),
        ({"model": {"sequence": 0}}, "model.sequence=0 must"),
        ({"model": {"sequence": 8}}, "model.sequence=8 is for networks with memory, .*: set model.core to gru or lstm"),
        ({"model": {"core_size": 64}}, "model.core_size=64 is for networks with memory"),
        ({"moments": {"clip": 0.0}}, "moments.clip=0.0 must be positive"),
        ({"server": {"drop": -1}}, "server.drop=-1 must not be negative"),
        ({"env_ranks": 0}, "env_ranks=0 must be at least 1"),
        ({"server": {"max_staleness": -1}}, "server.max_staleness=-1 must not be negative"),
        ({"checkpoint": {"every": -1}}, "checkpoint.every=-1 must be 0"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep=0 must be at least 1"),
        ({"checkpoint": {"grace_s": -1.0}}, "checkpoint.grace_s=-1.0 must not be negative"),
        ({"checkpoint": {"replay_s": -1.0}}, "checkpoint.replay_s=-1.0 must not be negative"),
        ({"eval": {"every": -1}}, r"eval.every=-1 must be 0 \(off\) or positive"),
        ({"eval": {"episodes": 0}}, "eval.episodes=0 must be at least 1"),
        ({"eval": {"patience": -1}}, r"eval.patience=-1 must be 0 \(off\) or positive"),
        ({"eval": {"target_return": float("nan")}}, "eval.target_return=nan must"),
        ({"log": {"interval_s": 0.0}}, "log.interval_s=0.0 must be positive"),
        ({"log": {"stall_after_s": -1.0}}, r"log.stall_after_s=-1.0 must be 0 \(never\) or positive"),
        ({"log": {"stall_abort_s": -1.0}}, r"log.stall_abort_s=-1.0 must be 0 \(never\) or positive"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named_with_its_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        updated(Config(), values)


# -- names and types --------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"horzon": 8}, r"horzon: no such setting; did you mean horizon\?"),
        ({"ppo": {"minibatch": 8}}, r"ppo.minibatch: no such setting; did you mean minibatches\?"),
        ({"optim": {"learning_rate": 0.1}}, "optim.learning_rate: no such setting"),
        ({"zzzzzzz": 1}, "zzzzzzz: no such setting$"),
    ],
    ids=str,
)
def test_an_unknown_name_is_refused_with_the_nearest(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        updated(Config(), values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "1"}, "seed='1' must be of type int"),
        ({"seed": 1.5}, "seed=1.5 must be of type int"),
        ({"seed": True}, "seed=True must be of type int"),
        ({"resume": 1}, "resume=1 must be of type bool"),
        ({"env": 3}, "env=3 must be of type str"),
        ({"target_return": "475"}, "target_return='475' must be of type float"),
        ({"target_return": True}, "target_return=True must be of type float"),
        ({"mode": "synchronous"}, "mode='synchronous' must be one of sync, async"),
        ({"exchange": "ring"}, "exchange='ring' must be one of allreduce, p2p"),
        ({"optim": {"name": "lion"}}, "optim.name='lion' must be one of adam, rmsprop, sgd"),
        ({"ppo": 3}, "ppo is a section, but 3 was given"),
        ({"model": {"hidden": 64}}, "model.hidden=64 must be a list"),
        ({"model": {"hidden": [64, "64"]}}, "model.hidden='64' must be of type int"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        updated(Config(), values)


def test_names_take_dashes_or_underscores() -> None:
    assert updated(Config(), {"num-envs": 3, "ppo": {"target_kl": 0.5}, "log": {"interval-s": 2}}) == updated(
        Config(), {"num_envs": 3, "ppo": {"target-kl": 0.5}, "log": {"interval_s": 2.0}}
    )


def test_a_whole_number_is_a_float_and_a_list_is_a_tuple() -> None:
    config = updated(Config(), {"target_return": 475, "model": {"hidden": [3, 4]}, "time_limit_s": 60})
    assert (config.target_return, type(config.target_return)) == (475.0, float)
    assert config.model.hidden == (3, 4)


def test_what_is_not_named_stays() -> None:
    config = updated(Config(seed=5), {"ppo": {"clip": 0.3}})
    assert config.seed == 5
    assert config.ppo.clip == 0.3
    assert config.ppo.epochs == Config().ppo.epochs


def test_nearest_says_nothing_where_nothing_is_near() -> None:
    assert nearest("epoch", ["epochs", "clip"]) == "; did you mean epochs?"
    assert nearest("xyz", ["epochs", "clip"]) == ""


# -- settings together --------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "async", "exchange": "allreduce"}, "leave exchange out, or set mode=sync"),
        ({"server": {"drop": 1}}, "server.drop=1 needs mode=sync and exchange=p2p"),
        ({"mode": "async", "server": {"drop": 1}}, "server.drop=1 needs mode=sync and exchange=p2p"),
        ({"env_ranks": 2, "vectorization": "native"}, "env_ranks=2 makes single environments of several ranks"),
        (
            {"horizon": 256, "num_envs": 8, "ppo": {"minibatches": 7}},
            r"ppo.minibatches=7 must divide horizon\*num_envs=2048; the nearest that does is 8",
        ),
        ({"horizon": 3, "num_envs": 5, "ppo": {"minibatches": 100}}, "the nearest that does is 15"),
        (
            {"num_envs": 2, "ppo": {"minibatches": 4}, "model": {"core": "gru"}},
            r"ppo.minibatches=4 are more than the 2 sequences of a worker's rollout \(num_envs=2, model.sequence=64\)",
        ),
        ({"mode": "async", "preempt_fraction": 0.5}, "preempt_fraction=0.5 needs mode=sync"),
        ({"preempt_fraction": 1.5}, r"preempt_fraction=1.5 must lie in \[0, 1\]"),
        ({"server": {"mirror_every": -1}}, "server.mirror_every=-1 must be 0"),
        ({"wrappers": ["a:b"], "vectorization": "native"}, "set vectorization=sync, or leave wrappers out"),
        ({"cases": [{"name": "a"}], "vectorization": "native"}, "set vectorization=sync, or leave cases out"),
        ({"eval": {"patience": 3}}, "eval.patience=3 needs evaluations: set eval.every"),
        ({"eval": {"target_return": 3.0}}, "eval.target_return=3.0 needs evaluations: set eval.every"),
        ({"eval": {"every": 9}, "env_ranks": 2}, "environment of this run is 2 ranks: leave eval.every out, and use"),
        ({"eval": {"every": 9}, "env": "dppo.envs:Solver"}, "is a simulator beside dppo: leave eval.every out"),
        ({"eval": {"every": 9}, "env": "__main__:Own"}, "cannot import __main__:Own: move it into a module, or leave"),
        (
            {"optim": {"schedule": "cosine", "anneal": False}},
            "means optim.schedule=constant, and optim.schedule=cosine",
        ),
        ({"optim": {"schedule": "kl"}, "loss": "a3c"}, "use optim.schedule=linear, or loss=ppo with more updates"),
        ({"optim": {"schedule": "kl"}, "ppo": {"epochs": 1, "minibatches": 1}}, "and 1 update of each"),
        ({"device": "cuda", "model": {"backend": "numpy"}}, "device=cuda needs a network of torch: leave"),
        ({"trajectories": {"every": 0}}, "trajectories.every=0 must be at least 1"),
        ({"trajectories": {"segment_mb": 0.0}}, "trajectories.segment_mb=0.0 must be positive"),
        ({"trajectories": {"max_gb": 0.0}}, "trajectories.max_gb=0.0 must be positive, or left out"),
    ],
    ids=str,
)
def test_an_impossible_combination_is_refused_with_the_repair(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(updated(Config(), values))


@pytest.mark.parametrize(
    "values",
    [
        {"exchange": "p2p", "server": {"drop": 1}},
        {"loss": "a3c", "ppo": {"minibatches": 7}},  # not used
        {"mode": "async", "exchange": "p2p"},
        {"exchange": "p2p", "ppo": {"objective": "kl"}},
        {"exchange": "p2p", "server": {"drop": 1}, "ppo": {"objective": "kl"}},
    ],
    ids=str,
)
def test_a_possible_combination_is_taken(values: dict[str, Any]) -> None:
    resolve(updated(Config(), values))


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (2, 1), (3, 2), (32, 31)])
def test_the_quorum_must_have_a_worker(world_size: int, workers: int) -> None:
    config = updated(Config(), {"exchange": "p2p", "server": {"drop": workers - 1}})
    check_world(config, world_size)
    config = updated(config, {"server": {"drop": workers}})
    with pytest.raises(
        ValueError, match=rf"must be smaller than the number of workers, {workers} \({world_size} ranks"
    ):
        check_world(config, world_size)


@pytest.mark.parametrize(("world_size", "workers"), [(3, 1), (5, 2), (101, 50)])
def test_groups_make_the_workers(world_size: int, workers: int) -> None:
    assert num_workers(Config(env_ranks=2), world_size) == workers


@pytest.mark.parametrize(
    ("ranks", "world_size", "repair"),
    [
        (2, 1, "start it by mpirun -n 3"),
        (2, 2, "start it by mpirun -n 3"),
        (2, 6, "start it by mpirun -n 5 or mpirun -n 7"),
        (4, 4, "start it by mpirun -n 5"),
        (4, 8, "start it by mpirun -n 5 or mpirun -n 9"),
    ],
)
def test_a_job_that_makes_no_whole_groups_is_told_the_nearest_that_does(
    ranks: int, world_size: int, repair: str
) -> None:
    with pytest.raises(ValueError, match=rf"env_ranks={ranks} needs .* and this job has {world_size}: {repair}$"):
        check_world(Config(env_ranks=ranks), world_size)


# -- what depends on the rest --------------------


@pytest.mark.parametrize(
    ("mode", "loss", "expected"),
    [
        ("sync", None, ("ppo", "allreduce", "adam", False)),
        ("sync", "a3c", ("a3c", "allreduce", "rmsprop", False)),
        ("async", None, ("a3c", "p2p", "rmsprop", False)),
        ("async", "ppo", ("ppo", "p2p", "adam", True)),
    ],
)
def test_the_mode_decides_what_is_left_open(mode: Any, loss: Any, expected: tuple[Any, ...]) -> None:
    config = resolve(Config(mode=mode, loss=loss))
    assert (config.loss, config.exchange, config.optim.name, config.vtrace) == expected


def test_a_resolved_configuration_leaves_nothing_open_that_training_needs() -> None:
    for mode in ("sync", "async"):
        for loss in ("ppo", "a3c"):
            config = resolve(updated(Config(), {"mode": mode, "loss": loss}))
            open_ones = [f.name for f in fields(config) if getattr(config, f.name) is None]
            assert open_ones == ["target_return", "run_dir", "init_from", "time_limit_s"]  # None means "no" in these
            assert [f.name for f in fields(config.optim) if getattr(config.optim, f.name) is None] == ["anneal"]


def test_what_is_set_wins_over_what_the_mode_would_decide() -> None:
    values = {"mode": "async", "loss": "ppo", "vtrace": False, "horizon": 4, "optim": {"name": "sgd", "lr": 0.5}}
    config = resolve(updated(Config(), values))
    assert (config.vtrace, config.horizon, config.optim.name, config.optim.lr) == (False, 4, "sgd", 0.5)


@pytest.mark.parametrize(
    ("device", "backend", "expected"),
    [("cuda", "auto", "torch"), ("cuda", "torch", "torch"), ("auto", "auto", "auto"), ("cpu", "numpy", "numpy")],
)
def test_a_gpu_that_is_asked_for_gets_a_network_of_torch(device: str, backend: str, expected: str) -> None:
    """So that those who evaluate the run, on any machine, make the same network."""
    config = resolve(updated(Config(), {"device": device, "model": {"backend": backend}}))
    assert config.model.backend == expected
    assert resolve(config) == config


def test_resolving_twice_is_resolving_once() -> None:
    config = resolve(Config(mode="async"))
    assert resolve(config) == config


# -- plain values and back --------------------


def test_plain_values_hold_every_setting_and_lead_back_to_it() -> None:
    config = resolve(
        updated(Config(), {"target_return": 3, "time_limit_s": 9, "model": {"hidden": [], "factory": "a:b"}})
    )
    values = as_dict(config)
    assert updated(Config(), values) == config
    assert values["model"]["hidden"] == []
    assert "run_dir" not in values  # None; TOML has none


def test_every_setting_has_a_docstring() -> None:
    """The help of the flags is made of them."""
    for node in ast.parse(inspect.getsource(dppo.config)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for statement, following in itertools.pairwise([*node.body, None]):
            if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.annotation).endswith("Config"):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{node.name}.{ast.unparse(statement.target)} has no docstring"


def test_a_configuration_does_not_change() -> None:
    for part in (Config(), *(getattr(Config(), f.name) for f in fields(Config))):
        if is_dataclass(part):
            with pytest.raises(FrozenInstanceError):
                setattr(part, fields(part)[0].name, 1)
