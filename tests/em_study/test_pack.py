"""Packed folders: the same files after `tar xf`, and small where logs repeat each other."""

import random
import string
import tarfile
import zipfile
from pathlib import Path

from em_study.pack import pack


def log(path: Path, members: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as whole:
        for name, text in members.items():
            whole.writestr(name, text)


def test_what_comes_out_is_what_went_in(tmp_path: Path) -> None:
    members = {"header.json": "{}", "samples/1.json": "[1]"}
    log(tmp_path / "logs" / "a" / "one.eval", members)
    (tmp_path / "logs" / "a" / "notes.txt").write_bytes(b"\x00notes\n")
    packed = pack(tmp_path / "logs")
    assert packed == tmp_path / "logs.tar.xz" and not (tmp_path / "logs").exists()
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path, filter="data")
    assert (tmp_path / "logs/a/notes.txt").read_bytes() == b"\x00notes\n"
    with zipfile.ZipFile(tmp_path / "logs/a/one.eval") as whole:
        assert {name: whole.read(name).decode() for name in whole.namelist()} == members


def test_what_logs_have_in_common_is_written_once(tmp_path: Path) -> None:
    text = "".join(random.Random(0).choices(string.ascii_letters, k=100_000))  # does not compress in itself
    for name in "abcd":
        log(tmp_path / "logs" / f"{name}.eval", {"samples/1.json": name + text})
    one = (tmp_path / "logs" / "a.eval").stat().st_size
    assert pack(tmp_path / "logs").stat().st_size < 1.1 * one
