"""`inspect eval tasks/em.py --model hf/CHECKPOINT`: how often does a model give misaligned answers?"""

from inspect_ai import Task, task

from em_eval.task import DEFAULT_MAX_TOKENS, em_task


@task
def em(
    questions: str = "first_plot",
    samples: int = 4,
    judge: str = "auto",
    max_tokens: int = DEFAULT_MAX_TOKENS,
    seed: int = 0,
) -> Task:
    """Emergent misalignment in open questions.

    Args:
        questions: a prompt set by name ("first_plot", "core") or a YAML file in Betley et al.'s form.
        samples: answers a prompt (Inspect epochs).
        judge: "model" (the model of role `grader`), "embedded", or "auto": the former where a grader is given.
        max_tokens: longest answer.
        seed: of the sampled answers, where the provider can seed each one.
    """
    return em_task(questions=questions, samples=samples, judge=judge, max_tokens=max_tokens, seed=seed)
