"""The command dppo.export: what it writes, what it says, and what it leaves as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch

from dppo.config import ModelConfig
from dppo.export import main
from dppo.training.policy import load_policy
from tests.models import structured_networks
from tests.parts import make_parts, save, settle

CPP = Path(__file__).parents[1] / "examples" / "cpp"


class DiffersInExport(structured_networks.Everything):
    def forward(self, observations: Any) -> Any:
        head, value = super().forward(observations)
        return head, value + 0.01 * torch.compiler.is_exporting()


def test_a_policy_is_written_once_it_was_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of agents, which share one policy."""
    place = make_parts(env="tests.herd:Herd", num_envs=3)
    settle(place)
    run_dir = save(place, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.onnx").write_text("an earlier one")
    assert main([str(run_dir), "--checkpoint", "1234"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("policy.onnx: tests.herd:Herd after 1,234 steps, greedy actions, ")
    assert "on 1,000 observations onnxruntime differs from the policy by at most " in said.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.onnx", "run"]
    policy = load_policy(run_dir)
    observations = np.stack([policy.spaces[0].sample() for _ in range(20)])
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    found = session.run(["action"], {"observation": observations})[0]
    np.testing.assert_allclose(found, policy.act(observations), atol=1e-5)
    noise = session.get_modelmeta().custom_metadata_map["noise"]
    assert json.loads(noise) == []


def test_what_differs_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ModelConfig(factory=f"{__name__}:DiffersInExport")
    run_dir, file = save(make_parts(env="CartPole-v1", model=model), tmp_path / "run"), tmp_path / "policy.onnx"
    file.write_text("an earlier one")
    assert main([str(run_dir), "-o", str(file)]) == 1
    said = capsys.readouterr().err
    assert f"dppo: {file} was not written: on 1,000 observations, its value differs by up to 0.0" in said
    assert "from the policy's; at most 1e-05 is accepted (--tolerance)" in said
    assert file.read_text() == "an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.onnx", "run"]


WRONG = {
    "no run": (["nowhere"], "nowhere"),
    "a folder": (["{run}", "-o", "{run}"], "is no file: name the file to write"),
    "no folder": (["{run}", "-o", "{run}/there/policy.onnx"], "there is no folder"),
    "no checkpoint": (["{run}", "--checkpoint", "7"], "7"),
    "a tolerance": (["{run}", "--tolerance", "nan"], "--tolerance nan must lie in [0, 1]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_told(name: str, cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = WRONG[name]
    assert main([argument.format(run=cartpole) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("dppo: ") and message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_missing_package_is_told_with_its_extra(
    cartpole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([str(cartpole), "-o", str(cartpole / "policy.onnx")]) == 2
    assert "pip install 'dppo[export]'" in capsys.readouterr().err
    assert not (cartpole / "policy.onnx").exists()


# -- C++ --------------------


def headers() -> Path:
    """onnxruntime's headers, which its wheel lacks; examples/cpp/README.md says where they can be had."""
    folder = Path(os.environ.get("ONNXRUNTIME_INCLUDE", CPP / "include"))
    if not (folder / "onnxruntime_cxx_api.h").exists():
        pytest.skip(f"no headers of onnxruntime in {folder}: make -C examples/cpp include")
    return folder


def lasts(policy: Any, start: list[float]) -> int:
    """The steps of a greedy episode from a state."""
    env = gymnasium.make("CartPole-v1")
    env.reset()
    env.unwrapped.state = np.array(start)  # type: ignore[attr-defined]
    observation, steps = np.array(start, np.float32), 0
    while True:
        observation, _, terminated, truncated, _ = env.step(policy.act(observation))
        steps += 1
        if terminated or truncated:
            return steps


def test_the_cpp_program_plays_as_the_policy_does(cartpole: Path, tmp_path: Path) -> None:
    include, file = headers(), tmp_path / "policy.onnx"
    assert main([str(cartpole), "-o", str(file)]) == 0
    make = ["make", "-C", str(CPP), f"PYTHON={sys.executable}", f"INCLUDE={include}", f"PROGRAM={tmp_path}/play"]
    made = subprocess.run(make, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    played = subprocess.run([tmp_path / "play", file, "20"], capture_output=True, text=True, timeout=60, check=False)
    assert played.returncode == 0, played.stderr
    policy = load_policy(cartpole)
    episodes = [line.split() for line in played.stdout.splitlines() if line.startswith("episode")]
    assert len(episodes) == 20
    for words in episodes:  # episode I: N steps from X V ANGLE SPIN
        assert int(words[2]) == lasts(policy, [float(word) for word in words[5:]]), words
