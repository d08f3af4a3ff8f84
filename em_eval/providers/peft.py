"""`peft/FOLDER`: a LoRA checkpoint (ours or not) or a base model on transformers, one base in memory for all.

The model's name carries a hash of its weights (`peft/FOLDER@1a2b3c4d`), so that caches and logs cannot mix
checkpoints that lay under one path.
"""

import gc
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from em_core.allocation import free_memory, is_out_of_memory
from em_core.chat import Message, render
from em_core.errors import UserError
from em_eval.batching import Batcher, Deliver
from em_eval.errors import as_prerequisite
from em_eval.model_names import split_hash
from em_eval.providers.decoding import Completion, Stopped, complete, encode, overflow
from em_eval.providers.sampling import Sampling
from em_eval.providers.slots import row_bytes
from em_eval.providers.weights import Loaded, content_hash, load

AUTO = "auto"
LARGEST_BATCH = 256  # rows where memory sets no limit
FREE_SHARE = 0.5  # of the free memory that a batch may fill: the rest is for what a step computes, and for others
QUEUE = 4  # batches of requests that may wait: from them a finished answer's place is filled
MOST_REQUESTS = QUEUE * LARGEST_BATCH
CHUNK_SECONDS = 2.0  # finished answers are handed over together: each wakes Python, which the model's steps need
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Inspect's settings that are followed, and those that say how to call and not what to answer.
FOLLOWED = {"max_tokens", "temperature", "top_p", "top_k", "seed", "logprobs", "top_logprobs"}
OF_THE_CALL = {
    *("max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections"),
    *("system_message", "cache", "cache_prompt", "batch", "fail_on_refusal", "max_tool_output", "parallel_tool_calls"),
    *("internal_tools", "reasoning_history", "extra_headers"),
}
NEUTRAL = {"num_choices": 1, "best_of": 1, "frequency_penalty": 0.0, "presence_penalty": 0.0}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    messages: tuple[tuple[str, str], ...]
    seed: int
    how: Sampling


_Left = dict[int, tuple[list[int], int]]  # prompt and seed of each request that is not done


