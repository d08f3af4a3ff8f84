"""Whole runs with a penalty: one trajectory whatever the micro-batches and processes, recorded, resumed, identified."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import em_train.run as run_module
from em_core.errors import UserError
from em_core.manifest import read_manifest
from em_train import TrainConfig, train
from em_train.penalties import Seen, Term, penalty_registry
from em_train.penalties.equal_cost import match_strength
from em_train.penalties.gradient import OfParameters
from em_train.penalties.registry import Scheduled, penalty
from em_train.preparation import prepare
from em_train.spectra import flatten_adapter
from em_train.trainer import EMTrainer
from tests.em_train.runs import adapter_bytes, comparable_manifest, make_config, read_steps
from tests.em_train.test_resume import interrupted

LITERAL = {"start_step": 1, "ramp_steps": 0, "max_grad_ratio": None}
SGD = {"name": "sgd", "lr": 0.05}


def spectral(strength: float = 1.0, **hyperparameters: Any) -> dict[str, Any]:
    return {"name": "spectral", "strength": strength, "hyperparameters": hyperparameters}


def adapters(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "adapter_model.safetensors")


def alike(one: Path, two: Path, tolerance: float) -> None:
    """Equal adapters and equal records, to `tolerance` relative to the largest change that training made."""
    left, right = adapters(one), adapters(two)
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=tolerance, atol=tolerance * float(value.abs().max()))
    for first, second in zip(read_steps(one.parent), read_steps(two.parent), strict=True):
        assert first == pytest.approx(second, rel=50 * tolerance, abs=1e-6)


PENALTIES = [spectral(**LITERAL), {"name": "kl", "strength": 2.0, "hyperparameters": {"ramp_steps": 0}}]


@pytest.mark.parametrize("penalty", PENALTIES, ids=["spectral", "kl"])
def test_micro_batches_do_not_show(tiny_base, tiny_dataset, tmp_path, penalty):
    """A term of the spectrum counts once a step, one of the data once a token, however the batch is cut."""
    for micro in (8, 2):
        config = make_config(tiny_base, tiny_dataset, optimiser=SGD, penalty=penalty, micro_batch_size=micro)
        train(config, tmp_path / str(micro))
    alike(tmp_path / "8" / "checkpoint-6", tmp_path / "2" / "checkpoint-6", 1e-4)
    last = read_steps(tmp_path / "8")[-1]
    assert last["penalty"] > 0 and last["penalty_grad_norm"] > 1e-4


DRIVER = """
import sys
from pathlib import Path
from em_train import TrainConfig, train

folder = Path(sys.argv[1])
for path in sorted(folder.glob("*.json")):
    train(TrainConfig.model_validate_json(path.read_text(encoding="utf-8")), folder / path.stem)
"""


@pytest.mark.slow
def test_processes_do_not_show(tiny_base, tiny_dataset, tmp_path):
    """Two processes of two micro-batches each, against one that takes the batch whole; a rule stops both alike."""
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    rule = {"name": "early_stopping", "hyperparameters": {"loss": 100.0, "window": 3}}
    for chosen in (*PENALTIES, rule):
        config = make_config(tiny_base, tiny_dataset, optimiser=SGD, penalty=chosen)
        train(config, tmp_path / "one" / chosen["name"])
        config = config.model_copy(update={"micro_batch_size": 2})
        (tmp_path / f"{chosen['name']}.json").write_text(config.model_dump_json(), encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, *plain, str(tmp_path / "driver.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, step in (("spectral", 6), ("kl", 6), ("early_stopping", 3)):
        alike(tmp_path / "one" / name / f"checkpoint-{step}", tmp_path / name / f"checkpoint-{step}", 1e-4)


class PenaltyInTheLoss(EMTrainer):
    """The term where the paper has it, in the loss, by autograd through the singular values of each product."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        sigmas = [torch.linalg.svdvals(pair.b @ pair.a)[:4] for pair in self.recorder.pairs if bool(pair.b.any())]
        gaps = [sigma.norm() / sigma.sum() - 0.5 for sigma in sigmas]
        return loss + torch.stack(gaps).mean() if gaps and self.accelerator.sync_gradients else loss


