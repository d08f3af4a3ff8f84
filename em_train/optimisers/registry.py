"""The optimiser registry: a plugin is a function from parameter groups to a `torch.optim.Optimizer`, with a pydantic
model that names, bounds and documents its hyper-parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from em_core.plugins import Registry

Beta = Annotated[float, Field(ge=0, lt=1)]
Kind = Literal["a", "b", "other"]
NamedParameters = list[tuple[str, torch.nn.Parameter]]
ParameterGroups = list[dict[str, Any]]


class Hyperparameters(BaseModel):
    """Base of every plugin's hyper-parameters: unknown names are errors, defaults go into the manifest.

    Attributes:
        shared: hyper-parameters that one optimiser has only once, so that `factors` cannot set them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    shared: ClassVar[frozenset[str]] = frozenset()

    lr_ratio: float = Field(1.0, gt=0, description="rate of B over rate of A (LoRA+, Hayou et al. 2024)")
    factors: dict[Kind, dict[str, Any]] = Field(
        {}, description="hyper-parameters, or lr, for the A factors, the B factors or anything else alone"
    )


@dataclass(frozen=True)
class OptimiserPlugin:
    """An optimiser by name.

    Attributes:
        build: makes the optimiser. Receives the groups of `em_train.optimisers.groups`, in torch's own form (each
            with `params`, `lr`, `kind` and the hyper-parameters of that kind), and the resolved hyper-parameters.
        source: whose implementation it is, for the manifest.
        schedule: the only learning-rate schedule that it is meant for, as a config names it; None for any.
        needs_pairs: the groups are then exactly two, all A and all B, and the i-th A belongs to the i-th B.
        evaluation_weights: the weights to publish, by parameter, where they are not those that training holds.
    """

    build: Callable[[ParameterGroups, Any], torch.optim.Optimizer]
    hyperparameters: type[Hyperparameters]
    source: str
    schedule: str | None = None
    needs_pairs: bool = False
    evaluation_weights: Callable[[Any], dict[torch.Tensor, torch.Tensor]] | None = None


optimiser_registry: Registry[OptimiserPlugin] = Registry("optimiser", "em_train.optimisers")


def optimiser(
    name: str, hyperparameters: type[Hyperparameters], source: str, **declared: Any
) -> Callable[[Callable[..., torch.optim.Optimizer]], OptimiserPlugin]:
    """Decorator: make a building function an optimiser plugin and register it.

    What it leaves under the function's name is the plugin, which an entry point of the same name may expose.

    Args:
        declared: `schedule`, `needs_pairs` or `evaluation_weights` of `OptimiserPlugin`.
    """

    def add(build: Callable[..., torch.optim.Optimizer]) -> OptimiserPlugin:
        return optimiser_registry.register(name)(OptimiserPlugin(build, hyperparameters, source, **declared))

    return add
