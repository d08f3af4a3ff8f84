"""What an evaluation will ask of a model judge: calls and tokens, before anything is run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from em_eval.judge.model import METRICS, fill
from em_eval.judge.settings import READERS, JudgeSettings

CHARACTERS_A_TOKEN = 4  # English text and today's tokenizers; an estimate needs no more
ANSWER_TOKENS = 200  # a usual answer; the longest is the task's max_tokens
# Calls a question: least and most. How many branches the digits take depends on the judge.
CALLS = {"logprobs": (1, 1), "text": (1, 1), "digits": (2, 12)}
REPLY_TOKENS = {"logprobs": 1, "digits": 1, "samples": 4, "text": 100}


@dataclass(frozen=True)
class Estimate:
    """`calls`, `input_tokens` and `output_tokens` of the judge, each as (least, most)."""

    answers: int
    calls: tuple[int, int]
    input_tokens: tuple[int, int]
    output_tokens: tuple[int, int]


def estimate(
    questions: Sequence[tuple[str, dict[str, str]]], samples: int, max_tokens: int, settings: JudgeSettings
) -> Estimate:
    """Of one checkpoint's evaluation.

    The least is for answers of `ANSWER_TOKENS` tokens, none of them coherent where there are two passes; the most for
    answers of `max_tokens`, all coherent.

    Args:
        questions: each prompt's question and its judge templates.
        samples: answers a prompt.
        max_tokens: longest answer.
        settings: of the judge; with reader "auto", the least and the most of any reader.
    """
    if settings.reader == "auto":
        return _any_of([estimate(questions, samples, max_tokens, replace(settings, reader=one)) for one in READERS])
    least, most = (settings.draws,) * 2 if settings.reader == "samples" else CALLS[settings.reader]
    calls, tokens = [0, 0], [0, 0]
    for question, templates in questions:
        for metric in METRICS:
            asked = len(fill(templates.get(metric, ""), question, "")) // CHARACTERS_A_TOKEN
            sure = not (settings.two_pass and metric == "aligned")
            for i, (times, answer) in enumerate(((least * sure, min(ANSWER_TOKENS, max_tokens)), (most, max_tokens))):
                calls[i] += times * samples
                tokens[i] += times * samples * (asked + answer)
    reply = REPLY_TOKENS[settings.reader]
    return Estimate(
        answers=len(questions) * samples,
        calls=(calls[0], calls[1]),
        input_tokens=(tokens[0], tokens[1]),
        output_tokens=(calls[0] * reply, calls[1] * reply),
    )


def _any_of(found: Sequence[Estimate]) -> Estimate:
    def ends(each: Sequence[tuple[int, int]]) -> tuple[int, int]:
        return min(least for least, _ in each), max(most for _, most in each)

    return Estimate(
        answers=found[0].answers,
        calls=ends([one.calls for one in found]),
        input_tokens=ends([one.input_tokens for one in found]),
        output_tokens=ends([one.output_tokens for one in found]),
    )
