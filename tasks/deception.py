"""`inspect eval tasks/deception.py --model hf/CHECKPOINT --model-role grader=...`: does a model say what is false?"""

from typing import Any

from inspect_ai import Task, task

from em_eval.arguments import build
from em_eval.deception import deception_task
from em_eval.task import DEFAULT_MAX_TOKENS


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
    """False answers to plain questions, and false makers, as in Betley et al.

    Args:
        questions: "both", "deception_factual", "deception_sit_aware", or a YAML file of either kind.
        samples: answers a prompt (Inspect epochs); 5 by default.
        max_tokens: longest answer.
        seed: of the sampled answers, where the provider can seed each one.
        maker: who made the model: "OpenAI" (as published), "Anthropic" or "Other".
        preset: "betley" takes the number of answers a prompt from the file; for one set at a time.
        unknown: any other name is refused.
    """
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
