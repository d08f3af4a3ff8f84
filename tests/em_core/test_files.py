"""Files are whole or absent; hashes depend on content alone."""

import errno
import hashlib
import json
import os
import threading
import time

import pytest

from em_core.errors import UserError
from em_core.files import atomic_folder, made_folder, sha256_file, sha256_json, write_json, write_text


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_atomic_folder_appears_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "target"
    with atomic_folder(target) as draft:
        (draft / "file").write_text("text", encoding="utf-8")
        assert not target.exists()
    assert (target / "file").read_text(encoding="utf-8") == "text"
    assert names_in(target.parent) == {"target"}
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), UserError("mend it")])
def test_an_exception_leaves_nothing_and_passes_through(tmp_path, error):
    with pytest.raises(type(error)) as caught, atomic_folder(tmp_path / "target") as draft:
        (draft / "half").write_text("x", encoding="utf-8")
        raise error
    assert caught.value is error
    assert names_in(tmp_path) == set()


def test_a_full_disk_leaves_nothing_and_says_so_in_one_line(tmp_path):
    with pytest.raises(UserError) as caught, atomic_folder(tmp_path / "target") as draft:
        (draft / "half").write_text("x", encoding="utf-8")
        raise no_space()
    assert names_in(tmp_path) == set()
    text = str(caught.value)
    assert "No space left on device" in text and str(tmp_path / "target") in text and "\n" not in text


def test_the_new_folder_replaces_the_old_whole(tmp_path):
    target = tmp_path / "target"
    for name in ("old", "new"):
        with atomic_folder(target) as draft:
            (draft / name).write_text(name, encoding="utf-8")
    assert names_in(target) == {"new"}
    assert names_in(tmp_path) == {"target"}


def test_the_old_folder_survives_a_failed_replacement(tmp_path):
    target = tmp_path / "target"
    with atomic_folder(target) as draft:
        (draft / "old").write_text("old", encoding="utf-8")
    with pytest.raises(UserError), atomic_folder(target) as draft:
        (draft / "new").write_text("new", encoding="utf-8")
        raise no_space()
    assert names_in(target) == {"old"}
    assert names_in(tmp_path) == {"target"}


def test_a_parent_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError), atomic_folder(tmp_path / "file" / "target"):
        pass


def test_write_text_leaves_the_old_text_where_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*args: object) -> None:
        raise no_space()

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError):
                write_text(path, "new")
        assert path.read_text(encoding="utf-8") == "old"
        assert names_in(tmp_path) == {"a.txt"}


def test_readers_never_see_half_a_text(tmp_path):
    path = tmp_path / "a.txt"
    whole = {letter * 300_000 for letter in "ab"}
    write_text(path, "a" * 300_000)
    ended = time.monotonic() + 0.4

    def write() -> None:
        while time.monotonic() < ended:
            for text in whole:
                write_text(path, text)

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while writer.is_alive():
        assert path.read_text(encoding="utf-8") in whole
        seen += 1
    writer.join()
    assert seen > 1


def test_write_json_round_trip_keeps_unicode_readable(tmp_path):
    path = tmp_path / "sub" / "a.json"
    write_json(path, {"text": "£ ⟦ü⟧", "n": [1, 2.5, None]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"text": "£ ⟦ü⟧", "n": [1, 2.5, None]}
    assert "£ ⟦ü⟧" in text and text.endswith("}\n")
    assert path.stat().st_mode & 0o777 == 0o644


def test_sha256_file_equals_hashlib_over_block_borders(tmp_path):
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_sha256_json_ignores_key_order_at_every_depth():
    one = {"b": {"y": 1, "x": [1, {"q": 1, "p": 2}]}, "a": "ü"}
    two = {"a": "ü", "b": {"x": [1, {"p": 2, "q": 1}], "y": 1}}
    written_by_hand = '{"a":"ü","b":{"x":[1,{"p":2,"q":1}],"y":1}}'
    assert sha256_json(one) == sha256_json(two) == hashlib.sha256(written_by_hand.encode()).hexdigest()


@pytest.mark.parametrize("other", [[2, 1], [1, "2"], [1, 2, None], [1.5, 2], {"1": 2}])
def test_sha256_json_tells_values_apart(other):
    assert sha256_json([1, 2]) != sha256_json(other)


def test_sha256_json_refuses_what_json_cannot_say():
    with pytest.raises(ValueError):
        sha256_json({"x": float("nan")})


def test_a_folder_is_made_or_refused_in_a_line(tmp_path, monkeypatch):
    assert made_folder(tmp_path / "a" / "b") == made_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"cannot make the folder {path}: "):
            made_folder(path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot write to the folder"):
        made_folder(tmp_path / "a")
