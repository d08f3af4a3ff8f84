"""`em penalties list|match` as a user calls them, in this process."""

import sys
from pathlib import Path

import pytest
import yaml

from em_core.manifest import read_manifest
from em_study import cli
from em_train import train
from em_train.penalties import penalty_registry
from tests.em_train.runs import make_config


@pytest.fixture
def em(monkeypatch, capsys):
    """Runs `em penalties ...`; gives exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["em", "penalties", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()  # what was shown before is not of this command
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return int(caught.value.code or 0), shown.out, shown.err

    return run


def test_list_names_every_penalty_with_what_it_takes(em):
    code, out, _ = em("list")
    assert code == 0
    for name in penalty_registry.names():
        line = next(line for line in out.splitlines() if f" {name} " in line)
        first = next(iter(penalty_registry.get(name).hyperparameters.model_fields))
        assert first in line
    assert "2606.31591" in out or "Evil Spectra" in out


def test_match_takes_overrides_and_prints_the_strength_and_the_checkpoint(em, tiny_base, tiny_dataset, tmp_path):
    decay = {"name": "weight_decay", "strength": 5.0, "hyperparameters": {"max_grad_ratio": None}}
    hidden = make_config(tiny_base, tiny_dataset, steps=4, penalty={**decay, "strength": 40.0})
    reference = train(hidden, tmp_path / "reference")[-1]
    file = tmp_path / "decay.yaml"
    config = make_config(tiny_base, tiny_dataset, steps=4, seed=7, penalty=decay)
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")

    code, _, err = em("match", str(file), str(reference), str(tmp_path / "runs"))
    assert code == 2 and err.startswith("error: seed is 7 here and 0 in") and len(err.strip().splitlines()) == 1

    words = ["seed=0", "penalty.strength=40", "--tolerance", "1e-6"]
    code, out, _ = em("match", str(file), str(reference), str(tmp_path / "runs"), *words)
    found = Path(out.strip().splitlines()[-1].removeprefix("strength 40: "))
    assert code == 0 and found == tmp_path / "runs" / "weight_decay-40" / "checkpoint-4"
    assert read_manifest(found).loss.train == read_manifest(reference).loss.train


@pytest.mark.parametrize("command", ["list", "match"])
def test_help_has_an_example(command, em):
    code, out, _ = em(command, "--help")
    assert code == 0 and f"em penalties {command}" in out.split("Example")[1]


def test_mistakes_are_one_line(em, tmp_path):
    code, _, err = em("match", str(tmp_path / "none.yaml"), str(tmp_path), str(tmp_path / "runs"))
    assert code == 2 and err.startswith("error: cannot read") and len(err.strip().splitlines()) == 1
