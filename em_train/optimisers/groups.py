"""Parameter groups for A, for B and for anything else, so that rates and choices per factor need no code."""

from typing import Any

from em_core.errors import UserError
from em_train.optimisers.registry import Hyperparameters, Kind, NamedParameters, ParameterGroups

KINDS: tuple[Kind, ...] = ("a", "b", "other")


def kind_of(name: str) -> Kind:
    """Which factor a parameter of a PEFT model is, by its name."""
    return "a" if ".lora_A." in name else "b" if ".lora_B." in name else "other"


def parameter_groups(parameters: NamedParameters, lr: float, hyper: Hyperparameters) -> ParameterGroups:
    """At most three groups, A, B and other, each in name order with its own rate and hyper-parameters.

    Raises:
        pydantic.ValidationError: a value for one factor that is out of range.
    """
    groups = []
    for kind in KINDS:
        members = {name: parameter for name, parameter in parameters if kind_of(name) == kind}
        if members:
            groups.append(
                {
                    "params": [members[name] for name in sorted(members)],
                    "lr": rate_of(kind, lr, hyper),
                    "kind": kind,
                    **for_kind(kind, hyper).model_dump(exclude={"lr_ratio", "factors"}),
                }
            )
    return groups


def require_pairs(parameters: NamedParameters, optimiser: str) -> None:
    """Every trainable parameter is an A with its B.

    Raises:
        UserError: one is not; it is named.
    """
    stems: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
    for name, _ in parameters:
        stems[kind_of(name)].add(name.replace(".lora_A.", ".lora_?.").replace(".lora_B.", ".lora_?."))
    lonely = sorted(stems["other"] | (stems["a"] ^ stems["b"]))
    if lonely:
        raise UserError(
            f"optimiser '{optimiser}' steps the two factors of a LoRA module together, but {lonely[0]} has no "
            "partner: choose other target modules or another optimiser"
        )


def for_kind(kind: Kind, hyper: Hyperparameters) -> Hyperparameters:
    """The hyper-parameters of one kind of parameter.

    Raises:
        pydantic.ValidationError: an unknown name or a value out of range.
    """
    own = {name: value for name, value in hyper.factors.get(kind, {}).items() if name != "lr"}
    return type(hyper).model_validate({**hyper.model_dump(), **own, "factors": {}})


def rate_of(kind: Kind, lr: float, hyper: Hyperparameters) -> float:
    """Peak learning rate of one kind of parameter."""
    own: dict[str, Any] = hyper.factors.get(kind, {})
    return float(own["lr"]) if "lr" in own else lr * hyper.lr_ratio if kind == "b" else lr
