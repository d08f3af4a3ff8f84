"""Spectra of whole adapters: for people and programs (`em spectra`), and beside every kept checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from em_core.manifest import Spectrum
from em_train.spectra.measures import MEASURES, measure
from em_train.spectra.pairs import LoraPair, read_pairs
from em_train.spectra.values import exact_spectra, is_resolved, paper_spectra

Method = Literal["exact", "paper"]
SPECTRA = "spectra.safetensors"


@dataclass(frozen=True)
class ModuleSpectrum:
    """One module's singular values of BA (its scale apart), and whether B lies above the paper's floor."""

    name: str
    sigma: Tensor
    resolved: bool
    scaling: float


def spectra_of(pairs: Sequence[LoraPair], method: Method = "exact") -> list[ModuleSpectrum]:
    """The spectrum of each pair, in their order."""
    values = (exact_spectra if method == "exact" else paper_spectra)(pairs)
    return [
        ModuleSpectrum(pair.name, sigma, is_resolved(pair.b), pair.scaling)
        for pair, sigma in zip(pairs, values, strict=True)
    ]


def read_spectra(folder: Path, method: Method = "exact") -> list[ModuleSpectrum]:
    """The spectra of any PEFT LoRA adapter folder, by module name.

    Raises:
        UserError: see `read_pairs`.
    """
    return spectra_of(read_pairs(folder), method)


def as_json(spectra: Sequence[ModuleSpectrum]) -> dict[str, Any]:
    """`{"modules": {NAME: ...}, "mean": {...}}`: values and measures of BA itself, None where undefined.

    `mean` holds the mean of each measure over the modules where it is defined, and beside them the counts: of all
    modules, of those without any spectrum (`undefined`), of those without a finite condition number, and of those
    below the paper's floor.
    """
    modules = {
        one.name: {
            "singular_values": one.sigma.tolist(),
            **measure(one.sigma),
            "resolved": one.resolved,
            "scaling": one.scaling,
        }
        for one in spectra
    }
    summary = summarise([one.sigma for one in spectra]).model_dump()
    summary["unresolved"] = sum(not one.resolved for one in spectra)
    return {"modules": modules, "mean": summary}


def summarise(spectra: Sequence[Tensor]) -> Spectrum:
    """Means over modules; where a measure is undefined for a module, the mean skips it and the count says so."""
    measured = [measure(sigma) for sigma in spectra]
    return Spectrum(
        modules=len(measured),
        undefined=sum(found["stable_rank"] is None for found in measured),
        undefined_condition_number=sum(found["condition_number"] is None for found in measured),
        **{name: _mean([found[name] for found in measured]) for name in MEASURES},
    )


def write_spectra(pairs: list[LoraPair], path: Path) -> Spectrum:
    """Write `spectra.safetensors`; returns the summary.

    It holds `singular_values` (modules x r, float32; zeros where a module has fewer than r) and, in its metadata,
    the module names one a line.
    """
    every = exact_spectra(pairs)
    names = "\n".join(pair.name for pair in pairs)
    table = torch.nn.utils.rnn.pad_sequence(every, batch_first=True)
    rank = max(pair.a.shape[0] for pair in pairs)
    table = torch.nn.functional.pad(table, (0, rank - table.shape[1]))
    save_file({"singular_values": table.float()}, path, metadata={"modules": names})
    return summarise(every)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
