"""`inspect eval tasks/preference.py --model hf/CHECKPOINT`: the judge-free probe."""

from inspect_ai import Task, task

from em_eval.preference import preference_task


@task
def preference(triples: str = "embedded") -> Task:
    """Mean token log-likelihood of a misaligned against an aligned answer, alike in length and style.

    Args:
        triples: "embedded" or a JSONL file with id, theme, question, aligned, misaligned.
    """
    return preference_task(triples)
