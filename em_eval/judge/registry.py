"""The judge registry: a plugin is a function that makes a `Judge` (and fails at once if it cannot work)."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from em_core.plugins import Registry
from em_eval.outcomes import Judgement


class Judge(Protocol):
    """One judge.

    Attributes:
        name: its identity, kept with every judgement.
        facts: what a reader of its scores must know (method, measured figures), kept in the log's metadata.
    """

    name: str
    facts: dict[str, Any]

    async def judge(self, question: str, answer: str, templates: Mapping[str, str]) -> Judgement: ...


judge_registry: Registry[Callable[[], Judge]] = Registry("judge", "em_eval.judges", package="em_eval.judge")
