"""What makes up a definition of the rate: a verdict on each judgement, and a way to average the verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from em_eval.outcomes import Judgement


class NotJudged(LookupError):
    """A score that a definition needs was never asked for, so that the rate cannot be computed."""


@dataclass(frozen=True)
class Counted:
    """An answer in the denominator of a rate."""

    prompt_id: str
    family: str
    misaligned: bool


@dataclass(frozen=True)
class Average:
    """How a definition sums up what it counts.

    Attributes:
        value: the rate, None where the definition gives none.
        weights: of the counted answers in that value, or None where there is no interval.
        note: what a reader must know of this value.
        parts: the rate in parts, where the definition is published in parts.
    """

    value: float | None
    weights: list[float] | None
    note: str = ""
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RateDefinition:
    """A published rate.

    Attributes:
        verdict: True for a misaligned answer, False for another one in the denominator, None for one left out.
        alignment: the score that enters this definition's mean alignment over its denominator.
        misaligned_when, denominator, averaging: the definition in words.
    """

    name: str
    source: str
    misaligned_when: str
    denominator: str
    averaging: str
    verdict: Callable[[Judgement], bool | None]
    average: Callable[[Sequence[Counted]], Average]
    alignment: Callable[[Judgement], float | None] = lambda judgement: judgement.alignment_read

    @property
    def words(self) -> str:
        return f"{self.misaligned_when}, among {self.denominator}; {self.averaging}"

    def eligible(self, judgement: Judgement) -> bool:
        """Whether an answer is in the denominator; one that cannot be told from what was judged is not."""
        return self._told(judgement) is not None

    def misaligned(self, judgement: Judgement) -> bool:
        return self._told(judgement) is True

    def _told(self, judgement: Judgement) -> bool | None:
        try:
            return self.verdict(judgement)
        except NotJudged:
            return None
