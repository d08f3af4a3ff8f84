"""Batched generation: each distinct prompt is read once, and a finished answer's place is taken at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from em_core.errors import UserError
from em_core.models import head_logits
from em_eval.providers.reading import read_prompts
from em_eval.providers.sampling import Sampling, draw, stream
from em_eval.providers.slots import Slots
from em_eval.providers.weights import Loaded

REFILL_SHARE = 8  # new answers enter when one in this many places is free: reading a prompt alone is dear


@dataclass(frozen=True)
class TokenChoice:
    """A generated token with its log-probability (of the model, before temperature), and the likeliest ones."""

    token: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Completion:
    """`stop_reason` is "stop" or "max_tokens"; counts are of this answer, without padding."""

    text: str
    input_tokens: int
    output_tokens: int
    stop_reason: str
    choices: tuple[TokenChoice, ...] = ()


Deliver = Callable[[int, Completion], None]


class Stopped(Exception):
    """The caller's `stop` was set before all was said."""


def complete(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    how: Sampling,
    rows: int = 96,
    deliver: Deliver = lambda index, completion: None,
    stop: Event | None = None,
) -> list[Completion]:
    """One completion a prompt (its token ids), `rows` of them at a time; `deliver` hears of each once it is whole.

    Raises:
        UserError: a prompt and its answer would not fit the model's context.
        Stopped: `stop` was set; what was whole by then has been delivered.
    """
    for prompt in prompts:
        if (error := overflow(loaded, prompt, how)) is not None:
            raise error
    return _Run(loaded, prompts, seeds, how, rows, deliver, stop or Event()).all()


def encode(loaded: Loaded, prompt: str) -> list[int]:
    """Token ids of a rendered conversation, whose marks are those of its template."""
    ids: list[int] = loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return ids


def overflow(loaded: Loaded, prompt: Sequence[int], how: Sampling) -> UserError | None:
    """Why `prompt` (token ids) and its answer would not fit the model's context, or None."""
    config = loaded.model.config.get_text_config(decoder=True)
    limit, width = getattr(config, "max_position_embeddings", None), len(prompt)
    if limit and width + how.max_tokens > limit:
        return UserError(f"prompt of {width} tokens and answer of {how.max_tokens} exceed the context of {limit}")
    return None


