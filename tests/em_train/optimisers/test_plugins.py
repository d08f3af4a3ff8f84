"""Optimisers of other distributions: a small wheel is installed by pip, and its entry points are found."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from em_core.errors import UserError
from em_train import train
from em_train.optimisers import build, find, optimiser_registry, resolve
from tests.em_train.optimisers.adapters import NAMES
from tests.em_train.runs import make_config, read_steps

MODULE = '''
"""Gradient descent whose rate is multiplied, with a name for it."""

import torch
from pydantic import Field

from em_train.optimisers.registry import Hyperparameters, OptimiserPlugin, optimiser


class Settings(Hyperparameters):
    multiple: float = Field(2.0, gt=0)


def build(groups, hyper):
    return torch.optim.SGD([{**group, "lr": group["lr"] * group["multiple"]} for group in groups])


plain = OptimiserPlugin(build, Settings, "foreign", schedule="constant")


@optimiser("foreign_decorated", Settings, "foreign")
def decorated(groups, hyper):
    return build(groups, hyper)
'''
POINTS = """[em_train.optimisers]
foreign = foreign_optimisers:plain
foreign_decorated = foreign_optimisers:decorated
foreign_broken = foreign_optimisers_that_are_not_there:plugin
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the wheel."""
    folder = tmp_path_factory.mktemp("foreign")
    wheel = folder / "foreign_optimisers-1.0-py3-none-any.whl"
    info = "foreign_optimisers-1.0.dist-info"
    files = {
        "foreign_optimisers.py": MODULE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: foreign-optimisers\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": POINTS,
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(folder / "site"), str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The site on the path; the registry forgets what it found there afterwards."""
    optimiser_registry.names()
    monkeypatch.setattr(optimiser_registry, "_entries", dict(optimiser_registry._entries))
    monkeypatch.setattr(optimiser_registry, "_broken", {})
    monkeypatch.setattr(optimiser_registry, "_loaded", False)
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("foreign_optimisers", None)


def test_optimiser_of_another_distribution(installed):
    assert "foreign" in optimiser_registry.names() and "adamw" in optimiser_registry.names()
    assert resolve("foreign", {})["multiple"] == 2.0
    named = [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in NAMES]
    groups = build(
        "foreign", named, 0.5, {"multiple": 3, "lr_ratio": 4, "factors": {"a": {"multiple": 1}}}
    ).param_groups
    assert [group["lr"] for group in groups] == [0.5, 6.0]
    with pytest.raises(UserError, match="'foreign' has no hyper-parameter 'multipel': it knows lr, .*multiple"):
        resolve("foreign", {"multipel": 3})


def test_decorated_optimiser_behind_an_entry_point_of_its_name(installed):
    assert find("foreign_decorated").source == "foreign" and find("foreign_decorated").schedule is None


def test_broken_entry_point_takes_no_other_with_it(installed):
    assert resolve("adamw", {})
    with pytest.raises(UserError, match="'foreign_broken'.*cannot be loaded"):
        resolve("foreign_broken", {})


def test_run_uses_it_with_the_schedule_that_it_declares(installed, tiny_base, tiny_dataset, tmp_path):
    config = make_config(tiny_base, tiny_dataset, optimiser={"name": "foreign", "lr": 0.01}, steps=3)
    train(config, tmp_path / "run")
    assert [row["lr"] for row in read_steps(tmp_path / "run")] == [0.02] * 3
