"""In which cases an evaluation plays, and its figures."""

from __future__ import annotations

import pytest

from dppo.config import Config
from dppo.errors import UsageError
from dppo.training.played import Played, figures, in_cases

CASES = [{"name": "cold"}, {"name": "hot", "env_kwargs": {"bath": 0.9}}]


def test_each_case_has_a_configuration_of_its_own() -> None:
    config = Config(env="X-v0", cases=CASES)
    found = in_cases(config)
    assert {name: [case["name"] for case in one.cases] for name, one in found.items()} == {
        "cold": ["cold"], "hot": ["hot"],
    }  # fmt: skip
    assert in_cases(config, "hot") == {"hot": found["hot"]}
    assert in_cases(Config()) == {"": Config()}


@pytest.mark.parametrize(
    ("cases", "name", "said"),
    [
        (CASES, "hott", "there is no case 'hott': the run has cold, hot"),
        ([], "hot", "there is no case 'hot': the run has no cases: leave --case out"),
        ([], "", "there is no case '': the run has no cases: leave --case out"),
    ],
)
def test_a_case_that_is_not_there_is_wrong_use(cases: list[dict[str, object]], name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        in_cases(Config(env="X-v0", cases=tuple(cases)), name)
    assert str(caught.value) == said


def test_figures_are_of_the_episodes_that_ended() -> None:
    played = [Played(1.0, 2, True), Played(3.0, 4, True), Played(8.0, 6, False)]
    assert figures(played) == {
        "mean": 2.0, "median": 2.0, "min": 1.0, "max": 3.0, "std": 1.0, "episodes": 3, "ended": 2, "length_mean": 3.0,
        "cut": 1, "cut_return_mean": 8.0,
    }  # fmt: skip
    assert figures(played[2:])["mean"] is None
