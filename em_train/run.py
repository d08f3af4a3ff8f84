"""One training run: config in, checkpoint folders out; idempotent, and resumable after a kill."""

import json
import math
import shutil
import sys
import warnings
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig

from em_core.allocation import reuse_freed_memory
from em_core.chat import load_tokenizer
from em_core.errors import UserError
from em_core.files import sha256_json, sweep_drafts, write_json
from em_core.manifest import MANIFEST, SCHEMA_VERSION, read_manifest
from em_core.models import BaseModelInfo, architecture, native_dtype, quiet_transformers, resolve_base
from em_train import processes
from em_train.chat import IGNORED, Encoded, encode, show
from em_train.checkpoint import dataset_reference, summarise_steps, write_checkpoint
from em_train.config import NOT_IDENTITY, TrainConfig
from em_train.datasets import NarrowDataset, load_dataset, split
from em_train.datasets.rows import Row
from em_train.optimisers import build, find, published, resolve
from em_train.penalties import AppliedPenalty
from em_train.penalties import resolve as resolve_penalty
from em_train.penalties.application import StopByRule, summary
from em_train.trainer import EMTrainer, Recorder, check_loss, lora_pairs, recorded_steps, supervised_nll

RUN_FILE = "run.json"
STEPS_FILE = "steps.jsonl"
WITH_WARMUP = {"constant": "constant_with_warmup"}  # transformers' own "constant" ignores the warm-up
STATE_EVERY = 12  # optimiser steps between resumable states


@dataclass(frozen=True)
class Resolved:
    """A config with everything it names found, and the identity that follows from the contents."""

    config: TrainConfig
    run_id: str
    base: BaseModelInfo
    dataset: NarrowDataset
    tokenizer: Any
    train_rows: list[Row]
    held_out_rows: list[Row]
    hyperparameters: dict[str, Any]
    schedule: str
    dtype: torch.dtype
    penalty: dict[str, Any] | None  # resolved


@dataclass(frozen=True)
class Prepared(Resolved):
    """The same with its rows encoded: all that training needs."""

    train: list[Encoded]
    held_out: list[Encoded]
    first_example: str


def resolve_run(config: TrainConfig) -> Resolved:
    """Find what the config names, and the run's identity; no row is encoded and nothing is written.

    Raises:
        UserError: unknown optimiser, hyper-parameter, dataset or base, or settings that contradict each other.
    """
    hyperparameters = resolve(config.optimiser.name, config.optimiser.hyperparameters)
    schedule = resolve_schedule(config)
    dataset = load_dataset(config.dataset)
    train_rows, held_out_rows = split(dataset, config.held_out_fraction)
    optimiser = config.optimiser.model_copy(update={"hyperparameters": hyperparameters})
    config = config.for_rows(len(train_rows)).model_copy(update={"optimiser": optimiser})
    penalty = resolve_penalty(config)
    micro_batch_size(config)
    _check_trackers(config)
    base = resolve_base(config.base_model, config.base_revision)
    tokenizer, vocabulary = _tokenizer(base)
    dtype = resolve_dtype(config.dtype)
    identity = {
        "schema": SCHEMA_VERSION,
        "base": base.weights_sha256,
        "architecture": architecture(base.path),
        "template": tokenizer.chat_template,
        "vocabulary": vocabulary,
        "dataset": _content(dataset.rows),
        "optimiser": [config.optimiser.name, config.optimiser.lr, hyperparameters, schedule],
        "dtype": str(dtype),
        "config": config.model_dump(mode="json", exclude=NOT_IDENTITY),
        "checkpoints": config.kept_steps(),
    } | ({"penalty": penalty} if penalty else {})
    run_id = sha256_json(identity)[:12]
    return Resolved(
        config,
        run_id,
        base,
        dataset,
        tokenizer,
        train_rows,
        held_out_rows,
        hyperparameters,
        schedule,
        dtype,
        penalty,
    )


def prepare(config: TrainConfig) -> Prepared:
    """Resolve and check everything before any training.

    Raises:
        UserError: what `resolve_run` finds, or a row that cannot be trained on or is too long.
    """
    found = resolve_run(config)
    train, held_out = (
        _encode_rows(_Rows(_content(rows), config.max_length, found.tokenizer, rows))
        for rows in (found.train_rows, found.held_out_rows)
    )
    return Prepared(**vars(found), train=train, held_out=held_out, first_example=show(train[0], found.tokenizer))


