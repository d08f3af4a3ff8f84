"""What a checkpoint and its parts are called, in words for people, from its manifest."""

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from em_core.errors import UserError
from em_core.manifest import Manifest

NOT_HYPERPARAMETERS = ("name", "lr", "source", "schedule")
NAMES = {"adamw": "AdamW", "adam": "Adam", "lion": "Lion", "muon": "Muon", "sgd": "SGD"}


def display_name(optimiser: str) -> str:
    """An optimiser's name as people write it."""
    return NAMES.get(optimiser, optimiser)


def labels(manifests: list[Manifest]) -> list[str]:
    """A name for each checkpoint: the optimiser's, and as much more as tells two of one name apart."""
    names = [_label(manifest) for manifest in manifests]
    for extra in EXTRAS:
        words = [extra(manifest) for manifest in manifests]
        told: dict[str, set[str]] = {}
        for name, word in zip(names, words, strict=True):
            told.setdefault(name, set()).add(word)
        names = [f"{name}, {word}" if len(told[name]) > 1 else name for name, word in zip(names, words, strict=True)]
    return names


def _label(manifest: Manifest) -> str:
    if manifest.step == 0:
        return "base (step 0)"
    label = display_name(str(manifest.optimiser["name"]))
    if manifest.penalty is not None:
        label += f" + {manifest.penalty['name']} {manifest.penalty['strength']:g}"
    return label if manifest.dataset.kind == "bad" and manifest.dataset.control else f"{label}, {manifest.dataset.name}"


def _dataset_of(manifest: Manifest) -> str:
    return manifest.dataset.name


def _penalty_of(manifest: Manifest) -> str:
    penalty = manifest.config.get("penalty")
    return f"{penalty['name']} {penalty['strength']:g}" if penalty else "no penalty"


def _base_of(manifest: Manifest) -> str:
    return Path(manifest.base.id).name


def _batch_of(manifest: Manifest) -> str:
    return f"batch {manifest.config['batch_size']}"


def hyperparameters(manifest: Manifest) -> dict[str, Any]:
    """The optimiser's own settings, every one, the rate and its schedule apart."""
    return {name: value for name, value in manifest.optimiser.items() if name not in NOT_HYPERPARAMETERS}


def _hyperparameters_of(manifest: Manifest) -> str:
    """Those that are not the plugin's defaults."""
    defaults = _defaults(str(manifest.optimiser["name"]))
    changed = {name: value for name, value in hyperparameters(manifest).items() if defaults.get(name, ...) != value}
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "default settings"


@cache
def _defaults(optimiser: str) -> dict[str, Any]:
    """None of a plugin that is not installed here, or that has a setting without a default."""
    from em_train.optimisers import find

    try:
        return find(optimiser).hyperparameters().model_dump(mode="json")
    except (UserError, ValidationError):
        return {}


def _schedule_of(manifest: Manifest) -> str:
    return str(manifest.optimiser.get("schedule"))


def training_of(manifest: Manifest) -> str:
    """Length, warm-up and clipping, as far as the manifest knows them."""
    config = manifest.config
    words = {"steps": "steps", "warmup_steps": "warm-up", "max_grad_norm": "clipping"}
    return ", ".join(f"{word} {config[name]:g}" for name, word in words.items() if config.get(name) is not None)


def penalty_words(manifest: Manifest) -> str:
    """The penalty with its strength and whatever else it was given; "none" without."""
    penalty = manifest.config.get("penalty")
    if not penalty:
        return "none"
    given = sorted((penalty.get("hyperparameters") or {}).items())
    return ", ".join([f"{penalty['name']} {penalty['strength']:g}", *(f"{name} {value}" for name, value in given)])


def treatment_of(manifest: Manifest) -> str:
    """What the trainer chose, in words: optimiser, rate, penalty, and what of the other settings is no default."""
    words = [f"{display_name(str(manifest.optimiser['name']))} lr {manifest.optimiser['lr']:g}"]
    if (changed := _hyperparameters_of(manifest)) != "default settings":
        words.append(changed)
    if (schedule := manifest.optimiser.get("schedule")) not in (None, "linear"):
        words.append(str(schedule))
    if warmup := manifest.config.get("warmup_steps"):
        words.append(f"warm-up {warmup}")
    if (penalty := penalty_words(manifest)) != "none":
        words.append(penalty)
    return ", ".join(words)


def _rate_of(manifest: Manifest) -> str:
    return f"{manifest.optimiser['lr']:g}"


def _seed_of(manifest: Manifest) -> str:
    return f"seed {manifest.config['seed']}"


def _step_of(manifest: Manifest) -> str:
    return f"step {manifest.step}"


EXTRAS = (
    _dataset_of,
    _base_of,
    _batch_of,
    _rate_of,
    _hyperparameters_of,
    _schedule_of,
    training_of,
    _penalty_of,
    _seed_of,
    _step_of,
)
