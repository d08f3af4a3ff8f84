"""Singular values of the LoRA product BA without forming it, and measures of how flat they are.

QR of B and of A' leaves an r x r product with the same singular values; in float64 that is exact to about
1e-10 relative even for ill-conditioned factors.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from em_core.errors import UserError
from em_core.manifest import ADAPTER, Spectrum

A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LoraPair:
    """The factors of one module: A is r x n, B is m x r, the update of the weight is s BA."""

    name: str
    a: Tensor
    b: Tensor


def read_pairs(folder: Path) -> list[LoraPair]:
    """The pairs in an adapter folder, sorted by module name.

    Raises:
        UserError: no adapter there, a damaged file, or a factor without its partner.
    """
    path = folder / ADAPTER
    try:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
            stems = sorted(name.removesuffix(A_SUFFIX) for name in names if name.endswith(A_SUFFIX))
            others = {name.removesuffix(B_SUFFIX) for name in names if name.endswith(B_SUFFIX)}
            lonely = sorted(others.symmetric_difference(stems))
            if lonely:
                has, lacks = ("A", "B") if lonely[0] in stems else ("B", "A")
                raise UserError(f"{path}: {lonely[0]} has {has} but no {lacks}")
            if not stems:
                raise UserError(f"{path}: holds no LoRA factors")
            return [
                LoraPair(stem, tensors.get_tensor(stem + A_SUFFIX), tensors.get_tensor(stem + B_SUFFIX))
                for stem in stems
            ]
    except UserError:
        raise
    except Exception as error:  # safetensors raises its own untyped errors
        raise UserError(f"{path} cannot be read as a LoRA adapter: {error}") from error


@torch.no_grad()
def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """The r singular values of BA (r,), float64, descending; zeros where B = 0 or where r exceeds BA's sides."""
    r_b = torch.linalg.qr(b.double(), mode="r").R
    r_a = torch.linalg.qr(a.double().T, mode="r").R
    values: Tensor = torch.linalg.svdvals(r_b @ r_a.T)
    return torch.nn.functional.pad(values, (0, a.shape[0] - len(values)))


def stable_rank(sigma: Tensor) -> float:
    """sum sigma^2 / sigma_1^2, between 1 and r."""
    return float((sigma**2).sum() / sigma.max() ** 2)


def entropy(sigma: Tensor) -> float:
    """-sum p ln p with p = sigma / sum sigma (Evil Spectra, app. G.1: sigma itself, not its square)."""
    p = sigma / sigma.sum()
    return float(-torch.special.xlogy(p, p).sum())


def participation_ratio(sigma: Tensor) -> float:
    """(sum sigma^2)^2 / sum sigma^4, between 1 and r."""
    return float((sigma**2).sum() ** 2 / (sigma**4).sum())


def fro_over_nuclear(sigma: Tensor) -> float:
    """sqrt(sum sigma^2) / sum sigma, between 1/sqrt(r) (flat) and 1: the quantity that the paper penalises."""
    return float(sigma.norm() / sigma.sum())


MEASURES = {
    "stable_rank": stable_rank,
    "entropy": entropy,
    "participation_ratio": participation_ratio,
    "fro_over_nuclear": fro_over_nuclear,
}


def summarise(spectra: Iterable[Tensor]) -> Spectrum:
    """Means over modules; modules with BA = 0 have no spectrum and are counted as undefined."""
    every = list(spectra)
    defined = [sigma for sigma in every if float(sigma.max()) > 0]
    means = {
        name: sum(measure(sigma) for sigma in defined) / len(defined) if defined else None
        for name, measure in MEASURES.items()
    }
    return Spectrum(modules=len(every), undefined=len(every) - len(defined), **means)


def write_spectra(pairs: list[LoraPair], path: Path) -> Spectrum:
    """Write `spectra.safetensors` (modules x r, float32, module names in its metadata); returns the summary."""
    every = [singular_values(pair.a, pair.b) for pair in pairs]
    names = "\n".join(pair.name for pair in pairs)
    save_file({"singular_values": torch.stack(every).float()}, path, metadata={"modules": names})
    return summarise(every)


def product_norm(pairs: list[LoraPair], scaling: float) -> float:
    """Root of the summed squared Frobenius norms of s BA: ||BA||_F^2 = tr(B'B AA')."""
    total = sum(float(((p.b.T @ p.b).double() * (p.a @ p.a.T).double()).sum()) for p in pairs)
    return float(scaling * max(total, 0.0) ** 0.5)
