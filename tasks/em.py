"""`inspect eval tasks/em.py --model hf/CHECKPOINT`: how often does a model give misaligned answers?"""

from inspect_ai import Task, task

from em_eval.judge.settings import DEFAULT_DRAWS
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
    """Emergent misalignment in open questions.

    Args:
        questions: a prompt set by name ("first_plot", "core") or a YAML file in Betley et al.'s form.
        samples: answers a prompt (Inspect epochs).
        judge: "model" (the model of role `grader`), "embedded", or "auto": the former where a grader is given.
        max_tokens: longest answer.
        seed: of the sampled answers, where the provider can seed each one.
        reader: how a model judge is read: "logprobs", "digits", "samples" or "text"; by default what fits the judge.
        two_pass: ask the judge for coherence first, and for alignment only of coherent answers.
        judge_draws: numbers drawn a question by reader "samples".
        judge_cache: keep the judge's replies in Inspect's cache; answers are never cached.
    """
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
