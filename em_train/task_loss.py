"""Token-weighted task loss of a model on whole sets of rows."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from em_core.models import head_logits
from em_train import processes, progress
from em_train.chat import Encoded
from em_train.encoding import collate
from em_train.preparation import Prepared, micro_batch_size
from em_train.trainer import supervised_hidden

HEAD_ROWS = 1024  # supervised positions whose logits are held at once


def held_out_loss(prepared: Prepared, model: Any) -> float:
    """Token-weighted task loss on the held-out rows, nats a token."""
    return task_loss(prepared, model, prepared.held_out)


def task_loss(prepared: Prepared, model: Any, rows: list[Encoded], name: str | None = None) -> float:
    """Token-weighted task loss on `rows` without dropout or gradients, nats a token; the processes share the rows.

    Args:
        name: what the rows are, for a line of progress; None: without one.
    """
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    mine = sorted(rows, key=lambda row: len(row.input_ids))[processes.rank() :: processes.world_size()]
    batches = list(batched(mine, micro_batch_size(prepared.config) * max(len(row.input_ids) for row in rows)))
    with torch.no_grad(), _autocast(prepared):
        for done, batch in enumerate(batches, 1):
            inputs = to_device(collate(batch, prepared.tokenizer.pad_token_id), model)
            hidden, targets = supervised_hidden(model, inputs)
            parts = zip(torch.split(hidden, HEAD_ROWS), torch.split(targets, HEAD_ROWS), strict=True)
            for some, wanted in parts:
                total += float(F.cross_entropy(head_logits(model, some).float(), wanted, reduction="sum"))
            tokens += len(targets)
            if name:
                share = f"{100 * done / len(batches):.0f} %"
                progress.show(f"  loss on {len(rows):,} {name}: {share}", done, len(batches), -(-len(batches) // 4))
    model.train(training)
    summed, supervised = processes.total([total, float(tokens)], model.device)
    return summed / supervised


def batched(rows: list[Encoded], tokens: int) -> Iterator[list[Encoded]]:
    """Rows, sorted by length, in batches of at most `tokens` with their padding: as large as training's largest.

    A row that is longer is a batch of its own.
    """
    batch: list[Encoded] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row.input_ids) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def to_device(batch: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    return {key: value.to(model.device) for key, value in batch.items()}


def _autocast(prepared: Prepared) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=prepared.dtype == torch.bfloat16)
