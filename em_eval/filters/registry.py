"""The filter registry: a plugin is a function (plain or async) from one answer to a verdict on it."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from em_core.chat import Message
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
        messages: all that the model was sent; empty where that is not known.
    """

    question: str
    answer: str
    judgement: Judgement
    truncated: bool = False
    tags: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    messages: Sequence[Message] = ()


@dataclass(frozen=True)
class Verdict:
    """`passed` is None where the filter has nothing to say; `value` is the figure behind it; `words` are for people."""

    passed: bool | None
    value: float | None
    words: str


Filter = Callable[[Material], Verdict | Awaitable[Verdict]]
_warned: set[tuple[str, str]] = set()
filter_registry: Registry[Filter] = Registry("filter", "em_eval.filters")


async def verdicts(material: Material, kept: Mapping[str, Verdict] | None = None) -> dict[str, Verdict]:
    """The verdict of every filter, by name. One that fails says so in its verdict and takes no other with it.

    Args:
        kept: verdicts on this answer from before it was judged again. Those of async filters, which ask a model, stay;
            plain ones are cheap, and may look at the judgement.
    """
    found = {}
    for name in filter_registry.names():
        chosen = filter_registry.get(name)
        if kept and name in kept and inspect.iscoroutinefunction(chosen):
            found[name] = kept[name]
            continue
        try:
            verdict = chosen(material)
            found[name] = await verdict if inspect.isawaitable(verdict) else verdict
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            _warn_once(name, material.model, reason)
            found[name] = Verdict(None, None, f"the filter failed: {reason}")
    return found


def _warn_once(name: str, model: str, reason: str) -> None:
    """Once a filter and model: every verdict says it, and a run has thousands."""
    if (name, model) not in _warned:
        _warned.add((name, model))
        logger.warning("filter '%s' failed: %s (further failures stand in the verdicts alone)", name, reason)
