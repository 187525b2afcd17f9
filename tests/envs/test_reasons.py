"""The line that is named is the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pytest

from dppo.envs.reasons import reason
from dppo.envs.vector import make_vector_env

MODULE = """
import gymnasium
import numpy as np

class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how):
        getattr(self, how)()

    def library(self):
        np.zeros(3).reshape(2, 2)  # line 13

    def plain(self):
        raise ValueError("bad mesh")  # line 16

    def type_error(self):
        None + 1  # line 19

    def bare(self):
        assert self.spec in (1,
                             2)  # line 22

    def chained(self):
        try:
            self.plain()
        except ValueError as error:
            raise RuntimeError("the solver did not start") from error
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "users_simulator.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return importlib.import_module("users_simulator")


@pytest.mark.parametrize(
    ("how", "text", "line"),
    [
        ("library", "ValueError: cannot reshape array of size 3", 13),
        ("plain", "ValueError: bad mesh", 16),
        ("type_error", "TypeError: unsupported operand", 19),  # Gymnasium raises it anew
        ("bare", "AssertionError: assert self.spec in (1,", 22),  # the error itself says nothing
        ("chained", "ValueError: bad mesh", 16),
    ],
)
def test_a_bug_in_a_constructor_is_told_with_its_file_and_line(
    how: str, text: str, line: int, module: ModuleType
) -> None:
    gymnasium.register("Broken-v0", module.Broken, kwargs={"how": how})
    try:
        with pytest.raises(ValueError, match=r"env='Broken-v0' cannot be made") as refused:
            make_vector_env("Broken-v0", 1, lambda index: 0)
    finally:
        gymnasium.registry.pop("Broken-v0")
    assert text in str(refused.value)
    assert f"users_simulator.py:{line})" in str(refused.value)


@pytest.mark.parametrize(
    ("raise_it", "told"),
    [(lambda: (_ for _ in ()).throw(SystemExit(3)), "SystemExit: 3"), (lambda: {}["a key"], "KeyError: 'a key'")],
)
def test_any_error_has_a_name(raise_it: Callable[[], object], told: str) -> None:
    with pytest.raises(BaseException) as raised:
        raise_it()
    assert reason(raised.value).startswith(told)


def test_an_error_that_was_never_raised_is_told_without_a_line() -> None:
    assert reason(np.exceptions.AxisError("axis 3")) == "AxisError: axis 3"


def test_a_package_whose_name_begins_with_gymnasium_is_another() -> None:
    code = compile("def fail():\n    assert False\n", str(Path(gymnasium.__file__).parent) + "_robotics/env.py", "exec")
    names: dict[str, Callable[[], None]] = {}
    exec(code, names)
    with pytest.raises(AssertionError) as caught:
        names["fail"]()
    caught.value.__traceback__ = caught.tb.tb_next  # without this test's own line
    assert reason(caught.value).endswith("gymnasium_robotics/env.py:2)")
