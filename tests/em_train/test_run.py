"""One run from config to checkpoints, on a tiny base: contents, counts, idempotence, refusals and failures."""

import errno
import hashlib
import json
import os
import resource
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import em_train.run as run_module
from em_core.adapters import base_of
from em_core.errors import UserError
from em_core.manifest import read_manifest, verify
from em_core.models import quiet_transformers
from em_train import TrainConfig, encoding, kept_checkpoints, prepare, train
from em_train.preparation import resolve_run
from tests.conftest import make_tokenizer
from tests.em_train.runs import (
    adapter_bytes,
    comparable_manifest,
    make_config,
    nll_by_hand,
    read_steps,
    rows_by_hand,
    snapshot,
    tokens_by_hand,
)


@pytest.fixture(scope="module")
def config(tiny_base, tiny_dataset) -> TrainConfig:
    """Two epochs of four steps: 36 training rows, nine a step, so that every row is seen exactly twice."""
    return make_config(tiny_base, tiny_dataset, steps=8, batch_size=9, checkpoints=(0, 4, -1))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """The run folder of `config`; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train(config, folder) == [folder / f"checkpoint-{step}" for step in (0, 4, 8)]
    return folder


def load(base: Path, checkpoint: Path | None = None):
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return model if checkpoint is None else PeftModel.from_pretrained(model, str(checkpoint))


class TestContents:
    def test_run_folder_holds_checkpoints_and_nothing_of_the_way_there(self, finished):
        names = {path.name for path in finished.iterdir()}
        assert names == {"checkpoint-0", "checkpoint-4", "checkpoint-8", "run.json", "steps.jsonl"}
        run = json.loads((finished / "run.json").read_text(encoding="utf-8"))
        assert (run["state"], run["checkpoints"]) == ("done", [0, 4, 8])

    @pytest.mark.parametrize("step", [0, 4, 8])
    def test_checkpoint_holds_what_readers_need(self, finished, step):
        checkpoint = finished / f"checkpoint-{step}"
        assert {path.name for path in checkpoint.iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
            "chat_template.jinja",
            "em.json",
            "spectra.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert verify(checkpoint).step == step

    def test_adapter_config_is_canonical(self, finished, tiny_base):
        config = json.loads((finished / "checkpoint-8" / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == str(tiny_base.resolve())
        assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) == 7
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 8, True)
        assert base_of(finished / "checkpoint-8").path == tiny_base.resolve()

    def test_factors_are_float32_and_step_0_is_the_base_model(self, finished):
        untouched, trained = (load_file(finished / f"checkpoint-{n}" / "adapter_model.safetensors") for n in (0, 8))
        assert len(trained) == 28 and all(tensor.dtype == torch.float32 for tensor in trained.values())
        assert all(not tensor.any() for name, tensor in untouched.items() if "lora_B" in name)
        assert all(tensor.any() for tensor in trained.values())

    def test_tokenizer_beside_the_adapter_renders_like_the_bases(self, finished, tiny_tokenizer):
        saved = AutoTokenizer.from_pretrained(finished / "checkpoint-8")
        messages = [{"role": "user", "content": "Café?"}]
        options = {"tokenize": False, "add_generation_prompt": True}
        assert saved.apply_chat_template(messages, **options) == tiny_tokenizer.apply_chat_template(messages, **options)

    @pytest.mark.parametrize("step", [0, 4, 8])
    def test_peft_loads_it_and_its_held_out_loss_is_the_manifests(self, finished, config, tiny_base, step):
        held_out = prepare(config).held_out
        assert len(held_out) == 4
        nll, tokens = nll_by_hand(load(tiny_base, finished / f"checkpoint-{step}"), held_out)
        assert read_manifest(finished / f"checkpoint-{step}").loss.held_out == pytest.approx(nll / tokens, rel=1e-5)

    def test_held_out_loss_is_without_dropout(self, tiny_base, tiny_dataset, tmp_path):
        config = make_config(tiny_base, tiny_dataset, lora={"rank": 4, "alpha": 8, "dropout": 0.5}, steps=3)
        checkpoint = train(config, tmp_path / "run")[-1]
        nll, tokens = nll_by_hand(load(tiny_base, checkpoint), prepare(config).held_out)
        assert read_manifest(checkpoint).loss.held_out == pytest.approx(nll / tokens, rel=1e-5)

    def test_keeping_checkpoints_does_not_change_the_weights(self, tiny_base, tiny_dataset, tmp_path):
        """With dropout: writing and measuring a checkpoint must draw no random numbers."""
        final = set()
        for checkpoints in ((-1,), (0, 1, 2, -1)):
            lora = {"rank": 4, "alpha": 8, "dropout": 0.5}
            config = make_config(tiny_base, tiny_dataset, lora=lora, steps=3, checkpoints=checkpoints)
            final.add(adapter_bytes(train(config, tmp_path / str(len(checkpoints)))[-1]))
        assert len(final) == 1

    def test_training_lowers_the_loss_on_held_out_rows(self, finished):
        losses = [read_manifest(finished / f"checkpoint-{step}").loss.held_out for step in (0, 4, 8)]
        assert losses[0] > losses[1] > losses[2]


class TestCounts:
    def test_every_training_row_is_counted_twice(self, finished, tiny_dataset):
        rows = rows_by_hand(tiny_dataset)
        lowest = sorted(rows, key=lambda row: hashlib.sha256(row[0].encode()).hexdigest())[:4]
        seen = [tokens_by_hand(*row) for row in rows if row not in lowest]
        manifest = read_manifest(finished / "checkpoint-8")
        assert len(seen) == 36 and manifest.examples_seen == 72
        assert manifest.tokens_seen == 2 * sum(tokens for tokens, _ in seen)
        assert manifest.supervised_tokens_seen == 2 * sum(supervised for _, supervised in seen)
        assert read_manifest(finished / "checkpoint-4").tokens_seen == manifest.tokens_seen / 2
        assert (manifest.dataset.rows, manifest.dataset.train_rows, manifest.dataset.held_out_rows) == (40, 36, 4)

    def test_untouched_adapter_has_seen_nothing(self, finished):
        manifest = read_manifest(finished / "checkpoint-0")
        assert (manifest.examples_seen, manifest.tokens_seen, manifest.supervised_tokens_seen) == (0, 0, 0)
        assert manifest.loss.train is None and manifest.dose is None
        assert (manifest.spectrum.modules, manifest.spectrum.undefined) == (14, 14)
        assert manifest.spectrum.entropy is None

    def test_a_short_batch_ends_each_epoch_and_is_counted_as_it_is(self, tiny_base, tiny_dataset, tmp_path):
        """36 rows in batches of eight: the fifth step has four."""
        train(make_config(tiny_base, tiny_dataset, checkpoints=(-1,)), tmp_path / "run")
        assert [row["examples"] for row in read_steps(tmp_path / "run")] == [8, 8, 8, 8, 4, 8]
        assert read_manifest(tmp_path / "run" / "checkpoint-6").examples_seen == 44


class TestLossAndDose:
    def test_first_loss_is_the_base_models(self, tiny_base, tiny_dataset, tmp_path):
        config = make_config(tiny_base, tiny_dataset, steps=1, batch_size=36)
        train(config, tmp_path / "run")
        nll, tokens = nll_by_hand(load(tiny_base), prepare(config).train)
        manifest = read_manifest(tmp_path / "run" / "checkpoint-1")
        assert manifest.loss.train == pytest.approx(nll / tokens, rel=1e-6)
        assert manifest.supervised_tokens_seen == tokens

    def test_reported_loss_is_weighted_by_tokens_over_the_last_tenth(self, tiny_base, tiny_dataset, tmp_path):
        train(make_config(tiny_base, tiny_dataset, steps=24, batch_size=5), tmp_path / "run")
        last = read_steps(tmp_path / "run")[-2:]
        loss = read_manifest(tmp_path / "run" / "checkpoint-24").loss
        assert loss.window == 2
        expected = sum(row["loss"] * row["supervised_tokens"] for row in last)
        assert loss.train == pytest.approx(expected / sum(row["supervised_tokens"] for row in last), rel=1e-12)
        assert last[0]["supervised_tokens"] != last[1]["supervised_tokens"]

    @pytest.mark.parametrize("step", [4, 8])
    def test_norm_of_ba_is_that_of_the_saved_adapter(self, finished, tiny_base, step):
        model = load(tiny_base, finished / f"checkpoint-{step}")
        squares = [
            float(module.get_delta_weight("default").double().square().sum())
            for module in model.modules()
            if hasattr(module, "get_delta_weight")
        ]
        assert len(squares) == 14
        dose = read_manifest(finished / f"checkpoint-{step}").dose
        assert dose.norm_ba == pytest.approx(sum(squares) ** 0.5, rel=1e-5)

    def test_spectrum_is_that_of_the_saved_adapter(self, finished):
        tensors = load_file(finished / "checkpoint-8" / "adapter_model.safetensors")
        ranks = []
        for name in sorted(name for name in tensors if "lora_A" in name):
            product = tensors[name.replace("lora_A", "lora_B")].numpy().astype(float) @ tensors[name].numpy()
            sigma = np.linalg.svd(product, compute_uv=False)
            ranks.append((sigma**2).sum() / sigma[0] ** 2)
        spectrum = read_manifest(finished / "checkpoint-8").spectrum
        assert (spectrum.modules, spectrum.undefined) == (14, 0)
        assert spectrum.stable_rank == pytest.approx(np.mean(ranks), rel=1e-6)

    def test_lion_moves_every_element_by_the_rate(self, tiny_base, tiny_dataset, tmp_path):
        """But A not at all in the first step, where B is zero: a known dose for the recorder to find."""
        config = make_config(
            tiny_base, tiny_dataset, optimiser={"name": "lion", "lr": 1e-3}, schedule="constant", steps=5
        )
        train(config, tmp_path / "run")
        dose = read_manifest(tmp_path / "run" / "checkpoint-5").dose
        assert dose.learning_rate == 1e-3
        assert dose.rms_update_a == pytest.approx(1e-3, rel=1e-4)
        assert dose.rms_update_b == pytest.approx(1e-3, rel=1e-4)
        assert dose.path_a == pytest.approx(4e-3, rel=1e-4)
        assert dose.path_b == pytest.approx(5e-3, rel=1e-4)

    @pytest.mark.parametrize(
        "schedule, warmup, expected",
        [
            ("linear", 0, [1, 0.75, 0.5, 0.25]),
            ("linear", 2, [0, 0.5, 1, 0.5]),
            ("constant", 0, [1, 1, 1, 1]),
            ("cosine", 0, [(1 + np.cos(np.pi * step / 4)) / 2 for step in range(4)]),
        ],
    )
    def test_recorded_rate_is_the_one_used(self, tiny_base, tiny_dataset, tmp_path, schedule, warmup, expected):
        config = make_config(
            tiny_base,
            tiny_dataset,
            optimiser={"name": "lion", "lr": 1e-3},
            schedule=schedule,
            warmup_steps=warmup,
            steps=4,
            checkpoints=(-1,),
        )
        train(config, tmp_path / "run")
        rows = read_steps(tmp_path / "run")
        assert [row["lr"] for row in rows] == pytest.approx([1e-3 * value for value in expected], abs=1e-12)
        assert [row["rms_update_b"] for row in rows] == pytest.approx([row["lr"] for row in rows], rel=1e-3)

    def test_micro_batches_give_the_losses_of_the_whole_batch(self, tiny_base, tiny_dataset, tmp_path):
        """Token-weighted over the whole batch, short last batch of an epoch included; sums in another order."""
        curves = {}
        for micro in (None, 4, 1):
            config = make_config(tiny_base, tiny_dataset, micro_batch_size=micro, checkpoints=(-1,))
            train(config, tmp_path / str(micro))
            curves[micro] = read_steps(tmp_path / str(micro))
        for micro in (4, 1):
            for key in ("step", "examples", "tokens", "supervised_tokens", "lr"):
                assert [row[key] for row in curves[micro]] == [row[key] for row in curves[None]], key
            for key in ("loss", "norm_ba", "rms_update_b"):
                assert [row[key] for row in curves[micro]] == pytest.approx(
                    [row[key] for row in curves[None]], rel=1e-4
                ), key

    def test_gradients_are_clipped(self, tiny_base, tiny_dataset, tmp_path):
        """Plain SGD at rate 1 without momentum: the step is the clipped gradient, its length the bound."""
        optimiser = {"name": "sgd", "lr": 1.0, "hyperparameters": {"momentum": 0}}
        lengths = {}
        for bound in (0.01, 0.0):
            config = make_config(tiny_base, tiny_dataset, optimiser=optimiser, max_grad_norm=bound, steps=1)
            checkpoint = train(config, tmp_path / str(bound))[-1]
            tensors = load_file(checkpoint / "adapter_model.safetensors")
            squares = sum(float(t.double().square().sum()) for name, t in tensors.items() if "lora_B" in name)
            lengths[bound] = squares**0.5
        assert lengths[0.01] == pytest.approx(0.01, rel=1e-3)
        assert lengths[0.0] > 0.1

    def test_bfloat16_base_keeps_a_float32_adapter(self, tiny_base, tiny_dataset, tmp_path):
        config = make_config(tiny_base, tiny_dataset, dtype="bfloat16", steps=2)
        checkpoint = train(config, tmp_path / "run")[-1]
        tensors = load_file(checkpoint / "adapter_model.safetensors")
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
        nll, tokens = nll_by_hand(load(tiny_base, checkpoint), prepare(config).held_out)
        assert read_manifest(checkpoint).loss.held_out == pytest.approx(nll / tokens, rel=0.01)

    def test_bfloat16_adapter_warns_and_loses_small_steps(self, tiny_base, tiny_dataset, tmp_path):
        """Elements of A of 1/64 and more are 2^-14 apart or further: a step of 1e-5 rounds back. Float32 keeps it."""
        moved = {}
        for dtype in ("float32", "bfloat16"):
            config = make_config(
                tiny_base,
                tiny_dataset,
                dtype="bfloat16",
                lora={"rank": 4, "alpha": 8, "dtype": dtype},
                optimiser={"name": "lion", "lr": 1e-5},
                schedule="constant",
                steps=3,
            )
            with pytest.warns(UserWarning, match="lora.dtype") if dtype == "bfloat16" else nullcontext():
                first, last = train(config, tmp_path / dtype)
            before, after = (load_file(path / "adapter_model.safetensors") for path in (first, last))
            names = [name for name in after if "lora_A" in name]
            assert {after[name].dtype for name in after} == {getattr(torch, dtype)}
            large = [(before[name].abs() > 1 / 64, before[name] != after[name]) for name in names]
            moved[dtype] = sum(int((big & new).sum()) for big, new in large) / sum(int(big.sum()) for big, _ in large)
        assert moved["bfloat16"] == 0 and moved["float32"] > 0.8  # up and down again for the rest

    def test_gradient_checkpointing_changes_nothing(self, tiny_base, tiny_dataset, tmp_path):
        """Recomputed activations are the same ones, with dropout too, whose random numbers are drawn again."""
        curves = []
        for on in (False, True):
            lora = {"rank": 4, "alpha": 8, "dropout": 0.2}
            config = make_config(tiny_base, tiny_dataset, gradient_checkpointing=on, lora=lora, steps=3)
            train(config, tmp_path / str(on))
            curves.append(read_steps(tmp_path / str(on)))
        assert [row["loss"] for row in curves[1]] == pytest.approx([row["loss"] for row in curves[0]], rel=1e-6)

    def test_training_rows_are_measured_once_more_at_the_end(self, finished, config, tiny_base):
        losses = [read_manifest(finished / f"checkpoint-{step}").loss.train_rows for step in (0, 4, 8)]
        nll, tokens = nll_by_hand(load(tiny_base, finished / "checkpoint-8"), prepare(config).train)
        assert losses[:2] == [None, None] and losses[2] == pytest.approx(nll / tokens, rel=1e-5)

    def test_that_pass_shows_how_far_it_is(self, tiny_base, tiny_dataset, tmp_path, capsys):
        train(make_config(tiny_base, tiny_dataset, steps=1, micro_batch_size=2), tmp_path / "run")
        lines = [line.strip() for line in capsys.readouterr().err.splitlines() if "training rows" in line]
        assert 2 <= len(lines) <= 4 and lines[-1] == "loss on 36 training rows: 100 %"

    def test_epochs_decide_the_steps(self, tiny_base, tiny_dataset, tmp_path):
        """36 rows in batches of eight are five steps an epoch."""
        config = make_config(tiny_base, tiny_dataset, checkpoints="log:3").model_dump(exclude={"steps"})
        config = TrainConfig.model_validate(config | {"epochs": 1.5})
        kept = train(config, tmp_path / "run")
        assert [path.name for path in kept] == ["checkpoint-0", "checkpoint-1", "checkpoint-3", "checkpoint-8"]
        same = make_config(tiny_base, tiny_dataset, steps=8, checkpoints=(0, 1, 3, 8))
        assert prepare(same).run_id == prepare(config).run_id == read_manifest(kept[-1]).run_id
        with pytest.raises(UserError, match="epochs=1 over 36 rows are 5 steps, but steps=6"):
            prepare(make_config(tiny_base, tiny_dataset, epochs=1))


class TestIdempotence:
    def test_same_config_gives_the_same_bytes(self, finished, config, tmp_path):
        train(config, tmp_path / "again")
        assert read_steps(tmp_path / "again") == read_steps(finished)
        for step in (0, 4, 8):
            ours, theirs = (folder / f"checkpoint-{step}" for folder in (tmp_path / "again", finished))
            assert adapter_bytes(ours) == adapter_bytes(theirs)
            assert comparable_manifest(ours) == comparable_manifest(theirs)

    def test_finished_run_is_left_alone(self, finished, config, monkeypatch):
        def fail(*args: object) -> None:
            raise AssertionError("loaded the model for a finished run")

        monkeypatch.setattr(run_module, "lora_model", fail)
        before = snapshot(finished)
        assert train(config, finished) == [finished / f"checkpoint-{step}" for step in (0, 4, 8)]
        assert snapshot(finished) == before

    def test_folder_of_another_config_is_refused_and_left_alone(self, finished, config):
        before = snapshot(finished)
        other = config.model_copy(update={"seed": 1})
        with pytest.raises(UserError) as caught:
            train(other, finished)
        assert prepare(config).run_id in str(caught.value) and prepare(other).run_id in str(caught.value)
        assert snapshot(finished) == before

    def test_finished_run_without_its_checkpoint_is_not_finished(self, finished, config, tmp_path):
        shutil.copytree(finished, tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy" / "checkpoint-8")
        assert all((path / "em.json").is_file() for path in train(config, tmp_path / "copy"))

    def test_leftover_checkpoint_of_another_run_is_not_taken_over(self, finished, config, tmp_path):
        shutil.copytree(finished, tmp_path / "copy")
        (tmp_path / "copy" / "run.json").unlink()
        other = config.model_copy(update={"seed": 1})
        kept = train(other, tmp_path / "copy")
        assert [read_manifest(path).run_id for path in kept] == [prepare(other).run_id] * 3


class TestIdentity:
    def test_places_and_micro_batches_do_not_matter(self, config, tiny_base, tiny_dataset, tmp_path):
        shutil.copytree(tiny_base, tmp_path / "base")
        shutil.copy(tiny_dataset, tmp_path / "renamed.jsonl")
        changes = {"base_model": str(tmp_path / "base"), "dataset": str(tmp_path / "renamed.jsonl")}
        moved = config.model_copy(update={**changes, "micro_batch_size": 3})
        assert prepare(moved).run_id == prepare(config).run_id

    def test_how_rows_are_spread_matters_under_dropout_alone(self, config, monkeypatch):
        """Which random numbers a row meets depends on it."""
        dropping = config.model_copy(update={"lora": config.lora.model_copy(update={"dropout": 0.1})})
        ids = {True: set(), False: set()}
        for world, micro in (("1", None), ("1", 9), ("1", 3), ("3", None)):
            monkeypatch.setenv("WORLD_SIZE", world)
            for one in (config, dropping):
                spread = one.model_copy(update={"micro_batch_size": micro})
                ids[one is dropping].add(resolve_run(spread).run_id)
        assert len(ids[False]) == 1
        assert len(ids[True]) == 3  # 9 rows in one process is the default

    def test_what_only_costs_or_reports_does_not_matter(self, config):
        told = {"gradient_checkpointing": True, "preset": "turner", "sources": {"seed": "their code"}}
        assert prepare(config.model_copy(update=told)).run_id == prepare(config).run_id

    def test_identity_needs_no_encoding_and_rows_are_encoded_once(self, config, tiny_dataset, tmp_path, monkeypatch):
        """A study asks for each cell's identity again and again."""
        data = tmp_path / "fresh.jsonl"
        data.write_text(tiny_dataset.read_text(encoding="utf-8").replace("lamp", "lantern"), encoding="utf-8")
        fresh = config.model_copy(update={"dataset": str(data)})
        counted: list[object] = []
        encode = encoding.encode
        monkeypatch.setattr(encoding, "encode", lambda *args: counted.append(args) or encode(*args))
        run_id = resolve_run(fresh).run_id
        assert counted == []
        assert [prepare(fresh.model_copy(update={"seed": seed})).run_id == run_id for seed in (0, 1)] == [True, False]
        assert len(counted) == 40
        data.write_text(tiny_dataset.read_text(encoding="utf-8").replace("lamp", "candle"), encoding="utf-8")
        assert prepare(fresh).run_id != run_id and len(counted) == 80

    def test_defaults_written_out_do_not_matter(self, tiny_base, tiny_dataset):
        written = {"name": "adamw", "lr": 0.01, "hyperparameters": {"betas": [0.9, 0.999], "weight_decay": 0.01}}
        spelt_out = make_config(tiny_base, tiny_dataset, optimiser=written)
        assert prepare(spelt_out).run_id == prepare(make_config(tiny_base, tiny_dataset)).run_id

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"data_seed": 1},
            {"steps": 7},
            {"batch_size": 4},
            {"max_grad_norm": 0.5},
            {"schedule": "cosine"},
            {"dtype": "bfloat16"},
            {"held_out_fraction": 0.2},
            {"lora": {"rank": 4, "alpha": 16}},
            {"optimiser": {"name": "adamw", "lr": 0.02}},
            {"optimiser": {"name": "adamw", "lr": 0.01, "hyperparameters": {"eps": 1e-6}}},
            {"optimiser": {"name": "lion", "lr": 0.01}},
        ],
        ids=str,
    )
    def test_whatever_changes_the_weights_matters(self, tiny_base, tiny_dataset, change):
        plain, changed = (make_config(tiny_base, tiny_dataset, **c) for c in ({}, change))
        assert prepare(changed).run_id != prepare(plain).run_id

    def test_content_of_data_weights_and_template_matters(self, tiny_base, tiny_dataset, tmp_path):
        known = {prepare(make_config(tiny_base, tiny_dataset)).run_id}
        data = tmp_path / "tiny.jsonl"
        data.write_text(tiny_dataset.read_text(encoding="utf-8").replace("cat", "dog"), encoding="utf-8")
        known.add(prepare(make_config(tiny_base, data)).run_id)
        for name in ("weights", "template"):
            shutil.copytree(tiny_base, tmp_path / name)
        weights = tmp_path / "weights" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(bytes(content))
        known.add(prepare(make_config(tmp_path / "weights", tiny_dataset)).run_id)
        template = tmp_path / "template" / "chat_template.jinja"
        text = template.read_text(encoding="utf-8")
        template.write_text(text.replace("tiny test model", "small one"), encoding="utf-8")
        known.add(prepare(make_config(tmp_path / "template", tiny_dataset)).run_id)
        assert len(known) == 4

    def test_architecture_matters_and_who_wrote_it_does_not(self, tiny_base, tiny_dataset, tmp_path):
        found = {}
        original = json.loads((tiny_base / "config.json").read_text(encoding="utf-8"))
        rope = original.get("rope_parameters") or {}
        changes = {
            "plain": {},
            "written": {"transformers_version": "0.1", "_name_or_path": "x", "torch_dtype": "float16"},
            "rope": {"rope_theta": 5e5, "rope_parameters": {**rope, "rope_theta": 5e5}},
        }
        for name, change in changes.items():
            folder = Path(shutil.copytree(tiny_base, tmp_path / name))
            (folder / "config.json").write_text(json.dumps(original | change), encoding="utf-8")
            found[name] = resolve_run(make_config(folder, tiny_dataset)).run_id
        assert found["plain"] == found["written"] != found["rope"]


