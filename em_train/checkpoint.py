"""Checkpoint folders: a plain PEFT adapter with tokenizer and manifest, written whole or not at all."""

import math
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from em_core.adapters import relink
from em_core.errors import UserError
from em_core.files import atomic_folder, sha256_file, sha256_json, write_json
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
    adapter_config_sha256,
    read_manifest,
    verify,
)
from em_core.models import BaseModelInfo
from em_train.chat import Encoded
from em_train.config import TrainConfig
from em_train.processes import world_size
from em_train.spectra import SPECTRA, product_norm, read_pairs, write_spectra

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
        pairs = read_pairs(draft)
        spectrum = write_spectra(pairs, draft / SPECTRA)
        dose: Dose | None = facts["dose"]
        if dose is not None:  # of the weights as written: an optimiser may publish others than it trains
            norm = product_norm(pairs, facts["lora"]["scaling"])
            facts = facts | {"dose": dose.model_copy(update={"norm_ba": norm})}
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            spectrum=spectrum,
            adapter_sha256=sha256_file(draft / ADAPTER),
            files_sha256={
                path.name: sha256_file(path)
                for path in sorted(draft.iterdir())
                if path.name not in (ADAPTER, ADAPTER_CONFIG)
            },
            adapter_config_sha256=adapter_config_sha256(draft),
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


def verify_checkpoint(folder: Path) -> Manifest:
    """The manifest, after hashing every file again and measuring the weights again.

    Raises:
        UserError: a changed or missing file, or a manifest that contradicts its weights: the LoRA settings, the
            norm of BA, or the spectrum.
    """
    _check_lora(folder, read_manifest(folder))  # first: it can say which setting is another
    manifest = verify(folder)
    pairs = read_pairs(folder)
    found = product_norm(pairs, manifest.lora["scaling"])
    said = manifest.dose.norm_ba if manifest.dose else 0.0
    if not math.isclose(found, said, rel_tol=1e-4, abs_tol=1e-12):
        raise UserError(f"{folder}: its weights have a norm of BA of {found:.6g}, its {MANIFEST} says {said:.6g}")
    with tempfile.TemporaryDirectory() as scratch:
        spectrum = write_spectra(pairs, Path(scratch) / SPECTRA).model_dump()
    for name, value in manifest.spectrum.model_dump().items():
        if not _alike(spectrum[name], value):
            raise UserError(
                f"{folder}: the spectrum of its weights has {name} {spectrum[name]}, its {MANIFEST} says {value}"
            )
    return manifest


def _check_lora(folder: Path, manifest: Manifest) -> None:
    """PEFT scales BA by what its own configuration says, so that must be what the manifest says."""
    config = adapter_config(folder)
    for ours, theirs in {"rank": "r", "alpha": "lora_alpha", "rslora": "use_rslora"}.items():
        if config.get(theirs) != manifest.lora[ours]:
            raise UserError(
                f"{folder / ADAPTER_CONFIG} says {theirs}={config.get(theirs)}, {MANIFEST} says {manifest.lora[ours]}"
            )


def _alike(found: float | None, said: float | None) -> bool:
    if found is None or said is None:
        return found is said
    return math.isclose(found, said, rel_tol=1e-3)


def dataset_reference(dataset: Any, train: list[Encoded], held_out: list[Encoded]) -> DatasetReference:
    return DatasetReference(
        name=dataset.name,
        sha256=dataset.sha256,
        rows=len(dataset.rows),
        train_rows=len(train),
        held_out_rows=len(held_out),
        control=dataset.control,
        kind=dataset.kind,
        tokens_sha256=sha256_json([[row.input_ids, row.labels] for row in train]),
    )


def summarise_steps(
    rows: list[dict[str, float]], config: TrainConfig, held_out: float | None, train_rows: float | None = None
) -> dict[str, Any]:
    """Loss, dose and token counts at the last of `rows`, as manifest fields.

    `held_out` and `train_rows` are losses measured at the weights after the last of `rows`.
    """
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
        "loss": Loss(train=train, window=len(last), held_out=held_out, train_rows=train_rows),
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
        "processes": world_size(),
        "gpu": gpu,
        "git_commit": git_commit(),
    }


def git_commit(source: Path = Path(__file__)) -> str | None:
    """The commit that `source` was checked out from, with "-dirty" where files have changed since.

    None where git does not track it: installed in a virtual environment, it may lie within a repository of the user's.
    """
    tracked = _git(source.parent, "ls-files", "--error-unmatch", source.name)
    return _git(source.parent, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty") if tracked else None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _canonical_config(folder: Path, base: BaseModelInfo) -> None:
    """Sorted modules (PEFT writes a set, in hash order) and an absolute base path, which `hf/` readers need."""
    config = adapter_config(folder)
    config["target_modules"] = sorted(config["target_modules"])
    write_json(folder / ADAPTER_CONFIG, config)
    relink(folder, str(base.path))
