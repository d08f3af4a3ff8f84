"""`em spectra`: JSON, table, figure and flattening, on adapters that PEFT wrote and on ours."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from em_study import cli
from em_train import train
from em_train.checkpoint import verify_checkpoint
from em_train.spectra import MEASURES, flatten_pair, read_spectra
from tests.em_train.runs import make_config


def em(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["em", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def foreign(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter as PEFT saves it, one module of it untouched (B = 0)."""
    folder = tmp_path_factory.mktemp("foreign")
    settings = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "o_proj"], rank_pattern={"o_proj": 2}
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), settings)
    chance = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "layers.0.self_attn.o_proj" not in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=chance))
    model.save_pretrained(folder)
    return folder


class TestShow:
    def test_json_is_the_contract(self, foreign, monkeypatch, capsys):
        assert em(monkeypatch, "spectra", str(foreign), "--json") == 0
        found = json.loads(capsys.readouterr().out)
        tensors = load_file(foreign / "adapter_model.safetensors")
        names = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
        assert set(found) == {"modules", "mean"} and set(found["modules"]) == names and len(names) == 4
        for name, one in found["modules"].items():
            product = (tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()).numpy()
            rank = 2 if "o_proj" in name else 4
            expected = np.linalg.svd(product, compute_uv=False)[:rank]
            np.testing.assert_allclose(one["singular_values"], expected, rtol=1e-9, atol=1e-12)
            assert one["scaling"] == pytest.approx(6 / rank**0.5)
            assert set(one) == {"singular_values", "resolved", "scaling", *MEASURES}
            assert one["resolved"] is bool(expected.any())
            if not expected.any():
                assert all(one[measure] is None for measure in MEASURES)
        defined = [one["stable_rank"] for one in found["modules"].values() if one["stable_rank"] is not None]
        assert len(defined) == 3 and found["mean"]["stable_rank"] == pytest.approx(np.mean(defined))
        assert (found["mean"]["modules"], found["mean"]["undefined"], found["mean"]["unresolved"]) == (4, 1, 1)

    @pytest.mark.parametrize("arguments", [["--json", "PATH"], ["show", "PATH", "--json"]])
    def test_other_orders_of_words_are_the_same(self, foreign, monkeypatch, capsys, arguments):
        em(monkeypatch, "spectra", str(foreign), "--json")
        expected = capsys.readouterr().out
        given = [str(foreign) if word == "PATH" else word for word in arguments]
        assert em(monkeypatch, "spectra", *given) == 0
        assert capsys.readouterr().out == expected

    def test_table_names_measures_and_counts(self, foreign, monkeypatch, capsys):
        assert em(monkeypatch, "spectra", str(foreign)) == 0
        shown = capsys.readouterr().out
        for word in ("stable rank", "condition number", "4 modules, 2 to 4 values each", "scaling 3 to 4.24264"):
            assert word in shown
        assert "paper's floor in 1" in shown

    def test_papers_way_differs_little_where_b_is_large(self, foreign, monkeypatch, capsys):
        means = []
        for option in ([], ["--paper"]):
            em(monkeypatch, "spectra", str(foreign), "--json", *option)
            means.append(json.loads(capsys.readouterr().out)["mean"]["stable_rank"])
        assert means[0] != means[1] and means[0] == pytest.approx(means[1], rel=1e-5)

    @pytest.mark.parametrize("ending, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
    def test_plot(self, foreign, tmp_path, monkeypatch, ending, start):
        path = tmp_path / f"spectra.{ending}"
        assert em(monkeypatch, "spectra", str(foreign), "--plot", str(path)) == 0
        assert path.read_bytes().startswith(start)

    @pytest.mark.parametrize("target", ["nowhere/spectra.png", "spectra.doc"])
    def test_plot_that_cannot_be_written_is_one_line(self, foreign, tmp_path, monkeypatch, capsys, target):
        assert em(monkeypatch, "spectra", str(foreign), "--plot", str(tmp_path / target)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: cannot draw")

    def test_no_adapter_is_one_line(self, tmp_path, monkeypatch, capsys):
        assert em(monkeypatch, "spectra", str(tmp_path)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "adapter_config.json" in line
        assert em(monkeypatch, "spectra", str(tmp_path / "none"), "--json") == 2
        assert "does not exist" in capsys.readouterr().err

    @pytest.mark.parametrize("command", [[], ["show"], ["flatten"]])
    def test_help_has_an_example(self, command, monkeypatch, capsys):
        assert em(monkeypatch, "spectra", *command, "--help") == 0
        assert " ".join(["Example: em spectra", *command]) in capsys.readouterr().out


class TestFlattenPair:
    def factors(self, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
        chance = torch.Generator().manual_seed(0)
        b = torch.randn(20, 5, generator=chance, dtype=torch.float64) * torch.logspace(0, -3, 5)
        return torch.randn(5, 12, generator=chance, dtype=torch.float64).to(dtype), b.to(dtype)

    def test_values_are_equal_directions_and_norm_kept(self):
        a, b = self.factors()
        new_a, new_b = flatten_pair(a, b)
        u, sigma, v = torch.linalg.svd(b @ a, full_matrices=False)
        level = sigma[:5].norm() / 5**0.5
        torch.testing.assert_close(new_b @ new_a, level * u[:, :5] @ v[:5])
        torch.testing.assert_close((new_b @ new_a).norm(), (b @ a).norm())

    def test_half_way_is_the_root_of_the_values(self):
        a, b = self.factors()
        old, new = (torch.linalg.svdvals(x)[:5] for x in (b @ a, (lambda f: f[1] @ f[0])(flatten_pair(a, b, 0.5))))
        torch.testing.assert_close(new / new[0], (old / old[0]).sqrt())

    def test_nothing_done_leaves_the_product(self):
        a, b = self.factors()
        new_a, new_b = flatten_pair(a, b, 0.0)
        torch.testing.assert_close(new_b @ new_a, b @ a)

    def test_directions_that_ba_does_not_reach_stay_unreached(self):
        a, b = self.factors(torch.float32)
        b[:, 2:] = 0
        new_a, new_b = flatten_pair(a, b)
        values = torch.linalg.svdvals((new_b @ new_a).double())
        assert float(values[1]) == pytest.approx(float(values[0]), rel=1e-5) and values[2] < 1e-6 * values[0]
        assert new_a.dtype == torch.float32
        zero = flatten_pair(a, torch.zeros_like(b))
        assert zero[0] is a and not zero[1].any()


class TestFlatten:
    def test_foreign_adapter_loads_and_is_flat(self, foreign, tiny_base, tmp_path, monkeypatch, capsys):
        target = tmp_path / "flat"
        assert em(monkeypatch, "spectra", "flatten", str(foreign), str(target)) == 0
        assert "mean stable rank" in capsys.readouterr().out
        for before, after in zip(read_spectra(foreign), read_spectra(target), strict=True):
            assert float(after.sigma.norm()) == pytest.approx(float(before.sigma.norm()), rel=1e-5)
            if before.sigma.any():
                assert float(after.sigma.min()) == pytest.approx(float(after.sigma.max()), rel=1e-4)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), target)
        layer = model.base_model.model.model.layers[1].self_attn.q_proj
        delta = torch.linalg.svdvals(layer.get_delta_weight("default").detach())
        assert float(delta[3]) == pytest.approx(float(delta[0]), rel=1e-4) and delta[4] < 1e-4 * delta[0]

    def test_our_checkpoint_stays_one_of_ours(self, tiny_base, tiny_dataset, tmp_path, monkeypatch):
        source = train(make_config(tiny_base, tiny_dataset, steps=2), tmp_path / "run")[-1]
        old = verify_checkpoint(source)
        target = tmp_path / "flat"
        assert em(monkeypatch, "spectra", "flatten", str(source), str(target), "--amount", "1") == 0
        new = verify_checkpoint(target)
        assert new.post_processing == {
            "name": "flatten",
            "amount": 1.0,
            "of_run": old.run_id,
            "of_adapter_sha256": old.adapter_sha256,
        }
        assert new.run_id != old.run_id and (new.loss.train, new.loss.held_out) == (None, None)
        assert new.spectrum.stable_rank == pytest.approx(4, rel=1e-4) and old.spectrum.stable_rank < 3.9
        assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}

    def test_nothing_is_overwritten(self, foreign, tmp_path, monkeypatch, capsys):
        (tmp_path / "there").mkdir()
        assert em(monkeypatch, "spectra", "flatten", str(foreign), str(tmp_path / "there")) == 2
        assert "exists: choose a new folder" in capsys.readouterr().err

    def test_dora_is_refused(self, foreign, tmp_path, monkeypatch, capsys):
        source = tmp_path / "dora"
        shutil.copytree(foreign, source)
        config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        (source / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}), encoding="utf-8")
        assert em(monkeypatch, "spectra", "flatten", str(source), str(tmp_path / "flat")) == 2
        assert "sets use_dora" in capsys.readouterr().err
        assert not (tmp_path / "flat").exists()

    def test_other_tensors_of_the_file_go_along(self, foreign, tmp_path, monkeypatch):
        source = tmp_path / "source"
        shutil.copytree(foreign, source)
        tensors = load_file(source / "adapter_model.safetensors")
        tensors["base_model.model.lm_head.weight"] = torch.arange(6.0).reshape(2, 3)
        save_file(tensors, source / "adapter_model.safetensors")
        assert em(monkeypatch, "spectra", "flatten", str(source), str(tmp_path / "flat")) == 0
        kept = load_file(tmp_path / "flat" / "adapter_model.safetensors")
        assert torch.equal(kept["base_model.model.lm_head.weight"], torch.arange(6.0).reshape(2, 3))
