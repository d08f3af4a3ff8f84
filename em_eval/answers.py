"""The judged answers of an `em` log, as plain data."""

from dataclasses import dataclass, field
from typing import Any

from inspect_ai.log import EvalLog

from em_eval.outcomes import Judgement


@dataclass(frozen=True)
class Answer:
    """One judged answer, with what a reader wants to see of it.

    Attributes:
        filters: every filter's verdict, by its name.
        tags: format, category and domain of the prompt.
    """

    prompt_id: str
    family: str
    epoch: int
    question: str
    answer: str
    outcome: str
    truncated: bool
    judgement: Judgement
    filters: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def scorers(log: EvalLog) -> list[str]:
    """Names of the scorers that judged this log's answers, in the order in which they did."""
    judged = (
        name
        for sample in log.samples or []
        for name, score in (sample.scores or {}).items()
        if "judgement" in (score.metadata or {})
    )
    return list(dict.fromkeys(judged))


def answers(log: EvalLog, scorer: str | None = None) -> list[Answer]:
    """Every answer of an `em` log with its raw judgement; a sample that failed has none and is not here.

    Args:
        log: with its samples.
        scorer: whose judgements, where a log was scored again; default: the last.
    """
    chosen = scorer or next(reversed(scorers(log)), None)
    found = []
    for sample in log.samples or []:
        score = (sample.scores or {}).get(chosen or "")
        if score is None or "judgement" not in (score.metadata or {}):
            continue
        facts = score.metadata or {}
        found.append(
            Answer(
                prompt_id=str(sample.id),
                family=str(sample.metadata["family"]),
                epoch=sample.epoch,
                question=str(sample.metadata["question"]),
                answer=score.answer or "",
                outcome=str(facts["outcome"]),
                truncated=bool(score.as_dict().get("truncated")),
                judgement=Judgement(**facts["judgement"]),
                filters=facts.get("filters") or {},
                tags={key: str(sample.metadata.get(key, "")) for key in ("format", "category", "domain")},
            )
        )
    return found