def micro_batch_size(config: TrainConfig) -> int:
    """Rows a forward pass of one process.

    Raises:
        UserError: the batch cannot be shared out evenly.
    """
    world = processes.world_size()
    micro = config.micro_batch_size or max(1, config.batch_size // world)
    if config.batch_size % (micro * world):
        spread = f" in {world} processes" if world > 1 else ""
        raise UserError(f"batch_size {config.batch_size} is not a multiple of micro_batch_size {micro}{spread}")
    return micro


def resolve_schedule(config: TrainConfig) -> str:
    """The learning-rate schedule: the config's, else the one that the optimiser declares, else linear.

    Raises:
        UserError: the config asks for another than the only one that the optimiser is meant for.
    """
    name, declared = config.optimiser.name, find(config.optimiser.name).schedule
    if declared is not None and config.schedule not in (None, declared):
        raise UserError(f"optimiser '{name}' needs schedule {declared}, not {config.schedule}: set schedule={declared}")
    return config.schedule or declared or "linear"


def resolve_dtype(name: str) -> torch.dtype:
    """The dtype of the frozen base. `auto` is bfloat16 where the hardware multiplies it, else float32."""
    chosen: torch.dtype = native_dtype() if name == "auto" else getattr(torch, name)
    return chosen


def train(config: TrainConfig, folder: Path) -> list[Path]:
    """Train into `folder`; returns the kept checkpoint folders in order of steps.

    A finished run is left alone, an interrupted one goes on from its last resumable state, and a folder that
    belongs to another configuration is refused. Started in several processes, each calls this alike; the first
    one writes.
    """
    processes.start()
    prepared = prepare(config)
    config = prepared.config
    done = finished(folder, prepared.run_id) and all(_is_ours(path, prepared) for path in checkpoints(folder))
    processes.wait()  # all have looked before one writes
    if done:
        return checkpoints(folder)
    if processes.is_main():
        _claim(folder, prepared)
    processes.wait()
    set_seed(config.seed)
    reuse_freed_memory()
    model = _model(prepared)
    recorder = Recorder(folder / STEPS_FILE, lora_pairs(model, config.lora.scaling), config.lora.scaling)
    trainer = _trainer(prepared, model, folder, recorder)
    check_loss(model, _to(collate(prepared.train[:1], prepared.tokenizer.pad_token_id), model), prepared.base.id)
    state = _last_state(folder)
    recorder.resume(int(state.name.split("-")[-1]) if state else 0)
    if 0 in config.kept_steps() and not _is_ours(folder / "checkpoint-0", prepared):
        _keep(prepared, trainer, folder, 0)
    try:
        with quiet_transformers():
            trainer.train(resume_from_checkpoint=str(state) if state else None)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save's words for it
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"could not write under {folder} ({reason}): free some space; the next call resumes") from error
    ended_early = trainer.state.global_step < config.steps  # by a stopping rule
    if ended_early or config.steps in config.kept_steps():
        _keep(prepared, trainer, folder, trainer.state.global_step, last=True)
    if processes.is_main():
        _write_run_file(folder, prepared, "done")
        shutil.rmtree(folder / "state", ignore_errors=True)
    processes.wait()
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
    return task_loss(prepared, model, prepared.held_out)


def task_loss(prepared: Prepared, model: Any, rows: list[Encoded]) -> float:
    """Token-weighted task loss on `rows` without dropout or gradients, nats a token; the processes share the rows."""
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    mine = sorted(rows, key=lambda row: len(row.input_ids))[processes.rank() :: processes.world_size()]
    size = micro_batch_size(prepared.config)
    with torch.no_grad(), _autocast(prepared):
        for start in range(0, len(mine), size):
            batch = collate(mine[start : start + size], prepared.tokenizer.pad_token_id)
            nll, count = supervised_nll(model, _to(batch, model))
            total, tokens = total + float(nll), tokens + count
    model.train(training)
    summed, supervised = processes.total([total, float(tokens)], model.device)
    return summed / supervised


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


@dataclass(frozen=True)
class _Rows:
    """What an encoding follows from: equal where content, tokenizer and limit are."""

    content: str
    max_length: int
    tokenizer: Any
    rows: list[Row] = field(compare=False)


@lru_cache(maxsize=8)  # the cells of a study share a few datasets
def _encode_rows(rows: _Rows) -> list[Encoded]:
    return [_encode(row, rows.tokenizer, rows.max_length) for row in rows.rows]


def _content(rows: list[Row]) -> str:
    return sha256_json([row.messages for row in rows])


