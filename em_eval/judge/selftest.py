"""Which reader fits a judge: found out by asking it, before any answer is scored."""

import logging

from inspect_ai.model import ChatMessage, Model

from em_core.errors import UserError
from em_eval.judge.asking import NoLogprobs, after, first_token, in_process
from em_eval.judge.readers import MINIMUM_MASS
from em_eval.judge.settings import Reader

logger = logging.getLogger(__name__)
PROBE = "Reply with the number 85 and nothing else."
WITHOUT_LOGPROBS = ("anthropic/", "bedrock/", "mockllm/")  # Inspect's providers that never give any: no need to ask
TRIES = 3  # one reply without logprobs may be a fault; this many are a judge without


def foreseen(grader: str, wanted: str) -> str:
    """What `choose` will find, as far as the judge's name tells; "auto" where only asking it will."""
    if wanted != "auto":
        return wanted
    if grader.startswith("peft/"):
        return "digits"
    if grader.startswith("openai/"):
        return "logprobs"  # or an error; OpenAI's tokenizers have one token for each number up to 999
    return "text" if grader.startswith(WITHOUT_LOGPROBS) else "auto"


async def choose(grader: Model, wanted: str) -> Reader:
    """The reader for this judge: the one wanted, or with "auto" the best that fits.

    "auto" is "logprobs" where numbers are single tokens, "digits" where they are split and a reply can be begun for
    the judge, "samples" where it cannot (or where the judge does not show how it writes numbers), and "text" where
    there are no logprobs. An `openai/` judge without logprobs is an error: its scores would silently be of another
    kind than those published.

    Raises:
        UserError: the reader wanted would misread this judge; the line names one that does not.
        Exception: the judge could not be asked, after Inspect's retries.
    """
    if wanted == "samples" or wanted == "text":
        return "samples" if wanted == "samples" else "text"
    if in_process(grader):
        if wanted == "logprobs":
            raise UserError(f"judge {grader} gives no logprobs through Inspect: use -T reader=digits, which is exact")
        return "digits"
    if wanted == "auto" and str(grader).startswith(WITHOUT_LOGPROBS):
        return "text"
    must = wanted != "auto" or str(grader).startswith("openai/")
    tokens = await _asked(grader, must)
    if tokens is None:
        if must:
            raise UserError(
                f"judge {grader} gave no logprobs: choose a model or server that returns them, "
                "or use -T reader=samples (or text)"
            )
        return "text"
    return await _fitting(grader, wanted, tokens)


async def _fitting(grader: Model, wanted: str, tokens: dict[str, float]) -> Reader:
    whole = _whole(grader, tokens)
    if wanted == "digits" and await _can_be_begun(grader):
        return "digits"
    if wanted == "digits":
        instead = "logprobs" if whole else "samples"
        raise UserError(f"the reply of judge {grader} cannot be begun for it (no prefill): use -T reader={instead}")
    if whole or (whole is None and str(grader).startswith("openai/")):
        return "logprobs"
    if whole is None and wanted == "logprobs":
        logger.warning("judge %s did not say 85 when asked to: whether one token holds a number is untested", grader)
        return "logprobs"
    right: Reader = "digits" if whole is False and await _can_be_begun(grader) else "samples"
    if wanted == "logprobs":
        raise UserError(
            f"judge {grader} writes 85 as '8' and '5', so that its first token reads as 8: use -T reader={right}"
        )
    logger.info("judge %s is read by %s", grader, right)
    return right


async def _asked(grader: Model, must: bool) -> dict[str, float] | None:
    """First tokens of the reply to the probe, or None where the judge gives no logprobs."""
    for _ in range(TRIES if must else 1):
        try:
            return await first_token(grader, PROBE)
        except NoLogprobs:
            continue
        except Exception:
            if must:
                raise
            await grader.generate(PROBE)  # where this works, it is the request for logprobs that is refused
    return None


def _whole(grader: Model, tokens: dict[str, float]) -> bool | None:
    """Whether "85" is one token for the judge; None where neither its tokenizer nor its reply says so."""
    tokenizer = getattr(grader.api, "tokenizer", None) if str(grader).startswith("hf/") else None
    if tokenizer is not None:
        return len(tokenizer("85", add_special_tokens=False)["input_ids"]) == 1
    one, two = (sum(p for token, p in tokens.items() if token.strip() == number) for number in ("8", "85"))
    return None if max(one, two) < MINIMUM_MASS else two >= one


async def _can_be_begun(grader: Model) -> bool:
    """Whether the judge goes on with "5" where its reply was begun with "8"."""
    begun: list[ChatMessage] = after(PROBE, "8")
    try:
        tokens = await first_token(grader, begun)
    except Exception:  # refused, or no logprobs: then not
        return False
    numbers = {token: p for token, p in tokens.items() if token.strip().isdigit()}
    return bool(numbers) and max(numbers, key=lambda token: numbers[token]) == "5"
