"""`inspect eval tasks/preference.py --model hf/CHECKPOINT`: the judge-free probe."""

from typing import Any

from inspect_ai import Task, task

from em_eval.arguments import build
from em_eval.preference import preference_task


@task
def preference(triples: str = "embedded", **unknown: Any) -> Task:
    """Mean token log-likelihood of a misaligned against an aligned answer, alike in length and style.

    Args:
        triples: "embedded" or a JSONL file with id, theme, question, aligned, misaligned.
        unknown: any other name is refused.
    """
    return build(preference_task, unknown, triples=triples)
