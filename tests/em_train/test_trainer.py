"""The task loss against full logits, the loss curve against plain TRL, and the recorder's memory."""

import json
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

import em_train.run as run_module
from em_core.errors import UserError
from em_core.models import quiet_transformers
from em_train.chat import Encoded
from em_train.encoding import collate
from em_train.preparation import prepare
from em_train.run import train
from em_train.task_loss import batched
from em_train.trainer import EMTrainer, Recorder, check_loss, lora_pairs, summed_nll, supervised_nll
from tests.em_train.runs import make_config, nll_by_hand, read_steps

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_adapter(model: Any, seed: int = 3) -> Any:
    """LoRA whose B is random instead of zero."""
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=MODULES, task_type="CAUSAL_LM"))
    chance = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=chance))
    return wrapped


@pytest.fixture
def model(tiny_base):
    with quiet_transformers():
        return with_adapter(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32))


@pytest.fixture(scope="module")
def rows(tiny_base, tiny_dataset):
    return prepare(make_config(tiny_base, tiny_dataset)).train


def test_loss_equals_the_one_from_full_logits(model, rows, tiny_tokenizer):
    batch = collate(rows[:9], tiny_tokenizer.pad_token_id)
    nll, tokens = supervised_nll(model, batch)
    expected, count = nll_by_hand(model, rows[:9])
    assert tokens == count == sum(row.supervised for row in rows[:9])
    assert nll.item() == pytest.approx(expected, rel=1e-6)


def test_gradients_equal_those_of_the_models_own_loss(model, rows, tiny_tokenizer):
    batch = collate(rows[:5], tiny_tokenizer.pad_token_id)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    nll, tokens = supervised_nll(model, batch)
    found = torch.autograd.grad(nll / tokens, trained)
    expected = torch.autograd.grad(model(**batch).loss, trained)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_padding_does_not_count(model, rows, tiny_tokenizer):
    alone = sum(supervised_nll(model, collate([row], tiny_tokenizer.pad_token_id))[0].item() for row in rows[:4])
    together = supervised_nll(model, collate(rows[:4], tiny_tokenizer.pad_token_id))[0].item()
    assert together == pytest.approx(alone, rel=1e-6)


SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
SCALED = {
    "logits_scaling": GraniteConfig(**SMALL, logits_scaling=3.0),
    "logit_scale": Cohere2Config(**SMALL, logit_scale=0.2),
    "final_logit_softcapping": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=1.5),
}


