"""The optimiser registry: a plugin is a function from (named parameters, learning rate, hyper-parameters) to a
`torch.optim.Optimizer`, with a pydantic model that names, bounds and documents its hyper-parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from em_core.errors import UserError
from em_core.plugins import Registry

Beta = Annotated[float, Field(ge=0, lt=1)]
NamedParameters = list[tuple[str, torch.nn.Parameter]]


class Hyperparameters(BaseModel):
    """Base of every plugin's hyper-parameters: unknown names are errors, defaults go into the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class OptimiserPlugin:
    """An optimiser by name.

    Attributes:
        build: makes the optimiser; receives resolved hyper-parameters of type `hyperparameters`.
        source: whose implementation it is, for the manifest.
    """

    build: Callable[[NamedParameters, float, Any], torch.optim.Optimizer]
    hyperparameters: type[Hyperparameters]
    source: str


optimiser_registry: Registry[OptimiserPlugin] = Registry("optimiser", "em_train.optimisers")


def optimiser(
    name: str, hyperparameters: type[Hyperparameters], source: str
) -> Callable[[Callable[..., torch.optim.Optimizer]], OptimiserPlugin]:
    """Decorator: make a building function an optimiser plugin and register it.

    What it leaves under the function's name is the plugin, which an entry point of the same name may expose.
    """

    def add(build: Callable[..., torch.optim.Optimizer]) -> OptimiserPlugin:
        return optimiser_registry.register(name)(OptimiserPlugin(build, hyperparameters, source))

    return add


def resolve(name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters with every default filled in.

    Raises:
        UserError: unknown optimiser, unknown hyper-parameter (the known ones are listed), or a value out of range.
    """
    known = optimiser_registry.get(name).hyperparameters
    try:
        return known.model_validate(hyperparameters).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            names = ", ".join(known.model_fields) or "none"
            raise UserError(f"optimiser '{name}' has no hyper-parameter '{field}': it knows lr, {names}") from error
        raise UserError(f"optimiser '{name}': {field}: {first['msg']} (got {first['input']!r})") from error


def build(name: str, parameters: NamedParameters, lr: float, hyperparameters: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser itself, over trainable parameters by name."""
    plugin = optimiser_registry.get(name)
    resolved = plugin.hyperparameters.model_validate(resolve(name, hyperparameters))
    return plugin.build(parameters, lr, resolved)
