"""benchmarks/packages.py: a row of an environment that passes, and of one that does not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.envs import sims_of_others
from tests.launch import OF_DPPO


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in OF_DPPO:  # another test may have left them
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("packages")


@pytest.mark.slow
def test_an_environment_goes_through_all_commands(packages: Any, tmp_path: Path) -> None:
    flags = "--num-envs 2 --horizon 8 --ppo.minibatches 1"
    row = packages.through_all(packages.Env("gymnasium", "FrozenLake-v1", flags), 100, tmp_path)
    assert (row.told, row.resumed, row.valid, row.exported) == ("", "exactly", "yes", "minari, csv")
    assert row.evaluated in (f"{ended} ended, {4 - ended} cut" for ended in range(5))


@pytest.mark.slow
def test_a_row_has_what_the_user_is_told(packages: Any, tmp_path: Path) -> None:
    row = packages.through_all(packages.Env("gymnasium", f"{sims_of_others.__name__}:Old"), 100, tmp_path)
    assert "code 2, `dppo: env=" in row.told and "takes no seed" in row.told and "traceback" not in row.told
    assert row.steps_per_s == row.resumed == row.exported == "-"
    assert "`dppo: env=" in packages.report({packages.key(packages.OTHERS[0]): row}, 100)
