"""Singular values of the LoRA product BA without forming it, and measures of how flat they are."""

from em_train.spectra.flatten import flatten_adapter, flatten_pair
from em_train.spectra.measures import (
    MEASURES,
    condition_number,
    entropy,
    entropy_squared,
    fro_over_nuclear,
    participation_ratio,
    stable_rank,
)
from em_train.spectra.pairs import LoraPair, read_pairs
from em_train.spectra.record import SPECTRA, ModuleSpectrum, as_json, read_spectra, spectra_of, summarise, write_spectra
from em_train.spectra.values import exact_spectra, paper_spectra, product_norm, singular_values

__all__ = [
    "MEASURES",
    "SPECTRA",
    "LoraPair",
    "ModuleSpectrum",
    "as_json",
    "condition_number",
    "entropy",
    "entropy_squared",
    "exact_spectra",
    "flatten_adapter",
    "flatten_pair",
    "fro_over_nuclear",
    "paper_spectra",
    "participation_ratio",
    "product_norm",
    "read_pairs",
    "read_spectra",
    "singular_values",
    "spectra_of",
    "stable_rank",
    "summarise",
    "write_spectra",
]
