"""The table of optimisers in the documentation is about those that exist, with the defaults that they have."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from em_train.optimisers import build, optimiser_registry, resolve
from tests.em_train.optimisers.adapters import NAMES

TEXT = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
SECTION = TEXT.split("\n## Optimisers\n")[1].split("\n## ")[0]
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", SECTION, flags=re.MULTILINE))


def test_table_lists_every_built_in():
    assert set(ROWS) == set(optimiser_registry.names())


@pytest.mark.parametrize("name", ROWS)
def test_table_names_every_hyperparameter(name):
    own = resolve(name, {}).keys() - {"lr_ratio", "factors"}
    row = ROWS[name] + (ROWS["muon"] if name == "muon_gram" else "")
    assert all(field in row for field in own)


def test_examples_of_hyperparameters_are_accepted():
    examples = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", SECTION, flags=re.DOTALL)]
    assert len(examples) == 2
    for example in examples:
        resolve(example["optimiser"]["name"], example["optimiser"]["hyperparameters"])


def test_example_of_an_own_optimiser_works(monkeypatch):
    monkeypatch.setattr(optimiser_registry, "_entries", dict(optimiser_registry._entries))
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
    exec(code, {})
    named = [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in NAMES]
    assert [group["lr"] for group in build("my_descent", named, 0.5, {"lr_ratio": 2}).param_groups] == [1.0, 2.0]
