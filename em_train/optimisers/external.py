"""Any optimiser of torch (`torch:NAME`) or of pytorch_optimizer (`pytorch_optimizer:NAME`) as a plugin.

Its hyper-parameters are those of its constructor's signature: pytorch_optimizer's constructors accept and ignore
names that they do not know, which would make a misspelt one silent.
"""

import difflib
import inspect
import math
from collections.abc import Callable
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import torch
from pydantic import Field, TypeAdapter, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from em_core.errors import UserError
from em_train.optimisers.evaluation_weights import by_switching
from em_train.optimisers.registry import Beta, Hyperparameters, OptimiserPlugin, ParameterGroups

LIBRARIES = ("torch", "pytorch_optimizer")
# Not hyper-parameters: what the registry sets itself, ways to compute the same, and climbing instead of descending.
HIDDEN = {"params", "lr", "maximize", "foreach", "fused", "capturable", "differentiable"}
NonNegative = Annotated[float, Field(ge=0)]
BOUNDS = {
    "betas": Annotated[float, Field(ge=0, le=1)],  # some libraries' defaults are 1
    "momentum": Beta,
    "eps": NonNegative,
    "weight_decay": NonNegative,
}
# LoRA-RITE takes its pairs from the order of parameters: A, B, A, B.
PAIRED = {"LoRARite"}


@cache
def external(library: str, name: str) -> OptimiserPlugin:
    """The plugin for an optimiser class of `library`, its name in any case.

    Raises:
        UserError: no such class (the nearest are listed), or one that a trainer cannot use.
    """
    cls = _find(library, name)
    signature = inspect.signature(cls)
    if "params" not in signature.parameters or "lr" not in signature.parameters:
        raise UserError(f"optimiser '{library}:{name}' is not made from parameters and a learning rate: choose another")
    switches = hasattr(cls, "eval") and hasattr(cls, "train")
    return OptimiserPlugin(
        _builder(library, cls),
        _hyperparameters(cls, signature),
        f"{'torch.optim' if library == 'torch' else library}.{cls.__name__}",
        schedule="constant" if switches else None,
        needs_pairs=cls.__name__ in PAIRED,
        evaluation_weights=by_switching if switches else None,
    )


def _find(library: str, name: str) -> Any:
    if library == "torch":
        classes = [getattr(torch.optim, name) for name in torch.optim.__all__]
        known = {
            cls.__name__.lower(): cls for cls in classes if inspect.isclass(cls) and cls is not torch.optim.Optimizer
        }
    else:
        from pytorch_optimizer import get_supported_optimizers, load_optimizer  # a second to import

        known = {known: load_optimizer(known) for known in get_supported_optimizers()}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
        raise UserError(f"{library} has no optimiser '{name}': {hint}")
    return known[name.lower()]


def _builder(library: str, cls: Any) -> Callable[[ParameterGroups, Any], torch.optim.Optimizer]:
    def build(groups: ParameterGroups, hyper: Hyperparameters) -> torch.optim.Optimizer:
        values = hyper.model_dump(exclude={"lr_ratio", "factors"})
        fixed = {}
        if library == "pytorch_optimizer":
            if "foreach" in inspect.signature(cls).parameters:
                fixed["foreach"] = torch.cuda.is_available()  # slower than a loop on CPU
            groups = [{**group, "use_muon": group["kind"] != "other"} for group in groups]
        if cls.__name__ in PAIRED:
            groups = _interleaved(groups, hyper, cls.__name__)
        made: torch.optim.Optimizer = cls(groups, lr=groups[0]["lr"], **values, **fixed)
        for own in hyper.factors.values():
            for name in own.keys() - made.defaults.keys():
                raise UserError(
                    f"{cls.__name__} holds one {name} for all parameters: set {name} itself, not per factor"
                )
        return made

    build.__doc__ = cls.__doc__
    return build


def _interleaved(groups: ParameterGroups, hyper: Hyperparameters, name: str) -> ParameterGroups:
    if hyper.lr_ratio != 1 or hyper.factors:
        raise UserError(f"{name} steps A and B together: leave out lr_ratio and factors")
    pairs = zip(*(group["params"] for group in groups), strict=True)
    return [{**groups[0], "params": [parameter for pair in pairs for parameter in pair]}]


def _hyperparameters(cls: type[torch.optim.Optimizer], signature: inspect.Signature) -> type[Hyperparameters]:
    """A model with one field for each argument that a config file can hold."""
    hints = get_type_hints(cls.__init__)
    fields: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name in HIDDEN or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        plain = _plain(hints.get(name, type(parameter.default)), BOUNDS.get(name))
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        if plain is not None and (default is ... or _is_plain(default)):
            fields[name] = (plain, default)
    return create_model(f"{cls.__name__}Hyperparameters", __base__=Hyperparameters, **fields)


def _is_plain(default: Any) -> bool:
    """Whether a config file could hold this default."""
    if isinstance(default, tuple):
        return all(_is_plain(part) for part in default)
    return default is None or isinstance(default, str | int) or (isinstance(default, float) and math.isfinite(default))


def _plain(annotation: Any, bound: Any) -> Any:
    """The annotation without what YAML cannot express (tensors, functions, dtypes), its floats bounded; or None."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        kept = [plain for part in parts if (plain := _plain(part, bound)) is not None]
        return reduce(or_, kept) if kept else None
    if origin is tuple:
        inner = [_plain(part, bound) if part is not ... else ... for part in parts]
        return None if None in inner else tuple[tuple(inner)]  # type: ignore[misc]
    if annotation is float and bound is not None:
        return bound
    try:
        TypeAdapter(annotation).json_schema()
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema):
        return None
    return annotation
