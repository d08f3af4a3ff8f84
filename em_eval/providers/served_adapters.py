"""Which adapters a vLLM server serves as they were trained, and what it needs to know of them.

vLLM reads r, lora_alpha, use_rslora and target_modules of an adapter's configuration (vllm/lora/peft_helper.py). Some
of the rest it refuses, at the first request; some it passes over, and then answers with other weights than those that
were trained. Here both are one line before anything starts.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from em_core.errors import UserError
from em_core.manifest import ADAPTER, ADAPTER_CONFIG, adapter_config
from em_core.models import quiet_transformers
from em_eval.providers.adapter_settings import BEYOND_PAIRS, beyond_pairs

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes (vllm/config/lora.py; also 1)
# vLLM scales all layers of an adapter alike.
UNSERVED = (*BEYOND_PAIRS, "rank_pattern", "alpha_pattern")
PREFIX, SIDES = "base_model.model.", (".lora_A.weight", ".lora_B.weight")

Shape = tuple[int, ...]


def rank_to_serve(adapters: Sequence[Path]) -> int:
    """The smallest `--max-lora-rank` that has room for all `adapters`.

    Raises:
        UserError: an adapter's rank is larger than vLLM's largest.
    """
    ranks = {adapter: int(adapter_config(adapter)["r"]) for adapter in adapters}
    largest = max(ranks, key=lambda adapter: ranks[adapter])
    if ranks[largest] > RANKS[-1]:
        raise UserError(
            f"adapter {largest} has rank {ranks[largest]}, vLLM serves up to {RANKS[-1]}: use --engine peft"
        )
    return next(rank for rank in RANKS if rank >= ranks[largest])


def check_adapter(adapter: Path, base: Path) -> None:
    """Whether a server of `base` would answer with the adapter that was trained, from its files' headers.

    Raises:
        UserError: settings that vLLM does not serve, tensors missing, or shapes that are not those of its rank or base.
    """
    config = adapter_config(adapter)
    if (kind := config.get("peft_type")) != "LORA":
        raise _refused(adapter, f"peft_type {kind}")
    if (what := beyond_pairs(config)) is not None:
        raise _refused(adapter, what)
    for name in UNSERVED:
        if config.get(name):
            raise _refused(adapter, f"{name} {json.dumps(config[name])}")
    _check_tensors(adapter, config, base)


def chat_template(adapters: Sequence[Path], base: Path, base_too: bool) -> str | None:
    """The template that the server must be given because it is not the base's own; a server has one for all.

    Raises:
        UserError: two of them differ.
    """
    own = _template(base)
    found = {adapter: _template(adapter) or own for adapter in adapters} | ({base: own} if base_too else {})
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise UserError(
                f"{first} and {other} have different chat templates, and a vLLM server has one for all: evaluate them "
                "in calls of their own"
            )
    return None if found[first] == own else found[first]


def _template(folder: Path) -> str | None:
    """As transformers saves it: a file of its own, or an entry of the tokenizer's configuration."""
    beside, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    if not settings.is_file():
        return None
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None


def _check_tensors(adapter: Path, config: dict[str, Any], base: Path) -> None:
    shapes = _shapes(adapter / ADAPTER)
    pairs = {name.removeprefix(PREFIX).removesuffix(SIDES[0]) for name in shapes if name.endswith(SIDES[0])}
    weights = _base_shapes(base)
    for module in sorted(pairs | _adapted(config, weights)):
        if f"{PREFIX}{module}.lora_embedding_A" in shapes:
            continue
        a, b = (shapes.get(f"{PREFIX}{module}{side}") for side in SIDES)
        if a is None or b is None:
            raise _damaged(adapter, f"no {'lora_A' if a is None else 'lora_B'} for {module}")
        if (a[0], b[-1]) != (config["r"], config["r"]):
            raise _damaged(adapter, f"{module} has rank {a[0]} and {b[-1]}, {ADAPTER_CONFIG} says {config['r']}")
        full = (a[1], b[0]) if config.get("fan_in_fan_out") else (b[0], a[1])
        if weights and module not in weights:
            raise _damaged(adapter, f"its base {base} has no module {module}")
        if weights and weights[module] != full:
            raise _damaged(adapter, f"{module} is for weights of shape {full}, its base {base} has {weights[module]}")


@cache
def _base_shapes(base: Path) -> dict[str, Shape]:
    """Of every weight matrix by its module, as PEFT saw them; none where transformers does not know such models.

    From the configuration, without weights: files may hold them quantised, fused or under older names, and leave out a
    head that is tied to the embedding.
    """
    try:
        with quiet_transformers(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    except (OSError, ValueError, KeyError):
        return {}
    weights = {name: getattr(module, "weight", None) for name, module in model.named_modules()}
    return {name: tuple(weight.shape) for name, weight in weights.items() if weight is not None and weight.dim() == 2}


def _adapted(config: dict[str, Any], weights: dict[str, Shape]) -> set[str]:
    """The base's modules that the configuration adapts, where it names them one by one and leaves none out."""
    targets = config.get("target_modules")
    partly = any(config.get(name) for name in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    if not isinstance(targets, list) or partly:
        return set()
    return {name for name in weights if any(name == target or name.endswith(f".{target}") for target in targets)}


def _shapes(file: Path) -> dict[str, Shape]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}): copy it again") from error


def _refused(adapter: Path, what: str) -> UserError:
    return UserError(f"adapter {adapter} has {what}, which vLLM does not serve as trained: use --engine peft or hf")


def _damaged(adapter: Path, what: str) -> UserError:
    return UserError(f"adapter {adapter} does not fit: {what}")