def _tokenizer(base: BaseModelInfo) -> tuple[Any, str]:
    """(tokenizer, hash of its vocabulary), loaded once a process as long as its files stay as they are."""
    files = [*base.path.glob("*token*"), *base.path.glob("*.jinja"), *base.path.glob("vocab*")]
    return _load_tokenizer(base.path, tuple(sorted((file.name, file.stat().st_mtime_ns) for file in files)))


@lru_cache(maxsize=4)
def _load_tokenizer(path: Path, stamps: tuple[tuple[str, int], ...]) -> tuple[Any, str]:
    tokenizer = load_tokenizer(str(path))
    return tokenizer, sha256_json(tokenizer.get_vocab())


def _to(batch: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    return {key: value.to(model.device) for key, value in batch.items()}


def _check_trackers(config: TrainConfig) -> None:
    if not config.report_to:
        return
    from transformers.integrations import get_available_reporting_integrations

    here = get_available_reporting_integrations()
    missing = [name for name in config.report_to if name not in here]
    if missing:
        raise UserError(f"report_to: '{missing[0]}' is not installed; at hand: {', '.join(here) or 'none'}")


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
        adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise UserError(f"cannot place LoRA on {prepared.base.id}: {error}") from error
    if lora.dtype == "bfloat16":
        _round_adapter(adapted)
    return adapted


def _round_adapter(model: Any) -> None:
    """PEFT keeps the factors in float32 on a bfloat16 base; here they were asked for in bfloat16."""
    if processes.is_main():
        warnings.warn(
            "the adapter is in bfloat16, which has 8 bits of precision: a step smaller than about 1/256 of a weight is "
            "lost (of A's entries 75 % do not move at all at a learning rate of 1e-5); leave lora.dtype at float32",
            stacklevel=2,
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def _trainer(prepared: Prepared, model: Any, folder: Path, recorder: Recorder) -> EMTrainer:
    config = prepared.config
    micro = micro_batch_size(config)
    world = processes.world_size()
    name, lr = config.optimiser.name, config.optimiser.lr

    def factory() -> Any:
        return lambda model, **hyper: build(
            name, [(n, p) for n, p in model.named_parameters() if p.requires_grad], lr, hyper
        )

    penalty = AppliedPenalty(prepared.penalty, recorder.pairs) if prepared.penalty else None
    arguments = SFTConfig(
        output_dir=str(folder / "state"),
        max_steps=config.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * world),
        learning_rate=lr,
        lr_scheduler_type=WITH_WARMUP.get(prepared.schedule, prepared.schedule),
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        max_length=None,
        bf16=prepared.dtype == torch.bfloat16,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        data_seed=config.data_seed,
        save_strategy="steps",
        save_steps=STATE_EVERY,
        save_total_limit=1 if world == 1 else 2,  # one process may be done writing before another
        logging_strategy="steps" if config.report_to else "no",
        logging_steps=1,
        report_to=list(config.report_to) or "none",
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in prepared.train]
    if world > 1:
        rows.append({"input_ids": prepared.train[0].input_ids[:2], "labels": [IGNORED] * 2})  # see SharedOrder
    with quiet_transformers():
        trainer = EMTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=prepared.tokenizer,
            optimizer_cls_and_kwargs=(factory, prepared.hyperparameters),
            recorder=recorder,
            penalty=penalty,
        )
    if penalty is not None:
        trainer.add_callback(StopByRule(penalty, lambda: recorder.rows))
    trainer.remove_callback(PrinterCallback)  # our own line of progress says more
    trainer.add_callback(_Progress(prepared, recorder, folder))
    trainer.add_callback(_Keeper(prepared, trainer, folder))
    return trainer


