"""Wrong uses of environments on several ranks and of dppo.h: one clear message, and nothing is left running.

benchmarks/wrong_uses.py goes through all of tests/wrong_uses.py; these are some that no other test has.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.launch import PROGRAMS
from tests.wrong_uses import C_API, GROUPS, build, problem, start

CHOSEN = {
    "dppo twice": C_API, "the header of another version": C_API, "declares nothing": C_API,
    "NULL as the observation": C_API, "a first state that ends": C_API, "a save that writes nothing": C_API,
    "is killed, ULFM": C_API, "hangs, ULFM": C_API, "a reset fails": GROUPS,
    "a step leaves by os._exit(0), ULFM": GROUPS,
}  # fmt: skip


def test_there_are_enough_and_each_fault_of_the_simulator_is_used() -> None:
    assert len(GROUPS) + len(C_API) >= 40
    faults = set(re.findall(r'is\(what, "([^"]+)"\)', (PROGRAMS / "simulators.c").read_text()))
    named = {str(words[2]) for use in C_API.values() for words in use.beside if len(words) > 2 and words[1] == "faults"}
    assert faults - {"slow"} <= named


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wrong_uses_are_told_and_leave_nothing(tmp_path: Path) -> None:
    try:
        build(tmp_path)
    except FileNotFoundError as error:
        pytest.skip(str(error))

    def problem_of(name: str) -> str:
        folder = tmp_path / re.sub(r"\W+", "_", name)
        folder.mkdir()
        use = CHOSEN[name][name]
        ended = start(use, folder, tmp_path)
        wrong = problem(use, ended)
        return f"{name}: {wrong}: {ended}" if wrong else ""

    with ThreadPoolExecutor(3) as pool:
        assert [wrong for wrong in pool.map(problem_of, CHOSEN) if wrong] == []