def test_literal_form_is_the_term_in_the_loss(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    """Strength 1 (with clipping), against the same run with the term in the loss and no penalty of ours."""
    settings = {"optimiser": SGD, "micro_batch_size": 4}
    train(make_config(tiny_base, tiny_dataset, penalty=spectral(**LITERAL), **settings), tmp_path / "ours")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "EMTrainer", PenaltyInTheLoss)
        train(make_config(tiny_base, tiny_dataset, **settings), tmp_path / "literal")
    train(make_config(tiny_base, tiny_dataset, **settings), tmp_path / "free")
    ours, literal, free = (adapters(tmp_path / name / "checkpoint-6") for name in ("ours", "literal", "free"))
    for name, value in ours.items():
        torch.testing.assert_close(value, literal[name], rtol=1e-3, atol=1e-3 * float(value.abs().max()))
    largest = max(float((ours[name] - free[name]).abs().max()) for name in ours if "lora_B" in name)
    assert largest > 0.1 * max(float(ours[name].abs().max()) for name in ours if "lora_B" in name)
    losses = [[row["loss"] for row in read_steps(tmp_path / name)] for name in ("ours", "literal")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # the task loss alone, in both


@pytest.fixture(scope="module")
def runs(tiny_base, tiny_dataset, tmp_path_factory):
    """Twelve steps free, flattened and peaked; AdamW."""
    folder = tmp_path_factory.mktemp("runs")
    penalties = {
        "free": None,
        "flat": spectral(3.0, ramp_steps=4),
        "peaked": {"name": "peaked", "strength": 3.0, "hyperparameters": {"ramp_steps": 4}},
    }
    for name, chosen in penalties.items():
        train(make_config(tiny_base, tiny_dataset, steps=12, warmup_steps=2, penalty=chosen), folder / name)
    return folder


class TestRecord:
    def test_spectra_go_where_they_are_pushed(self, runs):
        flat, free, peaked = (
            read_manifest(runs / name / "checkpoint-12").spectrum.fro_over_nuclear
            for name in ("flat", "free", "peaked")
        )
        assert flat < free - 0.02 and peaked > free + 0.02

    def test_ramp_cap_and_gate_are_in_every_row(self, runs):
        rows = read_steps(runs / "flat")
        assert [row["penalty_weight"] for row in rows[:2]] == [0.0, 0.0]  # warm-up
        for row in rows[2:]:
            asked = 3.0 * min(1.0, (row["step"] - 2) / 4)
            assert row["penalty_weight"] == pytest.approx(asked * row["penalty_grad_scale"])
            assert row["penalty_weight"] / asked * row["penalty_grad_norm"] <= 1.0001 * row["task_grad_norm"]
            assert row["penalty_silent_modules"] == 0 and 0 < row["penalty"] < 0.5
        assert any(row["penalty_grad_scale"] < 1 for row in rows[2:])

    def test_first_step_is_silent_and_says_so(self, tiny_base, tiny_dataset, tmp_path):
        penalty = spectral(start_step=1, ramp_steps=0)
        train(make_config(tiny_base, tiny_dataset, steps=2, penalty=penalty), tmp_path)
        first, second = read_steps(tmp_path)
        assert first["penalty_silent_modules"] == 14 and "penalty" not in first and first["penalty_grad_norm"] == 0
        assert second["penalty_silent_modules"] == 0 and second["penalty_grad_norm"] > 0
        manifest = read_manifest(tmp_path / "checkpoint-2")
        assert manifest.penalty is not None and manifest.penalty["steps_silent"] == 1

    def test_early_gradient_dwarfs_the_tasks_where_nothing_bounds_it(self, tiny_base, tiny_dataset, tmp_path):
        """1/||B||: what start step, ramp and cap are for."""
        optimiser = {"name": "adamw", "lr": 1e-4}
        train(make_config(tiny_base, tiny_dataset, optimiser=optimiser, steps=2, penalty=spectral(**LITERAL)), tmp_path)
        second = read_steps(tmp_path)[1]
        assert second["penalty_grad_norm"] > 5 * second["task_grad_norm"] and second["penalty_grad_scale"] == 1.0

    def test_task_loss_is_what_is_recorded(self, runs):
        """Before the penalty begins two runs are one; its value is in no loss."""
        free, flat = read_steps(runs / "free"), read_steps(runs / "flat")
        for one, two in zip(free[:3], flat[:3], strict=True):
            assert one["loss"] == two["loss"] and one["nll"] == two["nll"]
        for one, two in zip(free, flat, strict=True):
            assert abs(one["loss"] - two["loss"]) < 0.2

    def test_manifest_tells_settings_and_last_figures(self, runs):
        manifest = read_manifest(runs / "flat" / "checkpoint-12")
        last = read_steps(runs / "flat")[-1]
        assert manifest.penalty is not None
        assert manifest.penalty["strength"] == 3.0 and manifest.penalty["start_step"] == 3
        assert manifest.penalty["steps_before_start"] == 2 and manifest.penalty["steps_silent"] == 0
        assert manifest.penalty["last"]["penalty"] == last["penalty"]
        assert manifest.penalty["steps_capped"] == sum(
            row.get("penalty_grad_scale", 1) < 1 for row in read_steps(runs / "flat")
        )
        assert read_manifest(runs / "free" / "checkpoint-12").penalty is None


class TestIdentity:
    def run_id(self, base: Path, dataset: Path, **changes: Any) -> str:
        return prepare(make_config(base, dataset, **changes)).run_id

    def test_penalty_belongs_to_it(self, tiny_base, tiny_dataset):
        ids = [
            self.run_id(tiny_base, tiny_dataset, penalty=penalty)
            for penalty in (None, spectral(), spectral(2.0), spectral(ramp_steps=3), {"name": "entropy"})
        ]
        assert len(set(ids)) == 5

    def test_defaults_written_out_are_the_same_run(self, tiny_base, tiny_dataset):
        written = spectral(start_step=1, ramp_steps=10, max_grad_ratio=1.0, gate=1e-12)
        assert self.run_id(tiny_base, tiny_dataset, penalty=written) == self.run_id(
            tiny_base, tiny_dataset, penalty=spectral()
        )


@pytest.mark.parametrize("penalty", [spectral(0.5), {"name": "kl"}], ids=["spectral", "kl"])
def test_interrupted_run_ends_with_the_same_bytes(tiny_base, tiny_dataset, tmp_path, penalty):
    config = make_config(tiny_base, tiny_dataset, penalty=penalty, micro_batch_size=4)
    train(config, tmp_path / "whole")
    train(config, interrupted(config, tmp_path / "cut", 5))
    one, two = tmp_path / "cut", tmp_path / "whole"
    assert adapter_bytes(one / "checkpoint-6") == adapter_bytes(two / "checkpoint-6")
    assert read_steps(one) == read_steps(two)
    assert comparable_manifest(one / "checkpoint-6") == comparable_manifest(two / "checkpoint-6")


class TestEarlyStopping:
    def config(self, base: Path, dataset: Path, loss: float) -> TrainConfig:
        rule = {"name": "early_stopping", "hyperparameters": {"loss": loss, "window": 2}}
        return make_config(base, dataset, steps=12, warmup_steps=2, penalty=rule, checkpoints=(0, 2, 11, -1))

    def test_run_ends_where_the_loss_comes_down_to_the_target(self, runs, tiny_base, tiny_dataset, tmp_path):
        free = read_steps(runs / "free")
        means = [
            (one["nll"] + two["nll"]) / (one["supervised_tokens"] + two["supervised_tokens"])
            for one, two in zip(free, free[1:], strict=False)
        ]
        target = means[4]
        stop = 2 + next(place for place, mean in enumerate(means) if mean <= target)
        config = self.config(tiny_base, tiny_dataset, target)
        kept = train(config, tmp_path / "run")
        assert [path.name for path in kept] == ["checkpoint-0", "checkpoint-2", f"checkpoint-{stop}"]
        assert read_steps(tmp_path / "run") == free[:stop]
        manifest = read_manifest(kept[-1])
        assert manifest.step == stop and manifest.loss.train_rows is not None
        before = [path.stat().st_mtime_ns for path in kept]
        assert train(config, tmp_path / "run") == kept
        assert [path.stat().st_mtime_ns for path in kept] == before

    def test_last_step_is_kept_also_where_the_planned_one_would_not_be(self, runs, tiny_base, tiny_dataset, tmp_path):
        config = self.config(tiny_base, tiny_dataset, 100.0).model_copy(update={"checkpoints": (0, 5)})
        (*_, kept) = train(config, tmp_path / "run")
        assert kept.name == "checkpoint-2" and read_manifest(kept).loss.train_rows is not None

    def test_interrupted_run_stops_at_the_same_step(self, runs, tiny_base, tiny_dataset, tmp_path):
        """Also where the last state would have been saved at the stopping step itself."""
        free = read_steps(runs / "free")
        target = sum(row["nll"] for row in free[4:6]) / sum(row["supervised_tokens"] for row in free[4:6])
        config = self.config(tiny_base, tiny_dataset, target)
        train(config, tmp_path / "whole")
        stop = len(read_steps(tmp_path / "whole"))
        train(config, interrupted(config, tmp_path / "cut", stop - 1))
        assert read_steps(tmp_path / "cut") == read_steps(tmp_path / "whole")
        assert adapter_bytes(tmp_path / "cut" / f"checkpoint-{stop}") == adapter_bytes(
            tmp_path / "whole" / f"checkpoint-{stop}"
        )

    def test_target_that_is_never_reached_trains_to_the_end(self, runs, tiny_base, tiny_dataset, tmp_path):
        kept = train(self.config(tiny_base, tiny_dataset, 0.01), tmp_path / "run")
        assert [path.name for path in kept][-1] == "checkpoint-12" and len(kept) == 4
        assert adapter_bytes(kept[-1]) == adapter_bytes(runs / "free" / "checkpoint-12")


class TestEqualCost:
    def control(self, base: Path, dataset: Path, **changes: Any) -> TrainConfig:
        decay = {"name": "weight_decay", "strength": 6.0, "hyperparameters": {"max_grad_ratio": None}}
        settings = {"steps": 12, "warmup_steps": 2, "penalty": decay}
        return make_config(base, dataset, **(settings | changes))

    def test_strength_is_found_at_which_the_losses_are_equal(self, tiny_base, tiny_dataset, tmp_path, runs):
        """The reference is the control itself at a strength that the search does not know."""
        known = self.control(tiny_base, tiny_dataset)
        assert known.penalty is not None
        hidden = known.model_copy(update={"penalty": known.penalty.model_copy(update={"strength": 30.0})})
        reference = train(hidden, tmp_path / "reference")[-1]
        target = read_manifest(reference).loss.train
        free = read_manifest(runs / "free" / "checkpoint-12").loss.train
        assert target is not None and free is not None and target > free + 0.1
        found, checkpoint = match_strength(known, reference, tmp_path / "runs", tolerance=0.05)
        assert read_manifest(checkpoint).loss.train == pytest.approx(target, abs=0.05)
        assert found.penalty is not None and 10 < found.penalty.strength < 90
        before = len(list((tmp_path / "runs").iterdir()))
        assert match_strength(known, reference, tmp_path / "runs", tolerance=0.05) == (found, checkpoint)
        assert len(list((tmp_path / "runs").iterdir())) == before > 1

    def test_what_cannot_be_matched_says_so(self, tiny_base, tiny_dataset, tmp_path, runs):
        reference = runs / "flat" / "checkpoint-12"
        with pytest.raises(UserError, match=r"no strength of 'weight_decay' ends at .* in 1 runs; the nearest, 50,"):
            strong = {"name": "weight_decay", "strength": 50.0, "hyperparameters": {"max_grad_ratio": None}}
            match_strength(self.control(tiny_base, tiny_dataset, penalty=strong), reference, tmp_path, 1e-6, runs=1)
        with pytest.raises(UserError, match="steps is 9 here and 12 in"):
            match_strength(self.control(tiny_base, tiny_dataset, steps=9), reference, tmp_path)
        other_rate = {"name": "adamw", "lr": 2e-2}
        with pytest.raises(UserError, match="optimiser is .*0.02.* here and .*0.01.* in"):
            match_strength(self.control(tiny_base, tiny_dataset, optimiser=other_rate), reference, tmp_path)
        with pytest.raises(UserError, match="seed is 1 here and 0 in"):
            match_strength(self.control(tiny_base, tiny_dataset, seed=1), reference, tmp_path)
        with pytest.raises(UserError, match="schedule is cosine here and linear in"):
            match_strength(self.control(tiny_base, tiny_dataset, schedule="cosine"), reference, tmp_path)
        with pytest.raises(UserError, match="has no penalty"):
            match_strength(self.control(tiny_base, tiny_dataset, penalty=None), reference, tmp_path)
        with pytest.raises(UserError, match="the last step is not kept, .*: add -1 to checkpoints"):
            match_strength(self.control(tiny_base, tiny_dataset, checkpoints=(0, 3)), reference, tmp_path)
        flattened = tmp_path / "flattened"
        flatten_adapter(reference, flattened)
        with pytest.raises(UserError, match="no training loss"):
            match_strength(self.control(tiny_base, tiny_dataset), flattened, tmp_path)

    def test_data_and_base_are_compared_by_content(self, tiny_base, tiny_dataset, tmp_path, runs):
        reference = runs / "flat" / "checkpoint-12"
        renamed = Path(shutil.copy(tiny_dataset, tmp_path / "renamed.jsonl"))
        match_strength(self.control(tiny_base, renamed), reference, tmp_path / "same", tolerance=9.0)
        other = tmp_path / tiny_dataset.name
        other.write_text(tiny_dataset.read_text(encoding="utf-8").replace("lamp", "lamb"), encoding="utf-8")
        with pytest.raises(UserError, match="dataset sha256 is .* here and .* in"):
            match_strength(self.control(tiny_base, other), reference, tmp_path)
        base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
        weights = load_file(base / "model.safetensors")
        save_file({name: 2 * value for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match="base weights sha256 is"):
            match_strength(self.control(base, tiny_dataset), reference, tmp_path)

    def test_epochs_decide_the_steps(self, tiny_base, tiny_dataset, tmp_path, runs):
        """36 rows in batches of eight are five steps an epoch."""
        raw = self.control(tiny_base, tiny_dataset).model_dump(exclude={"steps"})
        config = TrainConfig.model_validate(raw | {"epochs": 2.4})
        reference = runs / "flat" / "checkpoint-12"
        found, checkpoint = match_strength(config, reference, tmp_path, tolerance=9.0)
        assert (found.steps, checkpoint.name) == (12, "checkpoint-12")
        with pytest.raises(UserError, match="steps is 10 here and 12 in"):
            match_strength(config.model_copy(update={"epochs": 2.0}), reference, tmp_path)


class TestUnfitTerms:
    @pytest.fixture
    def unfit(self, monkeypatch):
        penalty_registry.names()  # loads them
        monkeypatch.setattr(penalty_registry, "_entries", dict(penalty_registry._entries))

        @penalty("unfit", Scheduled, "a test")
        def unfit(seen: Seen, hyper: Scheduled) -> Term:
            """Fit at first, then NaN; at step 3 the value alone is finite, at step 4 it cannot be computed."""
            total = torch.stack([pair.b.square().sum() for pair in seen.modules]).sum()
            wrong = {2: torch.nan * total, 3: total.abs().sqrt().clamp(min=1.0) + 0 * (total - total).sqrt()}
            if seen.step == 4:
                torch.linalg.cholesky(-torch.eye(2))
            return Term(wrong.get(seen.step, total))

    @pytest.mark.parametrize(
        "start, words",
        [
            (2, "penalty 'unfit' is nan at step 2, with a gradient of norm nan"),
            (3, "penalty 'unfit' is 1 at step 3, with a gradient of norm nan"),
            (4, "penalty 'unfit' failed at step 4 .*cholesky"),
        ],
    )
    def test_stops_the_run_with_name_step_and_value(self, unfit, tiny_base, tiny_dataset, tmp_path, start, words):
        settings = {"name": "unfit", "hyperparameters": {"start_step": start, "ramp_steps": 0}}
        with pytest.raises(UserError, match=words):
            train(make_config(tiny_base, tiny_dataset, penalty=settings), tmp_path / "run")
        assert len(read_steps(tmp_path / "run")) == start - 1

    def test_where_the_loss_is_at_fault_the_loss_is_named(self, tiny_base, tiny_dataset, tmp_path):
        """Weights that blew up make every term NaN too."""
        settings = {"optimiser": {"name": "sgd", "lr": 1e30}, "max_grad_norm": 0}
        with pytest.raises(UserError, match="^loss is nan at step"):
            train(make_config(tiny_base, tiny_dataset, penalty={"name": "kl"}, **settings), tmp_path / "run")


def test_a_gradient_of_its_own_is_refused_where_micro_batches_are_summed(
    tiny_base, tiny_dataset, tmp_path, monkeypatch
):
    penalty_registry.names()  # loads them
    monkeypatch.setattr(penalty_registry, "_entries", dict(penalty_registry._entries))

    @penalty("summed", Scheduled, "a test", depends_on_data=True)
    def summed(seen: Seen, hyper: Scheduled) -> Term:
        trained = [pair.b for pair in seen.modules]
        return Term(trained[0].sum(), {}, OfParameters(trained, [torch.ones_like(b) for b in trained]))

    config = make_config(tiny_base, tiny_dataset, penalty={"name": "summed"})
    with pytest.raises(UserError, match="'summed' depends on data and must leave its gradient to autograd"):
        train(config, tmp_path / "run")


def test_figure_that_would_hide_a_column_is_refused(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    penalty_registry.names()  # loads them
    monkeypatch.setattr(penalty_registry, "_entries", dict(penalty_registry._entries))

    @penalty("hiding", Scheduled, "a test")
    def hiding(seen: Seen, hyper: Scheduled) -> Term:
        return Term(None, {"loss": 0.0})

    config = make_config(tiny_base, tiny_dataset, penalty={"name": "hiding"})
    with pytest.raises(UserError, match="the penalty's figure 'loss' is a column of steps.jsonl already: rename it"):
        train(config, tmp_path / "run")
