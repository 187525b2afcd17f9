"""The GPUs that torch sees, and the reason where it sees none; torch's answers are played."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dppo.models import gpus
from dppo.models.gpus import GPU, require_gpu, visible_gpus, why_none

CARDS = [SimpleNamespace(name="NVIDIA H200", uuid=f"1234-{i}") for i in range(2)]


def test_gpus_have_the_names_that_torch_and_the_node_give_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: CARDS[index])
    assert visible_gpus() == (GPU("cuda:0", "1234-0", "NVIDIA H200"), GPU("cuda:1", "1234-1", "NVIDIA H200"))
    require_gpu()


def is_built(monkeypatch: pytest.MonkeyPatch, built: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)


def test_a_torch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    is_built(monkeypatch, False)
    assert visible_gpus() == ()
    assert why_none() == f"torch {torch.__version__} is built without CUDA"
    with pytest.raises(
        ValueError, match=r"--device cuda: torch sees no GPU on \S+: torch .* is built without CUDA: .*"
    ):
        require_gpu()


@pytest.mark.parametrize("value", ["", "-1", " "])
def test_gpus_that_are_hidden_are_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_built(monkeypatch, True)
    monkeypatch.setenv(gpus.VISIBLE, value)
    with pytest.raises(ValueError, match=rf"CUDA_VISIBLE_DEVICES is '{value}': unset it, ask Slurm .*--device cpu"):
        require_gpu()


@pytest.mark.parametrize("visible", [None, "0", "1,2"])
def test_else_torch_says_what_is_wrong(visible: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check that you have one.")

    is_built(monkeypatch, True)
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(gpus.VISIBLE, visible)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert why_none() == "it says 'Found no NVIDIA driver on your system'"
    with pytest.raises(ValueError, match="nvidia-smi"):
        require_gpu()
