"""torch reads what is written without it, and the other way round; what would run code is refused."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dppo.storage.torch_file import from_bytes, to_bytes

ROOT = Path(__file__).parents[2]
TYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "uint16", "uint32", "uint64",
)  # fmt: skip
ARRAYS = {name: np.array([[0, 1, 2], [3, 100, 1]]).astype(name) for name in TYPES} | {
    "a number": np.array(3.5, np.float32),
    "empty": np.zeros((2, 0), np.int64),
    "transposed": np.arange(6).reshape(2, 3).T,
    "every other": np.arange(10.0)[::-2],
    "odd": np.array([np.nan, -np.inf, -0.0, 1e-300]),
    "big-endian": np.arange(3, dtype=">f4"),
}
PLAIN: list[Any] = [
    None, True, False, 0, 1, -1, 127, 128, 255, 256, -128, -129, 2**31, -(2**31), 2**63, -(2**63), 10**100, 0.1, -0.0,
    float("inf"), "", "Δ and \n", [], [[], [1]], {}, {"a": {1: [2.5, "b"]}, 3: None},
]  # fmt: skip


def with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: with_tensors(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_tensors(v) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))


def by_torch(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def saved_by_torch(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(with_tensors(value), buffer)
    return buffer.getvalue()


def assert_same(got: np.ndarray, array: np.ndarray) -> None:
    assert got.dtype == array.dtype.newbyteorder("=") and got.shape == array.shape
    assert got.tobytes() == array.astype(got.dtype).tobytes()


@pytest.mark.parametrize("name", ARRAYS)
def test_torch_and_we_read_what_each_other_writes(name: str) -> None:
    content = {"before": 1, "array": ARRAYS[name], "after": [ARRAYS[name], 2]}
    for read in (by_torch(to_bytes(content)), from_bytes(to_bytes(content)), from_bytes(saved_by_torch(content))):
        assert (read["before"], read["after"][1]) == (1, 2)
        for value in (read["array"], read["after"][0]):
            assert_same(value.numpy() if isinstance(value, torch.Tensor) else value, ARRAYS[name])


def test_what_was_read_can_be_written_to() -> None:
    read = from_bytes(to_bytes(np.arange(3)))
    read[0] = 7
    assert read.tolist() == [7, 1, 2]


def test_plain_values_come_out_as_they_went_in() -> None:
    for read in (by_torch(to_bytes(PLAIN)), from_bytes(to_bytes(PLAIN)), from_bytes(saved_by_torch(PLAIN))):
        assert read == PLAIN
        assert [type(v) for v in read] == [type(v) for v in PLAIN]
        assert str(read) == str(PLAIN), "-0.0 is not 0.0"
    assert by_torch(to_bytes((1, (2,)))) == [1, [2]]


def test_what_tensors_share_is_read_for_each() -> None:
    """torch.save writes a storage once, and views of it by offset and strides."""
    whole = torch.arange(12.0).reshape(3, 4)
    buffer = io.BytesIO()
    torch.save([whole, whole[1:, ::2], whole.T], buffer)
    got = from_bytes(buffer.getvalue())
    for array, tensor in zip(got, (whole, whole[1:, ::2], whole.T), strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", np.float32(1), np.array(["text"]), np.array([1j])], ids=str)
def test_what_has_no_place_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        to_bytes({"state": value})


@pytest.mark.parametrize(
    "value", [print, torch.nn.Linear(1, 1), Path("a"), np.random.default_rng()], ids=lambda v: type(v).__name__
)
def test_what_is_no_plain_value_and_no_tensor_is_refused(value: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"state": value}, buffer)
    with pytest.raises(pickle.UnpicklingError, match="is not allowed"):
        from_bytes(buffer.getvalue())


def test_a_tensor_that_reaches_beyond_its_storage_is_refused() -> None:
    data = to_bytes(np.arange(4.0))
    for good, bad in ((b"\x8a\x01\x04t", b"\x8a\x01\x05t"), (b"Q\x8a\x01\x00", b"Q\x8a\x01\x01")):
        assert good in data, "shape (4,), offset 0"
        with pytest.raises((TypeError, ValueError)):
            from_bytes(_rewritten(data, good, bad))


def _rewritten(data: bytes, good: bytes, bad: bytes) -> bytes:
    """The same archive, with something else in its pickle, and checksums that are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            part = old.read(info)
            new.writestr(info.filename, part.replace(good, bad) if info.filename.endswith(".pkl") else part)
    return out.getvalue()


def test_the_same_content_gives_the_same_bytes() -> None:
    assert to_bytes([1, np.arange(3)]) == to_bytes([1, np.arange(3)])


def test_a_run_its_resume_and_its_policy_need_no_torch(tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        import dppo
        config = dppo.Config(total_steps=100, num_envs=2, horizon=16, run_dir={str(tmp_path / "run")!r})
        dppo.train(config)
        from dataclasses import replace
        dppo.train(replace(config, resume=True, total_steps=200), quiet=True)
        dppo.load_policy(config.run_dir)
        assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
