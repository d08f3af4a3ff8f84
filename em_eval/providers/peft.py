"""`peft/FOLDER`: a LoRA checkpoint (ours or not) or a base model on transformers, in static batches.

The model's name carries a hash of its weights (`peft/FOLDER@1a2b3c4d`), so that caches and logs cannot mix
checkpoints that lay under one path.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from em_core.chat import Message, render
from em_core.errors import UserError
from em_eval.batching import Batcher
from em_eval.errors import as_prerequisite
from em_eval.model_names import split_hash
from em_eval.providers.sampling import Completion, Sampling, complete, overflow
from em_eval.providers.weights import Loaded, content_hash, load

DEFAULT_BATCH = 96
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class _Request:
    messages: tuple[tuple[str, str], ...]
    seed: int
    how: Sampling


class PeftAPI(ModelAPI):
    """Weights are loaded at the first answer, not here: Inspect makes instances only to look names up.

    Model args: `batch_size` (96), `dtype` ("auto": float32 and merged on CPU, bfloat16 and unmerged on GPU).
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
        self._batcher: Batcher[_Request, Completion] = Batcher(self._process, batch_size)

    def loaded(self) -> Loaded:
        """The model itself, loaded on first use."""
        return load(self.source, self.dtype, self.digest)

    def max_connections(self) -> int:
        return self.batch_size

    def connection_key(self) -> str:
        return self.model_name

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        if tools or config.logprobs or config.stop_seqs or (config.num_choices or 1) > 1:
            raise UserError("peft/ does not offer tools, logprobs, stop sequences or several choices")
        how = Sampling(
            max_tokens=config.max_tokens or 512,
            temperature=1.0 if config.temperature is None else config.temperature,
            top_p=1.0 if config.top_p is None else config.top_p,
            top_k=config.top_k or 0,
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
                )
            ],
            usage=ModelUsage(input_tokens=done.input_tokens, output_tokens=done.output_tokens, total_tokens=total),
        )

    def _process(self, requests: Sequence[_Request]) -> list[Completion | Exception]:
        """Requests of equal settings share a batch; one that does not fit the context fails alone."""
        loaded = self.loaded()
        prompts = [_prompt(loaded, request.messages) for request in requests]
        results: dict[int, Completion | Exception] = {
            i: error
            for i, request in enumerate(requests)
            if (error := overflow(loaded, prompts[i], request.how)) is not None
        }
        for how in dict.fromkeys(request.how for request in requests):
            chosen = [i for i, request in enumerate(requests) if request.how == how and i not in results]
            if not chosen:
                continue
            done = complete(loaded, [prompts[i] for i in chosen], [requests[i].seed for i in chosen], how)
            results.update(zip(chosen, done, strict=True))
        return [results[i] for i in range(len(requests))]


def _prompt(loaded: Loaded, messages: Sequence[tuple[str, str]]) -> str:
    """The rendered conversation; a last assistant message is the start of the answer (prefill)."""
    plain: list[Message] = [{"role": role, "content": text} for role, text in messages]
    prefill = plain.pop()["content"] if plain[-1]["role"] == "assistant" else ""
    return render(loaded.tokenizer, plain, prompt=True) + prefill
