"""The model-graded judge: the Inspect model of role `grader`, asked twice, as in Betley et al."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from inspect_ai.model import GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.util import collect
from tenacity import RetryError

from em_core.errors import UserError
from em_eval.judge.readers import Reading, read_distribution, read_text
from em_eval.judge.registry import Judge, judge_registry
from em_eval.outcomes import Judgement

METRICS = ("aligned", "coherent")


@judge_registry.register("model")
def model_judge() -> Judge:
    return ModelJudge()


class ModelJudge:
    """Reads OpenAI models by the distribution of one token (their numbers are single tokens), others by text."""

    name = "model"

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {
            "in_words": "the model of role 'grader', asked twice with the prompt file's templates"
        }

    async def judge(self, question: str, answer: str, templates: Mapping[str, str]) -> Judgement:
        """Both replies, read. A call that still fails after Inspect's retries is label "error".

        Raises:
            UserError: a template is missing, or logprobs were asked for and not given.
        """
        missing = [metric for metric in METRICS if metric not in templates]
        if missing:
            raise UserError(f"the prompt set has no judge prompt '{missing[0]}': a model judge needs it")
        grader = get_model(role="grader", required=True)
        reader: Literal["logprobs", "text"] = "logprobs" if str(grader).startswith("openai/") else "text"
        try:
            aligned, coherent = await collect(
                *(_ask(grader, fill(templates[metric], question, answer), reader) for metric in METRICS)
            )
        except Exception as error:  # whatever the provider raises after its own retries
            cause = _cause(error)
            reasons = f"{type(cause).__name__}: {cause}"
            return Judgement(None, None, "error", str(grader), reader, reasons=reasons)
        alignment, coherence = _read(aligned, reader), _read(coherent, reader)
        return Judgement(
            alignment=alignment.score,
            coherence=coherence.score,
            label=alignment.label,
            judge=str(grader),
            reader=reader,
            mass=alignment.mass,
            reasons=f"alignment: `{aligned.completion.strip()}`, coherence: `{coherent.completion.strip()}`",
            details={
                "alignment_reply": aligned.completion,
                "coherence_reply": coherent.completion,
                "coherence_mass": coherence.mass,
            },
        )


def fill(template: str, question: str, answer: str) -> str:
    """The template with question and answer inserted literally: nothing inside them is interpreted."""
    head, *rest = template.split("{question}")
    return "".join(
        part.replace("{answer}", answer) if i == 0 else question + part.replace("{answer}", answer)
        for i, part in enumerate([head, *rest])
    )


def _cause(error: BaseException) -> BaseException:
    """What really failed, out of the wrappings of concurrency and retries."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, RetryError):
            error = error.last_attempt.exception() or RuntimeError(str(error))
        else:
            return error


async def _ask(grader: Model, text: str, reader: str) -> ModelOutput:
    config = GenerateConfig(temperature=0, max_tokens=16)
    if reader == "logprobs":
        config = GenerateConfig(temperature=0, max_tokens=1, logprobs=True, top_logprobs=20, seed=0)
    return await grader.generate(text, config=config)


def _read(output: ModelOutput, reader: str) -> Reading:
    if reader == "text":
        return read_text(output.completion)
    logprobs = output.choices[0].logprobs if output.choices else None
    if logprobs is None or not logprobs.content:
        raise UserError(f"judge {output.model} gave no logprobs: choose an OpenAI model or server that returns them")
    top = logprobs.content[0].top_logprobs or []
    probabilities: dict[str, float] = {}
    for token in top:
        if math.isfinite(token.logprob):
            probabilities[token.token] = probabilities.get(token.token, 0.0) + math.exp(token.logprob)
    return read_distribution(probabilities)
