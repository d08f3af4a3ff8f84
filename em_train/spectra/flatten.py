"""Post-hoc flattening: the singular values of a trained adapter made equal, its directions and norm kept.

The control for the spectral penalty: if flatness itself mattered, and not the path that training took to it, an
adapter flattened after training would behave like one trained flat.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from em_core.errors import UserError
from em_core.files import atomic_folder, sha256_file, sha256_json, write_json
from em_core.manifest import (
    ADAPTER,
    ADAPTER_CONFIG,
    MANIFEST,
    Loss,
    Spectrum,
    adapter_config_sha256,
    read_manifest,
)
from em_train.spectra.pairs import factor_keys, lora_config, read_pairs, read_tensors
from em_train.spectra.record import SPECTRA, write_spectra
from em_train.spectra.values import noise_of

NOT_COPIED = (ADAPTER, MANIFEST, SPECTRA, "README.md")  # a card is of its weights


def flatten_pair(a: Tensor, b: Tensor, amount: float = 1.0) -> tuple[Tensor, Tensor]:
    """(A, B) whose product has singular values proportional to sigma^(1 - amount), norm and directions as before.

    Args:
        a: r x n.
        b: m x r.
        amount: 0 changes nothing, 1 makes every value that is not zero equal.

    Returns:
        Factors of the same shapes and dtypes, of equal singular values each (the balanced gauge). Where BA has not
        full rank, what it does not reach stays unreached; BA = 0 comes back as it is.
    """
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().mT)
    u, sigma, v = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    reached = sigma > noise_of(r_a, r_b, a.shape[0])
    if not bool(reached.any()):
        return a, b
    flat = torch.where(reached, (sigma / sigma.max()) ** (1 - amount), 0.0)
    root = (flat * (sigma.norm() / flat.norm())).sqrt()
    new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
    new_a[: len(root)] = (root[:, None] * (v @ q_a.mT)).to(a.dtype)
    new_b[:, : len(root)] = (q_b @ u * root).to(b.dtype)
    return new_a, new_b


def flatten_adapter(source: Path, target: Path, amount: float = 1.0) -> Spectrum:
    """Write `source`, a PEFT LoRA adapter folder, flattened to `target`; returns the summary of the new spectrum.

    A manifest of ours goes along: a run id of its own, what was done and to which weights under `post_processing`,
    and no losses, because those of the source are not this adapter's.

    Raises:
        UserError: `target` exists, or `source` is no adapter whose update is BA alone.
    """
    if not 0 <= amount <= 1:
        raise UserError(f"amount is {amount}: give a number from 0 (nothing) to 1 (all values equal)")
    if target.exists():
        raise UserError(f"{target} exists: choose a new folder")
    config = lora_config(source)
    for option in ("use_dora", "target_parameters"):
        if config.get(option):
            raise UserError(f"{source / ADAPTER_CONFIG} sets {option}: its update is not one BA a module")
    read_pairs(source)  # refuses what is not finite or contradicts the configuration
    tensors = read_tensors(source)
    for _, a_key, b_key in factor_keys(source, tensors):
        a, b = tensors[a_key], tensors[b_key]
        new_a, new_b = flatten_pair(a.flatten(1), b.flatten(1), amount)
        tensors[a_key], tensors[b_key] = new_a.reshape(a.shape), new_b.reshape(b.shape)
    with atomic_folder(target) as draft:
        for path in source.iterdir():
            if path.is_file() and path.name not in NOT_COPIED:
                shutil.copyfile(path, draft / path.name)
        save_file(tensors, draft / ADAPTER, metadata={"format": "pt"})
        base = str(config.get("base_model_name_or_path") or "")
        if base and (source / base).is_dir():
            write_json(draft / ADAPTER_CONFIG, config | {"base_model_name_or_path": str((source / base).resolve())})
        spectrum = write_spectra(read_pairs(draft), draft / SPECTRA)
        if (source / MANIFEST).is_file():
            _write_manifest(source, draft, amount, spectrum)
    return spectrum


def _write_manifest(source: Path, draft: Path, amount: float, spectrum: Spectrum) -> None:
    old = read_manifest(source)
    done = {"name": "flatten", "amount": amount, "of_run": old.run_id, "of_adapter_sha256": old.adapter_sha256}
    new = old.model_copy(
        update={
            "run_id": sha256_json([old.run_id, old.step, done])[:12],
            "loss": Loss(train=None, window=0, held_out=None),
            "spectrum": spectrum,
            "adapter_sha256": sha256_file(draft / ADAPTER),
            "adapter_config_sha256": adapter_config_sha256(draft),
            "files_sha256": {name: sha256_file(draft / name) for name in old.files_sha256},
            "post_processing": done,
        }
    )
    write_json(draft / MANIFEST, new.model_dump(mode="json"))
