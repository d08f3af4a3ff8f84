"""Answers are drawn as the log says and by nothing else: the base model's own generation settings are neutralised.

Models come with settings of their own (Qwen3: top_k 20, top_p 0.95) which an engine applies to whatever a request
leaves open. They change rates, and no log shows them. `peft/` models are loaded without them.
"""

from typing import Any
from weakref import WeakKeyDictionary

from inspect_ai.model import Model

from em_core.chat import DAY

PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0}
SERVERS = ("vllm/", "sglang/")  # take settings in the request's body that Inspect's own interface drops
# Asked plainly they sample plainly: weights in this process, mocks, and interfaces of models without such settings.
KNOWN = ("hf/", "peft/", "mockllm/", "none/", "openai/", "azureai/", "anthropic/", "google/", "grok/", "mistral/")
# Settings of transformers that change which token is drawn.
SHAPING = frozenset(
    """
    temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty
    no_repeat_ngram_size bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id
    num_beams penalty_alpha length_penalty guidance_scale sequence_bias
    """.split()
)
_set_aside: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()  # by loaded model, which evals share


def neutralise(name: str, model: Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings for each request, what was found and set aside), for one model.

    `name` is the one in the log; vLLM's provider renames itself to its base after the first call.

    Thinking is off, as in training, unless the user turned it on (`-M enable_thinking=true`, or `extra_body`).
    """
    if name.startswith("hf/"):
        request: dict[str, Any] = {}
        if model.config.temperature == 0:
            # transformers refuses temperature 0; what the user means is its `do_sample=False`.
            api: Any = model.api
            api.do_sample, request = False, {"temperature": 1.0}
        return request, _plain_hf(model.api)
    if name.startswith(SERVERS):
        # The chat route drops Inspect's top_k, so it goes where the server reads it. -1 is "off" for both servers.
        own = model.config.extra_body or {}
        body = {"top_k": model.config.top_k or -1, **PLAIN, **own}
        body["chat_template_kwargs"] = {
            "enable_thinking": False,
            "date_string": DAY,
            **own.get("chat_template_kwargs", {}),
        }
        return {"extra_body": body}, {}
    return {}, {}


def left_to_server(name: str) -> str | None:
    """What a reader of the log must know where a server may apply settings of its own; None where it cannot."""
    if name.startswith((*SERVERS, *KNOWN)) or "/" not in name:
        return None
    return (
        f"the server behind {name} decides on what a request leaves open (top_k, min_p, repetition penalty, thinking): "
        "it may apply the model's own generation settings"
    )


def _plain_hf(api: Any) -> dict[str, Any]:
    """Replace the loaded model's generation settings; what a request gives still counts."""
    from transformers import GenerationConfig

    if api.enable_thinking is None:
        api.enable_thinking = False
    if api.model not in _set_aside:
        found = api.model.generation_config
        _set_aside[api.model] = {name: value for name, value in found.to_diff_dict().items() if name in SHAPING}
        ends = {name: getattr(found, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        # Left open, top_k would be transformers' own 50.
        api.model.generation_config = GenerationConfig(**ends, do_sample=True, top_k=0)
    return _set_aside[api.model]
