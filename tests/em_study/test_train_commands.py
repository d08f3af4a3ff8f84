"""`em train`, `em verify` and `em card` as a user calls them, in this process."""

import sys
from pathlib import Path

import pytest
import yaml

from em_core.manifest import read_manifest
from em_study import cli
from tests.em_train.runs import make_config


def em(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["em", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_train_with_overrides_then_verify_then_card(
    tiny_base: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tiny_base, tiny_dataset).model_dump(mode="json")
    Path("mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    settings = ["steps=2", "optimiser.name=lion", "optimiser.lr=1e-3", "checkpoints=log:1"]
    assert em(monkeypatch, "train", "mine.yaml", *settings) == 0
    checkpoints = [Path(line) for line in capsys.readouterr().out.split()]
    manifest = read_manifest(checkpoints[-1])
    assert [path.name for path in checkpoints] == ["checkpoint-0", "checkpoint-2"]
    assert checkpoints[0].parent == Path("runs") / "train" / f"mine-{manifest.run_id}"
    assert manifest.optimiser["name"] == "lion" and manifest.optimiser["lr"] == 1e-3

    assert em(monkeypatch, "verify", str(checkpoints[-1]), "--base") == 0
    assert capsys.readouterr().out.startswith(f"ok: run {manifest.run_id}, step 2, adapter ")
    assert em(monkeypatch, "card", str(checkpoints[-1])) == 0
    assert capsys.readouterr().out.strip() == str(checkpoints[-1] / "README.md")
    assert "# lion on tiny, step 2" in (checkpoints[-1] / "README.md").read_text(encoding="utf-8")

    (checkpoints[-1] / "chat_template.jinja").write_text("other", encoding="utf-8")
    assert em(monkeypatch, "verify", str(checkpoints[-1])) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and "chat_template.jinja" in error[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nofile.yaml"], "error: cannot read nofile.yaml: No such file or directory"),
        (["evil_spectr"], "error: unknown preset 'evil_spectr': did you mean evil_spectra, evil_spectra_tuned?"),
        (["turner", "dataset=x", "stepz=1", "optimiser.name=adamw"], "error: preset turner: stepz: "),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert em(monkeypatch, "train", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "verify", "card"])
def test_help_has_an_example(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert em(monkeypatch, command, "--help") == 0
    assert f"em {command} " in capsys.readouterr().out.split("Example")[1]
