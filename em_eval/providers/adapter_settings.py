"""Settings of PEFT's `LoraConfig` that make an adapter more than pairs (A, B) beside layers of the base."""

import json
from collections.abc import Mapping
from typing import Any

# Where one of these is set, an adapter brings or changes more than the weights of the layers that it names.
BEYOND_PAIRS = (
    "modules_to_save use_dora lora_bias trainable_token_indices target_parameters layer_replication "
    "alora_invocation_tokens arrow_config kasa_config monteclora_config use_qalora use_bdlora"
).split()
# Initialisations that leave the base model's weights as they are; others (PiSSA, OLoRA, ...) change them too.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def beyond_pairs(config: Mapping[str, Any]) -> str | None:
    """The first setting of an adapter's configuration that is more than pairs, in words; None for a plain adapter."""
    for name in BEYOND_PAIRS:
        if config.get(name):
            return f"{name} {json.dumps(config[name])}"
    if (bias := config.get("bias") or "none") != "none":
        return f"bias '{bias}'"
    if (start := config.get("init_lora_weights")) not in PLAIN_STARTS:
        return f"init_lora_weights '{start}', which changes the base model's weights as well"
    return None
