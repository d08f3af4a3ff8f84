"""From an optimiser's name and hyper-parameters to the optimiser, everything checked before any training."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic.types import NonNegativeFloat

from em_core.errors import UserError
from em_train.optimisers.external import LIBRARIES, external
from em_train.optimisers.groups import for_kind, parameter_groups, require_pairs
from em_train.optimisers.registry import Hyperparameters, NamedParameters, OptimiserPlugin, optimiser_registry

TRIAL_RATE = 1e-3


def find(name: str) -> OptimiserPlugin:
    """The plugin called `name`, or one made for `torch:NAME` or `pytorch_optimizer:NAME`.

    Raises:
        UserError: no such optimiser; the nearest names are listed.
    """
    library, colon, rest = name.partition(":")
    if not colon:
        return optimiser_registry.get(name)
    if library not in LIBRARIES:
        raise UserError(f"optimiser '{name}': unknown library '{library}': known: {', '.join(LIBRARIES)}")
    return external(library, rest)


def resolve(name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters with every default filled in.

    Two steps on a dummy adapter are taken, so that what a constructor or a step refuses is said before training.

    Raises:
        UserError: unknown optimiser, unknown hyper-parameter (the known ones are listed), a value out of range, or
            an optimiser that cannot run under a trainer.
    """
    plugin = find(name)
    hyper = _validated(name, plugin, hyperparameters)
    _try(name, plugin, hyper)
    return hyper.model_dump(mode="json")


def build(name: str, parameters: NamedParameters, lr: float, hyperparameters: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser itself, over trainable parameters by name.

    Raises:
        UserError: as `resolve`, or parameters that this optimiser cannot step.
    """
    plugin = find(name)
    return _build(name, plugin, parameters, lr, _validated(name, plugin, hyperparameters))


def _build(
    name: str, plugin: OptimiserPlugin, parameters: NamedParameters, lr: float, hyper: Hyperparameters
) -> torch.optim.Optimizer:
    if plugin.needs_pairs:
        require_pairs(parameters, name)
    try:
        return plugin.build(parameter_groups(parameters, lr, hyper), hyper)
    except UserError:
        raise
    except Exception as error:  # what other people's constructors raise is not known
        raise UserError(f"optimiser '{name}' cannot be made: {_first_line(error)}") from error


def _validated(name: str, plugin: OptimiserPlugin, hyperparameters: dict[str, Any]) -> Hyperparameters:
    known = plugin.hyperparameters
    with _named(name, known, ""):
        hyper = known.model_validate(hyperparameters)
    for kind, own in hyper.factors.items():
        where = f"factors.{kind}."
        for field in sorted(own.keys() & (known.shared | {"lr_ratio", "factors"})):
            raise UserError(f"optimiser '{name}': {where}{field} cannot differ between factors: set {field} itself")
        with _named(name, known, where):
            for_kind(kind, hyper)
        if "lr" in own:
            with _named(name, known, f"{where}lr"):
                TypeAdapter(NonNegativeFloat).validate_python(own["lr"])
    if hyper.lr_ratio != 1 and "lr" in hyper.factors.get("b", {}):
        raise UserError(f"optimiser '{name}': lr_ratio and factors.b.lr both set the rate of B: choose one")
    return hyper


@contextmanager
def _named(name: str, known: type[Hyperparameters], where: str) -> Iterator[None]:
    """Turns pydantic's complaint into one line that names optimiser, hyper-parameter and value."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        field = where + ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            names = ", ".join(sorted(known.model_fields, key=lambda field: field in Hyperparameters.model_fields))
            raise UserError(f"optimiser '{name}' has no hyper-parameter '{field}': it knows lr, {names}") from error
        raise UserError(f"optimiser '{name}': {field}: {first['msg']} (got {first['input']!r})") from error


def _try(name: str, plugin: OptimiserPlugin, hyper: Hyperparameters) -> None:
    """Two steps on a dummy adapter, the first with A's gradient zero as in training, and a save of the state.

    Raises:
        UserError: the optimiser needs what a trainer does not give (a closure, a graph), leaves the weights not
            finite, or its state cannot be saved for resumption.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        a, b = torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.zeros(8, 4))
        optimiser = _build(name, plugin, [("m.lora_A.weight", a), ("m.lora_B.weight", b)], TRIAL_RATE, hyper)
        try:
            for size in (0.0, 1e-3):
                a.grad, b.grad = size * torch.randn(4, 6), 1e-3 * torch.randn(8, 4)
                optimiser.step()
        except Exception as error:
            raise UserError(f"optimiser '{name}' cannot step under a trainer: {_first_line(error)}") from error
    if not all(bool(torch.isfinite(parameter).all()) for parameter in (a, b)):
        raise UserError(f"optimiser '{name}' leaves weights that are not finite where a gradient is zero")
    stream = io.BytesIO()
    try:
        torch.save(optimiser.state_dict(), stream)
        stream.seek(0)
        torch.load(stream, weights_only=True)
    except Exception as error:
        raise UserError(
            f"optimiser '{name}' keeps more than tensors and numbers in its state, so that a run could not resume: "
            "choose another"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
