"""Which line of a study file is to blame for what is wrong with one of its cells: `FILE:LINE: FIELD: `, or nothing."""

import re
from collections.abc import Callable
from typing import Any

from em_core.errors import NotHere, UserError
from em_study.study import OptimiserAxis, Study
from em_train.config import PenaltyConfig, TrainConfig


def by_words(study: Study, base: str, message: str, axis: OptimiserAxis | None = None) -> str:
    """The first of the study's own settings that a message about a configuration names, in plural or singular.

    Args:
        base: the cell's base model, which may have LoRA settings of its own.
        axis: the cell's optimiser, whose own training settings come before the study's.
    """
    words = re.findall(r"[a-z_]+", message)
    own = axis.training.model_dump(exclude_none=True) if axis else {}
    for word in words:
        if axis and word in own:
            return study.place("optimisers", study.optimisers.index(axis), "training", word)
    for word in words:
        if word == "lora" and base in study.lora_of_base:
            return study.place("lora_of_base", base)
        for name in (word, f"{word}s"):
            if name in study.model_fields_set:
                return study.place(name)
    return ""


def by_trial(study: Study, config: TrainConfig, fetch: bool = True) -> str:
    """The optimiser, dataset, penalty or base model that cannot be resolved by itself; nothing where each can.

    Args:
        fetch: the base model too; else what is not here yet counts as sound.
    """
    from em_core.models import base_at_hand, resolve_base
    from em_train.datasets import load_dataset
    from em_train.optimisers import resolve
    from em_train.penalties import resolve as resolve_penalty
    from em_train.preparation import resolve_schedule

    optimiser = config.optimiser
    find: Callable[[str, str | None], Any] = resolve_base if fetch else base_at_hand
    trials: list[tuple[str, Callable[[], Any]]] = [
        (_optimiser(study, config), lambda: resolve(optimiser.name, optimiser.hyperparameters)),
        (_optimiser(study, config), lambda: resolve_schedule(config)),
        (dataset(study, config.dataset), lambda: load_dataset(config.dataset)),
        (penalty(study, config.penalty) if config.penalty else "", lambda: resolve_penalty(config)),
        (_base(study, config), lambda: find(config.base_model, config.base_revision)),
    ]
    for place, trial in trials:
        try:
            trial()
        except UserError as error:
            if fetch or not isinstance(error, NotHere):
                return place
    return ""


def dataset(study: Study, name: str) -> str:
    """Where the study names this dataset first, in its grid or in an arm."""
    if name in study.datasets:
        return study.place("datasets", study.datasets.index(name))
    return study.place("arms", [arm.dataset for arm in study.arms].index(name), "dataset")


def _base(study: Study, config: TrainConfig) -> str:
    return study.place("base_model", study.base_model.index(config.base_model))


def _optimiser(study: Study, config: TrainConfig) -> str:
    own = config.optimiser
    for number, axis in enumerate(study.optimisers):
        if (axis.name, axis.hyperparameters) == (own.name, own.hyperparameters) and own.lr in axis.lr:
            return study.place("optimisers", number)
    return ""


def penalty(study: Study, config: PenaltyConfig) -> str:
    """Where the study asks for this penalty at this strength, in its grid or in an arm."""
    setting = config.model_dump()
    for number, axis in enumerate(study.penalties):
        if setting in axis.each():
            return study.place("penalties", number)
    for number, arm in enumerate(study.arms):
        if setting in arm.penalty.each():
            return study.place("arms", number, "penalty")
    return ""