class _Keeper(TrainerCallback):  # type: ignore[misc]
    """Writes the kept checkpoints between the first and the last, and no state after the last step.

    Resumed from such a state, the trainer would take another step before it notices that it is done.
    """

    def __init__(self, prepared: Prepared, trainer: EMTrainer, folder: Path) -> None:
        self.prepared, self.trainer, self.folder = prepared, trainer, folder
        self.steps = set(prepared.config.kept_steps()) - {0, prepared.config.steps}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.prepared.config.steps:
            control.should_save = False
        if state.global_step in self.steps:
            _keep(self.prepared, self.trainer, self.folder, state.global_step)


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A line that is rewritten on a terminal, and one in ten steps elsewhere; stops a run that has blown up."""

    def __init__(self, prepared: Prepared, recorder: Recorder, folder: Path) -> None:
        self.prepared, self.recorder, self.folder = prepared, recorder, folder
        self.steps = prepared.config.steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = self.recorder.rows[-1]
        _stop_if_blown_up(row["loss"], "loss", state.global_step, row["lr"], self.prepared, self.folder)
        if not processes.is_main():
            return
        terminal = sys.stderr.isatty()
        if terminal or state.global_step % 10 == 0 or state.global_step == self.steps:
            left = (self.steps - state.global_step) * row["seconds"]
            text = f"  step {state.global_step}/{self.steps}  loss {row['loss']:.3f}  {left:.0f} s left"
            end = "\r" if terminal and state.global_step < self.steps else "\n"
            print(f"{text:<60}", end=end, file=sys.stderr, flush=True)


def _keep(prepared: Prepared, trainer: EMTrainer, folder: Path, step: int, last: bool = False) -> None:
    """Write a checkpoint of the weights that the optimiser publishes, which need not be those that it trains."""
    with published(find(prepared.config.optimiser.name), trainer.optimizer):
        _measure_and_write(prepared, trainer.model, trainer.recorder, folder, step, last)


def _measure_and_write(prepared: Prepared, model: Any, recorder: Recorder, folder: Path, step: int, last: bool) -> None:
    rows = [row for row in recorder.rows if row["step"] <= step]
    held_out = held_out_loss(prepared, model)
    lr = rows[-1]["lr"] if rows else prepared.config.optimiser.lr
    _stop_if_blown_up(held_out, "held-out loss", step, lr, prepared, folder)
    train_rows = task_loss(prepared, model, prepared.train) if last else None
    if processes.is_main():
        _write(prepared, model, rows, folder, step, held_out, train_rows)
    processes.wait()


def _stop_if_blown_up(loss: float, name: str, step: int, lr: float, prepared: Prepared, folder: Path) -> None:
    """Twice what guessing uniformly costs, 2 ln V, is worse than any model that still works.

    Raises:
        UserError: the loss is not a number or beyond that.
    """
    bound = 2 * math.log(len(prepared.tokenizer))
    if loss <= bound:
        return
    why = "" if not math.isfinite(loss) else f" (more than {bound:.1f}, twice the cost of guessing)"
    steps = [kept for kept in prepared.config.kept_steps() if _is_ours(folder / f"checkpoint-{kept}", prepared)]
    good = f"the last good checkpoint is {folder / f'checkpoint-{steps[-1]}'}" if steps else "no checkpoint was kept"
    raise UserError(f"{name} is {loss:g} at step {step} with learning rate {lr:g}{why}: lower the rate; {good}")


def _write(
    prepared: Prepared,
    model: Any,
    rows: list[dict[str, float]],
    folder: Path,
    step: int,
    held_out: float,
    train_rows: float | None,
) -> None:
    facts = {
        "run_id": prepared.run_id,
        "step": step,
        "config": prepared.config.model_dump(mode="json"),
        "optimiser": {
            "name": prepared.config.optimiser.name,
            "lr": prepared.config.optimiser.lr,
            "source": find(prepared.config.optimiser.name).source,
            "schedule": prepared.schedule,
            **prepared.hyperparameters,
        },
        "penalty": summary(prepared.penalty, rows),
        "dataset": dataset_reference(prepared.dataset, prepared.train, prepared.held_out),
        "lora": {**prepared.config.lora.model_dump(mode="json"), "scaling": prepared.config.lora.scaling},
        "first_example": prepared.first_example,
        **summarise_steps(rows, prepared.config, held_out, train_rows),
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
    try:
        if not path.is_file() and (folder / "state").exists():
            shutil.rmtree(folder / "state")  # of a run whose identity is unknown
        folder.mkdir(parents=True, exist_ok=True)
        sweep_drafts(folder)
        _write_run_file(folder, prepared, "running")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}: choose another folder") from error


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
    """The newest resumable state that was written whole, and whose steps were all recorded."""
    recorded = len(recorded_steps(folder / STEPS_FILE))
    states = {int(path.name.split("-")[-1]): path for path in (folder / "state").glob("checkpoint-*")}
    whole = [step for step, path in states.items() if step <= recorded and _is_whole(path)]
    return states[max(whole)] if whole else None


def _is_whole(state: Path) -> bool:
    """The trainer's own file comes last; of several processes each writes its random numbers at its own time.

    A state of another number of processes lacks these, and the run starts anew rather than goes on differently.
    """
    world = processes.world_size()
    names = ["rng_state.pth"] if world == 1 else [f"rng_state_{rank}.pth" for rank in range(world)]
    try:
        json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(zipfile.is_zipfile(state / name) for name in names)


def _autocast(prepared: Prepared) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=prepared.dtype == torch.bfloat16)
