"""Checkpoint folders made by hand: no model, only the files that readers of the contract look at."""

import hashlib
import json
from pathlib import Path
from typing import Any


def write_base(folder: Path, weights: bytes = b"base weights") -> Path:
    """A base model folder as far as resolve_base looks at it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def weights_hash(weights: bytes = b"base weights") -> str:
    """em_core.models.weights_sha256 of `write_base`, computed apart from it."""
    listed = [["model.safetensors", hashlib.sha256(weights).hexdigest()]]
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def write_checkpoint(folder: Path, base: Path, named: str | None = None) -> Path:
    """A checkpoint on `base`, whose adapter_config.json names `named` (default: where the base lies)."""
    write_base(base)
    folder.mkdir(parents=True)
    adapter = bytes(range(200))
    (folder / "adapter_model.safetensors").write_bytes(adapter)
    config = {"peft_type": "LORA", "base_model_name_or_path": named or str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    manifest = {
        "schema_version": 1,
        "run_id": "abc",
        "step": 3,
        "config": {"seed": 0},
        "optimiser": {"name": "adamw"},
        "dataset": {
            "name": "tiny",
            "sha256": "0" * 64,
            "rows": 40,
            "train_rows": 36,
            "held_out_rows": 4,
            "control": None,
            "kind": "unknown",
            "tokens_sha256": "1" * 64,
        },
        "base": {
            "id": str(base),
            "revision": None,
            "weights_sha256": weights_hash(),
            "description": "local folder",
        },
        "lora": {"rank": 4},
        "examples_seen": 12,
        "tokens_seen": 100,
        "supervised_tokens_seen": 50,
        "loss": {"train": 1.5, "window": 1, "held_out": None, "train_rows": 1.4},
        "dose": {
            "rms_update_a": 0.1,
            "rms_update_b": 0.2,
            "path_a": 0.3,
            "path_b": 0.4,
            "norm_ba": 2.0,
            "learning_rate": 0.001,
        },
        "spectrum": {
            "modules": 14,
            "undefined": 0,
            "stable_rank": 1.5,
            "entropy": 1.0,
            "participation_ratio": 2.0,
            "fro_over_nuclear": 0.6,
        },
        "adapter_sha256": hashlib.sha256(adapter).hexdigest(),
        "files_sha256": {},
        "first_example": "a⟦b⟧",
        "seconds": 1.0,
        "environment": {},
    }
    (folder / "em.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    return folder


def rewrite(folder: Path, **fields: Any) -> None:
    """Change top-level fields of the manifest; None removes one."""
    path = folder / "em.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | fields
    kept = {key: value for key, value in manifest.items() if value is not None}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def rewrite_base(folder: Path, **fields: Any) -> None:
    """Change fields of the manifest's base model."""
    path = folder / "em.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["base"] |= fields
    path.write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
