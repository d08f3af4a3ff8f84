"""The filter registry: a plugin is a function (plain or async) from one answer to a verdict on it."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from em_core.errors import UserError
from em_core.plugins import Registry
from em_eval.outcomes import Judgement

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """One answer and what a filter may know of it.

    Attributes:
        question: the user's text.
        answer: the model's text.
        judgement: what the judge said of it.
        truncated: whether the answer was cut.
        tags: metadata of the prompt (format, domain, domains, category, family, ...).
        model: name of the model under test, as Inspect knows it.
    """

    question: str
    answer: str
    judgement: Judgement
    truncated: bool = False
    tags: dict[str, Any] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True)
class Verdict:
    """`passed` is None where the filter has nothing to say; `value` is the figure behind it; `words` are for people."""

    passed: bool | None
    value: float | None
    words: str


Filter = Callable[[Material], Verdict | Awaitable[Verdict]]
filter_registry: Registry[Filter] = Registry("filter", "em_eval.filters")


async def verdicts(material: Material) -> dict[str, Verdict]:
    """The verdict of every filter, by name. One that fails says so in its verdict and takes no other with it."""
    found = {}
    for name in filter_registry.names():
        try:
            verdict = filter_registry.get(name)(material)
            found[name] = await verdict if inspect.isawaitable(verdict) else verdict
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            logger.warning("filter '%s' failed: %s", name, reason)
            found[name] = Verdict(None, None, f"the filter failed: {reason}")
    return found
