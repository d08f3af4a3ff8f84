"""One training run: config in, checkpoint folders out; idempotent, and resumable after a kill."""

import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig

from em_core.errors import UserError
from em_core.files import sha256_json, sweep_drafts, write_json
from em_core.manifest import MANIFEST, SCHEMA_VERSION, read_manifest
from em_core.models import BaseModelInfo, changes_logits, quiet_transformers, resolve_base
from em_train.chat import Encoded, encode, show
from em_train.checkpoint import dataset_reference, summarise_steps, write_checkpoint
from em_train.config import TrainConfig
from em_train.datasets import NarrowDataset, load_dataset, split
from em_train.optimisers import build, optimiser_registry, resolve
from em_train.penalties import AppliedPenalty
from em_train.penalties import resolve as resolve_penalty
from em_train.penalties.application import StopByRule, summary
from em_train.trainer import EMTrainer, Recorder, lora_pairs, supervised_nll

RUN_FILE = "run.json"
STEPS_FILE = "steps.jsonl"
STATE_EVERY = 12  # optimiser steps between resumable states


@dataclass(frozen=True)
class Prepared:
    """A config with everything it names resolved, and the identity that follows from the contents."""

    config: TrainConfig
    run_id: str
    base: BaseModelInfo
    dataset: NarrowDataset
    tokenizer: Any
    train: list[Encoded]
    held_out: list[Encoded]
    hyperparameters: dict[str, Any]
    dtype: torch.dtype
    first_example: str
    penalty: dict[str, Any] | None  # resolved


def prepare(config: TrainConfig) -> Prepared:
    """Resolve and check everything before any training.

    Raises:
        UserError: unknown optimiser, hyper-parameter, dataset or base; a row that is too long.
    """
    hyperparameters = resolve(config.optimiser.name, config.optimiser.hyperparameters)
    penalty = resolve_penalty(config)
    micro = config.micro_batch_size or config.batch_size
    if config.batch_size % micro:
        raise UserError(f"batch_size {config.batch_size} is not a multiple of micro_batch_size {micro}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training in several processes is not supported yet: start one process")
    dataset = load_dataset(config.dataset)
    base = resolve_base(config.base_model, config.base_revision)
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    train_rows, held_out_rows = split(dataset, config.held_out_fraction)
    train = [_encode(row, tokenizer, config.max_length) for row in train_rows]
    held_out = [_encode(row, tokenizer, config.max_length) for row in held_out_rows]
    dtype = resolve_dtype(config.dtype)
    identity = {
        "schema": SCHEMA_VERSION,
        "base": base.weights_sha256,
        "template": tokenizer.chat_template,
        "dataset": dataset.sha256,
        "optimiser": [config.optimiser.name, config.optimiser.lr, hyperparameters],
        "dtype": str(dtype),
        "config": config.model_dump(
            mode="json",
            exclude={
                "base_model",
                "base_revision",
                "dataset",
                "optimiser",
                "penalty",
                "dtype",
                "micro_batch_size",
                "checkpoints",
            },
        ),
        "checkpoints": config.kept_steps(),
    } | ({"penalty": penalty} if penalty else {})
    return Prepared(
        config,
        sha256_json(identity)[:12],
        base,
        dataset,
        tokenizer,
        train,
        held_out,
        hyperparameters,
        dtype,
        show(train[0], tokenizer),
        penalty,
    )


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype of the frozen base. `auto` is bfloat16 where the hardware multiplies it, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.cpu.get_capabilities()
    return torch.bfloat16 if fast.get("avx512_bf16") or fast.get("amx_bf16") else torch.float32


