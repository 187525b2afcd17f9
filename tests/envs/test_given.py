"""What constructors are given that ask for it, and where the folders of environments are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from dppo.envs.given import Given, Workdirs
from dppo.envs.maker import EnvMaker
from dppo.envs.vector import make_vector_env
from tests.envs import sims_of_others
from tests.envs.sims_of_others import Channel

OURS = sims_of_others.__name__
COMM = SimpleNamespace(size=1)


def given_in(root: Path) -> Given:
    return Given(COMM, Workdirs(root / "run" / "envs"))


@pytest.mark.parametrize("name", ["Channel", "ChannelOfOthers-v0"])
def test_a_constructor_that_asks_is_given_communicator_number_and_folder(name: str, tmp_path: Path) -> None:
    maker = EnvMaker(f"{OURS}:{name}", {"scale": 2.0}, given=given_in(tmp_path))
    assert maker.takes == {"comm", "env_number", "workdir"}
    env = maker.make(7).unwrapped
    assert isinstance(env, Channel) and (env.env_number, env.scale) == (7, 2.0)
    assert env.comm is COMM
    assert env.workdir == tmp_path / "run" / "envs" / "env_00007" and env.workdir.is_dir()
    assert isinstance(env.spec, EnvSpec) and env.spec.kwargs == {"scale": 2.0}, "wrappers copy it, and comm may not be"
    assert maker.spec.kwargs == {"scale": 2.0} and "comm" not in maker.to_json()


def test_what_its_registration_sets_stays(tmp_path: Path) -> None:
    env = EnvMaker(f"{OURS}:NumberedChannelOfOthers-v0", given=given_in(tmp_path)).make(3).unwrapped
    assert isinstance(env, Channel) and env.env_number == 70


def test_one_that_does_not_ask_gets_nothing_and_no_folder(tmp_path: Path) -> None:
    maker = EnvMaker(f"{OURS}:Tank", given=given_in(tmp_path))  # its **kwargs ask for nothing
    assert not maker.takes
    maker.make(7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["comm", "env_number", "workdir"])
def test_arguments_that_dppo_gives_are_not_the_users(name: str) -> None:
    with pytest.raises(ValueError, match=rf"env-kwargs\.{name}: dppo gives {name} to each environment itself .* out"):
        EnvMaker(f"{OURS}:Channel", {name: 1}).make()
    with pytest.raises(ValueError, match=f"it takes no argument '{name}'"):
        EnvMaker(f"{OURS}:double_tank", {"depth": 1.0, name: 1}).make()


def test_environments_of_a_worker_have_their_global_numbers_also_when_made_anew(tmp_path: Path) -> None:
    envs: Any = make_vector_env(
        f"{OURS}:Channel", 2, lambda index: index, first_env=4, max_restarts=1, given=given_in(tmp_path)
    )
    assert [env.env_number for env in envs._envs] == [4, 5]
    envs.reset()
    envs._envs[1].observe = lambda: 1 / 0
    envs.step(np.zeros(2, int))
    assert envs._envs[1].env_number == 5
    assert (tmp_path / "run" / "envs" / "env_00005" / "made.txt").read_text() == "5 of 1\n" * 2


# -- folders --------------------


def test_folders_are_kept_and_only_new_ones_are_removed(tmp_path: Path) -> None:
    (tmp_path / "env_00002").mkdir()
    (tmp_path / "env_00002" / "mesh").write_text("old")
    workdirs = Workdirs(tmp_path)
    assert [workdirs.of(number).name for number in (2, 3, 3)] == ["env_00002", "env_00003", "env_00003"]
    (tmp_path / "env_00003" / "mesh").write_text("new")
    workdirs.remove_new()
    assert [path.name for path in tmp_path.iterdir()] == ["env_00002"]
    assert (tmp_path / "env_00002" / "mesh").read_text() == "old"


def test_temporary_folders_disappear_whole() -> None:
    workdirs = Workdirs()
    folder = workdirs.of(0)
    assert folder.is_dir() and workdirs.of(1).parent == folder.parent
    workdirs.remove_new()
    assert not folder.parent.exists()
    workdirs.remove_new()


ENDS = """
import os
from dppo.envs.given import Given
folder = Given().workdirs.of(0)
if os.fork() == 0:
    raise SystemExit
os.wait()
assert folder.is_dir()
"""


def test_temporary_folders_that_nobody_has_removed_disappear_with_their_process(tmp_path: Path) -> None:
    """And not with one that it has forked."""
    subprocess.run([sys.executable, "-c", ENDS], check=True, timeout=60, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "envs").write_text("a file")
    with pytest.raises(ValueError, match=r"the folder of environment 3 cannot be made .*choose another --run-dir"):
        Workdirs(tmp_path / "envs").of(3)
