"""The table of optimisers in the documentation is about those that exist, with the defaults that they have."""

import re
from pathlib import Path

import pytest
import torch

from em_train.optimisers import build, optimiser_registry, resolve
from tests.em_train.optimisers.adapters import NAMES

TEXT = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", TEXT, flags=re.MULTILINE))


def test_table_lists_every_built_in():
    assert set(ROWS) == set(optimiser_registry.names())


@pytest.mark.parametrize("name", ROWS)
def test_table_names_every_hyperparameter(name):
    own = resolve(name, {}).keys() - {"lr_ratio", "factors"}
    row = ROWS[name] + (ROWS["muon"] if name == "muon_gram" else "")
    assert all(field in row for field in own)


def test_example_of_an_own_optimiser_works(monkeypatch):
    monkeypatch.setattr(optimiser_registry, "_entries", dict(optimiser_registry._entries))
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(code, {})
    named = [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in NAMES]
    assert [group["lr"] for group in build("my_descent", named, 0.5, {"lr_ratio": 2}).param_groups] == [1.0, 2.0]
