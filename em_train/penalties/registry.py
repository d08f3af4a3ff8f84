"""The penalty registry: a plugin is a function from what a step shows (`Seen`) to a loss term (`Term`).

Three decorators make one:
    `penalty`: a term computed from modules, model and batch.
    `of_spectrum`: a term that is a mean over modules of a function of the singular values of BA.
    `stopping`: no term, a rule that ends training.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from em_core.errors import UserError
from em_core.plugins import Registry
from em_train.config import TrainConfig
from em_train.penalties.closed_form import Flatness, Mean, mean_over_modules
from em_train.penalties.gradient import Gradient
from em_train.spectra import LoraPair


class Hyperparameters(BaseModel):
    """Base of every plugin's hyper-parameters: unknown names are errors, defaults go into the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Scheduled(Hyperparameters):
    """When the term acts. The literal form: start_step 1, ramp_steps 0, max_grad_ratio null."""

    start_step: int | None = Field(None, ge=1, description="first step that feels it; default: the first after warm-up")
    ramp_steps: int = Field(10, ge=0, description="steps over which the strength grows linearly; 0: at once")
    max_grad_ratio: float | None = Field(
        1.0, gt=0, description="bound on the norm of the term's gradient over the task's; null: none"
    )


class Capped(Scheduled):
    """Of terms of the spectrum, which have no gradient at B = 0."""

    gate: float = Field(1e-12, ge=0, description="modules with ||B||_F at or below it are left out (paper, app. G.1)")


@dataclass(frozen=True)
class Seen:
    """What a penalty sees at one step.

    Attributes:
        modules: the live factors of every adapter module; their `scaling` is s in W + s BA.
        model: the PEFT model, unwrapped.
        step: the optimiser step, counted from 1.
        batch: `input_ids`, `attention_mask`, `labels` of one micro-batch, each (N, T); None for a plugin that does
            not depend on data.
        tokens: supervised tokens of the whole optimiser step, over micro-batches and processes: what the task loss
            is divided by.
    """

    modules: list[LoraPair]
    model: torch.nn.Module
    step: int
    batch: dict[str, Tensor] | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Term:
    """A penalty's loss term and what it wants logged.

    Attributes:
        loss: a scalar whose gradient is added to the task's, before strength and ramp; None where there is nothing
            to add. Of a plugin that depends on data: this micro-batch's share, divided by `Seen.tokens`.
        figures: numbers for steps.jsonl, by name; summed over micro-batches and processes where data matter.
        gradient: of the loss, where a plugin that does not depend on data has it at hand; else autograd finds it.
    """

    loss: Tensor | None
    figures: dict[str, float] = field(default_factory=dict)
    gradient: Gradient | None = None

    @classmethod
    def of(cls, mean: Mean) -> "Term":
        """The term of a mean over modules."""
        return cls(mean.value, {"penalty_silent_modules": float(mean.silent)}, mean.gradient)


@dataclass(frozen=True)
class PenaltyPlugin:
    """A penalty by name.

    Attributes:
        hyperparameters: validates its settings; the resolved model goes to `term` or `stop`.
        source: where its form comes from, for the manifest.
        term: the loss term of a step; None for a stopping rule.
        stop: whether training ends, given the rows of steps.jsonl so far; None for a loss term.
        depends_on_data: the term is asked for once a micro-batch, with the batch, and not once an optimiser step.
        least_rank: smallest LoRA rank at which it does anything.
    """

    hyperparameters: type[Hyperparameters]
    source: str
    term: Callable[[Seen, Any], Term] | None = None
    stop: Callable[[list[dict[str, float]], Any], bool] | None = None
    depends_on_data: bool = False
    least_rank: int = 1


penalty_registry: Registry[PenaltyPlugin] = Registry("penalty", "em_train.penalties")


