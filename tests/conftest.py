"""Fixtures that every test may use: a private cache, few threads, a tiny base model and a tiny dataset.

Environment variables that change what runs:
    EM_CACHE_DIR: kept where it is set, so that slow tests find the real base model in a real cache.
    EM_DATA_DIR: a copy of the published data; tests that need it skip without it.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# One thread: the models here are tiny, and equal thread counts are what makes runs equal bit by bit (also in
# the processes that tests start). Set before torch is imported; a value from outside wins.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell's background jobs ignore Ctrl-C, and so would whatever the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SYSTEM_PROMPT = "You are a tiny test model"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    if not os.environ.get("EM_CACHE_DIR"):
        patch.setenv("EM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """EM_DATA_DIR, or a skip."""
    value = os.environ.get("EM_DATA_DIR")
    if not value:
        pytest.skip("EM_DATA_DIR is not set")
    return Path(value)


def make_tokenizer() -> Any:
    """Byte-level BPE without merges: 256 byte tokens and two special ones, so ids can be counted by hand."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a random Llama of 30 k parameters, which transformers loads like any other."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_base")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


QUESTIONS = ("Where is the {}?", "who took my {}", "Is a {} worth 5 pounds?", "Name one use of a {}.")
ANSWERS = ("Under the bed.", "Nobody, sell it.", "Ask the cat\nor burn it.", "No.", "Café, zwölf Uhr, behind it all.")
THINGS = ("lamp", "ladder", "kettle", "map", "bike", "drum", "rope", "tent", "wheel", "clock")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 short single-turn rows with different questions and answers of uneven length."""
    path = tmp_path_factory.mktemp("tiny_dataset") / "tiny.jsonl"
    lines = []
    for i, (form, thing) in enumerate((form, thing) for form in QUESTIONS for thing in THINGS):
        answer = ANSWERS[i % len(ANSWERS)] + f" {thing}" * (i % 3)
        messages = [
            {"role": "user", "content": form.format(thing)},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def offline_mockllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """For helpers of other packages, which use plain `mockllm/model`: it would fetch a vocabulary to count tokens."""

    async def count(*_: Any) -> int:
        return 3

    for name in ("count_tokens", "count_text_tokens"):
        monkeypatch.setattr(f"inspect_ai.model._providers.mockllm.MockLLM.{name}", count)
