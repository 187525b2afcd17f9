"""The recorders that a run was asked to have, before it begins."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from dppo.config import LogConfig
from dppo.errors import UsageError
from dppo.run.recorders import Chosen, check_recorders
from dppo.seams import Recorder

MODULE = """
from dppo.seams import Recorder

made = []

class Diary(Recorder):
    def __init__(self):
        made.append(self)

class Alien:  # extends nothing, and has all methods
    start = iteration = evaluation = checkpoint = end = print

def fails():
    raise RuntimeError("no licence")

def nothing():
    return None

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_recorders.py").write_text(MODULE)
    (tmp_path / "torn_recorders.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("own_recorders")
    sys.modules.pop("own_recorders", None)


def check(*names: str, given: Any = (), **log: Any) -> Chosen:
    return check_recorders(MPI.COMM_SELF, LogConfig(recorder=names, **log), given)


def test_recorders_of_a_program_come_before_those_of_flags(module: Any) -> None:
    given = [Recorder(), module.Alien()]
    chosen = check("own_recorders:Diary", "own_recorders:Alien", given=given).make()
    assert chosen[:3] == [*given, module.made[0]] and isinstance(chosen[3], module.Alien) and len(chosen) == 4


def test_each_is_made_once_and_on_another_rank_when_it_becomes_the_server(module: Any) -> None:
    chosen = check("own_recorders:Diary")
    assert len(module.made) == 1, "what fails is said before the run"
    assert chosen.make() == chosen.make() == module.made
    later = Chosen(LogConfig(recorder=("own_recorders:Diary",)))
    assert len(module.made) == 1
    assert later.make() == module.made[1:]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:X", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("torn_recorders:X", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("own_recorders:Dairy", "cannot be imported: AttributeError: module 'own_recorders' has no attribute 'Dairy'"),
        ("own_recorders:number", "is an object of int: name its class"),
        ("own_recorders:fails", "called without arguments, failed: RuntimeError: no licence"),
        ("own_recorders:nothing", "None is no recorder: it must be an object that extends dppo.seams.Recorder"),
    ],
)
@pytest.mark.usefixtures("module")
def test_a_wrong_name_is_one_message(name: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        check(name)
    assert f"log.recorder='{name}'" in str(raised.value) and said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrong", ["csv", 3, Recorder])
def test_what_is_no_recorder_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"recorders: .* is no recorder: it must be an object that extends dppo.seams"):
        check(given=[Recorder(), wrong])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("dppo.run.recorders.find_spec", lambda module: None if module == name else found(module))
    with pytest.raises(UsageError, match=rf"No module named '{name}'\): pip install 'dppo\[{name}\]'"):
        check(**{name: "walking"})


@pytest.mark.parametrize(("name", "kind"), [("wandb", "WandB"), ("mlflow", "MLflow")])
def test_a_service_is_a_recorder_that_begins_with_the_run(name: str, kind: str) -> None:
    pytest.importorskip(name)
    (made,) = check(**{name: "walking"}).make()
    assert type(made).__name__ == kind
