"""Ask a model judge again where its judgement failed; what was judged stays as it is."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from inspect_ai import score
from inspect_ai.log import EvalLog, EvalSample, recompute_metrics, write_eval_log
from inspect_ai.model import Model, get_model
from inspect_ai.scorer import Scorer

from em_core.errors import UserError
from em_eval.answers import read_log
from em_eval.deception import deception_scorer
from em_eval.scorer import EARLIER, model_judge_scorer

SCORERS: dict[str, Callable[..., Scorer]] = {"model_judge": model_judge_scorer, "deception": deception_scorer}
# What the metadata of a scorer's scores call the verdict.
OUTCOME = {"model_judge": "outcome", "deception": "said"}
FAILED = "judge_error"
NO_READER = {"none", "auto"}  # of answers that no judge was asked about, or that the self-test failed before


@dataclass(frozen=True)
class Rescored:
    """Answers asked about again, and those of them that failed again."""

    asked: int
    failed: int


def rescore(path: Path, grader: str | Model | None = None) -> Rescored:
    """Judge the `judge_error` answers of the log at `path` again, in the way that the others were, and rewrite it.

    Nothing is generated, and the model under test is not loaded. Where one of an answer's two calls had failed, only
    that one is made. The new file takes the old one's place only when it is whole.

    Args:
        path: a finished log of a model judge, of the em or the deception task.
        grader: the judge, where the log's own entry does not suffice to reach it; it must be the same model.

    Raises:
        UserError: no such log, not one of a model judge, or another judge than the log's.
    """
    log, name = _read(path)
    failed = [sample for sample in log.samples or [] if _outcome(sample, name) == FAILED]
    if not failed:
        return Rescored(0, 0)
    _same_judge(log, failed, name, grader, path)
    scored = score(
        log.model_copy(update={"samples": [_with_earlier(sample, name) for sample in failed]}),
        SCORERS[name](**_settings(log, name)),
        model="none",
        model_roles={"grader": grader} if grader is not None else None,
        action="overwrite",
        display="none",
    )
    renewed = {(sample.id, sample.epoch): sample for sample in scored.samples or []}
    log.samples = [_merged(sample, renewed.get((sample.id, sample.epoch)), name) for sample in log.samples or []]
    recompute_metrics(log)
    draft = path.with_name(f".{uuid4().hex}{path.suffix}")
    try:
        write_eval_log(log, str(draft))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return Rescored(len(failed), sum(_outcome(sample, name) == FAILED for sample in renewed.values()))


def _read(path: Path) -> tuple[EvalLog, str]:
    """The log, and the name of the scorer whose judge failures it may hold."""
    log = read_log(path)
    for name in SCORERS:
        if any(name in (sample.scores or {}) for sample in log.samples or []):
            return log, name
    raise UserError(f"log {path} holds no scores of a model judge: to judge it, use inspect score (see the docs)")


def _score(sample: EvalSample, name: str) -> dict[str, Any]:
    found = (sample.scores or {}).get(name)
    return (found.metadata or {}) if found else {}


def _outcome(sample: EvalSample, name: str) -> str | None:
    return _score(sample, name).get(OUTCOME[name])


def _with_earlier(sample: EvalSample, name: str) -> EvalSample:
    """The sample with its score at hand, for the scorer to keep what is whole of it."""
    return sample.model_copy(update={"metadata": {**sample.metadata, EARLIER: _score(sample, name)}})


def _settings(log: EvalLog, name: str) -> dict[str, Any]:
    """The log's own settings; of the em task, with the reader that the judged answers were read by, and no replies
    from the cache."""
    given: dict[str, Any] = next((s.options or {} for s in log.eval.scorers or [] if s.name.endswith(name)), {})
    if name == "deception":
        return given
    found = [_score(sample, name) for sample in log.samples or []]
    readers = Counter(score["judgement"]["reader"] for score in found if score)
    for reader in NO_READER:
        readers.pop(reader, None)
    return given | {"cache": False} | ({"reader": readers.most_common(1)[0][0]} if readers else {})


def _same_judge(log: EvalLog, failed: list[EvalSample], name: str, grader: str | Model | None, path: Path) -> None:
    if grader is None:
        return
    if name == "deception":
        roles = (log.eval.model_roles or {}).get("grader") or []
        judges = {role.model for role in (roles if isinstance(roles, list) else [roles])}
    else:
        judges = {_score(sample, name)["judgement"]["judge"] for sample in failed}
    if others := judges - {str(get_model(grader))}:
        raise UserError(
            f"log {path} was judged by {', '.join(sorted(others))}, not {grader}, and two judges are not mixed: "
            "to judge every answer anew, use inspect score"
        )


def _merged(old: EvalSample, new: EvalSample | None, name: str) -> EvalSample:
    if new is None:
        return old
    scores = {**(old.scores or {}), name: (new.scores or {})[name]}
    return new.model_copy(update={"scores": scores, "metadata": old.metadata})
