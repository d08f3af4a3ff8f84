"""The LoRA factors of a PEFT adapter folder, module by module, with the scale that PEFT multiplies their product by."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from em_core.errors import UserError
from em_core.manifest import ADAPTER, ADAPTER_CONFIG, adapter_config

PREFIX = "base_model.model."  # PEFT's, before the base model's own module names
# (key of A, key of B) after the module's name: linear and convolution layers, then embeddings.
SUFFIXES = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


@dataclass(frozen=True)
class LoraPair:
    """The factors of one module: A is r x n, B is m x r, the update of the weight is s BA with s = `scaling`."""

    name: str
    a: Tensor
    b: Tensor
    scaling: float = 1.0


def read_pairs(folder: Path) -> list[LoraPair]:
    """The pairs of a PEFT LoRA adapter folder, sorted by module name.

    Convolution kernels are flattened to matrices; an adapter on a stack of experts is one pair an expert.

    Raises:
        UserError: no adapter there, a damaged file, another kind of adapter than LoRA, a factor without its
            partner, values that are not finite, or a rank that is not the configured one.
    """
    config = lora_config(folder)
    pairs = []
    tensors = read_tensors(folder)
    for name, a_key, b_key in factor_keys(folder, tensors):
        pairs += _pairs_of(name, tensors[a_key], tensors[b_key], config, folder)
    return sorted(pairs, key=lambda pair: pair.name)


def lora_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA adapter, refused by name where BA would not be its update."""
    if not folder.is_dir():
        raise UserError(f"adapter folder {folder} does not exist")
    config = adapter_config(folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder / ADAPTER_CONFIG}: peft_type is {kind}, only LORA has a spectrum of BA")
    if config.get("use_bdlora"):
        raise UserError(f"{folder / ADAPTER_CONFIG}: block-diagonal LoRA (use_bdlora) is not supported")
    for field, default in (("r", None), ("lora_alpha", None), ("rank_pattern", {}), ("alpha_pattern", {})):
        if config.get(field) is None:
            if default is None:
                raise UserError(f"{folder / ADAPTER_CONFIG} has no {field}: give a whole PEFT adapter folder")
            config[field] = default
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the adapter file.

    Raises:
        UserError: no such file, or a damaged one.
    """
    path = folder / ADAPTER
    if not path.is_file():
        pickled = " (adapter_model.bin is a pickle: convert it with PEFT's save_pretrained)"
        raise UserError(f"{folder} has no {ADAPTER}{pickled if (folder / 'adapter_model.bin').exists() else ''}")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # safetensors raises its own untyped errors
        raise UserError(f"{path} cannot be read as a LoRA adapter: {error}") from error


def factor_keys(folder: Path, tensors: dict[str, Tensor]) -> list[tuple[str, str, str]]:
    """(module name, key of A, key of B) of every module in the file, by name."""
    found: dict[str, dict[str, str]] = {}
    for key in tensors:
        for suffixes in SUFFIXES:
            for side, suffix in zip("AB", suffixes, strict=True):
                if key.endswith(suffix):
                    found.setdefault(key.removesuffix(suffix), {})[side] = key
    for name, keys in sorted(found.items()):
        if len(keys) == 1:
            has, lacks = ("A", "B") if "A" in keys else ("B", "A")
            raise UserError(f"{folder / ADAPTER}: {name} has {has} but no {lacks}")
    if not found:
        raise UserError(f"{folder / ADAPTER}: holds no LoRA factors")
    return [(name, keys["A"], keys["B"]) for name, keys in sorted(found.items())]


def rank_and_scaling(name: str, config: dict[str, Any]) -> tuple[int, float]:
    """(r, s) of a module as PEFT resolves them: alpha / r, or alpha / sqrt(r) under rsLoRA, patterns first."""
    module = name.removeprefix(PREFIX)
    rank = int(_by_pattern(config["rank_pattern"], module, config["r"]))
    alpha = float(_by_pattern(config["alpha_pattern"], module, config["lora_alpha"]))
    return rank, alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """The first pattern that matches the module's name or a whole-part suffix of it (PEFT, get_pattern_key)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _pairs_of(name: str, a: Tensor, b: Tensor, config: dict[str, Any], folder: Path) -> list[LoraPair]:
    a, b = a.flatten(1), b.flatten(1)
    for side, factor in (("A", a), ("B", b)):
        if not bool(torch.isfinite(factor).all()):
            raise UserError(f"{folder / ADAPTER}: {side} of {name} holds values that are not finite")
    rank, scaling = rank_and_scaling(name, config)
    rows = a.shape[0]
    if rows != b.shape[1]:
        raise UserError(f"{folder / ADAPTER}: {name}: A has {rows} rows but B has {b.shape[1]} columns")
    if rows == rank:
        return [LoraPair(name, a, b, scaling)]
    if config.get("target_parameters") and rows % rank == 0:
        # PEFT's ParamWrapper: A stacks experts whole, B interleaves them.
        experts = rows // rank
        return [
            LoraPair(f"{name}.{expert}", a[expert * rank : (expert + 1) * rank], b[:, expert::experts], scaling)
            for expert in range(experts)
        ]
    raise UserError(f"{folder / ADAPTER_CONFIG} gives {name} rank {rank}, its factors have rank {rows}")
