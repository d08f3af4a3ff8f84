"""Early stopping at equal loss cost: the plainest control for anything that costs loss.

A penalised run ends at a higher task loss than a free one. This rule ends a free run when its task loss has come
down to the penalised run's: whatever the penalty bought beyond that is not bought by training less.
"""

from pydantic import Field

from em_train.penalties.registry import Hyperparameters, stopping


class EarlyStoppingHyperparameters(Hyperparameters):
    loss: float = Field(gt=0, description="task loss in nats a token: the penalised run's, e.g. its manifest's train")
    window: int = Field(10, ge=1, description="optimiser steps over which the loss is averaged, token by token")


@stopping("early_stopping", EarlyStoppingHyperparameters, "control")
def early_stopping(rows: list[dict[str, float]], hyper: EarlyStoppingHyperparameters) -> bool:
    """Whether the token-weighted task loss over the last `window` steps is at or below `loss`."""
    last = rows[-hyper.window :]
    tokens = sum(row["supervised_tokens"] for row in last)
    return len(last) == hyper.window and tokens > 0 and sum(row["nll"] for row in last) / tokens <= hyper.loss
