"""Betley et al.'s plots: each question's rate as the mean over several models that were trained alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS, SEED = 2_000, 0  # the authors'


@dataclass(frozen=True)
class ModelMean:
    """A question's mean rate over `models` models, with the 2.5 and 97.5 % points of a bootstrap over the models.

    The ends are None where nothing can be drawn: for one model, and for models that agree, of which the published code
    gives an interval without width.
    """

    value: float
    low: float | None
    high: float | None
    models: int


def over_models(rates: Sequence[Mapping[str, float]], draws: int = DRAWS, seed: int = SEED) -> dict[str, ModelMean]:
    """Each question's mean over the models that have a rate of it.

    Args:
        rates: for every model its rate by question, as in the `parts` of `betley_plots`.

    Source: the plots of Betley et al. (arXiv 2502.17424), by their code: 2,000 draws of the models.
    """
    questions = list(dict.fromkeys(question for model in rates for question in model))
    generator = np.random.default_rng(seed)
    return {q: _mean(np.array([model[q] for model in rates if q in model]), draws, generator) for q in questions}


def _mean(values: NDArray[np.float64], draws: int, generator: np.random.Generator) -> ModelMean:
    if np.ptp(values) == 0:
        return ModelMean(float(values.mean()), None, None, len(values))
    means = values[generator.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return ModelMean(float(values.mean()), float(low), float(high), len(values))
