"""The table [search]: what is drawn, and which tables are refused with the repair."""

from __future__ import annotations

from pathlib import Path

import pytest

from dppo.errors import UsageError
from dppo.study.search import RECORDER, Dimension, Search, check_settings, read_search
from dppo.study.spec import read_sweep

SPACE = "[search.space]\noptim.lr = {low = 1e-4, high = 1e-2, log = true}\n"


def search_of(tmp_path: Path, text: str) -> Search:
    path = tmp_path / "s.toml"
    path.write_text(text)
    search = read_search(read_sweep(path), path)
    check_settings(search, path)
    return search


def message(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        search_of(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 's.toml'}: ") and "\n" not in said
    return said.removeprefix(f"{tmp_path / 's.toml'}: ")


def test_what_a_file_says(tmp_path: Path) -> None:
    search = search_of(
        tmp_path,
        """
        [fixed]
        env = "CartPole-v1"
        [search]
        trials = 20
        seeds = [1, 2]
        [search.space]
        optim.lr = {low = 1e-4, high = 1e-2, log = true}
        ppo.clip = {low = 0.1, high = 0.45, step = 0.1}
        ppo.epochs = {low = 3, high = 15}
        model.hidden = {choices = [[32, 32], [64, 64]]}
        env-kwargs.gain = {choices = [1, 2.5]}
        """,
    )
    assert (search.trials, search.sampler, search.pruner, search.optimise, search.seeds, search.seed) == (
        20, "tpe", "none", "return", [1, 2], 0
    )  # fmt: skip
    assert list(search.space) == ["optim.lr", "ppo.clip", "ppo.epochs", "model.hidden", "env-kwargs.gain"]
    clip, epochs, hidden = (search.space[name] for name in ("ppo.clip", "ppo.epochs", "model.hidden"))
    assert clip.cells() == [0.1, 0.2, 0.3, 0.4] and clip.last == 0.4 and not clip.is_whole
    assert epochs.is_whole and len(epochs.cells() or ()) == 13
    assert hidden.names == ["[32, 32]", "[64, 64]"] and hidden.setting("[64, 64]") == [64, 64]
    settings = search.settings({"optim.lr": 1e-3, "model.hidden": "[32, 32]"}, 2)
    assert settings == {"env": "CartPole-v1", "optim.lr": 1e-3, "model.hidden": [32, 32], "seed": 2}


def test_a_pruner_has_a_recorder_beside_the_users(tmp_path: Path) -> None:
    search = Search({"log.recorder": ["mine:It"]}, {}, 1, "tpe", "median", "return", [1], 0)
    assert search.settings({}, 1)["log.recorder"] == ["mine:It", RECORDER]


def test_a_grid_has_as_many_trials_as_combinations(tmp_path: Path) -> None:
    text = "[search]\nsampler = 'grid'\n[search.space]\nppo.epochs = {low = 3, high = 5, step = 2}\n"
    search = search_of(tmp_path, text + "optim.lr = {choices = [1e-3, 2e-3]}\n")
    assert search.trials == 4
    assert search.grid()[:2] == [{"ppo.epochs": 3, "optim.lr": 1e-3}, {"ppo.epochs": 3, "optim.lr": 2e-3}]


def test_dimensions_in_words() -> None:
    assert Dimension(1, 5).in_words() == "1 to 5, whole numbers"
    assert Dimension(1e-4, 1e-2, True).in_words() == "0.0001 to 0.01, logarithmic"
    assert Dimension(choices=[[1, 2], "x"]).in_words() == "1 2 or x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[search]\ntrials = 2\n", "[search.space] is missing"),
        ("[search]\ntrial = 2\n" + SPACE, "search.trial: [search] has no such key; did you mean trials?"),
        ("[search]\n" + SPACE, "search.trials=None must be a whole number from 1 to 10000"),
        ("[search]\ntrials = 0\n" + SPACE, "search.trials=0 must be a whole number"),
        ("[search]\ntrials = 2\nsampler = 'cmaes'\n" + SPACE, "search.sampler='cmaes' must be one of tpe, random"),
        ("[search]\ntrials = 2\nsampler = 'grid'\n" + SPACE, "search.space.optim.lr needs a step, or choices"),
        ("[search]\ntrials = 2\npruner = 'hyper'\n" + SPACE, "did you mean hyperband?"),
        ("[search]\ntrials = 2\nseeds = [1, 1]\n" + SPACE, "holds a seed twice"),
        ("[search]\ntrials = 2\nseeds = 1\n" + SPACE, "search.seeds=1 must be a list of whole numbers"),
        ("[search]\ntrials = 2\nseeds = [1]\n" + SPACE + "[fixed]\nseed = 1\n", "seed is in [fixed], and search.seeds"),
        ("[search]\ntrials = 2\nseed = -1\n" + SPACE, "search.seed=-1 must be a whole number of at least 0"),
        ("[search]\ntrials = 2\n" + SPACE + "seed = {low = 1, high = 3}\n", "seeds stand in search.seeds"),
        ("[search]\ntrials = 2\n" + SPACE + "[fixed]\noptim.lr = 1\n", "optim.lr is both in [fixed] and in [search"),
        ("[search]\ntrials = 2\n" + SPACE + "[grid]\nseed = [1, 2]\n", "seed is in [grid] or [random], and there is a"),
        ("[search]\ntrials = 2\n" + SPACE.replace("1e-4", "1"), "low=1 must be below high=0.01"),
        ("[search]\ntrials = 2\n" + SPACE.replace("1e-4", "0"), "log = true needs a positive low, and no step"),
        ("[search]\ntrials = 2\n" + SPACE.replace("low", "lo"), "search.space.optim.lr.lo: no such key; did you mean"),
        ("[search]\ntrials = 2\n" + SPACE.replace("log = true", "log = 3"), "log=3 must be true or false"),
        ("[search]\ntrials = 2\n" + SPACE.replace("log = true", "step = 1"), "step=1 must be positive, and at most"),
        ("[search]\ntrials = 2\n[search.space]\noptim.lr = 3\n", "search.space.optim.lr=3 must say what is drawn"),
        ("[search]\ntrials = 2\n[search.space]\noptim.lr = {choices = [1]}\n", "must be a list of two values or more"),
        ("[search]\ntrials = 2\n[search.space]\noptim.lr = {choices = [1, 1]}\n", "holds a value twice"),
        ("[search]\ntrials = 2\n[search.space]\nppo.epochs = {choices = [1, true]}\n", "holds a value twice"),
        ("[search]\ntrials = 2\n[search.space]\noptim.lrr = {low = 1, high = 2}\n", "optim.lrr: no such setting"),
        ("[search]\ntrials = 2\n[search.space]\nppo.clip = {low = -1.0, high = 2.0}\n", "ppo.clip=-1.0 must lie in"),
        ("[search]\ntrials = 2\noptimise = 'steps_to_target'\n[fixed]\ntotal-steps = 9\n" + SPACE, "needs a target"),
        ("search = 3\n", "search=3 must be a table"),
        ("ranks = 0\n", "ranks=0 must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_the_table_is_refused_with_the_repair(tmp_path: Path, text: str, said: str) -> None:
    assert said in message(tmp_path, text)


def test_a_step_that_gives_no_allowed_value_is_refused_before_a_trial_fails(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text("ranks = 1\n[search]\ntrials = 2\n[search.space]\nppo.epochs = {low = 1, high = 9, step = 2.5}\n")
    with pytest.raises(UsageError, match=r"ppo\.epochs=3\.5 must be of type int|ppo\.epochs=1\.0"):
        check_settings(read_search(read_sweep(path), path), path)
