"""Several processes on one run are refused until their batches and files are told apart."""

import pytest

from em_core.errors import UserError
from em_train import train
from tests.em_train.runs import make_config


def test_several_processes_are_refused_before_anything_is_written(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes"):
        train(make_config(tiny_base, tiny_dataset), tmp_path / "run")
    assert not (tmp_path / "run").exists()