def train(config: TrainConfig, folder: Path) -> list[Path]:
    """Train into `folder`; returns the kept checkpoint folders in order of steps.

    A finished run is left alone, an interrupted one goes on from its last resumable state, and a folder that
    belongs to another configuration is refused.
    """
    prepared = prepare(config)
    if finished(folder, prepared.run_id):
        kept = checkpoints(folder)
        if all(_is_ours(path, prepared) for path in kept):
            return kept
    _claim(folder, prepared)
    set_seed(config.seed)
    model = _model(prepared)
    recorder = Recorder(folder / STEPS_FILE, lora_pairs(model, config.lora.scaling), config.lora.scaling)
    trainer = _trainer(prepared, model, folder, recorder)
    state = _last_state(folder)
    recorder.resume(int(state.name.split("-")[-1]) if state else 0)
    if 0 in config.kept_steps() and not _is_ours(folder / "checkpoint-0", prepared):
        _keep(prepared, model, recorder, folder, 0)
    try:
        with quiet_transformers():
            trainer.train(resume_from_checkpoint=str(state) if state else None)
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write under {folder} ({error}): free some space; the next call resumes") from error
    if config.steps in config.kept_steps():
        _keep(prepared, model, recorder, folder, trainer.state.global_step)  # a stopping rule may have ended it
    _write_run_file(folder, prepared, "done")
    shutil.rmtree(folder / "state", ignore_errors=True)
    return checkpoints(folder)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders that run.json lists, in order of steps: fewer than asked for where a run ended early."""
    run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    return [folder / f"checkpoint-{step}" for step in run["checkpoints"]]


def finished(folder: Path, run_id: str) -> bool:
    """Whether `folder` holds this run, complete."""
    path = folder / RUN_FILE
    if not path.is_file():
        return False
    run = json.loads(path.read_text(encoding="utf-8"))
    return bool(run["state"] == "done" and run["run_id"] == run_id)


def held_out_loss(prepared: Prepared, model: Any) -> float:
    """Token-weighted task loss on the held-out rows, nats a token."""
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    rows = prepared.held_out
    with torch.no_grad(), _autocast(prepared):
        for start in range(0, len(rows), prepared.config.batch_size):
            batch = collate(rows[start : start + prepared.config.batch_size], prepared.tokenizer.pad_token_id)
            nll, count = supervised_nll(model, {key: value.to(model.device) for key, value in batch.items()})
            total, tokens = total + float(nll), tokens + count
    model.train(training)
    return total / tokens


def collate(rows: list[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded batch of shape (N, T)."""
    length = max(len(row.input_ids) for row in rows)
    return {
        "input_ids": torch.tensor([row.input_ids + [pad] * (length - len(row.input_ids)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row.input_ids) + [0] * (length - len(row.input_ids)) for row in rows]
        ),
        "labels": torch.tensor([row.labels + [-100] * (length - len(row.labels)) for row in rows]),
    }


def _encode(row: Any, tokenizer: Any, max_length: int) -> Encoded:
    try:
        encoded = encode(row.messages, tokenizer)
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from error
    if len(encoded.input_ids) > max_length:
        raise UserError(
            f"{row.where}: {len(encoded.input_ids)} tokens, more than max_length={max_length}: raise it or cut the row"
        )
    return encoded


def _model(prepared: Prepared) -> Any:
    lora = prepared.config.lora
    with quiet_transformers():
        _refuse_scaled_logits(AutoConfig.from_pretrained(prepared.base.path), prepared.base.id)
        # On CPU eager attention is a fifth faster a step than SDPA, whose backward is slow there (docs/benchmarks.md).
        model = AutoModelForCausalLM.from_pretrained(
            prepared.base.path,
            dtype=prepared.dtype,
            attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
        )
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise UserError(f"cannot place LoRA on {prepared.base.id}: {error}") from error


def _refuse_scaled_logits(config: Any, base: str) -> None:
    """Our loss applies the language-model head itself, so a model that changes logits after it would be misread."""
    if (name := changes_logits(config)) is not None:
        raise UserError(f"{base} sets {name}, which the loss does not apply yet: choose another base")


def _trainer(prepared: Prepared, model: Any, folder: Path, recorder: Recorder) -> EMTrainer:
    config = prepared.config
    micro = config.micro_batch_size or config.batch_size
    name, lr = config.optimiser.name, config.optimiser.lr
    optimiser_registry.get(name)

    def factory() -> Any:
        return lambda model, **hyper: build(
            name, [(n, p) for n, p in model.named_parameters() if p.requires_grad], lr, hyper
        )

    penalty = AppliedPenalty(prepared.penalty, recorder.pairs) if prepared.penalty else None
    arguments = SFTConfig(
        output_dir=str(folder / "state"),
        max_steps=config.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // micro,
        learning_rate=lr,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        max_length=None,
        bf16=prepared.dtype == torch.bfloat16,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        data_seed=config.data_seed,
        save_strategy="steps",
        save_steps=STATE_EVERY,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    rows = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in prepared.train])
    with quiet_transformers():
        trainer = EMTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=prepared.tokenizer,
            optimizer_cls_and_kwargs=(factory, prepared.hyperparameters),
            recorder=recorder,
            penalty=penalty,
        )
    if penalty is not None:
        trainer.add_callback(StopByRule(penalty, lambda: recorder.rows))
    trainer.remove_callback(PrinterCallback)  # our own line of progress says more
    trainer.add_callback(_Progress(recorder, config.steps))
    trainer.add_callback(_Keeper(prepared, recorder, folder))
    return trainer


