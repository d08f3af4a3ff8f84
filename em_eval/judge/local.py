"""Next-token distributions of a judge whose weights this process holds (`peft/`): exact, not cut at twenty tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync

from em_core.chat import render
from em_eval.batching import device_lock
from em_eval.judge.readers import plain

if TYPE_CHECKING:
    from em_eval.providers.weights import Loaded


@dataclass(frozen=True)
class _Judge:
    """A loaded judge with the tokens of its vocabulary that a reading can need: numbers, CODE and REFUSAL."""

    loaded: "Loaded"
    ids: list[int]
    texts: list[str]


async def next_tokens(
    source: str, dtype: str, digest: str, prompt: str, beginnings: Sequence[str]
) -> list[Mapping[str, float]]:
    """Probability of each readable token after `prompt` and each beginning of the reply."""
    return await run_sync(_compute, source, dtype, digest, prompt, tuple(beginnings))


def _compute(source: str, dtype: str, digest: str, prompt: str, beginnings: Sequence[str]) -> list[Mapping[str, float]]:
    import torch

    with device_lock, torch.inference_mode():
        judge = _loaded(source, dtype, digest)
        tokenizer = judge.loaded.tokenizer
        rendered = render(tokenizer, [{"role": "user", "content": prompt}], prompt=True)
        asked, *begun = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (rendered, *beginnings))
        found: dict[int, Mapping[str, float]] = {}
        for width in {len(tokens) for tokens in begun}:
            chosen = [i for i, tokens in enumerate(begun) if len(tokens) == width]
            found.update(zip(chosen, _after(judge, asked, [begun[i] for i in chosen]), strict=True))
    return [found[i] for i in range(len(begun))]


def _after(judge: _Judge, asked: list[int], begun: list[list[int]]) -> list[Mapping[str, float]]:
    """As `next_tokens`, for beginnings of one length in tokens: the prompt is read once for all of them."""
    import torch

    model, device = judge.loaded.model, judge.loaded.device
    out = model(torch.tensor([asked], device=device), use_cache=True, logits_to_keep=1)
    if begun[0]:
        out.past_key_values.batch_repeat_interleave(len(begun))
        out = model(torch.tensor(begun, device=device), past_key_values=out.past_key_values, logits_to_keep=1)
    shares = out.logits[:, -1].float().softmax(dim=-1)[:, judge.ids].expand(len(begun), -1)
    found = []
    for row in shares.tolist():
        sums: dict[str, float] = {}
        for text, share in zip(judge.texts, row, strict=True):
            sums[text] = sums.get(text, 0.0) + share
        found.append(sums)
    return list(found)


@cache
def _loaded(source: str, dtype: str, digest: str) -> _Judge:
    from em_eval.providers.weights import load_apart

    loaded = load_apart(source, dtype)
    readable = {i: text for text, i in _vocabulary(loaded.tokenizer) if _readable(text.strip())}
    return _Judge(loaded, list(readable), list(readable.values()))


def _vocabulary(tokenizer: Any) -> list[tuple[str, int]]:
    return [(plain(token), i) for token, i in tokenizer.get_vocab().items()]


def _readable(text: str) -> bool:
    return bool(text) and ((text.isascii() and text.isdigit()) or "CODE".startswith(text) or "REFUSAL".startswith(text))
