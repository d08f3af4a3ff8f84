"""Paths of a machine and what stands for them: in text, in plain data, in files of every kind."""

import json
from pathlib import Path

import pandas as pd
import pytest

from em_core.errors import UserError
from em_study.redact import machine_paths, redact_file, redaction

PATHS = {"/root": "$HOME", "/data/ann": "$HOME", "/data/ann/work": "$PWD", "/data/ann & co/ü": "model"}


@pytest.mark.parametrize(
    "text,expected",
    [
        ("/data/ann/work/runs/x", "$PWD/runs/x"),
        ("peft//data/ann/work/runs/x@0a", "peft/$PWD/runs/x@0a"),
        ("file:///data/ann/notes", "file://$HOME/notes"),
        ("\x1b[35m/data/ann\x1b[0m", "\x1b[35m$HOME\x1b[0m"),
        ("/data/ann/workshop and /data/anna", "$HOME/workshop and /data/anna"),
        ("/root/x, the /root of it, /rooted", "$HOME/x, the /root of it, /rooted"),
        ("/data/ann &amp; co/ü /data/ann%20%26%20co/%C3%BC /data/ann & co/ü", "model model model"),
        ("nothing here", "nothing here"),
    ],
)
def test_the_longest_path_is_replaced_in_every_spelling(text: str, expected: str) -> None:
    assert redaction(PATHS)(text) == expected


def test_the_machine_is_known_by_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link, home = tmp_path / "real", tmp_path / "link", tmp_path / "home"
    for folder in (real, home):
        folder.mkdir()
    link.symlink_to(real)
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EM_CACHE_DIR", str(home / "cache"))
    monkeypatch.setenv("EM_DATA_DIR", str(real))
    found = machine_paths(["core", "/elsewhere/models/qwen", str(home / "rows.jsonl")], ["/scratch/ann"])
    assert (found[str(real)], found[str(link)], found[str(home)]) == ("$PWD", "$PWD", "$HOME")
    assert found[str(home / "cache")] == "$EM_CACHE_DIR"
    assert found["/elsewhere/models/qwen"] == "qwen" and found["/scratch/ann"] == "$HIDDEN"
    assert "core" not in found and str(home / "rows.jsonl") not in found and "/" not in found


def test_files_are_rewritten_by_what_they_are(tmp_path: Path) -> None:
    redact = redaction(PATHS)
    written = {
        "a.json": json.dumps({"/data/ann/work/x": ["line\n/root/y", 1.5, None, True]}),
        "b.csv": "a,b\n/data/ann/work,1\n",
        "c.yaml": "base_model: /root/models/qwen  # mine\n",
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    pd.DataFrame({"path": ["/root/x", None], "n": [1, 2], "f": [0.1, float("nan")]}).to_parquet(tmp_path / "d.parquet")
    (tmp_path / "e.png").write_bytes(b"\x89PNG\xff\x00")
    for path in sorted(tmp_path.iterdir()):
        redact_file(path, redact)
    assert json.loads((tmp_path / "a.json").read_text()) == {"$PWD/x": ["line\n$HOME/y", 1.5, None, True]}
    assert (tmp_path / "b.csv").read_text() == "a,b\n$PWD,1\n"
    assert (tmp_path / "c.yaml").read_text() == "base_model: $HOME/models/qwen  # mine\n"
    table = pd.read_parquet(tmp_path / "d.parquet")
    assert table["path"][0] == "$HOME/x" and table["path"].isna()[1]
    assert list(table["n"]) == [1, 2] and table["n"].dtype == "int64" and table["f"].isna()[1]
    assert (tmp_path / "e.png").read_bytes() == b"\x89PNG\xff\x00"


def test_a_coloured_traceback_gives_way_to_the_plain_one(tmp_path: Path) -> None:
    """Its colours may stand between two parts of a path."""
    error = {"message": "no", "traceback": "in /root/x", "traceback_ansi": "in /ro\x1b[1mot/x"}
    path = tmp_path / "error.json"
    path.write_text(json.dumps({"error": error}), encoding="utf-8")
    redact_file(path, redaction(PATHS))
    assert json.loads(path.read_text())["error"] == {
        "message": "no",
        "traceback": "in $HOME/x",
        "traceback_ansi": "in $HOME/x",
    }


def test_what_cannot_be_rewritten_must_not_hold_a_path(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"\x89PNG\xff\x00/root/figures")
    with pytest.raises(UserError, match=r"figure\.png holds a path of this machine"):
        redact_file(path, redaction(PATHS))
