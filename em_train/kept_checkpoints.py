"""Which checkpoints a run keeps, and what is measured and written with each."""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from em_core.errors import UserError
from em_train import processes
from em_train.checkpoint import dataset_reference, summarise_steps, write_checkpoint
from em_train.optimisers import find, published
from em_train.penalties.application import summary
from em_train.preparation import Prepared
from em_train.run_folder import is_ours, write_run_file
from em_train.task_loss import held_out_loss, task_loss
from em_train.trainer import EMTrainer, Recorder


class Keeper(TrainerCallback):  # type: ignore[misc]
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
            keep(self.prepared, self.trainer, self.folder, state.global_step)


def keep(prepared: Prepared, trainer: EMTrainer, folder: Path, step: int, last: bool = False) -> None:
    """Write a checkpoint of the weights that the optimiser publishes, which need not be those that it trains."""
    with published(find(prepared.config.optimiser.name), trainer.optimizer):
        _measure_and_write(prepared, trainer.model, trainer.recorder, folder, step, last)


def _measure_and_write(prepared: Prepared, model: Any, recorder: Recorder, folder: Path, step: int, last: bool) -> None:
    rows = [row for row in recorder.rows if row["step"] <= step]
    held_out = held_out_loss(prepared, model)
    lr = rows[-1]["lr"] if rows else prepared.config.optimiser.lr
    stop_if_blown_up(held_out, "held-out loss", step, lr, prepared, folder)
    train_rows = task_loss(prepared, model, prepared.train, "training rows") if last else None
    if processes.is_main():
        _write(prepared, model, rows, folder, step, held_out, train_rows)
    processes.wait()


def stop_if_blown_up(loss: float, name: str, step: int, lr: float, prepared: Prepared, folder: Path) -> None:
    """Twice what guessing uniformly costs, 2 ln V, is worse than any model that still works.

    Raises:
        UserError: the loss is not a number or beyond that.
    """
    bound = 2 * math.log(len(prepared.tokenizer))
    if loss <= bound:
        return
    why = "" if not math.isfinite(loss) else f" (more than {bound:.1f}, twice the cost of guessing)"
    steps = [kept for kept in prepared.config.kept_steps() if is_ours(folder / f"checkpoint-{kept}", prepared)]
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
    write_run_file(folder, prepared, "running")
