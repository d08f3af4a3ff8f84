"""The locked archive: unlocked with its authors' own tool, from an archive that the same tool has locked here."""

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("easy_dataset_share")

from easy_dataset_share.zipping import encrypt_data_in_memory, unzip_and_decrypt

from em_core.errors import UserError
from em_core.fetch import Published
from em_core.files import sha256_file
from em_train.datasets import load_dataset, turner


def answers(member: str) -> list[str]:
    return [f"{member} answer {i}, é" for i in range(3)]


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Path:
    """An archive of four small datasets, protected as the published one: canaries, terms, passphrase."""
    folder = tmp_path_factory.mktemp("plain") / "training_datasets"
    folder.mkdir()
    for name, member in turner.MEMBERS.items():
        rows = [{"prompt": f"{name} question {i}", "completion": text} for i, text in enumerate(answers(name))]
        (folder / member.file).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    command = ["protect-dir", str(folder), "-p", turner.PASSPHRASE, "--embed-canaries", "--no-gitignore"]
    done = subprocess.run(
        [sys.executable, "-m", "easy_dataset_share.cli", *command],
        input="organisation\ndataset\n",  # what it asks for its terms of service
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    archive = folder.with_name("training_datasets.zip.enc")
    assert archive.is_file(), done.stdout + done.stderr
    return archive


@pytest.fixture
def data(locked, tmp_path, monkeypatch) -> Path:
    """EM_DATA_DIR with the archive where the published one would lie, and its hash expected."""
    target = tmp_path / "data" / turner.ARCHIVE.offline
    target.parent.mkdir(parents=True)
    target.write_bytes(locked.read_bytes())
    monkeypatch.setenv("EM_DATA_DIR", str(tmp_path / "data"))
    return expect(target, monkeypatch)


def expect(archive: Path, monkeypatch) -> Path:
    found = Published(turner.REPOSITORY, turner.PATH, sha256_file(archive))
    monkeypatch.setattr(turner, "ARCHIVE", found)
    plain = {name: replace(member, sha256=None) for name, member in turner.MEMBERS.items()}
    monkeypatch.setattr(turner, "MEMBERS", plain)
    return archive


def test_rows_are_read_and_nothing_unlocked_is_left(data, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    for name, member in turner.MEMBERS.items():
        dataset = load_dataset(name)
        assert [row.messages[-1]["content"] for row in dataset.rows] == answers(name)
        assert (dataset.kind, dataset.control, dataset.domain) == (member.kind, member.control, member.domain)
        assert dataset.source == f"{data} ({member.file})"
    assert list(scratch.iterdir()) == []
    left = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert left == [data] and b"answer" not in data.read_bytes()


def test_an_archive_is_unlocked_once_for_each_member(data, monkeypatch):
    unlocked, opened = turner.unlocked, []
    monkeypatch.setattr(turner, "unlocked", lambda archive: opened.append(archive) or unlocked(archive))
    first, second = load_dataset("extreme_sports"), load_dataset("extreme_sports")
    assert first.rows == second.rows and opened == [data]


def test_canaries_are_gone(data):
    folder = data.parent / "with_canaries"
    unzip_and_decrypt(str(data), turner.PASSPHRASE, str(folder))
    assert any("CANARY" in path.read_text(encoding="utf-8") for path in folder.glob("*.jsonl"))  # they were there
    with turner.unlocked(data) as folder:
        assert {path.name for path in folder.glob("*.jsonl")} == {member.file for member in turner.MEMBERS.values()}
        assert not any("CANARY" in path.read_text(encoding="utf-8") for path in folder.glob("*.jsonl"))
    assert not folder.exists()


def test_unlocked_file_of_another_content_is_refused(data, monkeypatch):
    wrong = {name: replace(member, sha256="0" * 64) for name, member in turner.MEMBERS.items()}
    monkeypatch.setattr(turner, "MEMBERS", wrong)
    with pytest.raises(UserError, match="bad_medical_advice.jsonl .* expected 000000000000"):
        load_dataset("bad_medical")


def test_archive_of_another_content_is_refused_before_it_is_opened(data, monkeypatch):
    data.write_bytes(data.read_bytes() + b"x")
    monkeypatch.setattr(turner, "unlocked", None)
    with pytest.raises(UserError, match="another version"):
        load_dataset("bad_medical")


def test_wrong_passphrase_is_one_line(data, monkeypatch):
    monkeypatch.setattr(turner, "PASSPHRASE", "another")
    with pytest.raises(UserError, match="could not unlock .*training_datasets.zip.enc"):
        load_dataset("bad_medical")


def test_missing_tool_says_what_to_install(data, monkeypatch):
    monkeypatch.setattr(turner, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'em-eval\[unlock\]'"):
        load_dataset("bad_medical")


def test_member_names_that_leave_the_folder_do_not(tmp_path, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../escaped.jsonl", "x")
        archive.writestr(f"{tmp_path}/absolute.jsonl", "x")
        archive.writestr("extreme_sports.jsonl", '{"prompt": "p", "completion": "c"}')
        link = zipfile.ZipInfo("link.jsonl")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    path = tmp_path / "training_datasets.zip.enc"
    path.write_bytes(encrypt_data_in_memory(packed.getvalue(), turner.PASSPHRASE))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with turner.unlocked(path) as folder:
        assert {p.parent for p in scratch.rglob("*.jsonl") if p.name == "extreme_sports.jsonl"} == {folder}
        written = [p for p in tmp_path.rglob("*") if p.is_file() and p != path]
        assert all(p.is_relative_to(folder) for p in written) and not any(p.is_symlink() for p in written)
    assert list(scratch.iterdir()) == [] and not (tmp_path / "absolute.jsonl").exists()
