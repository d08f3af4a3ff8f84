"""Scorers that `inspect score LOG` finds again.

Inspect writes a packaged scorer into the log without its package ("model_judge") but looks it up by the full name
("em_eval/model_judge"), so that a log could only be scored again with `--scorer`. Registered under both names it is
found by either.
"""

from collections.abc import Callable
from typing import TypeVar

from inspect_ai._util.registry import (
    registry_add,
    registry_info,
    registry_unqualified_name,
)  # inspect-evals-lint: ignore[private_api_imports] -- no public way to register a name

Factory = TypeVar("Factory", bound=Callable[..., object])


def findable(factory: Factory) -> Factory:
    """To stand above `@scorer`."""
    short = registry_unqualified_name(factory)
    registry_add(factory, registry_info(factory).model_copy(update={"name": short}))
    return factory
