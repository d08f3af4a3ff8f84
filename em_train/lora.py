"""The model that is trained: the base with LoRA factors beside its modules."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from em_core.errors import UserError
from em_core.models import quiet_transformers
from em_train import processes
from em_train.config import LoraSettings
from em_train.preparation import Prepared

# A stack of experts is one parameter, where models used to have a linear layer for each: what became of their names.
STACKED = {"gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"), "down_proj": ("down_proj", "w2")}


def attention() -> str:
    """How rows attend to each other, by transformers' name.

    On CPU eager attention is a fifth faster a step than SDPA, whose backward is slow there (docs/benchmarks.md).
    """
    return "sdpa" if torch.cuda.is_available() else "eager"


def lora_model(prepared: Prepared) -> Any:
    """The base of `prepared` with fresh factors (B = 0); the base is frozen.

    Raises:
        UserError: the base cannot be loaded, or a name that LoRA is asked to adapt is not one of its linear layers
            or of stacked experts.
    """
    base = prepared.base
    adapted = _adapted(_base(base.id, base.path, prepared.dtype), prepared.config.lora, base.id)
    if prepared.config.lora.dtype == "bfloat16":
        _round_adapter(adapted)
    return adapted


@cache
def check_targets(base: str, path: Path, lora: LoraSettings) -> None:
    """Place the factors on the base's bare structure: whatever is wrong with their names shows without its weights.

    Raises:
        UserError: as `lora_model`.
    """
    try:
        with torch.device("meta"), quiet_transformers():
            skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_loaded(base, path, error) from error
    with torch.device("meta"):
        _adapted(skeleton, lora, base)


def _adapted(model: Any, lora: LoraSettings, base: str) -> Any:
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    _refuse_stacked(model, lora.target_modules, base)
    try:
        adapted = get_peft_model(model, settings)
    except ValueError as error:
        if "not found in the base model" in str(error):
            _refuse_missing([], lora.target_modules, base)
        raise UserError(f"cannot place LoRA on {base}: {error}") from error
    _check_adapted(adapted, lora.target_modules, base)
    return adapted


def _base(base: str, path: Path, dtype: torch.dtype) -> Any:
    try:
        with quiet_transformers():
            return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention())
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:  # a RuntimeError names shapes that differ
        raise _not_loaded(base, path, error) from error


def _not_loaded(base: str, path: Path, error: Exception) -> UserError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return UserError(f"base model {base} cannot be loaded from {path} ({reason}): fetch it again, or give another one")


def _refuse_stacked(model: Any, targets: tuple[str, ...], base: str) -> None:
    """Refuse names of experts that are stacked in one parameter.

    PEFT would adapt the stack instead: with factors that hold all experts in one matrix, which an optimiser of
    matrices would mix, and gate and up projection as one of twice the rank and another scale.
    """
    leaves = {name.rpartition(".")[2] for name, parameter in model.named_parameters() if parameter.ndim > 2}
    stacked = [target for leaf, old in STACKED.items() if leaf in leaves for target in old if target in targets]
    if stacked:
        left = [target for target in targets if target not in stacked]
        raise UserError(
            f"{base} stacks its experts in one parameter, so that {', '.join(stacked)} are no layers of their own and "
            f"cannot be adapted: set lora.target_modules=[{', '.join(left)}] to adapt the rest alone"
        )


def _check_adapted(model: Any, targets: tuple[str, ...], base: str) -> None:
    """Refuse names that nothing was found for: PEFT itself raises only where that holds of all of them."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    if stacks := [name for name, module in layers if isinstance(module, ParamWrapper)]:
        raise UserError(f"PEFT adapts {stacks[0]} of {base}, a parameter and no layer: change lora.target_modules")
    _refuse_missing([name for name, _ in layers], targets, base)


def _refuse_missing(names: list[str], targets: tuple[str, ...], base: str) -> None:
    missing = [target for target in targets if not any(name.endswith(f".{target}") for name in names)]
    if missing:
        raise UserError(f"{base} has no linear layer called {', '.join(missing)}: take it out of lora.target_modules")


def _round_adapter(model: Any) -> None:
    """PEFT keeps the factors in float32 on a bfloat16 base; here they were asked for in bfloat16."""
    if processes.is_main():
        warnings.warn(
            "the adapter is in bfloat16, which has 8 bits of precision: a step smaller than about 1/256 of a weight is "
            "lost (of A's entries 75 % do not move at all at a learning rate of 1e-5); leave lora.dtype at float32",
            stacklevel=2,
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