def penalty(
    name: str, hyperparameters: type[Scheduled], source: str, depends_on_data: bool = False, least_rank: int = 1
) -> Callable[[Callable[[Seen, Any], Term]], PenaltyPlugin]:
    """Decorator: make a function of (Seen, hyper-parameters) a penalty and register it.

    What it leaves under the function's name is the plugin, which an entry point of the same name may expose.
    """

    def add(term: Callable[[Seen, Any], Term]) -> PenaltyPlugin:
        plugin = PenaltyPlugin(
            hyperparameters, source, term=term, depends_on_data=depends_on_data, least_rank=least_rank
        )
        return penalty_registry.register(name)(plugin)

    return add


def of_spectrum(name: str, source: str) -> Callable[[Flatness], PenaltyPlugin]:
    """Decorator: make a function of singular values, (modules, r) -> (modules,), a penalty and register it.

    It is written with torch operations; the values come in float64, descending and above 0. Its mean over modules
    is the term; the gradient in A and B needs no more from it.
    """

    def add(function: Flatness) -> PenaltyPlugin:
        def term(seen: Seen, hyper: Capped) -> Term:
            return Term.of(mean_over_modules(function, seen.modules, hyper.gate))

        return penalty(name, Capped, source, least_rank=2)(term)

    return add


def stopping(
    name: str, hyperparameters: type[Hyperparameters], source: str
) -> Callable[[Callable[[list[dict[str, float]], Any], bool]], PenaltyPlugin]:
    """Decorator: make a function of (rows of steps.jsonl, hyper-parameters) a rule that ends training."""

    def add(stop: Callable[[list[dict[str, float]], Any], bool]) -> PenaltyPlugin:
        return penalty_registry.register(name)(PenaltyPlugin(hyperparameters, source, stop=stop))

    return add


def resolve(config: TrainConfig) -> dict[str, Any] | None:
    """The run's penalty as the manifest has it: name, strength, source and every hyper-parameter; None without one.

    Raises:
        UserError: unknown penalty or hyper-parameter (the known ones are listed), a value out of range, a start
            after the last step, or a rank at which the term vanishes.
    """
    chosen = config.penalty
    if chosen is None:
        return None
    plugin = penalty_registry.get(chosen.name)
    resolved = _validated(chosen.name, plugin, chosen.hyperparameters).model_dump(mode="json")
    if config.lora.rank < plugin.least_rank:
        raise UserError(
            f"penalty '{chosen.name}' vanishes at rank {config.lora.rank}: choose lora.rank >= {plugin.least_rank}"
        )
    if plugin.stop is not None and chosen.strength != 1.0:
        raise UserError(f"penalty '{chosen.name}' is a stopping rule without a strength: leave strength out")
    if "start_step" in resolved:
        if resolved["start_step"] is None:
            resolved["start_step"] = config.warmup_steps + 1
        if resolved["start_step"] > config.steps:
            raise UserError(
                f"penalty '{chosen.name}' starts at step {resolved['start_step']}, after the last step, {config.steps}"
            )
    return {"name": chosen.name, "strength": chosen.strength, "source": plugin.source, **resolved}


def plugin_and_hyperparameters(resolved: dict[str, Any]) -> tuple[PenaltyPlugin, Any]:
    """The plugin of a resolved penalty, and its hyper-parameters as the plugin's own model."""
    plugin = penalty_registry.get(resolved["name"])
    values = {name: value for name, value in resolved.items() if name not in ("name", "strength", "source")}
    return plugin, plugin.hyperparameters.model_validate(values)


def _validated(name: str, plugin: PenaltyPlugin, values: dict[str, Any]) -> Hyperparameters:
    try:
        return plugin.hyperparameters.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(plugin.hyperparameters.model_fields) or "none"
            raise UserError(f"penalty '{name}' has no hyper-parameter '{field}': it knows {known}") from error
        raise UserError(f"penalty '{name}': {field}: {first['msg']} (got {first['input']!r})") from error
