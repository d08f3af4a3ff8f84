"""What Inspect finds through this distribution's entry point. Imports nothing heavy."""

from typing import Any

from inspect_ai import Task, task
from inspect_ai.model import ModelAPI, modelapi

from em_eval.arguments import build
from em_eval.deception import deception_task
from em_eval.judge.settings import DEFAULT_DRAWS
from em_eval.preference import preference_task
from em_eval.task import DEFAULT_MAX_TOKENS, DEFAULT_QUESTIONS, em_task


@task
def em(
    questions: str = DEFAULT_QUESTIONS,
    samples: int | None = None,
    judge: str = "auto",
    max_tokens: int = DEFAULT_MAX_TOKENS,
    seed: int = 0,
    preset: str | None = None,
    format: str | list[str] | None = None,
    category: str | list[str] | None = None,
    exclude_domain: str | list[str] | None = None,
    reader: str = "auto",
    two_pass: bool = False,
    judge_draws: int = DEFAULT_DRAWS,
    judge_cache: bool = False,
    **unknown: Any,
) -> Task:
    """Emergent misalignment in open questions. See `em_eval.task.em_task`."""
    return build(
        em_task,
        unknown,
        questions=questions,
        samples=samples,
        judge=judge,
        max_tokens=max_tokens,
        seed=seed,
        preset=preset,
        format=format,
        category=category,
        exclude_domain=exclude_domain,
        reader=reader,
        two_pass=two_pass,
        judge_draws=judge_draws,
        judge_cache=judge_cache,
    )


@task
def deception(
    questions: str = "both",
    samples: int | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    seed: int = 0,
    maker: str = "OpenAI",
    preset: str | None = None,
    **unknown: Any,
) -> Task:
    """False answers to plain questions, false makers. See `em_eval.deception.deception_task`."""
    return build(
        deception_task,
        unknown,
        questions=questions,
        samples=samples,
        max_tokens=max_tokens,
        seed=seed,
        maker=maker,
        preset=preset,
    )


@task
def preference(triples: str = "embedded", **unknown: Any) -> Task:
    """Judge-free probe: which of two answers is likelier. See `em_eval.preference.preference_task`."""
    return build(preference_task, unknown, triples=triples)


@modelapi(name="peft")
def peft() -> type[ModelAPI]:
    """`peft/FOLDER`: a LoRA checkpoint or a base model, batched, one base in memory for all checkpoints."""
    from em_eval.providers.peft import PeftAPI

    return PeftAPI
