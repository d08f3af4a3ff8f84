"""Arguments of tasks, as `-T` gives them: Inspect passes any type on, and only warns of a name that is unknown."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from inspect_ai import Task
from pydantic import ValidationError, validate_call

from em_core.errors import UserError
from em_eval.errors import as_prerequisite


def build(builder: Callable[..., Task], unknown: Mapping[str, Any], **arguments: Any) -> Task:
    """The task of `builder(**arguments)`, after a look at names and types.

    Args:
        unknown: what the task got besides its own arguments; any is an error.

    Raises:
        PrerequisiteError: an unknown name, with the nearest known one, or a value of the wrong type.
    """
    known = list(inspect.signature(builder).parameters)
    with as_prerequisite():
        for name in unknown:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"unknown task argument -T {name}: {hint}")
        try:
            return validate_call(builder)(**arguments)
        except ValidationError as error:
            if error.title != builder.__name__:  # of something that the builder itself read
                raise
            first = error.errors()[0]
            raise UserError(f"task argument -T {first['loc'][0]}={first['input']}: {first['msg']}") from error