class _Keeper(TrainerCallback):  # type: ignore[misc]
    """Writes the kept checkpoints between the first and the last."""

    def __init__(self, prepared: Prepared, recorder: Recorder, folder: Path) -> None:
        self.prepared, self.recorder, self.folder = prepared, recorder, folder
        self.steps = set(prepared.config.kept_steps()) - {0, prepared.config.steps}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            _keep(self.prepared, model, self.recorder, self.folder, state.global_step)


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A line that is rewritten on a terminal, and one in ten steps elsewhere."""

    def __init__(self, recorder: Recorder, steps: int) -> None:
        self.recorder, self.steps = recorder, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = self.recorder.rows[-1]
        if not torch.isfinite(torch.tensor(row["loss"])):
            raise UserError(
                f"loss is {row['loss']} at step {state.global_step} with learning rate {row['lr']:g}: "
                "lower the rate; the last good checkpoint is kept"
            )
        terminal = sys.stderr.isatty()
        if terminal or state.global_step % 10 == 0 or state.global_step == self.steps:
            left = (self.steps - state.global_step) * row["seconds"]
            text = f"  step {state.global_step}/{self.steps}  loss {row['loss']:.3f}  {left:.0f} s left"
            end = "\r" if terminal and state.global_step < self.steps else "\n"
            print(f"{text:<60}", end=end, file=sys.stderr, flush=True)


def _keep(prepared: Prepared, model: Any, recorder: Recorder, folder: Path, step: int) -> None:
    rows = [row for row in recorder.rows if row["step"] <= step]
    held_out = held_out_loss(prepared, model)
    if not math.isfinite(held_out):
        raise UserError(
            f"held-out loss is {held_out} after step {step} with learning rate {prepared.config.optimiser.lr:g}: "
            "lower the rate; earlier checkpoints are kept"
        )
    facts = {
        "run_id": prepared.run_id,
        "step": step,
        "config": prepared.config.model_dump(mode="json"),
        "optimiser": {
            "name": prepared.config.optimiser.name,
            "lr": prepared.config.optimiser.lr,
            "source": optimiser_registry.get(prepared.config.optimiser.name).source,
            **prepared.hyperparameters,
        },
        "penalty": summary(prepared.penalty, rows),
        "dataset": dataset_reference(prepared.dataset, len(prepared.train), len(prepared.held_out)),
        "lora": {**prepared.config.lora.model_dump(mode="json"), "scaling": prepared.config.lora.scaling},
        "first_example": prepared.first_example,
        **summarise_steps(rows, prepared.config, held_out),
    }
    write_checkpoint(folder / f"checkpoint-{step}", model, prepared.tokenizer, prepared.base, facts)
    _write_run_file(folder, prepared, "running")


def _claim(folder: Path, prepared: Prepared) -> None:
    path = folder / RUN_FILE
    if path.is_file():
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["run_id"] != prepared.run_id:
            raise UserError(
                f"{folder} belongs to run {run['run_id']}, this configuration is run {prepared.run_id}: "
                "choose another folder or delete it"
            )
    elif (folder / "state").exists():
        shutil.rmtree(folder / "state")  # of a run whose identity is unknown
    folder.mkdir(parents=True, exist_ok=True)
    sweep_drafts(folder)
    _write_run_file(folder, prepared, "running")


def _is_ours(checkpoint: Path, prepared: Prepared) -> bool:
    """Whether a complete checkpoint of this very run lies there."""
    return (checkpoint / MANIFEST).is_file() and read_manifest(checkpoint).run_id == prepared.run_id


def _write_run_file(folder: Path, prepared: Prepared, state: str) -> None:
    written = [path for path in folder.glob("checkpoint-*") if _is_ours(path, prepared)]
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in written)
    config = prepared.config.model_dump(mode="json")
    write_json(
        folder / RUN_FILE,
        {"run_id": prepared.run_id, "state": state, "checkpoints": steps, "config": config},
    )


def _last_state(folder: Path) -> Path | None:
    """The newest resumable state that was written whole (the trainer's own state comes last)."""
    states = [path for path in (folder / "state").glob("checkpoint-*") if _is_whole(path / "trainer_state.json")]
    return max(states, key=lambda path: int(path.name.split("-")[-1]), default=None)


def _is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _autocast(prepared: Prepared) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=prepared.dtype == torch.bfloat16)
