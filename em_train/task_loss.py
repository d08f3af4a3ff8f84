"""Token-weighted task loss of a model on whole sets of rows."""

from typing import Any

import torch

from em_train import processes
from em_train.chat import Encoded
from em_train.encoding import collate
from em_train.preparation import Prepared, micro_batch_size
from em_train.trainer import supervised_nll


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
            nll, count = supervised_nll(model, to_device(batch, model))
            total, tokens = total + float(nll), tokens + count
    model.train(training)
    summed, supervised = processes.total([total, float(tokens)], model.device)
    return summed / supervised


def to_device(batch: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    return {key: value.to(model.device) for key, value in batch.items()}


def _autocast(prepared: Prepared) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=prepared.dtype == torch.bfloat16)
