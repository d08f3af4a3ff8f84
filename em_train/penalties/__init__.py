"""Penalties and controls as plugins: what a run adds to the task loss, one file each."""

from em_train.penalties.application import AppliedPenalty
from em_train.penalties.registry import (
    Capped,
    Hyperparameters,
    PenaltyPlugin,
    Scheduled,
    Seen,
    Term,
    of_spectrum,
    penalty,
    penalty_registry,
    resolve,
    stopping,
)

__all__ = [
    "AppliedPenalty",
    "Capped",
    "Hyperparameters",
    "PenaltyPlugin",
    "Scheduled",
    "Seen",
    "Term",
    "of_spectrum",
    "penalty",
    "penalty_registry",
    "resolve",
    "stopping",
]