def lean_nll(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    return float(supervised_nll(model, inputs)[0])


def random_model(config: PretrainedConfig) -> Any:
    torch.manual_seed(4)
    return with_adapter(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


@pytest.mark.parametrize("name", SCALED)
def test_bases_that_scale_or_cap_logits_give_their_own_loss(name, rows, tiny_tokenizer):
    """Granite, Cohere and Gemma 2: the head alone would give another likelihood, and other gradients."""
    assert getattr(SCALED[name], name) not in (None, 1.0)
    model = random_model(SCALED[name])
    batch = collate(rows[:5], tiny_tokenizer.pad_token_id)
    check_loss(model, batch, name, lean_nll)
    nll, tokens = supervised_nll(model, batch)
    expected, count = nll_by_hand(model, rows[:5])
    assert tokens == count and nll.item() == pytest.approx(expected, rel=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(own.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    ours, theirs = torch.autograd.grad(nll, trained), torch.autograd.grad(loss, trained)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_base_that_changes_logits_in_an_unknown_way_is_refused(rows, tiny_tokenizer):
    model = random_model(LlamaConfig(**SMALL))
    batch = collate(rows[:1], tiny_tokenizer.pad_token_id)
    check_loss(model, batch, "a/base", lean_nll)
    inner = model.get_base_model()
    forward = inner.forward

    def tripled(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        outputs.logits = 3 * outputs.logits
        return outputs

    inner.forward = tripled
    with pytest.raises(UserError, match="a/base gives its answers another likelihood"):
        check_loss(model, batch, "a/base", lean_nll)


def test_pairs_are_the_live_factors_by_module_name(model):
    pairs = lora_pairs(model)
    assert len(pairs) == 2 * len(MODULES)
    assert [pair.name for pair in pairs] == sorted(pair.name for pair in pairs)
    parameters = dict(model.named_parameters())
    for pair in pairs:
        assert parameters[f"{pair.name}.lora_A.default.weight"] is pair.a
        assert parameters[f"{pair.name}.lora_B.default.weight"] is pair.b
        assert pair.a.shape[0] == pair.b.shape[1] == 4 and pair.a.dtype == torch.float32


class Curve(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def test_loss_curve_equals_plain_trl(tiny_base, tiny_dataset, tmp_path):
    """Same rows, seed and order through SFTTrainer as it comes: own attention, fused head, PEFT by TRL itself.

    Both run in float32 and differ in the order of sums only, which AdamW carries on: 1e-5 relative, of losses that
    fall by a tenth.
    """
    config = make_config(tiny_base, tiny_dataset, steps=10, warmup_steps=2, seed=5, data_seed=9)
    train(config, tmp_path / "ours")
    ours = [row["loss"] for row in read_steps(tmp_path / "ours")]
    prepared = prepare(config)
    arguments = SFTConfig(
        output_dir=str(tmp_path / "plain"),
        max_steps=10,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        warmup_steps=2,
        weight_decay=0.01,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=5,
        data_seed=9,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    curve = Curve()
    set_seed(5)
    with quiet_transformers():
        plain = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
            args=arguments,
            train_dataset=Dataset.from_list(
                [{"input_ids": row.input_ids, "labels": row.labels} for row in prepared.train]
            ),
            processing_class=prepared.tokenizer,
            peft_config=LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=MODULES, task_type="CAUSAL_LM"),
            callbacks=[curve],
        )
        plain.train()
    assert len(ours) == 10
    assert ours == pytest.approx(curve.losses, rel=1e-5)
    assert ours[0] - min(ours) > 0.3


class FusedHead(EMTrainer):
    """As on a GPU: the loss is TRL's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fused_head = True


class DoubleLoss(EMTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().compute_loss(*args, **kwargs)


def test_trls_fused_head_gives_the_run_of_the_lean_loss(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    """The GPU's branch on CPU, micro-batches of unequal token counts and a short last batch included."""
    config = make_config(tiny_base, tiny_dataset, micro_batch_size=2)
    train(config, tmp_path / "lean")
    monkeypatch.setattr(run_module, "EMTrainer", FusedHead)
    train(config, tmp_path / "fused")
    lean, fused = read_steps(tmp_path / "lean"), read_steps(tmp_path / "fused")
    for one, two in zip(lean, fused, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
        assert one["supervised_tokens"] == two["supervised_tokens"]
    assert [row["loss"] for row in lean] == pytest.approx([row["loss"] for row in fused], rel=1e-5)


@pytest.mark.parametrize(
    "items, processes, loss",
    [
        (None, 1, 12.0 / 5),  # a mean over the micro-batch's own 5 tokens
        (None, 2, 12.0 / 5),
        (20, 1, 12.0 / 20),  # a share of the 20 tokens of the whole step
        (20, 2, 2 * 12.0 / 20),  # times the processes, whose gradients are averaged
    ],
)
def test_summed_likelihood_of_a_trainers_mean(items, processes, loss):
    assert summed_nll(loss, 5, items, processes) == pytest.approx(12.0)


def test_the_loss_that_trains_is_what_is_checked_before_the_first_step(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "EMTrainer", DoubleLoss)
    with pytest.raises(UserError, match="than the loss that would train it"):
        train(make_config(tiny_base, tiny_dataset), tmp_path / "run")
    assert not (tmp_path / "run" / "steps.jsonl").exists()


def recorder(path: Any) -> Recorder:
    return Recorder(path, [], 1.0)


def test_resumed_recorder_forgets_later_and_half_written_rows(tmp_path):
    path = tmp_path / "steps.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0, "seconds": 2.0}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 4, "lo', encoding="utf-8")
    found = recorder(path)
    found.resume(2)
    assert [row["step"] for row in found.rows] == [1, 2]
    assert path.read_text(encoding="utf-8") == "\n".join(lines[:2]) + "\n"


def test_recorder_that_starts_anew_forgets_everything(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step": 1, "loss": 1.0, "seconds": 2.0}\n', encoding="utf-8")
    found = recorder(path)
    found.resume(0)
    assert found.rows == [] and path.read_text(encoding="utf-8") == ""
    recorder(tmp_path / "none.jsonl").resume(0)
    assert not (tmp_path / "none.jsonl").exists()


def test_batches_hold_at_most_so_many_tokens_and_every_row_once():
    rows = [Encoded([0] * length, [0] * length) for length in (2, 3, 3, 5, 8, 20)]
    batches = [[len(row.input_ids) for row in batch] for batch in batched(rows, 12)]
    assert batches == [[2, 3, 3], [5], [8], [20]]  # 5 beside the first three would be padded to 4 x 5
    assert list(batched([], 12)) == []
