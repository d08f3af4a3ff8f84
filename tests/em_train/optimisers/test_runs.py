"""Whole runs of the tiny base: declared schedules, published weights apart from trained ones, exact resumption."""

import json

import pytest
import torch
from safetensors.torch import load_file

from em_core.errors import UserError
from em_core.manifest import read_manifest, verify
from em_train import prepare, train
from em_train.optimisers import find, published
from em_train.spectra import product_norm, read_pairs
from tests.em_train.optimisers.adapters import Run, gradients, start
from tests.em_train.runs import adapter_bytes, make_config, read_steps
from tests.em_train.test_resume import interrupted, same

FREE = {"name": "schedule_free_adamw", "lr": 1e-2}
RATES = {
    "adam": 1e-2,
    "signsgd": 1e-3,
    "soap": 1e-2,
    "adafactor": 1e-2,
    "schedule_free_adamw": 1e-2,
    "muon_gram": 2e-3,
    "lora_muon": 1e-2,
    "pytorch_optimizer:ademamix": 1e-2,
    "torch:radam": 1e-2,
}


def test_published_puts_the_training_weights_back_to_the_last_bit():
    plugin = find("schedule_free_adamw")
    run = Run("schedule_free_adamw", 0.01, {}, start())
    for grads in gradients()[:7]:
        run.step(grads)
    before = [value.tobytes() for value in run.values()]
    state = json.dumps([{k: v for k, v in g.items() if k != "params"} for g in run.optimiser.param_groups])
    with published(plugin, run.optimiser):
        within = [value.tobytes() for value in run.values()]
    assert [value.tobytes() for value in run.values()] == before
    assert all(one != two for one, two in zip(within, before, strict=True))
    assert state == json.dumps([{k: v for k, v in g.items() if k != "params"} for g in run.optimiser.param_groups])
    with pytest.raises(RuntimeError), published(plugin, run.optimiser):
        raise RuntimeError
    assert [value.tobytes() for value in run.values()] == before


@pytest.mark.parametrize("name", ["adamw", "muon_gram"])
def test_others_publish_what_they_train(name):
    run = Run(name, 0.01, {}, start())
    run.step(gradients()[1])
    before = [value.tobytes() for value in run.values()]
    with published(find(name), run.optimiser):
        assert [value.tobytes() for value in run.values()] == before


