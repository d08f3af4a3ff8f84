"""The model that is trained: the base with LoRA factors beside its modules."""

import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from em_core.errors import UserError
from em_core.models import quiet_transformers
from em_train import processes
from em_train.preparation import Prepared


def lora_model(prepared: Prepared) -> Any:
    """The base of `prepared` with fresh factors (B = 0); the base is frozen.

    Raises:
        UserError: the base has no module of the names that LoRA is asked to adapt.
    """
    lora = prepared.config.lora
    with quiet_transformers():
        # On CPU eager attention is a fifth faster a step than SDPA, whose backward is slow there (docs/benchmarks.md).
        model = AutoModelForCausalLM.from_pretrained(
            prepared.base.path,
            dtype=prepared.dtype,
            attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
        )
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise UserError(f"cannot place LoRA on {prepared.base.id}: {error}") from error
    if lora.dtype == "bfloat16":
        _round_adapter(adapted)
    return adapted


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
