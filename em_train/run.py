"""One training run: config in, checkpoint folders out; idempotent, and resumable after a kill."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig

from em_core.allocation import is_out_of_memory, reuse_freed_memory
from em_core.errors import UserError
from em_core.models import quiet_transformers
from em_train import kept_checkpoints, processes, progress
from em_train.chat import IGNORED
from em_train.config import TrainConfig
from em_train.encoding import collate
from em_train.lora import lora_model
from em_train.optimisers import build
from em_train.penalties import AppliedPenalty
from em_train.penalties.application import StopByRule
from em_train.preparation import Prepared, micro_batch_size, prepare
from em_train.run_folder import checkpoints, claim, finished, is_ours, last_state, write_run_file
from em_train.step_record import STEPS_FILE
from em_train.task_loss import to_device
from em_train.trainer import EMTrainer, Recorder, check_loss, lora_pairs

WITH_WARMUP = {"constant": "constant_with_warmup"}  # transformers' own "constant" ignores the warm-up
STATE_EVERY = 12  # optimiser steps between resumable states


def train(config: TrainConfig, folder: Path) -> list[Path]:
    """Train into `folder`; returns the kept checkpoint folders in order of steps.

    A finished run is left alone, an interrupted one goes on from its last resumable state, and a folder that
    belongs to another configuration is refused. Started in several processes, each calls this alike; the first
    one writes.
    """
    processes.start()
    prepared = prepare(config)
    config = prepared.config
    processes.check_precision(prepared.dtype)
    done = finished(folder, prepared.run_id) and all(is_ours(path, prepared) for path in checkpoints(folder))
    processes.wait()  # all have looked before one writes
    if done:
        return checkpoints(folder)
    if processes.is_main():
        claim(folder, prepared)
    processes.wait()
    set_seed(config.seed)
    reuse_freed_memory()
    with _memory_errors_in_words(config):
        _train(prepared, folder)
    processes.wait()
    return checkpoints(folder)


def _train(prepared: Prepared, folder: Path) -> None:
    config = prepared.config
    model = lora_model(prepared)
    recorder = Recorder(folder / STEPS_FILE, lora_pairs(model, config.lora.scaling), config.lora.scaling)
    trainer = _trainer(prepared, model, folder, recorder)
    one_row = to_device(collate(prepared.train[:1], prepared.tokenizer.pad_token_id), model)
    check_loss(model, one_row, prepared.base.id, trainer.batch_nll)
    state = last_state(folder)
    recorder.resume(int(state.name.split("-")[-1]) if state else 0)
    if 0 in config.kept_steps() and not is_ours(folder / "checkpoint-0", prepared):
        kept_checkpoints.keep(prepared, trainer, folder, 0)
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
        kept_checkpoints.keep(prepared, trainer, folder, trainer.state.global_step, last=True)
    if processes.is_main():
        write_run_file(folder, prepared, "done")
        shutil.rmtree(folder / "state", ignore_errors=True)


@contextmanager
def _memory_errors_in_words(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory ({next(iter(str(error).splitlines()), 'no details')}): lower micro_batch_size (it is "
            f"{micro_batch_size(config)}) or set gradient_checkpointing=true; the next call goes on from the last state"
        ) from error


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
        router_aux_loss_coef=0.0,  # a mixture of experts would add its balancing term to the task loss
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
    trainer.add_callback(kept_checkpoints.Keeper(prepared, trainer, folder))
    return trainer


class _Progress(TrainerCallback):  # type: ignore[misc]
    """A line that is rewritten on a terminal, and one in ten steps elsewhere; stops a run that has blown up."""

    def __init__(self, prepared: Prepared, recorder: Recorder, folder: Path) -> None:
        self.prepared, self.recorder, self.folder = prepared, recorder, folder
        self.steps = prepared.config.steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = self.recorder.rows[-1]
        kept_checkpoints.stop_if_blown_up(row["loss"], "loss", state.global_step, row["lr"], self.prepared, self.folder)
        left = (self.steps - state.global_step) * row["seconds"]
        text = f"  step {state.global_step}/{self.steps}  loss {row['loss']:.3f}  {left:.0f} s left"
        progress.show(text, state.global_step, self.steps, every=10)
