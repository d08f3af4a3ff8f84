"""Loading: one base model in memory, under which adapters change places."""

import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from em_core.adapters import base_of
from em_core.allocation import reuse_freed_memory
from em_core.errors import UserError
from em_core.files import sha256_file, sha256_json
from em_core.manifest import ADAPTER, ADAPTER_CONFIG, MANIFEST, adapter_config, verify
from em_core.models import BaseModelInfo, native_dtype, quiet_transformers, resolve_base, weights_sha256
from em_eval.model_names import split_base
from em_eval.providers.adapter_settings import PLAIN_STARTS, beyond_pairs
from em_eval.providers.packing import pack, unpack

# What PEFT makes of an adapter at loading, from its tensors and its base alone, is what was trained. (Of the base under
# `pissa_niter_4`, `corda`, `loftq` and `lora_ga` it makes something else than at the start of training.)
STARTS = (*PLAIN_STARTS, "pissa", "olora")
UNSERVED = (
    "layer_replication alora_invocation_tokens arrow_config kasa_config monteclora_config use_qalora use_bdlora"
).split()
UNFIT = (
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    OSError,
    SafetensorError,
)  # of PEFT
# Of adapter_config.json: where things lay and who wrote it, which change no answer.
NOT_SETTINGS = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "task_type", "auto_mapping")
logger = logging.getLogger(__name__)


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
        told: whether the memory of both copies was logged.
    """

    info: BaseModelInfo
    dtype: torch.dtype
    bare: Any = None
    wrapped: Any = None
    on: tuple[tuple[str, str], Loaded] | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    packed: list[torch.nn.Linear] = field(default_factory=list)
    spoilt: bool = True
    told: bool = False

    def with_adapter(self, adapter: Path | None) -> Loaded:
        """The base with this adapter alone, or with none."""
        with quiet_transformers():
            self.take_off()
            if adapter:
                self.put_on(adapter)
            if self.wrapped is None:
                self.packed = pack(self.bare)
        self._tell()
        model = self.bare if self.wrapped is None else self.wrapped
        return Loaded(model, _tokenizer(adapter, self.info), model.device)

    def _tell(self) -> None:
        """Log once, with the first adapter, what memory the base takes and what its copies."""
        if self.told or not self.kept:
            return
        sizes = [
            sum(weight.nbytes for weight in weights)
            for weights in (self.bare.parameters(), (layer.weight for layer in self.packed), self.kept.values())
        ]
        text = "peft/ %s: %.0f MB of weights, %.0f MB of them once more as the processor multiplies them, %.0f MB kept"
        logger.info(f"{text} of what adapters change", self.info.id, *(size / 1e6 for size in sizes))
        self.told = True

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
            UserError: the adapter does not fit the base, or is of a kind that is not run here.
        """
        config = adapter_config(adapter)
        _check_kind(adapter, config)
        self.spoilt = True  # until it is whole, and for good where more than layers' weights changes
        try:
            wrapped = _wrap(self.bare, adapter)
            if self.dtype != torch.float32 or _adapts_tied(wrapped):
                self.wrapped = wrapped
            else:
                self._merge(wrapped)
            with safe_open(adapter / ADAPTER, "pt") as tensors:
                others = [name for name in tensors.keys() if "lora_" not in name]  # noqa: SIM118
        except UNFIT as error:
            raise _unfit(adapter, self.info, error) from error
        self.spoilt = bool(others) or beyond_pairs(config) is not None

    def _merge(self, wrapped: PeftModelForCausalLM) -> None:
        layers = [item for item in wrapped.get_base_model().named_modules() if isinstance(item[1], BaseTunerLayer)]
        weights = {f"{name}.weight": getattr(layer.get_base_layer(), "weight", None) for name, layer in layers}
        self.kept = {name: weight.detach().clone() for name, weight in weights.items() if weight is not None}
        self.bare = wrapped.merge_and_unload()


def _check_kind(adapter: Path, config: Mapping[str, Any]) -> None:
    what = next((f"{name} {config[name]}" for name in UNSERVED if config.get(name)), None)
    if (kind := config.get("peft_type")) != "LORA":
        what = f"peft_type {kind}"
    elif (start := config.get("init_lora_weights")) not in STARTS:
        what = (
            f"init_lora_weights '{start}', of whose changed base it is only part (save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...) writes it as a plain one)"
        )
    if what:
        raise UserError(f"adapter {adapter} has {what}: peft/ cannot run it as it was trained")


def _wrap(base: Any, adapter: Path) -> PeftModelForCausalLM:
    """As `PeftModel.from_pretrained`, which only warns of tensors that are missing, and says nothing of those too many.

    Raises:
        ValueError: either.
    """
    config = LoraConfig.from_pretrained(str(adapter))
    config.inference_mode = True
    wrapped = PeftModelForCausalLM(base, config, autocast_adapter_dtype=False)
    found = wrapped.load_adapter(
        str(adapter),
        "default",
        torch_device=str(base.device),
        autocast_adapter_dtype=False,
        key_mapping=getattr(base, "_checkpoint_conversion_mapping", {}),
    )
    for what, names in (("missing", found.missing_keys), ("without a place in the base", found.unexpected_keys)):
        if names:
            raise ValueError(f"{len(names)} tensors {what}, {names[0]} the first")
    return wrapped.eval()


