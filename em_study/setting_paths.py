"""Paths of a study's settings, as `assumptions` names them: `optimisers.adam.lr`, `evaluations.*.samples`."""

import difflib
from typing import Any

from pydantic import BaseModel

ANY = "*"


def unknown_part(study: BaseModel, path: str) -> str | None:
    """What is wrong with a path of the study's own settings; None where it leads to one.

    Entries of a list go by their name (an arm by its dataset), or by "*" for all of them.
    """
    value: Any = study
    walked: list[str] = []
    for part in path.split("."):
        if isinstance(value, dict):  # its keys are the user's, dots included
            return None
        below = _below(value)
        if part not in below:
            near = difflib.get_close_matches(part, below, n=1)
            known = (
                f"did you mean {near[0]}?" if near else f"known: {', '.join(below)}" if below else "nothing is below"
            )
            return f"'{path}' is no setting of this study: {'.'.join([*walked, part])}: {known}"
        value = below[part]
        walked.append(part)
    return None


def _below(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    entries = [one for one in value if isinstance(one, BaseModel)] if isinstance(value, tuple) else []
    named = {str(getattr(one, "name", None) or getattr(one, "dataset", "")): one for one in entries}
    return {**named, ANY: entries[0]} if entries else {}
