"""Loading: a base model, or an adapter merged into it. One model is kept in memory at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from em_core.adapters import base_of
from em_core.errors import UserError
from em_core.files import sha256_file
from em_core.manifest import ADAPTER, ADAPTER_CONFIG, MANIFEST, verify
from em_core.models import quiet_transformers, resolve_base, weights_sha256


@dataclass(frozen=True)
class Loaded:
    model: Any
    tokenizer: Any
    device: torch.device


_kept: dict[tuple[str, str, str], Loaded] = {}


def is_adapter(path: Path) -> bool:
    return (path / ADAPTER_CONFIG).is_file()


def locate(name: str) -> Path:
    """The folder behind `name`: a folder itself, or a base model or adapter by name or hub id, fetched if need be.

    Raises:
        UserError: nothing of that name.
    """
    path = Path(name)
    return path if path.is_dir() else resolve_base(name).path


def content_hash(name: str) -> str:
    """Eight hex digits of the weights behind `name` (adapter folder, base folder, hub id).

    Raises:
        UserError: nothing there, or an adapter that its manifest does not describe.
    """
    path = locate(name)
    if not is_adapter(path):
        return weights_sha256(path)[:8]
    if (path / MANIFEST).is_file():
        return verify(path).adapter_sha256[:8]
    if not (path / ADAPTER).is_file():
        raise UserError(f"{path} has an {ADAPTER_CONFIG} but no {ADAPTER}: not a loadable adapter")
    return sha256_file(path / ADAPTER)[:8]


def load(name: str, dtype: str, digest: str) -> Loaded:
    """The model behind `name`, from memory if it was the last one used.

    In float32 an adapter is merged, which is exact to rounding and faster; in another dtype merging would
    round small updates away, so the adapter stays apart.

    Raises:
        UserError: unknown base, or an adapter that does not fit its base.
    """
    key = (name, dtype, digest)
    if key not in _kept:
        _kept.clear()
        _kept[key] = load_apart(name, dtype)
    return _kept[key]


def load_apart(name: str, dtype: str) -> Loaded:
    """As `load`, but kept by the caller alone: a judge's model is not pushed out by the model under test."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "bfloat16"
    path = locate(name)
    adapter = path if is_adapter(path) else None
    base = base_of(adapter) if adapter else resolve_base(name)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=getattr(torch, dtype))
        # transformers fills what a call leaves open from the model's own generation settings (top_k, repetition
        # penalty, beams, ...), which are no part of a measurement: only its end tokens stay.
        model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
        if adapter:
            try:
                model = PeftModel.from_pretrained(model, adapter)
            except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"adapter {adapter} does not fit its base {base.id}: {reason}") from error
            if dtype == "float32":
                model = model.merge_and_unload()
        own = adapter if adapter and (adapter / "tokenizer_config.json").is_file() else base.path
        tokenizer = AutoTokenizer.from_pretrained(own)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Loaded(model.eval().to(device), tokenizer, device)
