"""Which environments have which case, before anything is trained."""

from __future__ import annotations

import pytest
from mpi4py import MPI

from dppo.config import Config
from dppo.envs.probes_of_agents import parallel_env
from dppo.errors import UsageError
from dppo.run.cases import agree_on_cases, dealt
from dppo.settings.resolve import resolve
from dppo.training.build import build_parts

CASES = tuple({"name": name} for name in ("cold", "warm", "hot"))


@pytest.mark.parametrize(
    ("workers", "settings", "agents", "lines"),
    [
        (1, {"num_envs": 4}, 1, ["case cold: environments 0,3", "case warm: environment 1", "case hot: environment 2"]),
        (
            6, {"num_envs": 1, "env_ranks": 2}, 1,
            ["case cold: environments 0,3 of groups 0,3", "case warm: environments 1,4 of groups 1,4",
             "case hot: environments 2,5 of groups 2,5"],
        ),
        (
            3, {"num_envs": 2}, 2,
            ["case cold: environments 0-1", "case warm: environments 2-3", "case hot: environments 4-5"],
        ),
    ],
)  # fmt: skip
def test_the_first_lines_say_who_has_which_case(
    workers: int, settings: dict[str, int], agents: int, lines: list[str]
) -> None:
    assert dealt(Config(env="X-v0", cases=CASES, **settings), workers, agents) == lines


def test_many_environments_and_many_cases_are_cut_short() -> None:
    line = dealt(Config(env="X-v0", cases=CASES, num_envs=3000), 1, 1)[0]
    assert line.endswith(",… (1000 of them)") and len(line) < 100
    many = tuple({"name": f"c{i}"} for i in range(20))
    lines = dealt(Config(env="X-v0", cases=many, num_envs=20), 1, 1)
    assert len(lines) == 17 and lines[-1] == "and 4 more cases"


def test_fewer_simulators_than_cases_are_refused() -> None:
    with pytest.raises(UsageError, match=r"2 simulator\(s\) of 4 agents, and hot would have none: use num_envs=12"):
        dealt(Config(env="X-v0", cases=CASES, num_envs=8), 1, 4)


def test_one_rank_agrees_with_itself() -> None:
    config = resolve(Config(env="CartPole-v1", cases=CASES, num_envs=4))
    parts = build_parts(config, 0)
    assert agree_on_cases(config, MPI.COMM_SELF, parts)[0] == "case cold: environments 0,3"
    parts.close()
    assert agree_on_cases(Config(), MPI.COMM_SELF, parts) == []


def test_agents_are_dealt_with_their_simulator() -> None:
    env = f"{parallel_env.__module__}:parallel_env"
    config = resolve(Config(env=env, env_kwargs={"agents": 2}, cases=CASES, num_envs=8))
    parts = build_parts(config, 0)
    assert agree_on_cases(config, MPI.COMM_SELF, parts)[0] == "case cold: environments 0-1,6-7"
    parts.close()
