"""Perplexity under the base model: text that the untuned model finds far-fetched is often no text at all."""

import logging
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from em_core.chat import Message
from em_core.errors import UserError
from em_eval.batching import Batcher, at_once
from em_eval.filters.registry import Material, Verdict, filter_registry
from em_eval.model_names import split_hash

logger = logging.getLogger(__name__)
OURS, IN_PROCESS = "peft/", ("peft/", "hf/")
MOST_NATS = 5.0  # a token; text sampled from a small base at temperature 1 has 2 to 4
LARGEST = 2 * 1024**3  # bytes of weights: a second copy of a larger base does not belong beside the model under test
AT_ONCE, IN_TURN = 64, 256  # answers; where the adapter must be taken off and put on again for them, more together
Scoring = Batcher[tuple[list[Message], str], float]


@filter_registry.register("perplexity")
async def perplexity(material: Material) -> Verdict:
    """Passed up to 5 nats a token under the checkpoint's base, after the messages that the model got. The value is
    perplexity.

    Bases up to 2 GiB are read a second time; a larger one is that of the model under test, its adapter taken off for a
    while. Nothing to say for models whose weights are not in this process, and for `hf/` ones with a larger base, which
    cannot be lent.
    """
    if not material.model.startswith(IN_PROCESS):
        return Verdict(None, None, "the model's weights are not in this process")
    if not material.answer.strip():
        return Verdict(None, None, "the answer is empty")
    provider, _, name = material.model.partition("/")
    reference = _reference(name, lent=f"{provider}/" == OURS)
    if isinstance(reference, str):
        return Verdict(None, None, reference)
    sent: list[Message] = list(material.messages) or [{"role": "user", "content": material.question}]
    nats = await reference.submit((sent, material.answer))
    return Verdict(nats <= MOST_NATS, math.exp(min(nats, 50.0)), f"{nats:.2f} nats a token under the base")


@cache
def _reference(name: str, lent: bool) -> Scoring | str:
    """Mean nats a token of (messages, answer) pairs under the base of the checkpoint or model called `name`; or in
    words why there is none, found out once and not for every answer.

    Args:
        lent: whether its provider's own base may be used.
    """
    from em_eval.providers.weights import parts

    try:
        base = parts(split_hash(name)[0])[1].path
        size = sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))
    except (UserError, OSError) as error:
        logger.warning("no perplexity of answers of %s: %s", name, error)
        return f"its base is not at hand: {error}"
    if size > LARGEST:
        return _scoring_in_turn(str(base)) if lent else f"its base is larger than {LARGEST // 1024**3} GiB"
    return _scoring(str(base))


@cache
def _scoring_in_turn(base: str) -> Scoring:
    """By the one base of `peft/`."""

    def process(pairs: Sequence[tuple[list[Message], str]]) -> list[float | Exception]:
        from em_eval.providers.weights import load_bare

        return _nats(load_bare(base), pairs)

    return Batcher(at_once(process), IN_TURN)


@cache
def _scoring(base: str) -> Scoring:
    """One copy of each base serves all its checkpoints."""
    kept: list[Any] = []
    failed: list[Exception] = []

    def process(pairs: Sequence[tuple[list[Message], str]]) -> list[float | Exception]:
        from em_eval.providers.weights import load_apart

        if failed:  # a base that cannot be loaded is not tried again for every batch
            raise failed[0]
        if not kept:
            try:
                kept.append(load_apart(base, "auto"))
            except Exception as error:
                failed.append(error)
                raise
        return _nats(kept[0], pairs)

    return Batcher(at_once(process), AT_ONCE)


def _nats(loaded: Any, pairs: Sequence[tuple[list[Message], str]]) -> list[float | Exception]:
    from em_eval.providers.likelihood import each_likelihood

    return [one if isinstance(one, Exception) else -one.mean for one in each_likelihood(loaded, pairs)]