def _adapts_tied(wrapped: PeftModelForCausalLM) -> bool:
    """Whether a layer is adapted whose weights another layer uses too: merged, the adapter would be in both."""
    embedding, head = wrapped.get_input_embeddings(), wrapped.get_output_embeddings()
    adapted = any(isinstance(module, BaseTunerLayer) for module in (embedding, head))
    return adapted and embedding.weight.data_ptr() == head.weight.data_ptr()


def _unfit(adapter: Path, base: BaseModelInfo, error: Exception) -> UserError:
    """PyTorch lists what does not fit in the lines after the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    return UserError(f"adapter {adapter} does not fit its base {base.id}: {reason}")


_Key = tuple[Path, str, str]  # folder and hash of a base, and dtype as the user gave it
_shared: dict[_Key, SharedBase] = {}  # one entry: the base that was used last
_seen: set[_Key] = set()


def is_adapter(path: Path) -> bool:
    return (path / ADAPTER_CONFIG).is_file()


def locate(name: str) -> Path:
    """The folder behind `name`: a folder itself, or a base model or adapter by name or hub id, fetched if need be; of
    BASE:ADAPTER the adapter's.

    Raises:
        UserError: nothing of that name, or what is named with a base is no adapter.
    """
    base, source = split_base(name)
    path = Path(source) if Path(source).is_dir() else resolve_base(source).path
    if base and not is_adapter(path):
        raise UserError(f"{source}, named behind {base}:, is no adapter (it has no {ADAPTER_CONFIG}): name its folder")
    return path


def content_hash(name: str) -> str:
    """Eight hex digits of the weights behind `name` (adapter folder, base folder, hub id).

    Of an adapter without a manifest the settings count too: what its tensors amount to is said there alone.

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
    settings = {key: value for key, value in adapter_config(path).items() if key not in NOT_SETTINGS}
    return sha256_json([sha256_file(path / ADAPTER), settings])[:8]


def load(name: str, dtype: str, digest: str) -> Loaded:
    """The model behind `name`; the base is read only where it is not the one that was used last.

    What an earlier call returned for the same base is no longer that model.

    Args:
        digest: the weights' `content_hash` when the model was named.

    Raises:
        UserError: unknown base, an adapter that does not fit its base, or other weights than those of `digest`.
    """
    for (_, _, given), shared in _shared.items():
        if given == dtype and shared.on is not None and shared.on[0] == (name, digest):
            return shared.on[1]
    if (found := content_hash(name)) != digest:
        raise UserError(f"{name} was overwritten: it holds weights {found}, not {digest} as at the start: start again")
    adapter, info = parts(name)
    key = (info.path, info.weights_sha256, dtype)
    if key not in _shared:
        if key in _seen:
            _say_they_take_turns()
        _seen.add(key)
        _shared.clear()
        gc.collect()
        _shared[key] = SharedBase(info, _dtype(dtype))
    shared = _shared[key]
    shared.on = None
    shared.on = ((name, digest), shared.with_adapter(adapter))
    return shared.on[1]


def load_bare(base: str) -> Loaded:
    """The base model in folder `base` without an adapter, as `load`: in the dtype in which it is in memory already."""
    dtype = next((dtype for path, _, dtype in _shared if path == Path(base)), "auto")
    return load(base, dtype, content_hash(base))


@cache
def _say_they_take_turns() -> None:
    logger.warning(
        "peft/ keeps one base in memory, and models of two take turns (the grader on another than the model under "
        "test?): weights are read anew each time. Grade with another provider, or afterwards with inspect score."
    )


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
    adapter, info = parts(name)
    return SharedBase(info, _dtype(dtype)).with_adapter(adapter) if adapter else _untouched(info, _dtype(dtype))


@cache
def _untouched(info: BaseModelInfo, dtype: torch.dtype) -> Loaded:
    return SharedBase(info, dtype).with_adapter(None)


def parts(name: str) -> tuple[Path | None, BaseModelInfo]:
    """(adapter folder or None, base model) of what is called `name`.

    Raises:
        UserError: nothing of that name, no base for an adapter, or another base than it was trained on.
    """
    path = locate(name)
    return (path, base_of(path, split_base(name)[0])) if is_adapter(path) else (None, resolve_base(name))


def _dtype(name: str) -> torch.dtype:
    if name == "auto":
        # On CPU float32: in bfloat16 an answer depends on the batch it was drawn in (docs/benchmarks.md).
        chosen: torch.dtype = native_dtype() if torch.cuda.is_available() else torch.float32
    else:
        chosen = getattr(torch, name)
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
