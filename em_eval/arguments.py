"""Arguments of tasks. Inspect only warns of a `-T` name that a task does not know, and runs without it."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from em_core.errors import UserError
from em_eval.errors import as_prerequisite


def refuse_unknown(unknown: Mapping[str, Any], build: Callable[..., Any]) -> None:
    """Stop at names that the task's builder does not take.

    Raises:
        PrerequisiteError: there is one; the message names the nearest known.
    """
    known = list(inspect.signature(build).parameters)
    with as_prerequisite():
        for name in unknown:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"unknown task argument -T {name}: {hint}")
