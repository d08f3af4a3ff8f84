"""The judged answers of an `em` log, as plain data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, read_eval_log

from em_core.errors import UserError
from em_eval.outcomes import Judgement


@dataclass(frozen=True)
class Answer:
    """One judged answer, with what a reader wants to see of it.

    Attributes:
        filters: every filter's verdict, by its name.
        tags: format, category and domain of the prompt, and "domains": all its topics, with blanks between them.
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


def read_log(path: Path, **how: Any) -> EvalLog:
    """An Inspect log with its samples; `how` goes to `read_eval_log`.

    Raises:
        UserError: missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"log {path} does not exist")
    try:
        return read_eval_log(str(path.absolute()), **how)
    except Exception as error:  # a damaged file fails in as many ways as zip, JSON and pydantic have
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable Inspect log: {reason}") from error


def judge_facts(log: EvalLog, scorer: str | None = None) -> dict[str, Any]:
    """Facts of the judge whose judgements `answers` gives.

    The log's metadata describe the judge that the task itself ran; a log scored again keeps them, so that they are
    taken for that judge's scores alone.
    """
    from em_eval.judge.embedded import read_facts

    metadata = log.eval.metadata or {}
    chosen = scorer or next(reversed(scorers(log)), "")
    first = metadata.get("judge")
    if chosen.startswith(f"{first if first in {'embedded', 'model'} else 'plugin'}_judge"):
        return dict(metadata.get("judge_facts") or {})
    return read_facts() if chosen.startswith("embedded_judge") else {}


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

    Raises:
        UserError: the log is of another task that writes judgements.
    """
    chosen = scorer or next(reversed(scorers(log)), None)
    found = []
    for sample in log.samples or []:
        score = (sample.scores or {}).get(chosen or "")
        if score is None or "judgement" not in (score.metadata or {}):
            continue
        facts = score.metadata or {}
        if "family" not in sample.metadata or "question" not in sample.metadata:
            raise UserError(
                f"sample '{sample.id}' of log {log.location or log.eval.task} has a judgement but no question and "
                "family in its metadata: the log was not written by the em task"
            )
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
                tags={key: str(sample.metadata.get(key, "")) for key in ("format", "category", "domain")}
                | {"domains": " ".join(sample.metadata.get("domains") or [])},
            )
        )
    return found