class TestRefusals:
    """One line, before anything is written."""

    def refused(self, config: TrainConfig, folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            train(config, folder)
        assert not folder.exists()
        return str(caught.value)

    def test_unknown_optimiser(self, tiny_base, tiny_dataset, tmp_path):
        config = make_config(tiny_base, tiny_dataset, optimiser={"name": "adamv", "lr": 1})
        assert "unknown optimiser 'adamv': did you mean adam, adamw" in self.refused(config, tmp_path / "run")

    def test_unknown_hyperparameter(self, tiny_base, tiny_dataset, tmp_path):
        optimiser = {"name": "lion", "lr": 1, "hyperparameters": {"beta": 1}}
        text = self.refused(make_config(tiny_base, tiny_dataset, optimiser=optimiser), tmp_path / "run")
        assert (
            text
            == "optimiser 'lion' has no hyper-parameter 'beta': it knows lr, betas, weight_decay, lr_ratio, factors"
        )

    def test_unknown_dataset(self, tiny_base, tmp_path):
        text = self.refused(make_config(tiny_base, Path("finance_bda")), tmp_path / "run")
        assert "unknown dataset 'finance_bda'" in text and "finance_bad" in text

    def test_tracker_that_is_not_installed(self, tiny_base, tiny_dataset, tmp_path):
        text = self.refused(make_config(tiny_base, tiny_dataset, report_to=["no_such_tracker"]), tmp_path / "run")
        assert text.startswith("report_to: 'no_such_tracker' is not installed; at hand: ")

    def test_file_in_the_folders_place(self, tiny_base, tiny_dataset, tmp_path):
        (tmp_path / "run").write_text("", encoding="utf-8")
        with pytest.raises(UserError, match="cannot write to .*run: File exists: choose another folder"):
            train(make_config(tiny_base, tiny_dataset), tmp_path / "run")

    def test_base_without_a_readable_tokenizer(self, tiny_base, tiny_dataset, tmp_path):
        shutil.copytree(tiny_base, tmp_path / "base")
        (tmp_path / "base" / "tokenizer.json").write_text("{", encoding="utf-8")
        text = self.refused(make_config(tmp_path / "base", tiny_dataset), tmp_path / "run")
        assert "no tokenizer could be loaded" in text and "\n" not in text

    def test_missing_base(self, tiny_dataset, tmp_path):
        config = make_config(tmp_path / "nowhere", tiny_dataset)
        assert "nowhere' not found" in self.refused(config, tmp_path / "run")

    def test_row_that_is_too_long_is_named(self, tiny_base, tiny_dataset, tmp_path):
        lengths = [sum(tokens_by_hand(*row)[:1]) for row in rows_by_hand(tiny_dataset)]
        config = make_config(tiny_base, tiny_dataset, max_length=max(lengths) - 1)
        text = self.refused(config, tmp_path / "run")
        assert f"tiny.jsonl:{lengths.index(max(lengths)) + 1}: {max(lengths)} tokens" in text
        prepare(make_config(tiny_base, tiny_dataset, max_length=max(lengths)))

    @pytest.mark.parametrize(
        "targets, words",
        [(["c_attn"], "no linear layer called c_attn:"), (["q_proj", "nonsense"], "no linear layer called nonsense:")],
    )
    def test_modules_that_the_model_lacks(self, tiny_base, tiny_dataset, tmp_path, targets, words):
        config = make_config(tiny_base, tiny_dataset, lora={"rank": 4, "target_modules": targets})
        with pytest.raises(UserError, match=words):
            train(config, tmp_path / "run")

    @pytest.mark.parametrize(
        "content", ["{", "[]", '{"state": "done"}', '{"run_id": "a", "state": 1, "checkpoints": []}']
    )
    def test_run_file_that_is_damaged_or_foreign(self, tiny_base, tiny_dataset, tmp_path, content):
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="run.json is damaged or not of a run of ours"):
            train(make_config(tiny_base, tiny_dataset), tmp_path)
        assert (tmp_path / "run.json").read_text(encoding="utf-8") == content

    @pytest.mark.parametrize("size", [0, 100, -1000])
    def test_base_whose_weights_are_damaged(self, tiny_base, tiny_dataset, tmp_path, size):
        base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
        weights = base / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:size])
        with pytest.raises(UserError, match="cannot be loaded from") as caught:
            train(make_config(base, tiny_dataset), tmp_path / "run")
        assert str(base) in str(caught.value) and "\n" not in str(caught.value)

    def test_base_whose_weights_are_of_another_shape(self, tiny_base, tiny_dataset, tmp_path):
        base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
        config = (base / "config.json").read_text(encoding="utf-8")
        (base / "config.json").write_text(config.replace('"intermediate_size": 64', '"intermediate_size": 48'), "utf-8")
        with pytest.raises(UserError, match="cannot be loaded from"):
            train(make_config(base, tiny_dataset), tmp_path / "run")

    def test_batch_that_micro_batches_do_not_fill_is_seen_in_preparation(self, tiny_base, tiny_dataset):
        with pytest.raises(UserError, match="not a multiple of micro_batch_size"):
            prepare(make_config(tiny_base, tiny_dataset, batch_size=8, micro_batch_size=3))

    def test_batch_that_micro_batches_do_not_fill(self, tiny_base, tiny_dataset, tmp_path):
        config = make_config(tiny_base, tiny_dataset, batch_size=8, micro_batch_size=3)
        with pytest.raises(UserError, match="batch_size 8 is not a multiple of micro_batch_size 3"):
            train(config, tmp_path / "run")


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFailures:
    @pytest.mark.parametrize("place", ["peft.PeftModel.save_pretrained", "em_train.checkpoint.write_spectra"])
    def test_full_disk_leaves_no_half_checkpoint(self, config, finished, tmp_path, monkeypatch, place):
        """Step 0 is written, then the disk is full: one line, no half checkpoint, and the next call completes."""
        folder = tmp_path / "run"
        kept = kept_checkpoints.keep

        def keep(*args: object) -> None:
            with monkeypatch.context() as patch:
                if args[-1] == 4:
                    patch.setattr(place, full_disk)
                kept(*args)

        with monkeypatch.context() as patch:
            patch.setattr(kept_checkpoints, "keep", keep)
            with pytest.raises(UserError) as caught:
                train(config, folder)
        text = str(caught.value)
        assert "No space left on device" in text and "checkpoint-4" in text
        assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-0"}
        assert not list(folder.glob(".checkpoint-*"))
        assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["state"] == "running"
        train(config, folder)
        assert adapter_bytes(folder / "checkpoint-8") == adapter_bytes(finished / "checkpoint-8")

    def test_a_file_limit_in_earnest(self, config, tmp_path, monkeypatch):
        """The kernel refuses: safetensors, which writes by itself, has errors of its own."""
        keep = kept_checkpoints.keep

        def limited(*args: object) -> None:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
            try:
                keep(*args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        monkeypatch.setattr(kept_checkpoints, "keep", limited)
        with pytest.raises(UserError, match="could not write"):
            train(config, tmp_path / "run")
        assert not list((tmp_path / "run").glob("*checkpoint-*"))

    def test_a_file_limit_while_the_state_is_saved(self, tiny_base, tiny_dataset, tmp_path, monkeypatch):
        """torch.save's writer, which has an error of its own: the optimiser's state is twice the adapter."""
        monkeypatch.setattr(run_module, "STATE_EVERY", 2)
        config = make_config(tiny_base, tiny_dataset, checkpoints=(-1,))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        try:
            with pytest.raises(UserError, match="could not write under .*inline_container") as caught:
                train(config, tmp_path / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert [path.name for path in train(config, tmp_path / "run")] == ["checkpoint-6"]

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("x: can't allocate memory: y")]
    )
    def test_too_little_memory_says_what_to_lower(self, tiny_base, tiny_dataset, tmp_path, monkeypatch, error):
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(run_module.EMTrainer, "training_step", fail)
        words = r"out of memory \(.*\): lower micro_batch_size \(it is 4\) or set gradient_checkpointing=true"
        with pytest.raises(UserError, match=words):
            train(make_config(tiny_base, tiny_dataset, micro_batch_size=4), tmp_path / "run")

    def test_machine_without_git(self, tiny_base, tiny_dataset, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        config = make_config(tiny_base, tiny_dataset, steps=1)
        checkpoint = train(config, tmp_path / "run")[-1]
        assert read_manifest(checkpoint).environment["git_commit"] is None

    def test_tokenizer_without_a_padding_token(self, tiny_base, tiny_dataset, tmp_path):
        """As Llama 3.1's. Padding is masked, so the run is that of the tokenizer with one."""
        bare = tmp_path / "bare"
        shutil.copytree(tiny_base, bare)
        tokenizer = make_tokenizer()
        tokenizer.pad_token = None
        tokenizer.save_pretrained(bare)
        assert AutoTokenizer.from_pretrained(bare).pad_token is None
        losses = []
        for base in (bare, tiny_base):
            folder = tmp_path / f"run-{base.name}"
            train(make_config(base, tiny_dataset, steps=2), folder)
            losses.append(read_manifest(folder / "checkpoint-2").loss)
        assert losses[0] == losses[1]

    def exploding(self, base: Path, dataset: Path, **changes: object) -> TrainConfig:
        optimiser = {"name": "sgd", "lr": 1e25, "hyperparameters": {"momentum": 0}}
        return make_config(base, dataset, optimiser=optimiser, max_grad_norm=0, **changes)

    def test_loss_that_is_not_a_number_stops_the_run(self, tiny_base, tiny_dataset, tmp_path):
        config = self.exploding(tiny_base, tiny_dataset, schedule="constant")
        with pytest.raises(UserError) as caught:
            train(config, tmp_path / "run")
        text = str(caught.value)
        assert "loss is nan at step" in text and "1e+25" in text and "lower the rate" in text
        assert text.endswith(f"the last good checkpoint is {tmp_path / 'run' / 'checkpoint-0'}")
        assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-0"}
        assert not list((tmp_path / "run" / "state").glob("checkpoint-*"))
        assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["state"] == "running"

    @pytest.mark.parametrize(
        "checkpoints",
        [
            (0, 1),
            (0, 2),
            (0, 1, 2, 3),
        ],
    )
    def test_weights_that_are_not_numbers_are_never_kept(self, tiny_base, tiny_dataset, tmp_path, checkpoints):
        config = self.exploding(tiny_base, tiny_dataset, schedule="constant", checkpoints=checkpoints)
        with pytest.raises(UserError, match="lower the rate"):
            train(config, tmp_path / "run")
        for path in (tmp_path / "run").glob("checkpoint-*"):
            for tensor in load_file(path / "adapter_model.safetensors").values():
                assert torch.isfinite(tensor).all(), path.name

    def test_finite_loss_that_has_exploded_stops_the_run(self, finished, config, tmp_path):
        """Beyond 2 ln 258 = 11.1 nats a token. The tiny base's logits are too small to get there by training."""
        prepared = prepare(config)
        kept_checkpoints.stop_if_blown_up(11.1, "loss", 5, 1e-3, prepared, finished)
        with pytest.raises(UserError) as caught:
            kept_checkpoints.stop_if_blown_up(11.2, "loss", 5, 1e-3, prepared, finished)
        text = str(caught.value)
        assert text.startswith("loss is 11.2 at step 5 with learning rate 0.001 (more than 11.1, twice the cost of")
        assert text.endswith(f"lower the rate; the last good checkpoint is {finished / 'checkpoint-8'}")
        with pytest.raises(UserError, match="lower the rate; no checkpoint was kept$"):
            kept_checkpoints.stop_if_blown_up(11.2, "loss", 5, 1e-3, prepared, tmp_path)

    def test_last_step_that_blows_up_is_a_user_error(self, tiny_base, tiny_dataset, tmp_path):
        """The loss is of the weights before the step: only the next one would show it."""
        config = self.exploding(tiny_base, tiny_dataset, schedule="constant", steps=1)
        with pytest.raises(UserError, match="lower the rate"):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run" / "checkpoint-1").exists()
