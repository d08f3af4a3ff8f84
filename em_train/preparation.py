"""What a run is made of, found and checked before anything trains, and the identity that follows from it."""

from dataclasses import dataclass
from typing import Any

import torch

from em_core.errors import UserError
from em_core.files import sha256_json
from em_core.manifest import SCHEMA_VERSION
from em_core.models import BaseModelInfo, architecture, native_dtype, resolve_base
from em_train import processes
from em_train.chat import Encoded, show
from em_train.config import NOT_IDENTITY, TrainConfig
from em_train.datasets import NarrowDataset, load_dataset, split
from em_train.datasets.rows import Row
from em_train.encoding import encode_rows, rows_sha256, tokenizer_of
from em_train.optimisers import find, resolve
from em_train.penalties import resolve as resolve_penalty


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
    micro = micro_batch_size(config)
    _check_trackers(config)
    base = resolve_base(config.base_model, config.base_revision)
    tokenizer, vocabulary = tokenizer_of(base)
    dtype = resolve_dtype(config.dtype)
    identity: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "base": base.weights_sha256,
        "architecture": architecture(base.path),
        "template": tokenizer.chat_template,
        "vocabulary": vocabulary,
        "dataset": rows_sha256(dataset.rows),
        "optimiser": [config.optimiser.name, config.optimiser.lr, hyperparameters, schedule],
        "dtype": str(dtype),
        "config": config.model_dump(mode="json", exclude=NOT_IDENTITY),
        "checkpoints": config.kept_steps(),
    }
    if penalty:
        identity["penalty"] = penalty
    if config.lora.dropout > 0:  # which random numbers a row meets depends on how the batch is spread
        identity["spread"] = {"micro_batch": micro, "processes": processes.world_size()}
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
        encode_rows(rows, found.tokenizer, config.max_length) for rows in (found.train_rows, found.held_out_rows)
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


def _check_trackers(config: TrainConfig) -> None:
    if not config.report_to:
        return
    from transformers.integrations import get_available_reporting_integrations

    here = get_available_reporting_integrations()
    missing = [name for name in config.report_to if name not in here]
    if missing:
        raise UserError(f"report_to: '{missing[0]}' is not installed; at hand: {', '.join(here) or 'none'}")