def test_checkpoint_holds_x_and_the_resumable_state_y(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    """x = y + (1 - 1 / b1) (z - y), from the state that the trainer saved at the same step."""
    config = make_config(tiny_base, tiny_dataset, optimiser=FREE, steps=9, checkpoints=(0, 6, -1))
    folder = interrupted(config, tmp_path / "run", 7)
    y = load_file(folder / "state/checkpoint-6/adapter_model.safetensors")
    x = load_file(folder / "checkpoint-6/adapter_model.safetensors")
    state = torch.load(folder / "state/checkpoint-6/optimizer.pt", weights_only=True)["state"]
    z = [entry["z"] for entry in state.values()]
    names = [name for side in "AB" for name in sorted(y) if f"lora_{side}" in name]
    assert len(names) == len(z) == len(x)
    for name, fast in zip(names, z, strict=True):
        torch.testing.assert_close(x[name], y[name] + (1 - 1 / 0.9) * (fast - y[name]), rtol=1e-5, atol=1e-7)
        assert not torch.equal(x[name], y[name])
    manifest = verify(folder / "checkpoint-6")
    norm = product_norm(read_pairs(folder / "checkpoint-6"), config.lora.scaling)
    assert manifest.dose.norm_ba == pytest.approx(norm, rel=1e-6)
    pairs = read_pairs(folder / "state/checkpoint-6")
    assert read_steps(folder)[5]["norm_ba"] == pytest.approx(product_norm(pairs, config.lora.scaling), rel=1e-6)


def test_publishing_on_the_way_does_not_change_the_run(tiny_base, tiny_dataset, tmp_path):
    often = make_config(tiny_base, tiny_dataset, optimiser=FREE, steps=6, checkpoints=(0, 1, 2, 3, 4, 5, -1))
    seldom = make_config(tiny_base, tiny_dataset, optimiser=FREE, steps=6, checkpoints=(-1,))
    train(often, tmp_path / "often")
    train(seldom, tmp_path / "seldom")
    assert adapter_bytes(tmp_path / "often/checkpoint-6") == adapter_bytes(tmp_path / "seldom/checkpoint-6")


@pytest.mark.parametrize("name", RATES)
def test_interrupted_run_ends_with_the_same_bytes(tiny_base, tiny_dataset, tmp_path, name):
    """The optimisers that tests/em_train/test_resume.py does not have, checkpoints on the way included."""
    optimiser = {"name": name, "lr": RATES[name]}
    config = make_config(tiny_base, tiny_dataset, optimiser=optimiser, steps=7, checkpoints=(0, 3, -1))
    train(config, tmp_path / "whole")
    train(config, interrupted(config, tmp_path / "cut", 5))
    same(tmp_path / "cut", tmp_path / "whole", (0, 3, 7))


class TestSchedule:
    def test_optimisers_own_where_the_config_names_none(self, tiny_base, tiny_dataset, tmp_path):
        config = make_config(tiny_base, tiny_dataset, optimiser=FREE, steps=4, warmup_steps=2)
        folders = train(config, tmp_path / "run")
        assert [row["lr"] for row in read_steps(tmp_path / "run")] == pytest.approx([0.0, 0.005, 0.01, 0.01])
        assert read_manifest(folders[-1]).optimiser["schedule"] == "constant"

    def test_linear_for_the_others(self, tiny_base, tiny_dataset):
        assert prepare(make_config(tiny_base, tiny_dataset)).schedule == "linear"

    def test_another_is_refused(self, tiny_base, tiny_dataset):
        config = make_config(tiny_base, tiny_dataset, optimiser=FREE, schedule="linear")
        with pytest.raises(UserError, match="needs schedule constant, not linear: set schedule=constant"):
            prepare(config)

    def test_default_and_the_same_spelt_out_are_one_run(self, tiny_base, tiny_dataset):
        plain = prepare(make_config(tiny_base, tiny_dataset)).run_id
        assert prepare(make_config(tiny_base, tiny_dataset, schedule="linear")).run_id == plain
        assert prepare(make_config(tiny_base, tiny_dataset, schedule="cosine")).run_id != plain

    def test_constant_warms_up(self, tiny_base, tiny_dataset, tmp_path):
        config = make_config(tiny_base, tiny_dataset, schedule="constant", warmup_steps=2, steps=4)
        train(config, tmp_path / "run")
        assert [row["lr"] for row in read_steps(tmp_path / "run")] == pytest.approx([0.0, 0.005, 0.01, 0.01])


def test_rates_and_choices_per_factor_reach_a_run(tiny_base, tiny_dataset, tmp_path):
    """A frozen by its rate, B at four times the config's: only B moves, and the manifest says why."""
    hyper = {"factors": {"a": {"lr": 0.0}}, "lr_ratio": 4.0}
    optimiser = {"name": "lion", "lr": 1e-3, "hyperparameters": hyper}
    config = make_config(tiny_base, tiny_dataset, optimiser=optimiser, schedule="constant", steps=2)
    folders = train(config, tmp_path / "run")
    first, last = (read_pairs(folder) for folder in (folders[0], folders[-1]))
    assert all(torch.equal(one.a, two.a) for one, two in zip(first, last, strict=True))
    row = read_steps(tmp_path / "run")[-1]
    assert row["rms_update_a"] == 0 and row["rms_update_b"] == pytest.approx(4e-3, rel=1e-3)
    recorded = read_manifest(folders[-1]).optimiser
    assert recorded["lr_ratio"] == 4.0 and recorded["factors"] == {"a": {"lr": 0.0}}


def test_pairs_of_the_model_are_the_optimisers(tiny_base, tiny_dataset, tmp_path):
    """lora_muon on a real PEFT model: BA's change a step has at most the rate as spectral norm, before the scale."""
    config = make_config(
        tiny_base, tiny_dataset, optimiser={"name": "lora_muon", "lr": 0.05}, schedule="constant", steps=1
    )
    folders = train(config, tmp_path / "run")
    for pair in read_pairs(folders[-1]):
        # B was zero: only dB A moves BA, half the rate.
        assert float(torch.linalg.matrix_norm(pair.b @ pair.a, 2)) == pytest.approx(0.025, rel=1e-3)
