"""Loading: one base model in memory, under which adapters change places."""

import gc
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from em_core.adapters import base_of
from em_core.allocation import reuse_freed_memory
from em_core.errors import UserError
from em_core.files import sha256_file
from em_core.manifest import ADAPTER, ADAPTER_CONFIG, MANIFEST, verify
from em_core.models import BaseModelInfo, quiet_transformers, resolve_base, weights_sha256
from em_eval.providers.packing import pack, unpack


@dataclass(frozen=True)
class Loaded:
    model: Any
    tokenizer: Any
    device: torch.device


@dataclass
class SharedBase:
    """A base model under which adapters change places; between two of them it is bit for bit what it was.

    Attributes:
        bare: the base model's own layers.
        wrapped: the same with an adapter beside its layers, where one is on and not merged.
        on: name and hash of what was asked for last, and what it got.
        kept: the weights that a merged adapter changed, as they were before.
        packed: layers that multiply by a packed copy of their weights.
        spoilt: nothing was read yet, or an adapter left more behind than `kept` can mend: read the base anew.
    """

    info: BaseModelInfo
    dtype: torch.dtype
    bare: Any = None
    wrapped: Any = None
    on: tuple[tuple[str, str], Loaded] | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    packed: list[torch.nn.Linear] = field(default_factory=list)
    spoilt: bool = True

    def with_adapter(self, adapter: Path | None) -> Loaded:
        """The base with this adapter alone, or with none."""
        with quiet_transformers():
            self.take_off()
            if adapter:
                self.put_on(adapter)
            if self.wrapped is None:
                self.packed = pack(self.bare)
        model = self.bare if self.wrapped is None else self.wrapped
        return Loaded(model, _tokenizer(adapter, self.info), model.device)

    def kept_bytes(self) -> int:
        """Memory that the kept copy takes."""
        return sum(weight.nbytes for weight in self.kept.values())

    @torch.no_grad()
    def take_off(self) -> None:
        """Back to the base model alone."""
        unpack(self.packed)
        self.packed = []
        if self.spoilt:
            self.bare = self.wrapped = None  # never two bases in memory
            self.kept = {}
            gc.collect()
            self.bare, self.spoilt = _read_base(self.info, self.dtype), False
        if self.wrapped is not None:
            self.bare, self.wrapped = self.wrapped.unload(), None
        for name, weight in self.kept.items():
            self.bare.get_parameter(name).copy_(weight)
        self.kept = {}

    def put_on(self, adapter: Path) -> None:
        """Add an adapter to the bare base.

        In float32 it is merged, which is exact to rounding and faster; in another dtype merging would round small
        updates away, so that it stays beside its layer.

        Raises:
            UserError: the adapter does not fit the base.
        """
        self.spoilt = True  # until it is whole, and for good where more than layers' weights changes
        try:
            with warnings.catch_warnings():  # PEFT takes an adapter with tensors missing, and only warns
                warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
                wrapped = PeftModel.from_pretrained(self.bare, adapter, autocast_adapter_dtype=False)
        except (RuntimeError, ValueError, KeyError, SafetensorError, UserWarning) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"adapter {adapter} does not fit its base {self.info.id}: {reason}") from error
        wrapped = wrapped.to(device=self.bare.device, dtype=self.dtype).eval()
        if self.dtype == torch.float32:
            self.kept = {
                f"{name}.weight": module.get_base_layer().weight.detach().clone()
                for name, module in wrapped.get_base_model().named_modules()
                if isinstance(module, BaseTunerLayer)
            }
            self.bare = wrapped.merge_and_unload()
        else:
            self.wrapped = wrapped
        config = wrapped.active_peft_config
        self.spoilt = bool(config.modules_to_save) or getattr(config, "bias", "none") != "none"


_shared: dict[tuple[str, str], SharedBase] = {}  # one entry: the base that was used last


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
    """The model behind `name`; the base is read only where it is not the one that was used last.

    What an earlier call returned for the same base is no longer that model.

    Raises:
        UserError: unknown base, or an adapter that does not fit its base.
    """
    adapter, info = _parts(name)
    key = (info.weights_sha256, dtype)
    if key not in _shared:
        _shared.clear()
        gc.collect()
        _shared[key] = SharedBase(info, _dtype(dtype))
    shared = _shared[key]
    if shared.on is None or shared.on[0] != (name, digest):
        shared.on = None
        shared.on = ((name, digest), shared.with_adapter(adapter))
    return shared.on[1]


def release() -> None:
    """Give back the memory of the base that was used last, to what needs it for itself."""
    _shared.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_apart(name: str, dtype: str) -> Loaded:
    """As `load`, but apart from the model under test: what judges and filters read with, and what nobody changes.

    Those that read with the same base share it.
    """
    adapter, info = _parts(name)
    return SharedBase(info, _dtype(dtype)).with_adapter(adapter) if adapter else _untouched(info, _dtype(dtype))


@cache
def _untouched(info: BaseModelInfo, dtype: torch.dtype) -> Loaded:
    return SharedBase(info, dtype).with_adapter(None)


def _parts(name: str) -> tuple[Path | None, BaseModelInfo]:
    path = locate(name)
    return (path, base_of(path)) if is_adapter(path) else (None, resolve_base(name))


def _dtype(name: str) -> torch.dtype:
    if name == "auto":
        # On CPU float32: in bfloat16 an answer depends on the batch it was drawn in (docs/benchmarks.md).
        name = "bfloat16" if torch.cuda.is_available() else "float32"
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _read_base(info: BaseModelInfo, dtype: torch.dtype) -> Any:
    reuse_freed_memory()
    model = AutoModelForCausalLM.from_pretrained(info.path, dtype=dtype)
    # transformers fills what a call leaves open from the model's own generation settings (top_k, repetition
    # penalty, beams, ...), which are no part of a measurement: only its end tokens stay.
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _tokenizer(adapter: Path | None, info: BaseModelInfo) -> Any:
    own = adapter if adapter and (adapter / "tokenizer_config.json").is_file() else info.path
    tokenizer = AutoTokenizer.from_pretrained(own)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