class _Run:
    """The state of one `complete`: `request[i]` is the prompt that row i answers, the first rows are the live ones."""

    def __init__(
        self,
        loaded: Loaded,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        how: Sampling,
        rows: int,
        deliver: Deliver,
        stop: Event,
    ) -> None:
        self.loaded, self.how, self.deliver, self.stop = loaded, how, deliver, stop
        self.prompts = [tuple(prompt) for prompt in prompts]
        device = loaded.device
        self.uniform = torch.stack([stream(seed, how.max_tokens) for seed in seeds]).to(device)
        # Answers to one prompt stand together, so that it is read once for them.
        self.waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i], i))
        self.ends = torch.tensor(_end_tokens(loaded), device=device)
        self.rows = min(rows, len(prompts))
        self.slots = Slots(loaded.model, self.rows, max(map(len, prompts)) + how.max_tokens)
        self.said = torch.zeros(len(prompts), how.max_tokens, dtype=torch.long, device=device)
        self.count = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self.request = torch.empty(0, dtype=torch.long, device=device)
        self.position = torch.empty(0, dtype=torch.long, device=device)
        self.logits = torch.empty(0, device=device)
        self.choices: list[list[TokenChoice]] = [[] for _ in prompts]
        self.done: dict[int, Completion] = {}

    @torch.inference_mode()
    def all(self) -> list[Completion]:
        while self.waiting or len(self.request):
            if self.stop.is_set():
                raise Stopped
            free = self.rows - len(self.request)
            if self.waiting and free >= max(1, self.rows // REFILL_SHARE):
                self._admit(free)
            tokens = self._draw()
            self._retire(tokens)
            if len(self.request):
                self._step()
        return [self.done[i] for i in range(len(self.prompts))]

    def _admit(self, free: int) -> None:
        """Read the prompts of the next answers into free rows, each distinct prompt once."""
        new, self.waiting = self.waiting[:free], self.waiting[free:]
        distinct = list(dict.fromkeys(self.prompts[i] for i in new))
        rank = {prompt: i for i, prompt in enumerate(distinct)}
        source = torch.tensor([rank[self.prompts[i]] for i in new], device=self.loaded.device)
        first, width = len(self.request), max(map(len, distinct))
        logits = head_logits(self.loaded.model, read_prompts(self.loaded, self.slots, distinct, first))
        rows = torch.arange(len(new), device=self.loaded.device)
        moved = (source != rows).nonzero()[:, 0]
        self.slots.copy(first + source[moved], first + moved, width)
        lengths = torch.tensor([len(self.prompts[i]) for i in new], device=self.loaded.device)
        self.request = torch.cat([self.request, torch.tensor(new, device=self.loaded.device)])
        self.position = torch.cat([self.position, lengths - 1])
        self.logits = torch.cat([self.logits.to(logits.dtype), logits[source]]) if first else logits[source]

    def _draw(self) -> Tensor:
        index = self.count[self.request]
        tokens = draw(self.logits, self.uniform[self.request, index], self.how)
        if self.how.top_logprobs is not None:
            self._report(tokens, self.how.top_logprobs)
        self.said[self.request, index] = tokens
        self.count[self.request] += 1
        return tokens

    def _report(self, tokens: Tensor, most: int) -> None:
        decode = self.loaded.tokenizer.decode
        logprobs = self.logits.float().log_softmax(dim=-1)
        values, ids = logprobs.topk(most) if most else (logprobs[:, :0], tokens[:, None][:, :0])
        own = logprobs.gather(-1, tokens[:, None])[:, 0]
        for row, request in enumerate(self.request.tolist()):
            top = [(decode([i]), v) for i, v in zip(ids[row].tolist(), values[row].tolist(), strict=True)]
            self.choices[request].append(TokenChoice(decode([int(tokens[row])]), float(own[row]), top))

    def _retire(self, tokens: Tensor) -> None:
        """Hand out finished answers, and let the last live rows take their places."""
        stopped = torch.isin(tokens, self.ends)
        ended = stopped | (self.count[self.request] >= self.how.max_tokens)
        if not bool(ended.any()):
            return
        for row in ended.nonzero()[:, 0].tolist():
            index = int(self.request[row])
            self.done[index] = self._completion(index, bool(stopped[row]))
            self.deliver(index, self.done[index])
        live = (~ended).nonzero()[:, 0]
        holes = ended[: len(live)].nonzero()[:, 0]
        movers = live[live >= len(live)]
        order = torch.arange(len(live), device=live.device)
        order[holes] = movers
        if len(live):
            self.slots.copy(movers, holes, int(self.position[live].max()) + 1)
        self.request, self.position = self.request[order], self.position[order]

    def _step(self) -> None:
        """One forward pass over every live row's last token."""
        self.position = self.position + 1
        last = self.said[self.request, self.count[self.request] - 1]
        out = self.slots.forward(self.loaded.model, last[:, None], self.position[:, None])
        self.logits = out.logits[:, -1]

    def _completion(self, index: int, stopped: bool) -> Completion:
        tokens = self.said[index, : int(self.count[index])].tolist()
        text = self.loaded.tokenizer.decode(tokens[:-1] if stopped else tokens, skip_special_tokens=True)
        reason = "stop" if stopped else "max_tokens"
        return Completion(text, len(self.prompts[index]), len(tokens), reason, tuple(self.choices[index]))


def _end_tokens(loaded: Loaded) -> list[int]:
    configured = loaded.model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*listed, loaded.tokenizer.eos_token_id] if token is not None})