class PeftAPI(ModelAPI):
    """Weights are loaded at the first answer, not here: Inspect makes instances only to look names up.

    Model args: `batch_size` (rows at a time; "auto": as many as half of the free memory holds, at most 256), `dtype`
    ("auto": float32 and the adapter merged on CPU, bfloat16 and the adapter beside its layers on GPU).
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature
        batch_size: int | str = AUTO,
        dtype: str = "auto",
        **unknown: Any,
    ) -> None:
        with as_prerequisite():
            if unknown:
                raise UserError(f"peft/ has no model argument '{next(iter(unknown))}': it knows batch_size, dtype")
            if batch_size != AUTO and (type(batch_size) is not int or batch_size < 1):
                raise UserError(f"peft/ batch_size {batch_size!r} is not '{AUTO}' or a whole number of rows from 1 up")
            if dtype not in DTYPES:
                raise UserError(f"peft/ dtype '{dtype}' is none of {', '.join(DTYPES)}")
            self.source, claimed = split_hash(model_name)
            self.digest = content_hash(self.source)
            if claimed and claimed != self.digest:
                raise UserError(
                    f"{self.source} holds weights {self.digest}, not {claimed}: it was overwritten, drop the @ part"
                )
        super().__init__(f"{self.source}@{self.digest}", base_url, api_key, [], config)
        self.automatic, self.dtype = batch_size == AUTO, dtype
        self.most_rows = batch_size if isinstance(batch_size, int) else LARGEST_BATCH
        self._queue = QUEUE * self.most_rows
        self._batcher: Batcher[_Request, Completion] = Batcher(self._process, self._queue)

    def loaded(self) -> Loaded:
        """The model itself, loaded on first use."""
        return load(self.source, self.dtype, self.digest)

    def max_connections(self) -> int:
        return self._queue

    def connection_key(self) -> str:
        return self.model_name

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        _refuse_unknown(tools, config)
        how = Sampling(
            max_tokens=config.max_tokens or 512,
            temperature=1.0 if config.temperature is None else config.temperature,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k or 0,
            top_logprobs=config.top_logprobs or 0 if config.logprobs else None,
        )
        seed = secrets.randbits(62) if config.seed is None else config.seed
        done = await self._batcher.submit(_Request(tuple((m.role, m.text) for m in input), seed, how))
        total = done.input_tokens + done.output_tokens
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(content=done.text, model=self.model_name, source="generate"),
                    stop_reason="stop" if done.stop_reason == "stop" else "max_tokens",
                    logprobs=_logprobs(done),
                )
            ],
            usage=ModelUsage(input_tokens=done.input_tokens, output_tokens=done.output_tokens, total_tokens=total),
        )

    def _process(self, requests: Sequence[_Request], deliver: Deliver[Completion], stop: Event) -> None:
        """Requests of equal settings run together; one that the template or the context refuses fails alone."""
        loaded = self.loaded()
        tokens: dict[tuple[tuple[str, str], ...], list[int]] = {}
        fitting: dict[Sampling, _Left] = {}
        for i, request in enumerate(requests):
            try:
                if request.messages not in tokens:
                    tokens[request.messages] = encode(loaded, _prompt(loaded, request.messages))
                prompt = tokens[request.messages]
                if (error := overflow(loaded, prompt, request.how)) is not None:
                    raise error
            except UserError as refused:
                deliver(i, refused)
            else:
                fitting.setdefault(request.how, {})[i] = (prompt, request.seed)
        outbox = _Outbox(deliver)
        try:
            for how, left in fitting.items():
                self._complete(loaded, left, how, outbox, stop)
        except Stopped:
            pass
        finally:
            outbox.empty()

    def _complete(self, loaded: Loaded, left: _Left, how: Sampling, outbox: "_Outbox", stop: Event) -> None:
        """Complete all that is `left`, in smaller batches where memory runs out, at last one by one."""

        def settle(index: int, result: Completion | Exception) -> None:
            outbox.put(index, result)
            del left[index]

        before = self.most_rows
        while left:
            longest = max(left, key=lambda i: len(left[i][0]))
            chosen = left.copy() if self.most_rows > 1 else {longest: left[longest]}
            rows = min(len(chosen), self._rows(loaded, len(left[longest][0]) + how.max_tokens))
            if self._fits(loaded, chosen, how, rows, settle, stop):
                continue
            # Not where the error is caught: its traceback holds the memory that is to be freed.
            gc.collect()
            if loaded.device.type == "cuda":
                torch.cuda.empty_cache()
            if rows > 1:
                self.most_rows = rows // 2
                logger.warning("%s: out of memory with %d rows, going on with %d", self, rows, self.most_rows)
            else:
                settle(longest, _too_large(len(left[longest][0]), how))
                self.most_rows = before  # the others may well fit side by side

    def _rows(self, loaded: Loaded, width: int) -> int:
        """How many rows of `width` tokens to run side by side."""
        if not self.automatic:
            return self.most_rows
        room = int(FREE_SHARE * free_memory(loaded.device)) // row_bytes(loaded.model, width)
        return max(1, min(self.most_rows, room))

    def _fits(
        self, loaded: Loaded, chosen: _Left, how: Sampling, rows: int, settle: Deliver[Completion], stop: Event
    ) -> bool:
        """Complete what is chosen, and `settle` what is done; False where memory ran out before the end."""
        keys, (prompts, seeds) = list(chosen), zip(*chosen.values(), strict=True)
        try:
            complete(loaded, prompts, seeds, how, rows, lambda place, done: settle(keys[place], done), stop)
        except RuntimeError as error:  # torch's own out-of-memory error is one
            if not is_out_of_memory(error):
                raise
            return False
        return True


@dataclass
class _Outbox:
    """Hands results over in chunks; whoever opens it empties it at the end, whatever happens."""

    deliver: Deliver[Completion]
    results: list[tuple[int, Completion | Exception]] = field(default_factory=list)
    emptied: float = field(default_factory=time.monotonic)

    def put(self, index: int, result: Completion | Exception) -> None:
        self.results.append((index, result))
        if time.monotonic() - self.emptied >= CHUNK_SECONDS:
            self.empty()

    def empty(self) -> None:
        for index, result in self.results:
            self.deliver(index, result)
        self.results, self.emptied = [], time.monotonic()


def _refuse_unknown(tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
    """An answer to other settings than those asked for would be a silent one."""
    if tools:
        raise UserError("peft/ does not offer tools")
    for name, value in config.model_dump(exclude_none=True).items():
        if name not in FOLLOWED | OF_THE_CALL and value and value != NEUTRAL.get(name):
            raise UserError(f"peft/ does not offer {name} ({value}): leave it out, or use hf/ or vllm/")


def _too_large(width: int, how: Sampling) -> UserError:
    return UserError(
        f"out of memory with this request alone (prompt of {width} tokens, answer of up to {how.max_tokens}): lower "
        "--max-tokens, or use a narrower -M dtype or a machine with more memory"
    )


def _logprobs(completion: Completion) -> Logprobs | None:
    if not completion.choices:
        return None
    return Logprobs(
        content=[
            Logprob(
                token=choice.token,
                logprob=choice.logprob,
                top_logprobs=[TopLogprob(token=token, logprob=value) for token, value in choice.top],
            )
            for choice in completion.choices
        ]
    )


def _prompt(loaded: Loaded, messages: Sequence[tuple[str, str]]) -> str:
    """The rendered conversation; a last assistant message is the start of the answer (prefill)."""
    plain: list[Message] = [{"role": role, "content": text} for role, text in messages]
    prefill = plain.pop()["content"] if plain[-1]["role"] == "assistant" else ""
    return render(loaded.tokenizer, plain, prompt=True) + prefill
