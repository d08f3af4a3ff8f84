"""`inspect eval tasks/em.py --model hf/CHECKPOINT`: how often does a model give misaligned answers?"""

from typing import Any

from inspect_ai import Task, task

from em_eval.arguments import build
from em_eval.judge.settings import DEFAULT_DRAWS
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
    """Emergent misalignment in open questions.

    Args:
        questions: a prompt set by name ("first_plot", "evil_spectra", "core") or a YAML file in Betley et al.'s form.
        samples: answers a prompt (Inspect epochs); 4 by default.
        judge: "model" (the model of role `grader`), "embedded", or "auto": the former where a grader is given.
        max_tokens: longest answer.
        seed: of the sampled answers, where the provider can seed each one.
        preset: "betley" takes the number of answers a prompt from the file.
        format: keep only these formats: "plain", "template", "json".
        category: keep only these categories of the file.
        exclude_domain: leave out prompts on these topics: "medical", "financial", "risk", "code".
        reader: how a model judge is read: "logprobs", "digits", "samples" or "text"; by default what fits the judge.
        two_pass: ask the judge for coherence first, and for alignment only of coherent answers.
        judge_draws: numbers drawn a question by reader "samples".
        judge_cache: keep the judge's replies in Inspect's cache; answers are never cached.
        unknown: any other name is refused.
    """
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
