"""Files of others are opened where they are what they should be."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dppo.errors import RefusedFileError
from dppo.files import LINE_BYTES, check_regular, number_in, open_regular, parse_json, read_lines, read_regular


def test_a_file_and_links_within_the_folder_are_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"x")
    (root / "link").symlink_to("a/file")
    (tmp_path / "other").symlink_to(root)
    for path, folder in ((root / "a/file", root), (root / "link", root), (tmp_path / "other/link", tmp_path / "other")):
        assert read_regular(path, folder) == b"x"


def test_what_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"x")
    root.mkdir()
    (root / "file").symlink_to(secret / "file")
    (root / "folder").symlink_to(secret)
    for path in (root / "file", root / "folder/file", root / "../secret/file"):
        with pytest.raises(RefusedFileError, match="outside of"):
            open_regular(path, root)
    assert read_regular(root / "file") == b"x"
    (root / "nowhere").symlink_to(root / "missing")
    with pytest.raises(RefusedFileError, match="link to nowhere"):
        check_regular(root / "nowhere", root)
    check_regular(root / "missing", root)


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a socket", "a device"])
def test_what_is_no_file_is_named_and_never_waited_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "a socket":
            bound.bind("x")
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        else:
            (os.mkfifo if kind == "a named pipe" else os.mkdir)(path)
        with pytest.raises(RefusedFileError, match=f"x is no file but {kind}"):
            open_regular(path)


def test_sizes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_regular(path, max_bytes=5) == b"12345"
    with pytest.raises(RefusedFileError, match="x has 5 bytes, at most 4 are plausible"):
        read_regular(path, max_bytes=4)
    path.write_bytes(b"a\n" + b"b" * (LINE_BYTES - 1) + b"\nc")
    assert [len(line) for line in read_lines(path)] == [2, LINE_BYTES, 1]
    os.truncate(path, 10 * 2**30)
    with pytest.raises(RefusedFileError, match="line 3 has more than"):
        list(read_lines(path))


@pytest.mark.parametrize("behind", [b"", b"0\n", b"0" * (3 * LINE_BYTES) + b"\nsound\n"])
def test_zeros_of_which_the_disk_has_none_are_skipped(behind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\n")
    os.truncate(path, 10 * 2**30)
    with path.open("ab") as file:
        file.write(behind)
    assert list(read_lines(path, skip_long=True)) == [b"a\n", *behind.splitlines(keepends=True)[1:]]


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "1" * 5000, '{"a": 1, "a": 2}', "", "x", b"\xff"])
def test_json_that_is_none(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize(
    "value", [None, "3", [3], True, -1, float("nan"), float("inf"), 2**63, 10**400, {}], ids=lambda v: str(v)[:9]
)
def test_numbers_that_are_none(value: object) -> None:
    assert number_in({"x": value}, "x", 7) == 7


def test_numbers() -> None:
    assert number_in({"x": 3.7}, "x", 7) == 3 and number_in({"x": 3}, "x", 0.5) == 3.0 and number_in({}, "x") == 0
