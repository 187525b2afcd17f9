"""Ids of well-known packages need no module, where the package is installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from dppo.envs.maker import EnvMaker
from dppo.envs.packages import PACKAGES
from tests.envs import sims_of_others

IDS = {
    "ale_py": "ALE/Pong-v5 PongNoFrameskip-v4",
    "minigrid": "MiniGrid-DoorKey-5x5-v0 BabyAI-GoToRedBall-v0",
    "gymnasium_robotics": "FetchReach-v4 HandReachDense-v3 HandManipulateEgg-v1 AntMaze_UMaze-v5 PointMaze_Open-v3"
    " AdroitHandDoor-v1 FrankaKitchen-v1",
    "highway_env": "highway-v0 highway-fast-v0 merge-v0 roundabout-v0 parking-v0 parking-ActionRepeat-v0"
    " intersection-v1 intersection-multi-agent-v2 racetrack-oval-v0 exit-v0 lane-keeping-v0 two-way-v0 u-turn-v0",
    "PyFlyt.gym_envs": "PyFlyt/QuadX-Hover-v4",
    "flappy_bird_gymnasium": "FlappyBird-v0",
    "mo_gymnasium": "mo-mountaincar-v0 mo-highway-v0 minecart-v0 deep-sea-treasure-concave-v0 fruit-tree-v0",
    "gym_anytrading": "forex-v0 stocks-v0",
    "mobile_env": "mobile-small-central-v0",
    "panda_gym": "PandaReach-v3 PandaPickAndPlaceJointsDense-v3",
    "metaworld": "Meta-World/MT1",
    "shimmy": "dm_control/cartpole-balance-v0 bsuite/catch-v0",
}


def owner(env_id: str) -> list[str]:
    return list(dict.fromkeys(package.module for package in PACKAGES if package.ids.match(env_id)))


def test_each_id_has_one_package() -> None:
    assert set(IDS) == {package.module for package in PACKAGES}
    for module, ids in IDS.items():
        for env_id in ids.split():
            assert owner(env_id) == [module], env_id


@pytest.mark.parametrize("env_id", ["Mine-v0", "my/highway-v0", "Highway", "FlappyBird", "mobile", "merge", "exit"])
def test_other_ids_have_none(env_id: str) -> None:
    assert owner(env_id) == []


def test_gymnasiums_own_ids_are_never_looked_for() -> None:
    assert not [env_id for env_id, spec in gymnasium.registry.items() if "gymnasium.envs" in str(spec.entry_point)
                and owner(env_id)]  # fmt: skip


def pretend(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a package of that name before an installed one."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)


def test_the_package_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gymnasium.registry, "FlappyBird-v0", raising=False)
    source = f"import gymnasium\ngymnasium.register('FlappyBird-v0', '{sims_of_others.__name__}:Tank')\n"
    pretend("flappy_bird_gymnasium", source, tmp_path, monkeypatch)
    try:
        env = EnvMaker("FlappyBird-v0", {"scale": 2.0}).make().unwrapped
        assert isinstance(env, sims_of_others.Tank) and env.scale == 2.0
        with pytest.raises(ValueError, match=r"did you mean 'FlappyBird-v0'\?"):
            EnvMaker("FlappyBird-v1")
    finally:
        del gymnasium.registry["FlappyBird-v0"]
        del sys.modules["flappy_bird_gymnasium"]


def test_an_id_whose_namespace_is_a_module_needs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"import gymnasium\ngymnasium.register('users_tanks/Tank-v0', '{sims_of_others.__name__}:Tank')\n"
    pretend("users_tanks", source, tmp_path, monkeypatch)
    try:
        assert isinstance(EnvMaker("users_tanks/Tank-v0").make().unwrapped, sims_of_others.Tank)
        with pytest.raises(ValueError, match=r"did you mean 'users_tanks/Tank-v0'\?"):
            EnvMaker("users_tanks/Tank-v1")
    finally:
        del gymnasium.registry["users_tanks/Tank-v0"]
        del sys.modules["users_tanks"]
    for nowhere in ("no_such_users_tanks/Tank-v0", "not a module/Tank-v0"):
        with pytest.raises(ValueError, match="if a module of yours registers it"):
            EnvMaker(nowhere)


@pytest.mark.parametrize("registry", [{"OldTank-v0": 0}, types.SimpleNamespace(env_specs={"OldTank-v0": 0})])
def test_an_id_of_the_old_package_is_told_with_the_way_round(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("gym.envs.registration")
    module.registry = registry
    monkeypatch.setitem(sys.modules, module.__name__, module)
    way = rf"--env shimmy:GymV26Environment-v0 --env-kwargs env_id={sims_of_others.__name__}:OldTank-v0"
    with pytest.raises(ValueError, match=way):
        EnvMaker(f"{sims_of_others.__name__}:OldTank-v0")
    with pytest.raises(ValueError, match="does not register it"):
        EnvMaker(f"{sims_of_others.__name__}:OlderMill-v0")


def test_an_error_in_the_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gymnasium.registry, "FlappyBird-v0", raising=False)
    pretend("flappy_bird_gymnasium", "import no_such_thing\n", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"flappy_bird_gymnasium, which cannot be imported: .*'no_such_thing'"):
        EnvMaker("FlappyBird-v0")


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("ALE/Pong-v5", r"env='ALE/Pong-v5' is registered by ale_py, which is not installed: pip install 'dppo\[at"),
        ("MiniGrid-Empty-5x5-v0", "registered by minigrid, which is not installed: pip install minigrid"),
        ("PyFlyt/QuadX-Hover-v4", "registered by PyFlyt, which is not installed: pip install PyFlyt"),
        ("highway-v0", "pip install highway-env"),
        ("FetchReach-v4", "pip install gymnasium-robotics 'mujoco<3.12'"),
        ("dm_control/cartpole-balance-v0", r"pip install 'shimmy\[dm-control\]'"),
    ],
)  # fmt: skip
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(
    env_id: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = next(package.module for package in PACKAGES if package.ids.match(env_id))
    monkeypatch.delitem(gymnasium.registry, env_id, raising=False)
    for name in {module, module.partition(".")[0]}:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]  # what Python does where there is none
    with pytest.raises(ValueError, match=said):
        EnvMaker(env_id)
