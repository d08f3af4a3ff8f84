"""Weight decay as a control: the norm shrinks, the shape of the spectrum is left to itself.

Coupled, as a term of the loss, like every penalty here; decoupled decay is the optimiser's own `weight_decay`.
"""

from typing import Literal

import torch
from pydantic import Field

from em_train.penalties.registry import Scheduled, Seen, Term, penalty


class WeightDecayHyperparameters(Scheduled):
    of: Literal["product", "factors"] = Field(
        "product", description="product: the update s BA; factors: A and B, as decay of parameters does"
    )


@penalty("weight_decay", WeightDecayHyperparameters, "L2 of the update, or of the factors")
def weight_decay(seen: Seen, hyper: WeightDecayHyperparameters) -> Term:
    """Half the squared Frobenius norm, of s BA or of A and B together, mean over modules.

    ||BA||_F^2 = tr(B'B AA'), so BA is not formed.
    """
    if hyper.of == "factors":
        squares = [pair.a.square().sum() + pair.b.square().sum() for pair in seen.modules]
    else:
        squares = [pair.scaling**2 * ((pair.b.mT @ pair.b) * (pair.a @ pair.a.mT)).sum() for pair in seen.modules]
    return Term(torch.stack(squares).mean() / 2)
