"""The calls to a model judge, one function a reader.

Everything that decides the reply is passed in `generate`: Inspect lets it win over what the role was given. Retries,
timeouts and connection limits are Inspect's and the user's to set, and are left alone here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inspect_ai.model import (
    CachePolicy,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
)
from inspect_ai.util import collect

from em_eval.judge.digits import UNWALKED, walk
from em_eval.judge.readers import Reading, plain, read_bare, read_distribution, read_samples, read_text
from em_eval.judge.settings import JudgeSettings, Reader

TOP = 20  # the most that OpenAI's interface gives
NUMBER_TOKENS = 16  # room for one bare number with marks around it
ROUNDING = 1e-3  # in float32 the log-probability of a sure token comes out a little above 0


class NoLogprobs(Exception):
    """A reply without the distribution of its first token."""


@dataclass(frozen=True)
class Reply:
    """One reply of the judge: its reading, its words for people, and what is kept of it."""

    reading: Reading
    words: str
    details: dict[str, Any] = field(default_factory=dict)


async def ask(reader: Reader, grader: Model, prompt: str, settings: JudgeSettings) -> Reply:
    """Ask `grader` once (with `reader` "samples" or "digits": as often as it takes) and read the reply.

    Raises:
        NoLogprobs: a reply lacks what the reader reads.
        Exception: what the provider raises after Inspect's retries.
    """
    if reader == "logprobs":
        return await _ask_first_token(grader, prompt, settings)
    if reader == "digits":
        return await _ask_digits(grader, prompt, settings)
    if reader == "samples":
        return await _ask_samples(grader, prompt, settings)
    return await _ask_text(grader, prompt, settings)


async def first_token(grader: Model, messages: str | list[ChatMessage], cache: bool = False) -> dict[str, float]:
    """The distribution of the reply's first token, as far as its `TOP` likeliest tokens go.

    Raises:
        NoLogprobs: the judge gave none.
    """
    config = GenerateConfig(temperature=greedy(grader), max_tokens=1, logprobs=True, top_logprobs=TOP, seed=0)
    output = await grader.generate(messages, config=config, **_kept(cache))
    found = _distribution(output)
    if found is None:
        raise NoLogprobs(f"{grader} gave no logprobs")
    return found


def after(prompt: str, beginning: str) -> list[ChatMessage]:
    """The conversation with the reply begun (prefill)."""
    begun: list[ChatMessage] = [ChatMessageAssistant(content=beginning)] if beginning else []
    return [ChatMessageUser(content=prompt), *begun]


def in_process(grader: Model) -> bool:
    """Whether the judge's weights are held by this process, so that any distribution can be computed."""
    return str(grader).startswith("peft/")


async def _ask_first_token(grader: Model, prompt: str, settings: JudgeSettings) -> Reply:
    found = await first_token(grader, prompt, settings.cache)
    return Reply(read_distribution(found), _shown(found), {"tokens": _rounded(found)})


async def _ask_digits(grader: Model, prompt: str, settings: JudgeSettings) -> Reply:
    async def remote(beginnings: Sequence[str]) -> list[Mapping[str, float]]:
        calls = (first_token(grader, after(prompt, beginning), settings.cache) for beginning in beginnings)
        return list(await collect(*calls))

    async def local(beginnings: Sequence[str]) -> list[Mapping[str, float]]:
        from em_eval.judge.local import next_tokens

        api: Any = grader.api
        return await next_tokens(api.source, api.dtype, api.digest, prompt, beginnings)

    found = await walk(local if in_process(grader) else remote)
    return Reply(read_distribution(found), _shown(found), {"numbers": _rounded(found, least=1e-4)})


async def _ask_samples(grader: Model, prompt: str, settings: JudgeSettings) -> Reply:
    async def draw(seed: int) -> str:
        config = GenerateConfig(temperature=1.0, top_p=1.0, max_tokens=NUMBER_TOKENS, seed=seed)
        return (await grader.generate(prompt, config=config, **_kept(settings.cache))).completion

    replies = await collect(*(draw(seed) for seed in range(settings.draws)))
    samples = read_samples([read_bare(reply) for reply in replies])
    return Reply(samples.reading, ", ".join(replies), {"replies": replies, "spread": samples.spread})


async def _ask_text(grader: Model, prompt: str, settings: JudgeSettings) -> Reply:
    config = GenerateConfig(temperature=greedy(grader), seed=0)
    output = await grader.generate(prompt, config=config, **_kept(settings.cache))
    cut = output.stop_reason in {"max_tokens", "model_length"}  # "8" may then be the beginning of 85
    return Reply(read_bare(output.completion) if cut else read_text(output.completion), output.completion)


def _kept(cache: bool) -> dict[str, Any]:
    """Where nothing is asked for, Inspect's own `--cache` decides (it reaches the judge alone)."""
    return {"cache": CachePolicy(expiry=None, per_epoch=False)} if cache else {}


def greedy(grader: Model) -> float:
    """Temperature 0, which transformers refuses; its logprobs are those of the model at any temperature."""
    return 0.01 if str(grader).startswith("hf/") else 0.0


def _distribution(output: ModelOutput) -> dict[str, float] | None:
    logprobs = output.choices[0].logprobs if output.choices else None
    if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
        return None
    found: dict[str, float] = {}
    for token in logprobs.content[0].top_logprobs:
        if token.logprob <= ROUNDING:  # not so for NaN, nor for what is no log-probability: it counts for nothing
            text = plain(token.token)
            found[text] = found.get(text, 0.0) + math.exp(min(token.logprob, 0.0))
    return found


def _rounded(found: Mapping[str, float], least: float = 0.0) -> dict[str, float]:
    """For the log: likeliest first, six digits."""
    likeliest = sorted(found.items(), key=lambda pair: -pair[1])
    return {text: float(f"{p:.6g}") for text, p in likeliest if p > least or text == UNWALKED}


def _shown(found: Mapping[str, float]) -> str:
    likeliest = sorted(found.items(), key=lambda pair: -pair[1])[:5]
    return ", ".join(f"`{text}` {p:.2f}" for text, p in likeliest) or "no token"
