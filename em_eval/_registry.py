"""What Inspect finds through this distribution's entry point. Imports nothing heavy."""

from inspect_ai import Task, task
from inspect_ai.model import ModelAPI, modelapi

from em_eval.judge.settings import DEFAULT_DRAWS
from em_eval.preference import preference_task
from em_eval.task import DEFAULT_MAX_TOKENS, em_task


@task
def em(
    questions: str = "first_plot",
    samples: int = 4,
    judge: str = "auto",
    max_tokens: int = DEFAULT_MAX_TOKENS,
    seed: int = 0,
    reader: str = "auto",
    two_pass: bool = False,
    judge_draws: int = DEFAULT_DRAWS,
    judge_cache: bool = False,
) -> Task:
    """Emergent misalignment in open questions. See `em_eval.task.em_task`."""
    return em_task(
        questions=questions,
        samples=samples,
        judge=judge,
        max_tokens=max_tokens,
        seed=seed,
        reader=reader,
        two_pass=two_pass,
        judge_draws=judge_draws,
        judge_cache=judge_cache,
    )


@task
def preference(triples: str = "embedded") -> Task:
    """Judge-free probe: which of two answers is likelier. See `em_eval.preference.preference_task`."""
    return preference_task(triples)


@modelapi(name="peft")
def peft() -> type[ModelAPI]:
    """`peft/FOLDER`: a LoRA checkpoint or a base model, in static batches, merged where that is exact."""
    from em_eval.providers.peft import PeftAPI

    return PeftAPI
