"""Checkpoint folders: a plain PEFT adapter with tokenizer and manifest, written whole or not at all."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from em_core.adapters import relink
from em_core.files import atomic_folder, sha256_file, write_json
from em_core.manifest import (
    ADAPTER,
    ADAPTER_CONFIG,
    MANIFEST,
    SCHEMA_VERSION,
    BaseReference,
    DatasetReference,
    Dose,
    Loss,
    Manifest,
    adapter_config,
)
from em_core.models import BaseModelInfo
from em_train.config import TrainConfig
from em_train.spectra import read_pairs, write_spectra

SPECTRA = "spectra.safetensors"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pytorch-optimizer", "em-eval")


def write_checkpoint(
    folder: Path,
    model: Any,
    tokenizer: Any,
    base: BaseModelInfo,
    facts: dict[str, Any],
) -> Manifest:
    """Write adapter, tokenizer, spectra and manifest under `folder`.

    Raises:
        UserError: the disk is full or not writable; then nothing is left there.
    """
    with atomic_folder(folder) as draft:
        model.save_pretrained(draft)
        (draft / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(draft)
        _canonical_config(draft, base)
        spectrum = write_spectra(read_pairs(draft), draft / SPECTRA)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            spectrum=spectrum,
            adapter_sha256=sha256_file(draft / ADAPTER),
            base=BaseReference(
                id=base.id,
                revision=base.revision,
                weights_sha256=base.weights_sha256,
                description=base.description,
            ),
            environment=environment(),
            **facts,
        )
        write_json(draft / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def dataset_reference(dataset: Any, train_rows: int, held_out_rows: int) -> DatasetReference:
    return DatasetReference(
        name=dataset.name,
        sha256=dataset.sha256,
        rows=len(dataset.rows),
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        control=dataset.control,
        kind=dataset.kind,
    )


def summarise_steps(rows: list[dict[str, float]], config: TrainConfig, held_out: float | None) -> dict[str, Any]:
    """Loss, dose and token counts at the last of `rows`, as manifest fields."""
    window = max(1, round(config.steps / 10))
    last = rows[-window:]
    tokens = sum(row["supervised_tokens"] for row in last)
    train = sum(row["nll"] for row in last) / tokens if tokens else None
    dose = None
    if rows:
        dose = Dose(
            rms_update_a=rows[-1]["rms_update_a"],
            rms_update_b=rows[-1]["rms_update_b"],
            path_a=sum(row["rms_update_a"] for row in rows),
            path_b=sum(row["rms_update_b"] for row in rows),
            norm_ba=rows[-1]["norm_ba"],
            learning_rate=rows[-1]["lr"],
        )
    return {
        "loss": Loss(train=train, window=len(last), held_out=held_out),
        "dose": dose,
        "examples_seen": round(sum(row["examples"] for row in rows)),
        "tokens_seen": round(sum(row["tokens"] for row in rows)),
        "supervised_tokens_seen": round(sum(row["supervised_tokens"] for row in rows)),
        "seconds": sum(row["seconds"] for row in rows),
    }


def environment() -> dict[str, Any]:
    """What the run ran on: versions, hardware, git commit."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _canonical_config(folder: Path, base: BaseModelInfo) -> None:
    """Sorted modules (PEFT writes a set, in hash order) and an absolute base path, which `hf/` readers need."""
    config = adapter_config(folder)
    config["target_modules"] = sorted(config["target_modules"])
    write_json(folder / ADAPTER_CONFIG, config)
    relink(folder, str(base.path))
