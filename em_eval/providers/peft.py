"""`peft/FOLDER`: a LoRA checkpoint (ours or not) or a base model on transformers, one base in memory for all.

The model's name carries a hash of its weights (`peft/FOLDER@1a2b3c4d`), so that caches and logs cannot mix
checkpoints that lay under one path.
"""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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

from em_core.chat import Message, render
from em_core.errors import UserError
from em_eval.batching import Batcher, Deliver
from em_eval.errors import as_prerequisite
from em_eval.model_names import split_hash
from em_eval.providers.decoding import Completion, complete, overflow
from em_eval.providers.memory import is_out_of_memory
from em_eval.providers.sampling import Sampling
from em_eval.providers.weights import Loaded, content_hash, load

DEFAULT_BATCH = 96
QUEUE = 4  # batches of requests that may wait: from them a finished answer's place is filled
logger = logging.getLogger(__name__)
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Request:
    messages: tuple[tuple[str, str], ...]
    seed: int
    how: Sampling


class PeftAPI(ModelAPI):
    """Weights are loaded at the first answer, not here: Inspect makes instances only to look names up.

    Model args: `batch_size` (96), `dtype` ("auto": float32 and the adapter merged on CPU, bfloat16 and
    the adapter beside its layers on GPU).
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature
        batch_size: int = DEFAULT_BATCH,
        dtype: str = "auto",
        **unknown: Any,
    ) -> None:
        with as_prerequisite():
            if unknown:
                raise UserError(f"peft/ has no model argument '{next(iter(unknown))}': it knows batch_size, dtype")
            if dtype not in DTYPES:
                raise UserError(f"peft/ dtype '{dtype}' is none of {', '.join(DTYPES)}")
            self.source, claimed = split_hash(model_name)
            self.digest = content_hash(self.source)
            if claimed and claimed != self.digest:
                raise UserError(
                    f"{self.source} holds weights {self.digest}, not {claimed}: it was overwritten, drop the @ part"
                )
        super().__init__(f"{self.source}@{self.digest}", base_url, api_key, [], config)
        self.batch_size, self.dtype = batch_size, dtype
        self._batcher: Batcher[_Request, Completion] = Batcher(self._process, QUEUE * batch_size)

    def loaded(self) -> Loaded:
        """The model itself, loaded on first use."""
        return load(self.source, self.dtype, self.digest)

    def max_connections(self) -> int:
        return QUEUE * self.batch_size

    def connection_key(self) -> str:
        return self.model_name

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        if tools or config.stop_seqs or (config.num_choices or 1) > 1:
            raise UserError("peft/ does not offer tools, stop sequences or several choices")
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

    def _process(self, requests: Sequence[_Request], deliver: Deliver[Completion]) -> None:
        """Requests of equal settings run together; one that the template or the context refuses fails alone."""
        loaded = self.loaded()
        if loaded.device.type == "cpu":
            # Whatever Python the evaluator does with early answers would hold up every one of a step's many small
            # operations; and an in-process judge waits for the processor anyway.
            done: list[tuple[int, Completion | Exception]] = []
            self._run(loaded, requests, lambda index, result: done.append((index, result)))
            for index, result in done:
                deliver(index, result)
        else:
            self._run(loaded, requests, deliver)

    def _run(self, loaded: Loaded, requests: Sequence[_Request], deliver: Deliver[Completion]) -> None:
        prompts: dict[int, str] = {}
        fitting: dict[Sampling, list[int]] = {}
        for i, request in enumerate(requests):
            try:
                prompts[i] = _prompt(loaded, request.messages)
                if (error := overflow(loaded, prompts[i], request.how)) is not None:
                    raise error
            except UserError as refused:
                deliver(i, refused)
            else:
                fitting.setdefault(request.how, []).append(i)
        for how, chosen in fitting.items():
            self._complete(loaded, {i: (prompts[i], requests[i].seed) for i in chosen}, how, deliver)

    def _complete(
        self, loaded: Loaded, left: dict[int, tuple[str, int]], how: Sampling, deliver: Deliver[Completion]
    ) -> None:
        """Complete (prompt, seed) for each request in `left`, in smaller batches where memory runs out."""
        while left:
            keys, rows = list(left), min(self.batch_size, len(left))
            prompts, seeds = zip(*left.values(), strict=True)
            try:
                complete(loaded, prompts, seeds, how, rows, partial(_settle, keys, left, deliver))
            except RuntimeError as error:  # torch's own out-of-memory error is one
                if not is_out_of_memory(error) or rows == 1:
                    raise
                self.batch_size = rows // 2
                logger.warning("%s: out of memory with %d rows, going on with %d", self, rows, self.batch_size)
                if loaded.device.type == "cuda":
                    torch.cuda.empty_cache()


def _settle(
    keys: list[int], left: dict[int, tuple[str, int]], deliver: Deliver[Completion], place: int, done: Completion
) -> None:
    deliver(keys[place], done)
    del left[keys[place]]


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
