"""Ask a model judge again about the answers whose judgement failed; what was judged stays as it is."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from inspect_ai import score
from inspect_ai.log import EvalLog, EvalSample, recompute_metrics, write_eval_log
from inspect_ai.model import Model, get_model

from em_core.errors import UserError
from em_eval.answers import read_log
from em_eval.scorer import model_judge_scorer

SCORER = "model_judge"
FAILED = "judge_error"


@dataclass(frozen=True)
class Rescored:
    """Answers asked about again, and those of them that failed again."""

    asked: int
    failed: int


def rescore(path: Path, grader: str | Model | None = None) -> Rescored:
    """Judge the `judge_error` answers of the log at `path` again, in the way that the others were, and rewrite it.

    Nothing is generated, and the model under test is not loaded. The new file takes the old one's place only when it
    is whole.

    Args:
        path: a finished log of a model judge.
        grader: the judge, where the log's own entry does not suffice to reach it; it must be the same model.

    Raises:
        UserError: no such log, not one of a model judge, or another judge than the log's.
    """
    log = _read(path)
    failed = [sample for sample in log.samples or [] if _outcome(sample) == FAILED]
    if not failed:
        return Rescored(0, 0)
    _same_judge(log, grader, path)
    scored = score(
        log.model_copy(update={"samples": failed}),
        model_judge_scorer(**_settings(log)),
        model="none",
        model_roles={"grader": grader} if grader is not None else None,
        action="overwrite",
        display="none",
    )
    renewed = {(sample.id, sample.epoch): sample for sample in scored.samples or []}
    log.samples = [_merged(sample, renewed.get((sample.id, sample.epoch))) for sample in log.samples or []]
    recompute_metrics(log)
    draft = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        write_eval_log(log, str(draft))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return Rescored(len(failed), sum(_outcome(sample) == FAILED for sample in renewed.values()))


def _read(path: Path) -> EvalLog:
    log = read_log(path)
    if not any(SCORER in (sample.scores or {}) for sample in log.samples or []):
        raise UserError(f"log {path} holds no scores of a model judge: to judge it, use inspect score (see the docs)")
    return log


def _score(sample: EvalSample) -> dict[str, Any]:
    found = (sample.scores or {}).get(SCORER)
    return (found.metadata or {}) if found else {}


def _outcome(sample: EvalSample) -> str | None:
    return _score(sample).get("outcome")


def _settings(log: EvalLog) -> dict[str, Any]:
    """The log's own settings, with the reader that the judged answers were read by; and no replies from the cache."""
    given: dict[str, Any] = next((s.options or {} for s in log.eval.scorers or [] if s.name.endswith(SCORER)), {})
    readers = Counter(
        _score(sample)["judgement"]["reader"] for sample in log.samples or [] if _outcome(sample) not in {None, FAILED}
    )
    readers.pop("none", None)  # empty answers, which no judge was asked about
    return given | {"cache": False} | ({"reader": readers.most_common(1)[0][0]} if readers else {})


def _same_judge(log: EvalLog, grader: str | Model | None, path: Path) -> None:
    judges = {_score(sample)["judgement"]["judge"] for sample in log.samples or [] if _outcome(sample) == FAILED}
    if grader is not None and (others := judges - {str(get_model(grader))}):
        raise UserError(
            f"log {path} was judged by {', '.join(sorted(others))}, not {grader}, and two judges are not mixed: "
            "to judge every answer anew, use inspect score"
        )


def _merged(old: EvalSample, new: EvalSample | None) -> EvalSample:
    if new is None:
        return old
    return new.model_copy(update={"scores": {**(old.scores or {}), SCORER: (new.scores or {})[SCORER]}})
