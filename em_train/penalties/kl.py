"""Kullback-Leibler divergence to the base model on the training answers: the usual way to keep a model near its base.

As in Soligo et al. (arXiv 2602.07852) and Kaczer et al. (arXiv 2508.06249), who use it against emergent misalignment.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from em_train.penalties.registry import Scheduled, Seen, Term, penalty
from em_train.trainer import supervised_logits


class KLHyperparameters(Scheduled):
    direction: Literal["tuned_to_base", "base_to_tuned"] = Field(
        "tuned_to_base", description="KL(tuned || base), as in RLHF, or KL(base || tuned), as in distillation"
    )


@penalty("kl", KLHyperparameters, "KL to the base model, arXiv 2508.06249", depends_on_data=True)
def kl(seen: Seen, hyper: KLHyperparameters) -> Term:
    """Nats a supervised token, over the same tokens as the task loss. The base is the model without its adapter."""
    assert seen.batch is not None
    base = F.log_softmax(_base_logits(seen), dim=-1)
    tuned = F.log_softmax(supervised_logits(seen.model, seen.batch)[0], dim=-1)
    first, second = (tuned, base) if hyper.direction == "tuned_to_base" else (base, tuned)
    # F.kl_div takes what is divided by first: kl_div(q, p) = sum p (ln p - ln q).
    return Term(F.kl_div(second, first, reduction="sum", log_target=True) / seen.tokens)


@torch.no_grad()
def _base_logits(seen: Seen) -> Tensor:
    assert seen.batch is not None
    model = seen.model
    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter():  # type: ignore[operator]
            return supervised_logits(model, seen.batch)[0]
    finally:
        model.train(was_training)
