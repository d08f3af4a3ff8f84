"""Mixtures of experts: their balancing term stays out of the task loss, and stacked experts are refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import em_train.run as run_module
from em_core.errors import UserError
from em_core.models import quiet_transformers
from em_train import TrainConfig, prepare, train
from em_train.trainer import EMTrainer
from tests.em_train.runs import make_config, nll_by_hand, read_steps

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def moe_base(tmp_path_factory, tiny_tokenizer) -> Path:
    """Two layers of four experts, two of which see each token; a balancing term that would show in any loss."""
    folder = tmp_path_factory.mktemp("moe_base")
    config = Qwen3MoeConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.1,
        router_aux_loss_coef=0.5,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def moe_config(base: Path, dataset: Path, targets: list[str]) -> TrainConfig:
    """All 36 training rows in each of two steps."""
    lora = {"rank": 4, "alpha": 8, "target_modules": targets}
    return make_config(base, dataset, lora=lora, batch_size=36, steps=2)


@pytest.mark.parametrize("fused_head", [False, True])
def test_recorded_loss_is_the_task_loss_alone(moe_base, tiny_dataset, tmp_path, monkeypatch, fused_head):
    """At the first step that of the base model. TRL would add the router's term of its own accord."""
    made: list[EMTrainer] = []

    class Kept(EMTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.fused_head = fused_head
            made.append(self)

    monkeypatch.setattr(run_module, "EMTrainer", Kept)
    config = moe_config(moe_base, tiny_dataset, ATTENTION)
    train(config, tmp_path / "run")
    assert not made[0].aux_loss_enabled
    with quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(moe_base, dtype=torch.float32)
    nll, tokens = nll_by_hand(base, prepare(config).train)
    assert read_steps(tmp_path / "run")[0]["loss"] == pytest.approx(nll / tokens, rel=1e-5)


@pytest.mark.parametrize(
    "targets, stacked, left",
    [
        ([*ATTENTION, "gate_proj", "up_proj", "down_proj"], "gate_proj, up_proj, down_proj", ", ".join(ATTENTION)),
        (["q_proj", "down_proj"], "down_proj", "q_proj"),
    ],
)
def test_stacked_experts_are_refused_by_name(moe_base, tiny_dataset, tmp_path, targets, stacked, left):
    with pytest.raises(UserError, match="stacks its experts in one parameter") as caught:
        train(moe_config(moe_base, tiny_dataset, targets), tmp_path / "run")
    assert f"so that {stacked} are no layers" in str(caught.value)
    assert f"set lora.target_modules=[{left}]" in str(caught.value)


def test_parameters_that_peft_adapts_in_place_of_a_name_are_refused(moe_base, tiny_dataset, tmp_path):
    """PEFT knows the router's old name too."""
    with pytest.raises(UserError, match="a parameter and no layer"):
        train(moe_config(moe_base, tiny_dataset, ["q_proj", "gate"]), tmp_path / "run")
