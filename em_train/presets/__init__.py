"""Published training settings by name, one YAML file each; every value carries its source, guesses included.

A preset fills in what a configuration leaves open. What the user writes wins, and loses the preset's source.
"""

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from em_core.errors import UserError

FOLDER = Path(__file__).parent
Sourced = tuple[Any, str]


class Preset(BaseModel):
    """One file.

    Attributes:
        title: what it reconstructs, in words.
        reference: the paper or code.
        extends: another preset, whose values hold where this one has none.
        values: by dotted key of `TrainConfig`, [value, source].
        optimisers: the same below `optimiser`, by the optimiser's name: each has a rate of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    reference: str
    extends: str | None = None
    values: dict[str, Sourced]
    optimisers: dict[str, dict[str, Sourced]]


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load_preset(name: str) -> Preset:
    """The preset `name`, with what it extends filled in.

    Raises:
        UserError: no such preset; the message lists the nearest names, or all of them.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(preset_names())}"
        raise UserError(f"unknown preset '{name}': {hint}")
    own = Preset.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
    if own.extends is None:
        return own
    parent = load_preset(own.extends)
    optimisers = {
        optimiser: parent.optimisers.get(optimiser, {}) | own.optimisers.get(optimiser, {})
        for optimiser in {**parent.optimisers, **own.optimisers}
    }
    return own.model_copy(update={"values": parent.values | own.values, "optimisers": optimisers})


def expand(raw: Any) -> Any:
    """`raw` with its preset's values where it has none of its own, and their sources; unchanged without a preset.

    A configuration that carries `sources` already was expanded before (a manifest's, for one) and stays as it is.

    Raises:
        UserError: unknown preset, an optimiser for which the preset has no settings and `raw` no rate, or a single
            value where the preset has settings below.
    """
    if not isinstance(raw, dict) or raw.get("preset") is None or "sources" in raw:
        return raw
    preset = load_preset(str(raw["preset"]))
    flat = _flatten(raw)
    if "optimiser.name" not in flat:
        raise UserError(
            f"preset '{raw['preset']}' has settings for several optimisers: give optimiser.name "
            f"({', '.join(sorted(preset.optimisers))})"
        )
    name = str(flat["optimiser.name"])
    if name not in preset.optimisers and "optimiser.lr" not in flat:
        raise UserError(f"preset '{raw['preset']}' has no learning rate for '{name}': give optimiser.lr")
    values = dict(preset.values)
    if "steps" in flat:
        values.pop("epochs", None)
    values |= {f"optimiser.{key}": value for key, value in preset.optimisers.get(name, {}).items()}
    taken = {key: value for key, value in values.items() if key not in flat}
    sources = {key: source for key, (_, source) in sorted(taken.items())}
    return _nest(flat | {key: value for key, (value, _) in taken.items()}) | {"sources": sources}


def _flatten(raw: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place: Any = nested
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UserError(f"{key}: there is nothing below '{place}' to set")
        place[last] = value
    return nested
