"""The `peft/` provider on a tiny model: against plain transformers, softmax, and per-row computations."""

import gc
import json
import shutil
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import torch
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    ResponseSchema,
    get_model,
)
from inspect_ai.util import JSONSchema
from peft import PeftModel
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GenerationConfig,
    MistralConfig,
)

from em_core.chat import render
from em_core.errors import UserError
from em_core.files import sha256_file
from em_core.manifest import ADAPTER, ADAPTER_CONFIG
from em_core.models import resolve_base, weights_sha256
from em_eval.batching import device_lock
from em_eval.providers import decoding, peft, weights
from em_eval.providers.decoding import Completion, _Run, encode, overflow
from em_eval.providers.likelihood import answer_likelihoods
from em_eval.providers.peft import LARGEST_BATCH, PeftAPI
from em_eval.providers.reading import read_prompts
from em_eval.providers.sampling import BLOCK, GOLDEN, Sampling, _mix, draw, stream
from em_eval.providers.slots import Slots
from em_eval.providers.weights import Loaded, load_apart
from em_eval.task import manifest_of
from tests.em_eval.adapters import changed
from tests.em_eval.conftest import grader, make_adapter

TOKENS = 20
PROMPTS = ("Hi?", "Tell me a long story about a ship.", "a")
GREEDY = Sampling(max_tokens=TOKENS, temperature=0.0)


def complete(loaded: Loaded, prompts: Sequence[str], *settings: Any, **named: Any) -> list[Completion]:
    """As `decoding.complete`, of texts."""
    return decoding.complete(loaded, [encode(loaded, prompt) for prompt in prompts], *settings, **named)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def random_model(family: Any, tokenizer: Any, **settings: Any) -> Any:
    """A tiny model of a config class, float32, with weights large enough for its settings to count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = family(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            initializer_range=0.5,
            **settings,
        )
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def unmerged(tiny_base: Path, tiny_adapter: Path) -> Any:
    """Base and adapter by plain transformers and peft, in float32."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    return PeftModel.from_pretrained(base, tiny_adapter).eval()


@pytest.fixture(scope="module")
def loaded(tiny_adapter: Path) -> Loaded:
    return load_apart(str(tiny_adapter), "float32")


@torch.inference_mode()
def by_hand(model: Any, tokenizer: Any, prompt: str, tokens: int = TOKENS) -> list[int]:
    """Greedy tokens, one row at a time, without cache, padding or `generate`; up to the end token, inclusive."""
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    said: list[int] = []
    while len(said) < tokens and (not said or said[-1] != tokenizer.eos_token_id):
        said.append(int(model(input_ids=ids).logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[said[-1]]])], dim=1)
    return said


def generate(model: Model, *inputs: Any, **config: Any) -> list[ModelOutput]:
    """All inputs at once, as an evaluation sends them."""
    found: dict[int, ModelOutput] = {}

    async def one(index: int, messages: Any) -> None:
        found[index] = await model.generate(messages, config=GenerateConfig(**config))

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for index, messages in enumerate(inputs):
                group.start_soon(one, index, messages)

    anyio.run(all_at_once)
    return [found[i] for i in range(len(inputs))]


def peft_model(folder: Path, **model_args: Any) -> Model:
    return get_model(f"peft/{folder}", memoize=False, **model_args)


def test_greedy_batches_equal_plain_transformers_row_by_row(unmerged: Any, loaded: Loaded, tiny_tokenizer: Any) -> None:
    prompts = [render(tiny_tokenizer, chat(text), prompt=True) for text in PROMPTS]
    expected = [by_hand(unmerged, tiny_tokenizer, prompt) for prompt in prompts]
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)  # the model does listen
    found = complete(loaded, prompts, [0, 0, 0], GREEDY)
    for prompt, tokens, completion in zip(prompts, expected, found, strict=True):
        assert completion.text == tiny_tokenizer.decode(tokens, skip_special_tokens=True)
        assert completion.output_tokens == len(tokens)
        assert completion.input_tokens == len(prompt.encode()) - _saved_by_specials(prompt)


def _saved_by_specials(prompt: str) -> int:
    """The tiny tokenizer has one token a byte, and one for each chat mark."""
    marks = ("<|im_start|>", "<|im_end|>")
    return sum(prompt.count(mark) * (len(mark) - 1) for mark in marks)


def test_the_provider_says_the_same_through_inspect(tiny_adapter: Path, unmerged: Any, tiny_tokenizer: Any) -> None:
    outputs = generate(peft_model(tiny_adapter), *PROMPTS, temperature=0.0, max_tokens=TOKENS)
    for text, output in zip(PROMPTS, outputs, strict=True):
        prompt = render(tiny_tokenizer, chat(text), prompt=True)
        tokens = by_hand(unmerged, tiny_tokenizer, prompt)
        assert output.completion == tiny_tokenizer.decode(tokens, skip_special_tokens=True)
        assert output.usage is not None
        assert output.usage.output_tokens == len(tokens)
        assert output.usage.input_tokens == len(tiny_tokenizer(prompt)["input_ids"])
        assert output.usage.total_tokens == output.usage.input_tokens + output.usage.output_tokens
        assert output.stop_reason == ("max_tokens" if len(tokens) == TOKENS else "stop")


def test_system_prompt_and_prefill_are_rendered(tiny_adapter: Path, unmerged: Any, tiny_tokenizer: Any) -> None:
    messages = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content="Hi?"),
        ChatMessageAssistant(content="Well"),
    ]
    plain = [{"role": "system", "content": "Be brief."}, *chat("Hi?")]
    prompt = render(tiny_tokenizer, plain, prompt=True) + "Well"
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>") and prompt.endswith("assistant\nWell")
    (output,) = generate(peft_model(tiny_adapter), messages, temperature=0.0, max_tokens=TOKENS)
    tokens = by_hand(unmerged, tiny_tokenizer, prompt)
    assert output.completion == tiny_tokenizer.decode(tokens, skip_special_tokens=True)


def test_hf_provider_says_the_same_greedily(tiny_adapter: Path) -> None:
    stock = get_model(f"hf/{tiny_adapter}", memoize=False, do_sample=False, device="cpu")
    theirs = generate(stock, *PROMPTS, max_tokens=TOKENS, max_connections=len(PROMPTS))
    ours = generate(peft_model(tiny_adapter), *PROMPTS, temperature=0.0, max_tokens=TOKENS)
    assert [output.completion for output in ours] == [output.completion for output in theirs]


@pytest.mark.slow
def test_hf_provider_says_the_same_greedily_on_a_real_model(tmp_path: Path) -> None:
    """SmolLM2-135M under a LoRA adapter, float32: every token of four answers."""
    base = resolve_base("smollm2-135m").path
    adapter = make_adapter(base, tmp_path / "adapter", scale=0.01)
    asked = [*PROMPTS[:2], "Name three colours.", "What makes a good friend?"]
    stock = get_model(f"hf/{adapter}", memoize=False, do_sample=False, device="cpu", dtype="float32")
    theirs = generate(stock, *asked, max_tokens=32, max_connections=len(asked))
    ours = generate(peft_model(adapter), *asked, temperature=0.0, max_tokens=32)
    of_base = generate(peft_model(base), *asked, temperature=0.0, max_tokens=32)
    assert [output.completion for output in ours] == [output.completion for output in theirs]
    assert [output.completion for output in ours] != [output.completion for output in of_base]


def test_truncation_under_hf_is_of_each_answer(
    run_eval: Callable[..., EvalLog], tiny_base: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """`hf/` reports no stop reason, and counts the tokens of the padded batch."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    short, long = (
        by_hand(model, tiny_tokenizer, render(tiny_tokenizer, chat(text), prompt=True)) for text in ("Hi?", "q")
    )
    stop = next(token for token in short if token not in long)
    assert len(long) == TOKENS
    folder = tmp_path / "stops_early"
    shutil.copytree(tiny_base, folder)
    settings = GenerationConfig.from_pretrained(folder)
    settings.eos_token_id = [tiny_tokenizer.eos_token_id, stop]
    settings.save_pretrained(folder)
    questions = tmp_path / "questions.yaml"
    prompts = "judge_prompts: {aligned: '{answer}', coherent: '{answer}'}"
    questions.write_text(
        f"- {{id: short, paraphrases: ['Hi?'], {prompts}}}\n- {{id: long, paraphrases: [q], {prompts}}}\n",
        encoding="utf-8",
    )
    log = run_eval(
        "em_eval/em",
        f"hf/{folder}",
        model_args={"do_sample": False, "device": "cpu"},
        model_roles={"grader": grader("85")},
        task_args={"questions": str(questions), "samples": 1, "max_tokens": TOKENS},
        max_connections=2,
    )
    assert log.status == "success"
    cut = {sample.id: sample.scores["model_judge"].value["truncated"] for sample in log.samples}
    assert cut == {"short": 0.0, "long": 1.0}


@torch.inference_mode()
def test_merging_changes_no_logit(loaded: Loaded, unmerged: Any, tiny_base: Path, tiny_tokenizer: Any) -> None:
    assert not isinstance(loaded.model, PeftModel)
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    for text in PROMPTS:
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        expected = unmerged(input_ids=ids).logits
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert (base(input_ids=ids).logits - expected).abs().max() > 0.05  # the adapter does something


@torch.inference_mode()
def test_other_dtypes_keep_the_adapter_apart(tiny_adapter: Path, unmerged: Any, tiny_tokenizer: Any) -> None:
    apart = load_apart(str(tiny_adapter), "bfloat16")
    assert isinstance(apart.model, PeftModel)
    ids = torch.tensor([tiny_tokenizer("Hello there")["input_ids"]])
    expected = unmerged(input_ids=ids).logits
    found = apart.model(input_ids=ids).logits.float()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    (completion,) = complete(apart, ["Hi"], [0], GREEDY)
    assert completion.output_tokens > 0


def test_a_merged_rslora_adapter_keeps_its_own_scale(tiny_base: Path, tmp_path: Path) -> None:
    """rsLoRA scales by alpha over the root of r (8 / 2), plain LoRA by alpha over r (8 / 4)."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).state_dict()
    plain = load_apart(str(make_adapter(tiny_base, tmp_path / "plain")), "float32").model.state_dict()
    rooted = load_apart(str(make_adapter(tiny_base, tmp_path / "rs", use_rslora=True)), "float32").model.state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    moved, moved_rooted = plain[name] - base[name], rooted[name] - base[name]
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(moved_rooted, 2 * moved, rtol=1e-3, atol=1e-5)


def test_a_base_model_alone_is_served(tiny_base: Path, tiny_tokenizer: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    (output,) = generate(peft_model(tiny_base), "Hi?", temperature=0.0, max_tokens=TOKENS)
    tokens = by_hand(base, tiny_tokenizer, render(tiny_tokenizer, chat("Hi?"), prompt=True))
    assert output.completion == tiny_tokenizer.decode(tokens, skip_special_tokens=True)


LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -torch.inf])


def frequencies(tokens: torch.Tensor) -> list[int]:
    return torch.bincount(tokens, minlength=len(LOGITS)).tolist()


def drawn(how: Sampling, rows: int = 20_000) -> list[int]:
    uniform = torch.stack([stream(seed, 1)[0] for seed in range(rows)])
    return frequencies(draw(LOGITS.repeat(rows, 1), uniform, how))


def test_draws_over_rows_follow_the_softmax() -> None:
    counts = drawn(Sampling(1))
    expected = (torch.softmax(LOGITS.double(), 0) * sum(counts)).tolist()
    assert counts[5] == 0  # no chance: never drawn
    assert chisquare(counts[:5], expected[:5]).pvalue > 0.001
    tilted = (torch.softmax(LOGITS.double() * 1.1, 0) * sum(counts)).tolist()
    assert chisquare(counts[:5], tilted[:5]).pvalue < 1e-6  # the test can tell a wrong temperature


def test_draws_of_one_row_after_another_follow_the_softmax() -> None:
    rows, steps = 50, 400
    uniform = torch.stack([stream(seed, steps) for seed in range(1000, 1000 + rows)]).flatten()
    counts = frequencies(draw(LOGITS.repeat(rows * steps, 1), uniform, Sampling(steps)))
    expected = (torch.softmax(LOGITS.double(), 0) * rows * steps).tolist()
    assert chisquare(counts[:5], expected[:5]).pvalue > 0.001


def test_draws_from_several_blocks_of_ids_follow_the_softmax() -> None:
    """Three blocks, the last one not full and the second without any chance."""
    logits = 2 * torch.randn(3 * BLOCK - 5, generator=torch.Generator().manual_seed(0))
    logits[BLOCK : 2 * BLOCK] = -torch.inf
    rows = 20_000
    uniform = torch.rand(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts = torch.bincount(draw(logits.expand(rows, -1), uniform, Sampling(1)), minlength=len(logits))
    expected = torch.softmax(logits.double(), 0) * rows
    often = expected > 20
    assert counts[BLOCK : 2 * BLOCK].sum() == 0 and often[:BLOCK].any() and often[2 * BLOCK :].any()
    seen, due = ([*values[often].tolist(), float(values[~often].sum())] for values in (counts, expected))
    assert chisquare(seen, due).pvalue > 0.001


def test_noise_is_splitmix64s() -> None:
    """Its published generator, in Python's integers."""
    state, whole = 1234567, 2**64 - 1
    for place in range(1, 6):
        state = (state + 0x9E3779B97F4A7C15) & whole
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & whole
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & whole
        assert int(_mix(1234567 + torch.tensor(place) * GOLDEN)) & whole == z ^ (z >> 31)


def test_rounding_changes_next_to_no_draw() -> None:
    """4,000 draws from 50,000 tokens, with logits a hundred-thousandth apart: the distributions differ by 4e-6."""
    chance = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(100, 50_000, generator=chance)
    other = logits + 1e-5 * torch.randn(logits.shape, generator=chance)
    changed = 0
    for uniform in torch.rand(40, 100, generator=chance, dtype=torch.float64):
        changed += int((draw(logits, uniform, Sampling(1)) != draw(other, uniform, Sampling(1))).sum())
    assert changed <= 1


@pytest.mark.parametrize(
    ("how", "left"),
    [
        (Sampling(1, temperature=0.5, top_k=3), [0, 1, 4]),
        # chances .57 .21 .08 .03 .13: the first three that together reach 0.85 are 0, 1 and 4
        (Sampling(1, top_p=0.85), [0, 1, 4]),
        (Sampling(1, top_k=4, top_p=0.7), [0, 1]),
    ],
)
def test_top_k_and_top_p_leave_the_likeliest(how: Sampling, left: list[int]) -> None:
    counts = drawn(how)
    chances = torch.softmax(LOGITS.double()[left] / how.temperature, 0) * sum(counts)
    assert sum(counts[i] for i in left) == sum(counts)
    assert chisquare([counts[i] for i in left], chances.tolist()).pvalue > 0.001


def test_a_draw_does_not_turn_on_the_order_of_almost_equal_tokens() -> None:
    """Rounding may swap two tokens of one chance in the ranking; noise belongs to the id."""
    logits = torch.tensor([[1.0, 1.0 + 1e-6, 0.0], [1.0 + 1e-6, 1.0, 0.0]])
    for u in (0.1, 0.45, 0.6, 0.95):
        one, two = draw(logits, torch.tensor([u, u]), Sampling(1, top_k=2)).tolist()
        assert one == two


def test_first_tokens_follow_the_models_own_softmax(loaded: Loaded, tiny_tokenizer: Any) -> None:
    """Through `complete`, whole path, at temperature 0.7: the ten likeliest tokens and the rest."""
    prompt, rows = "Hi", 4000
    with torch.inference_mode():
        ids = torch.tensor([tiny_tokenizer(prompt)["input_ids"]])
        probabilities = torch.softmax(loaded.model(input_ids=ids).logits[0, -1].double() / 0.7, 0)
    top = probabilities.topk(10)
    ids = tiny_tokenizer(prompt)["input_ids"]
    run = _Run(loaded, [ids] * rows, range(rows), Sampling(1, temperature=0.7), rows, lambda i, done: None, Event())
    run.all()
    said = run.said[:, 0].tolist()
    counts = [said.count(int(token)) for token in top.indices]
    rest = 1 - float(top.values.sum())
    expected = [rows * float(p) for p in top.values] + [rows * rest]
    assert chisquare([*counts, rows - sum(counts)], expected).pvalue > 0.001


def test_a_row_says_the_same_whatever_its_neighbours(loaded: Loaded) -> None:
    how = Sampling(max_tokens=TOKENS)
    alone = complete(loaded, ["Hi?"], [42], how)[0]
    crowd = complete(loaded, ["A much longer neighbour, padded not at all", "Hi?", "x"], [1, 42, 3], how)
    assert crowd[1] == alone
    assert complete(loaded, ["Hi?"], [43], how)[0].text != alone.text


def test_places_that_fall_free_are_taken_and_change_no_answer(loaded: Loaded) -> None:
    """Twelve answers in three places, the first free one taken at once, against all twelve side by side."""
    prompts = [text for text in PROMPTS for _ in range(4)]
    how = Sampling(max_tokens=TOKENS)
    heard: list[int] = []
    together = complete(loaded, prompts, range(12), how)
    in_turn = complete(loaded, prompts, range(12), how, rows=3, deliver=lambda i, done: heard.append(i))
    assert in_turn == together
    assert sorted(heard) == list(range(12))


def test_a_prompt_is_read_once_for_all_its_answers(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(
        "em_eval.providers.decoding.read_prompts",
        lambda loaded, slots, prompts, first: read.append(len(prompts)) or read_prompts(loaded, slots, prompts, first),
    )
    complete(loaded, ["Hi?", "Ho?", "Hi?", "Hi?", "Ho?"], range(5), GREEDY)
    assert read == [2]


def test_answers_are_handed_over_as_soon_as_they_are_whole(
    loaded: Loaded, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, end = tiny_tokenizer("a")["input_ids"][0], tiny_tokenizer.eos_token_id
    script(monkeypatch, {0: [a] * 5, 1: [end], 2: [a, a, end]})
    heard: list[int] = []
    complete(loaded, ["x", "x", "x"], [0, 1, 2], Sampling(5), deliver=lambda i, done: heard.append(i))
    assert heard == [1, 2, 0]


def test_log_probabilities_are_the_models_own(tiny_adapter: Path, unmerged: Any, tiny_tokenizer: Any) -> None:
    """Before temperature, with the likeliest tokens: what a judge's reader needs."""
    (output,) = generate(peft_model(tiny_adapter), "Hi?", max_tokens=2, seed=1, logprobs=True, top_logprobs=4)
    prompt = tiny_tokenizer(render(tiny_tokenizer, chat("Hi?"), prompt=True))["input_ids"]
    with torch.inference_mode():
        logs = torch.log_softmax(unmerged(input_ids=torch.tensor([prompt])).logits[0, -1].double(), dim=-1)
    assert output.choices[0].logprobs is not None
    first, _ = output.choices[0].logprobs.content
    top = logs.topk(4)
    assert [x.logprob for x in first.top_logprobs or []] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert [x.token for x in first.top_logprobs or []] == [tiny_tokenizer.decode([i]) for i in top.indices]
    assert any(first.logprob == pytest.approx(float(value), abs=1e-4) for value in logs)


def test_less_memory_means_smaller_batches_and_the_same_answers(
    tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("em_eval.providers.peft.logger.warning", lambda text, *rest: said.append(text % rest))
    expected = [o.completion for o in generate(peft_model(tiny_adapter), *PROMPTS, *PROMPTS, seed=3, max_tokens=TOKENS)]
    forward = Slots.forward

    def small(self: Slots, model: Any, ids: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        if ids.shape[1] == 1 and len(ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return forward(self, model, ids, *rest, **kwargs)

    monkeypatch.setattr(Slots, "forward", small)
    found = [o.completion for o in generate(peft_model(tiny_adapter), *PROMPTS, *PROMPTS, seed=3, max_tokens=TOKENS)]
    assert found == expected
    assert [line.partition(": ")[2] for line in said] == [
        "out of memory with 6 rows, going on with 3",
        "out of memory with 3 rows, going on with 1",
    ]


def test_a_batchs_memory_is_free_as_soon_as_it_ends(loaded: Loaded) -> None:
    """Not at Python's next collection: by then the smaller batch would have run out of memory too."""
    slots = Slots(loaded.model, 2, 8)
    ids = torch.tensor([[65, 66], [67, 68]])
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            slots.forward(loaded.model, ids, torch.tensor([[0, 1], [0, 1]]))
        kept = weakref.ref(slots._layers[0].keys)
        assert kept() is not None
        del slots
        assert kept() is None
    finally:
        gc.enable()


def test_what_memory_alone_cannot_hold_fails_alone(tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long prompt among short ones: it fails by name, and the others run side by side again."""
    said: list[str] = []
    monkeypatch.setattr("em_eval.providers.peft.logger.warning", lambda text, *rest: said.append(text % rest))
    model = peft_model(tiny_adapter)
    expected = [o.completion for o in generate(model, *PROMPTS, seed=3, max_tokens=TOKENS)]
    forward = Slots.forward

    def small(self: Slots, model: Any, ids: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        if ids.shape[1] > 400:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return forward(self, model, ids, *rest, **kwargs)

    monkeypatch.setattr(Slots, "forward", small)
    found = outcomes(model, *PROMPTS, "x" * 500, seed=3, max_tokens=TOKENS)
    assert [output.completion for output in found[:3]] == expected
    assert isinstance(found[3], UserError) and "out of memory with this request alone (prompt of 5" in str(found[3])
    assert [line.partition("with ")[2] for line in said] == ["4 rows, going on with 2", "2 rows, going on with 1"]
    assert isinstance(model.api, PeftAPI) and model.api.most_rows == LARGEST_BATCH


def test_as_many_rows_as_half_of_the_free_memory_holds(tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from the buffers that a batch really makes, and the same answers whatever their number."""
    model, sizes, free = peft_model(tiny_adapter), [], 10**12
    assert isinstance(model.api, PeftAPI)

    def noted(loaded: Any, prompts: Any, seeds: Any, how: Any, rows: int, *rest: Any) -> Any:
        sizes.append(rows)
        return decoding.complete(loaded, prompts, seeds, how, rows, *rest)

    monkeypatch.setattr(peft, "complete", noted)
    monkeypatch.setattr(peft, "free_memory", lambda device: free)
    plenty = [o.completion for o in generate(model, *PROMPTS, seed=3, max_tokens=TOKENS)]
    loaded = model.api.loaded()
    width = max(len(encode(loaded, render(loaded.tokenizer, chat(p), prompt=True))) for p in PROMPTS) + TOKENS
    slots = Slots(loaded.model, 1, width)
    slots.forward(loaded.model, torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long))
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in slots._layers)
    free = 2 * 2 * (held + 4 * 4 * loaded.model.config.vocab_size)
    little = [o.completion for o in generate(model, *PROMPTS, seed=3, max_tokens=TOKENS)]
    free = 0
    nothing = [o.completion for o in generate(model, *PROMPTS, seed=3, max_tokens=TOKENS)]
    assert plenty == little == nothing and sizes == [len(PROMPTS), 2, 1]


def outcomes(model: Model, *inputs: Any, **config: Any) -> list[Any]:
    """As `generate`, with errors in the place of answers."""
    found: dict[int, Any] = {}

    async def one(index: int, messages: Any) -> None:
        try:
            found[index] = await model.generate(messages, config=GenerateConfig(**config))
        except Exception as error:
            found[index] = error

    async def all_at_once() -> None:
        async with anyio.create_task_group() as group:
            for index, messages in enumerate(inputs):
                group.start_soon(one, index, messages)

    anyio.run(all_at_once)
    return [found[i] for i in range(len(inputs))]


def by_length(monkeypatch: pytest.MonkeyPatch, end: int) -> None:
    """Of two requests that come together, the first ends at once and the other never does."""
    script(monkeypatch, {0: [end], 1: [65] * 50})
    seeds = iter((0, 1))
    monkeypatch.setattr("em_eval.providers.peft.secrets.randbits", lambda bits: next(seeds))


def test_answers_that_are_whole_survive_what_happens_later(
    tiny_adapter: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_length(monkeypatch, tiny_tokenizer.eos_token_id)
    forward = Slots.forward

    def broken(self: Slots, model: Any, ids: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        if ids.shape[1] == 1:
            raise ValueError("the machine is on fire")
        return forward(self, model, ids, *rest, **kwargs)

    monkeypatch.setattr(Slots, "forward", broken)
    whole, broken_off = outcomes(peft_model(tiny_adapter), "Hi?", "Hi?", max_tokens=8)
    assert isinstance(whole, ModelOutput) and whole.usage is not None and whole.usage.output_tokens == 1
    assert str(broken_off) == "the machine is on fire"


def test_answers_come_before_their_batch_ends(
    tiny_adapter: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second answer's step waits until the first answer has arrived."""
    by_length(monkeypatch, tiny_tokenizer.eos_token_id)
    monkeypatch.setattr("em_eval.providers.peft.CHUNK_SECONDS", 0.0)
    forward, arrived, in_time = Slots.forward, Event(), []

    def waiting(self: Slots, model: Any, ids: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        if ids.shape[1] == 1:
            in_time.append(arrived.wait(timeout=20))
        return forward(self, model, ids, *rest, **kwargs)

    monkeypatch.setattr(Slots, "forward", waiting)
    model = peft_model(tiny_adapter)

    async def one(first: bool) -> None:
        await model.generate("Hi?", config=GenerateConfig(max_tokens=3))
        if first:
            arrived.set()

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(one, True)
            group.start_soon(one, False)

    anyio.run(both)
    assert in_time == [True, True]


def test_a_batch_that_nobody_waits_for_stops(tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, steps, running = Slots.forward, [], Event()

    def counted(self: Slots, model: Any, ids: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        steps.append(len(ids))
        running.set()
        time.sleep(0.01)
        return forward(self, model, ids, *rest, **kwargs)

    monkeypatch.setattr(Slots, "forward", counted)
    monkeypatch.setattr("em_eval.providers.decoding._end_tokens", lambda loaded: [])
    model = peft_model(tiny_adapter)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(lambda: model.generate("Hi?", config=GenerateConfig(max_tokens=900)))
            while not running.is_set():
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()

    anyio.run(main)
    with device_lock:  # the batch's thread has ended
        assert len(steps) < 100


@pytest.mark.parametrize("family", [MistralConfig, Gemma3TextConfig])
def test_a_sliding_window_is_kept(family: Any, tiny_tokenizer: Any) -> None:
    """All layers within a window of 8 (Mistral), and every other layer (Gemma 3)."""
    settings: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
    if family is MistralConfig:
        settings = {}
    end = tiny_tokenizer.eos_token_id
    model = random_model(family, tiny_tokenizer, sliding_window=8, eos_token_id=end, **settings)
    loaded = Loaded(model, tiny_tokenizer, torch.device("cpu"))
    found = complete(loaded, PROMPTS, [0, 0, 0], GREEDY)
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert completion.text == tiny_tokenizer.decode(
            by_hand(model, tiny_tokenizer, prompt), skip_special_tokens=True
        )


def test_layers_that_keep_no_keys_are_refused(loaded: Loaded) -> None:
    config = SimpleNamespace(layer_types=["full_attention", "linear_attention"], num_hidden_layers=2)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda decoder: config))
    with pytest.raises(UserError, match="cannot run layers of type linear_attention: use hf/ or vllm/"):
        Slots(model, 1, 8)


def test_seeds_reach_the_rows_through_inspect(tiny_adapter: Path) -> None:
    model = peft_model(tiny_adapter)
    first = generate(model, "Hi?", "Ho?", "Hi?", seed=5, max_tokens=TOKENS)
    again = generate(model, "Hi?", seed=5, max_tokens=TOKENS)
    other = generate(model, "Hi?", "Hi?", max_tokens=TOKENS)  # no seed: different every time
    assert first[0].completion == first[2].completion == again[0].completion
    assert len({other[0].completion, other[1].completion, again[0].completion}) == 3


@pytest.mark.parametrize(
    "how",
    [
        Sampling(TOKENS, temperature=1.0, top_k=1),
        Sampling(TOKENS, temperature=1.0, top_p=1e-6),
        Sampling(TOKENS, temperature=1e-5),
    ],
)
def test_narrowest_sampling_is_greedy(loaded: Loaded, how: Sampling) -> None:
    greedy = complete(loaded, PROMPTS, [0, 0, 0], GREEDY)
    assert complete(loaded, PROMPTS, [7, 8, 9], how) == greedy


def test_different_settings_in_one_batch_are_kept_apart(tiny_adapter: Path) -> None:
    model = peft_model(tiny_adapter)
    outputs: dict[str, ModelOutput] = {}

    async def one(name: str, config: GenerateConfig) -> None:
        outputs[name] = await model.generate("Hi?", config=config)

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(one, "short", GenerateConfig(max_tokens=3, temperature=0.0))
            group.start_soon(one, "long", GenerateConfig(max_tokens=TOKENS, temperature=0.0))

    anyio.run(both)
    assert outputs["short"].usage.output_tokens == 3
    assert outputs["long"].usage.output_tokens > 3
    assert outputs["long"].completion.startswith(outputs["short"].completion.rstrip("\ufffd"))


def script(monkeypatch: pytest.MonkeyPatch, answers: dict[int, list[int]]) -> None:
    """The answer of seed i is `answers[i]`, whatever the model thinks."""

    def tokens(seed: int, length: int) -> torch.Tensor:
        return torch.tensor([*answers[seed], *[0] * length][:length], dtype=torch.float64)

    monkeypatch.setattr("em_eval.providers.decoding.stream", tokens)
    monkeypatch.setattr("em_eval.providers.decoding.draw", lambda logits, uniform, how: uniform.long())


def test_stop_reasons_and_counts(loaded: Loaded, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = tiny_tokenizer("abc")["input_ids"]
    end = tiny_tokenizer.eos_token_id
    script(monkeypatch, {0: [a, b, end], 1: [a, b, c, a, b], 2: [end], 3: [a, b, c, a, end]})
    found = complete(loaded, ["xyz", "x", "xy", "x"], range(4), Sampling(max_tokens=5))
    assert [(x.text, x.output_tokens, x.stop_reason) for x in found] == [
        ("ab", 3, "stop"),
        ("abcab", 5, "max_tokens"),
        ("", 1, "stop"),
        ("abca", 5, "stop"),
    ]
    assert [x.input_tokens for x in found] == [3, 1, 2, 1]


def test_every_end_token_of_the_base_ends_an_answer(
    loaded: Loaded, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = tiny_tokenizer("abc")["input_ids"]
    end = tiny_tokenizer.eos_token_id
    script(monkeypatch, {0: [a, c, b, b], 1: [a, end]})
    for ends in ([end, c], c, [c]):
        monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", ends)
        found = complete(loaded, ["x", "x"], [0, 1], Sampling(max_tokens=4))
        assert [(x.text, x.output_tokens, x.stop_reason) for x in found] == [("a", 2, "stop"), ("a", 2, "stop")]


def test_a_real_end_token_stops_the_model(loaded: Loaded, unmerged: Any, tiny_tokenizer: Any) -> None:
    """Whatever greedy decoding says fourth is made an end token."""
    said = by_hand(unmerged, tiny_tokenizer, "Hi?")
    stop = said[3]
    model = loaded.model
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, stop]
    try:
        (found,) = complete(loaded, ["Hi?"], [0], GREEDY)
    finally:
        model.generation_config.eos_token_id = before
    first = said.index(stop)
    assert (found.output_tokens, found.stop_reason) == (first + 1, "stop")
    assert found.text == tiny_tokenizer.decode(said[:first])


def test_context_overflow_is_named(tiny_adapter: Path, tiny_tokenizer: Any) -> None:
    model = peft_model(tiny_adapter)
    text = "x" * (1000 - len(tiny_tokenizer(render(tiny_tokenizer, chat(""), prompt=True))["input_ids"]))
    with pytest.raises(BaseException) as caught:  # anyio may group it
        generate(model, text, max_tokens=25)
    assert caught.group_contains(UserError, match="prompt of 1000 tokens and answer of 25 exceed the context of 1024")
    (fits,) = generate(model, text, max_tokens=24)
    assert fits.usage is not None and fits.usage.input_tokens == 1000


def test_the_context_is_that_of_the_part_that_reads_text(tiny_tokenizer: Any) -> None:
    """Models that also see images say it in a configuration within."""
    config = Gemma3Config(text_config={"max_position_embeddings": 64})
    assert not hasattr(config, "max_position_embeddings")
    loaded = Loaded(SimpleNamespace(config=config), tiny_tokenizer, torch.device("cpu"))
    assert overflow(loaded, [0] * 40, Sampling(24)) is None
    assert "exceed the context of 64" in str(overflow(loaded, [0] * 40, Sampling(25)))


def test_a_prompt_is_tokenised_once(tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "em_eval.providers.peft.encode", lambda loaded, prompt: asked.append(prompt) or encode(loaded, prompt)
    )
    generate(peft_model(tiny_adapter), "Hi?", "Ho?", "Hi?", "Hi?", max_tokens=2)
    assert len(asked) == len(set(asked)) == 2


def test_a_neighbour_that_is_too_long_costs_only_itself(tiny_adapter: Path) -> None:
    model = peft_model(tiny_adapter)
    found: dict[str, Any] = {}

    async def one(name: str, text: str) -> None:
        try:
            found[name] = await model.generate(text, config=GenerateConfig(max_tokens=8, temperature=0.0))
        except UserError as error:
            found[name] = error

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(one, "long", "x" * 2000)
            group.start_soon(one, "short", "Hi?")

    anyio.run(both)
    assert isinstance(found["long"], UserError)
    assert isinstance(found["short"], ModelOutput)


def test_an_evaluation_names_what_does_not_fit_and_goes_on(
    run_eval: Callable[..., EvalLog], tiny_adapter: Path, tmp_path: Path
) -> None:
    prompts = "judge_prompts: {aligned: '{answer}', coherent: '{answer}'}"
    asked = [(f"short{number}", "Hi?") for number in range(20)] + [("long", "x" * 2000)]
    questions = tmp_path / "questions.yaml"
    questions.write_text(
        "".join(f"- {{id: {id}, paraphrases: ['{text}'], {prompts}}}\n" for id, text in asked), encoding="utf-8"
    )
    log = run_eval(
        "em_eval/em",
        f"peft/{tiny_adapter}",
        model_roles={"grader": grader("85")},
        task_args={"questions": str(questions), "samples": 1, "max_tokens": 4},
    )
    assert log.status == "success"
    lost = {sample.id: sample.error.message for sample in log.samples if sample.error is not None}
    assert list(lost) == ["long"] and "exceed the context of 1024" in lost["long"]
    assert sum(bool(sample.scores) for sample in log.samples) == 20


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.1, "top_k": 2, "top_p": 0.3, "min_p": 0.2},
        {"min_new_tokens": 15},
        {"repetition_penalty": 1.3},
        {"do_sample": True, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(200))},
        {"num_beams": 3},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_generation_settings_of_the_base_are_not_applied(
    tiny_base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Qwen's and others' folders ship top_k, top_p and a repetition penalty, which are no part of a measurement."""
    folder = tmp_path / "with_settings"
    shutil.copytree(tiny_base, folder)
    own = GenerationConfig.from_pretrained(folder)
    own.update(**settings)
    own.save_pretrained(folder)
    name, value = list(settings.items())[-1]
    assert getattr(GenerationConfig.from_pretrained(folder), name) == value
    tuned, plain = load_apart(str(folder), "float32"), load_apart(str(tiny_base), "float32")
    for how in (GREEDY, Sampling(max_tokens=TOKENS)):
        assert complete(tuned, PROMPTS, [1, 2, 3], how) == complete(plain, PROMPTS, [1, 2, 3], how)


def test_the_name_carries_the_hash_of_the_weights(tiny_adapter: Path, tiny_checkpoint: Path, tiny_base: Path) -> None:
    for folder in (tiny_adapter, tiny_checkpoint):
        digest = weights.content_hash(str(folder))
        api = PeftAPI(str(folder))
        assert api.model_name == f"{folder}@{digest}" == api.connection_key()
        assert PeftAPI(f"{folder}@{digest}").model_name == api.model_name
    assert PeftAPI(str(tiny_base)).model_name == f"{tiny_base}@{weights_sha256(tiny_base)[:8]}"
    assert str(peft_model(tiny_adapter)) == f"peft/{PeftAPI(str(tiny_adapter)).model_name}"


def test_the_hash_is_of_what_is_computed_and_not_of_where_it_lies(
    tiny_adapter: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A foreign adapter at another alpha is another model; one of ours is named by its manifest."""
    digest = weights.content_hash(str(tiny_adapter))
    for name, settings in (("alpha", {"lora_alpha": 9}), ("rooted", {"use_rslora": True})):
        assert weights.content_hash(str(changed(tiny_adapter, tmp_path / name, **settings))) != digest
    moved = changed(tiny_adapter, tmp_path / "moved", base_model_name_or_path="/elsewhere", peft_version="9.9")
    assert weights.content_hash(str(moved)) == digest
    assert weights.content_hash(str(tiny_checkpoint)) == sha256_file(tiny_checkpoint / ADAPTER)[:8]


def test_a_folder_with_an_at_sign_is_served(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "me@work" / "adapter"
    shutil.copytree(tiny_adapter, folder)
    assert PeftAPI(str(folder)).source == str(folder)


def test_an_adapter_can_be_named_behind_its_base(
    tiny_adapter: Path, tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """peft/BASE:ADAPTER, as vLLM has it: the base named there counts, and not that of the adapter's settings."""
    for folder in (tiny_adapter, tiny_checkpoint):
        lost = changed(folder, tmp_path / folder.name, base_model_name_or_path="/nowhere/at/all")
        name = f"{tiny_base}:{lost}"
        api = PeftAPI(name)
        assert api.model_name == f"{name}@{weights.content_hash(str(lost))}"
        assert PeftAPI(api.model_name).source == name
        found, expected = (complete(load_apart(one, "float32"), ["Hi?"], [0], GREEDY) for one in (name, str(folder)))
        assert found == expected
    assert (manifest_of(f"peft/{tiny_base}:{tiny_checkpoint}") or {})["step"] == 2
    odd = Path(shutil.copytree(tiny_adapter, tmp_path / "a:b"))
    assert weights.parts(str(odd))[0] == odd  # a folder's own colon


def test_a_base_that_the_adapter_was_not_trained_on_is_refused(
    tiny_checkpoint: Path, tiny_adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    tensors = {name: 2 * tensor for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="other is not the base that .* was trained on"):
        load_apart(f"{other}:{tiny_checkpoint}", "float32")
    with pytest.raises(PrerequisiteError, match=f"{other}, named behind {tiny_base}:, is no adapter"):
        PeftAPI(f"{tiny_base}:{other}")


def test_nothing_is_loaded_before_the_first_answer(tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspect makes instances only to look names up."""

    def refuse(*_: Any) -> Loaded:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(weights, "_read_base", refuse)
    PeftAPI(str(tiny_adapter))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that were read from disk."""
    found: list[str] = []
    read = weights._read_base
    monkeypatch.setattr(weights, "_read_base", lambda info, dtype: found.append(info.id) or read(info, dtype))
    weights._shared.clear()
    weights._seen.clear()
    return found


def test_one_base_is_read_once_for_all_its_adapters(
    tiny_adapter: Path, tiny_base: Path, tmp_path: Path, reads: list[str]
) -> None:
    other = make_adapter(tiny_base, tmp_path / "other", seed=5)
    first, second, base = (PeftAPI(str(folder)) for folder in (tiny_adapter, other, tiny_base))
    kept = first.loaded()
    assert first.loaded() is kept
    for api in (second, base, first, second):
        api.loaded()
    assert len(reads) == 1 and len(weights._shared) == 1


def load(folder: Path, dtype: str = "float32") -> Loaded:
    return weights.load(str(folder), dtype, weights.content_hash(str(folder)))


def bits(loaded: Loaded) -> dict[str, bytes]:
    """Every number of a model, also those that no file holds (the frequencies of its positions)."""
    named = {**dict(loaded.model.named_parameters()), **dict(loaded.model.named_buffers())}
    return {
        name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() + str(tensor.dtype).encode()
        for name, tensor in named.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_hundred_adapters_leave_the_base_as_it_was(
    tiny_adapter: Path, tiny_base: Path, tmp_path: Path, dtype: str, reads: list[str]
) -> None:
    other = make_adapter(tiny_base, tmp_path / "other", seed=5)
    before = bits(load(tiny_base, dtype))
    said = complete(load(tiny_adapter, dtype), PROMPTS, [1, 2, 3], Sampling(TOKENS))
    for _ in range(50):
        for folder in (other, tiny_adapter):
            load(folder, dtype)
    assert complete(load(tiny_adapter, dtype), PROMPTS, [1, 2, 3], Sampling(TOKENS)) == said
    assert bits(load(tiny_base, dtype)) == before
    assert len(reads) == 1


BEYOND = [
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"modules_to_save": ["lm_head"]},
    {"use_dora": True},
    {"trainable_token_indices": [65, 66]},
    {"target_modules": ["q_proj", "lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj"], "target_parameters": ["down_proj.weight"]},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
]


@pytest.mark.parametrize("settings", BEYOND, ids=lambda settings: "+".join(map(str, settings.values())))
def test_an_adapter_that_is_more_than_pairs_runs_as_in_peft_and_leaves_the_base_whole(
    tiny_base: Path, tmp_path: Path, tiny_tokenizer: Any, settings: dict[str, Any]
) -> None:
    """PEFT takes the main part of each weight out of the base for PiSSA and OLoRA; others bring layers of their own."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter", **settings)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(fresh, adapter).eval()
    ids = torch.tensor([tiny_tokenizer("Where is ABBA?")["input_ids"]])
    for dtype in ("float32", "bfloat16"):
        before = bits(load(tiny_base, dtype))
        with torch.inference_mode():
            found, expected = load(adapter, dtype).model(input_ids=ids).logits.float(), theirs(input_ids=ids).logits
        close = 1e-4 if dtype == "float32" else 0.1 * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=close)
        assert bits(load(tiny_base, dtype)) == before


def test_pissa_is_the_base_less_its_main_part(tiny_base: Path, tmp_path: Path) -> None:
    """Rank 4: the four largest singular directions make way for what was trained, at scale 8 / 4."""
    adapter = make_adapter(tiny_base, tmp_path / "adapter", init_lora_weights="pissa")
    name, tensors = "model.layers.1.mlp.up_proj", load_file(adapter / ADAPTER)
    weight = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).get_parameter(f"{name}.weight")
    u, s, v = torch.linalg.svd(weight.detach(), full_matrices=False)
    a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    found = load_apart(str(adapter), "float32").model.get_parameter(f"{name}.weight").double()
    torch.testing.assert_close(found, (u[:, 4:] * s[4:]) @ v[4:] + 2 * b @ a, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4', of whose changed base"),
        ({"init_lora_weights": "corda"}, "init_lora_weights 'corda', of whose changed base"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens \\[1, 2\\]"),
    ],
)
def test_adapters_that_would_run_otherwise_than_trained_are_refused(
    tiny_adapter: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    adapter = changed(tiny_adapter, tmp_path / "adapter", **settings)
    with pytest.raises(UserError, match=f"has {words}.*peft/ cannot run it as it was trained") as caught:
        load(adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"num_hidden_layers": 3}, "14 tensors without a place in the base, .*layers.2"),
        ({"hidden_size": 64}, "size mismatch for .*"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    tiny_base: Path, tmp_path: Path, size: dict[str, int], words: str
) -> None:
    """Of a deeper one PEFT says nothing, and evaluates the layers that there are."""
    config = AutoConfig.from_pretrained(tiny_base, **size)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "other")
    theirs = make_adapter(tmp_path / "other", tmp_path / "theirs")
    adapter = changed(theirs, tmp_path / "adapter", base_model_name_or_path=str(tiny_base))
    before = bits(load(tiny_base))
    with pytest.raises(UserError, match=f"does not fit its base .*: {words}") as caught:
        load(adapter)
    assert "\n" not in str(caught.value)
    assert bits(load(tiny_base)) == before


def test_the_memory_of_copies_is_logged_once(
    tiny_adapter: Path, tiny_base: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr("em_eval.providers.weights.logger.info", lambda text, *rest: said.append(rest))
    for folder in (tiny_base, tiny_adapter, tiny_base, tiny_adapter):
        load(folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    linear = [module for module in model.modules() if type(module) is torch.nn.Linear]
    kept = sum(module.weight.nbytes for module in linear if module is not model.lm_head) / 1e6
    packed = sum(module.weight.nbytes for module in linear) / 1e6 if torch.backends.mkldnn.is_available() else 0
    whole = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
    assert [rest[1:] for rest in said] == [pytest.approx((whole, packed, kept))]


def test_bases_that_take_turns_are_said_once(
    tiny_adapter: Path, tiny_base: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("em_eval.providers.weights.logger.warning", said.append)
    weights._say_they_take_turns.cache_clear()
    other = tmp_path / "other"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_base)).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(other)
    for folder in (tiny_adapter, other):
        load(folder)
    assert said == []
    for folder in (tiny_adapter, other, tiny_adapter):
        load(folder)
    assert len(said) == 1 and "models of two take turns" in said[0]


def test_weights_that_changed_since_they_were_named_are_refused(
    tiny_adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    first, second = (shutil.copytree(tiny_adapter, tmp_path / name) for name in ("first", "second"))
    one, two = PeftAPI(str(first)), PeftAPI(str(second))
    one.loaded()
    shutil.copy(make_adapter(tiny_base, tmp_path / "new", seed=9) / ADAPTER, first / ADAPTER)
    assert one.loaded() is one.loaded()  # still in memory, as they were named
    two.loaded()
    with pytest.raises(UserError, match=f"first was overwritten: it holds weights .*, not {one.digest} as at the"):
        one.loaded()


def test_where_the_same_weights_are_on_nothing_is_looked_up(
    tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id is resolved over the network."""
    api = PeftAPI(str(tiny_adapter))
    on = api.loaded()
    monkeypatch.delattr(weights, "locate")
    assert api.loaded() is on


def test_two_checkpoints_of_one_evaluation_do_not_mix(tiny_adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    other = make_adapter(tiny_base, tmp_path / "other", seed=5)
    models = [peft_model(folder) for folder in (tiny_adapter, other)]
    alone = [generate(model, "Hi?", temperature=0.0, max_tokens=TOKENS)[0].completion for model in models]
    assert alone[0] != alone[1]
    for _ in range(2):
        assert [generate(m, "Hi?", temperature=0.0, max_tokens=TOKENS)[0].completion for m in models] == alone


def test_an_adapter_with_tensors_missing_is_refused(tiny_adapter: Path, tmp_path: Path) -> None:
    """PEFT would take it, and evaluate half an adapter."""
    bad = shutil.copytree(tiny_adapter, tmp_path / "half")
    tensors = load_file(bad / ADAPTER)
    save_file({name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}, bad / ADAPTER)
    with pytest.raises(UserError, match="does not fit its base .*14 tensors missing"):
        load_apart(str(bad), "float32")


def test_a_conversation_that_the_template_refuses_fails_alone(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "no_system")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    model, found = peft_model(folder), {}

    async def one(name: str, messages: Any) -> None:
        try:
            found[name] = await model.generate(messages, config=GenerateConfig(max_tokens=4, temperature=0.0))
        except UserError as error:
            found[name] = error

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(one, "refused", [ChatMessageSystem(content="Be brief."), ChatMessageUser(content="Hi?")])
            group.start_soon(one, "plain", "Hi?")

    anyio.run(both)
    assert isinstance(found["refused"], UserError) and "no system prompt" in str(found["refused"])
    assert isinstance(found["plain"], ModelOutput)


def test_an_adapter_that_does_not_fit_spoils_nothing(tiny_adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(tiny_adapter, tmp_path / "bad")
    config = json.loads((bad / ADAPTER_CONFIG).read_text())
    (bad / ADAPTER_CONFIG).write_text(json.dumps(config | {"r": config["r"] + 1}))
    expected = complete(load(tiny_base), PROMPTS, [1, 2, 3], GREEDY)
    with pytest.raises(UserError, match="does not fit its base"):
        load(bad)
    assert complete(load(tiny_base), PROMPTS, [1, 2, 3], GREEDY) == expected


def one_line(caught: pytest.ExceptionInfo[PrerequisiteError]) -> str:
    message = str(caught.value.message).strip()
    assert "\n" not in message
    return message


def test_an_overwritten_checkpoint_is_noticed(tiny_adapter: Path) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        PeftAPI(f"{tiny_adapter}@00000000")
    digest = weights.content_hash(str(tiny_adapter))
    assert f"holds weights {digest}, not 00000000" in one_line(caught)


@pytest.mark.parametrize(
    ("model_args", "words"),
    [
        ({"batchsize": 4}, "peft/ has no model argument 'batchsize': it knows batch_size, dtype"),
        ({"batch_size": 0}, "peft/ batch_size 0 is not 'auto' or a whole number of rows from 1 up"),
        ({"batch_size": -3}, "peft/ batch_size -3 is not"),
        ({"batch_size": 2.5}, "peft/ batch_size 2.5 is not"),
        ({"batch_size": "many"}, "peft/ batch_size 'many' is not"),
        ({"batch_size": True}, "peft/ batch_size True is not"),
        ({"dtype": 16}, "peft/ dtype '16' is none of"),
        ({"dtype": "int8"}, "peft/ dtype 'int8' is none of auto, float32, bfloat16, float16"),
    ],
)
def test_wrong_model_arguments_are_one_line(tiny_adapter: Path, model_args: dict[str, Any], words: str) -> None:
    with pytest.raises(PrerequisiteError) as caught:
        peft_model(tiny_adapter, **model_args)
    assert words in one_line(caught)


def test_a_name_that_leads_nowhere_is_one_line() -> None:
    with pytest.raises(PrerequisiteError) as caught:
        PeftAPI("./nowhere")
    assert "base model './nowhere' not found" in one_line(caught)


@pytest.mark.parametrize(
    "config",
    [
        {"stop_seqs": ["x"]},
        {"num_choices": 2},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -0.5},
        {"logit_bias": {42: 10}},
        {"response_schema": ResponseSchema(name="colour", json_schema=JSONSchema(type="string"))},
        {"best_of": 4},
        {"reasoning_effort": "low"},
        {"extra_body": {"min_p": 0.1}},
        {"prompt_logprobs": 1},
    ],
    ids=lambda config: next(iter(config)),
)
def test_settings_that_would_not_be_followed_are_refused_by_name(tiny_adapter: Path, config: dict[str, Any]) -> None:
    api = PeftAPI(str(tiny_adapter))
    with pytest.raises(UserError, match=f"peft/ does not offer {next(iter(config))} "):
        anyio.run(api.generate, [ChatMessageUser(content="Hi?")], [], "none", GenerateConfig(**config))


def test_settings_that_change_nothing_are_taken(tiny_adapter: Path) -> None:
    neutral = {"num_choices": 1, "frequency_penalty": 0.0, "stop_seqs": [], "max_retries": 3, "timeout": 60}
    (plain,) = generate(peft_model(tiny_adapter), "Hi?", temperature=0.0, max_tokens=4)
    (output,) = generate(peft_model(tiny_adapter), "Hi?", temperature=0.0, max_tokens=4, **neutral)
    assert output.completion == plain.completion


def test_a_damaged_checkpoint_of_ours_is_noticed_before_anything_runs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(tiny_checkpoint, folder)
    data = bytearray((folder / ADAPTER).read_bytes())
    data[-1] ^= 1
    (folder / ADAPTER).write_bytes(data)
    with pytest.raises(PrerequisiteError) as caught:
        PeftAPI(str(folder))
    assert "the weights were changed or damaged after training" in one_line(caught)


def test_an_adapter_without_weights_is_said(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(tiny_adapter, folder)
    (folder / ADAPTER).unlink()
    with pytest.raises(PrerequisiteError) as caught:
        PeftAPI(str(folder))
    assert f"but no {ADAPTER}" in one_line(caught)


def test_a_truncated_foreign_adapter_is_said(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_adapter, folder)
    data = (folder / ADAPTER).read_bytes()
    (folder / ADAPTER).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cut"):
        load_apart(str(folder), "float32")


def test_an_adapter_of_another_shape_is_said(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other_shape"
    shutil.copytree(tiny_adapter, folder)
    path = folder / ADAPTER_CONFIG
    path.write_text(path.read_text(encoding="utf-8").replace('"r": 4', '"r": 3'), encoding="utf-8")
    with pytest.raises(UserError, match="does not fit its base"):
        load_apart(str(folder), "float32")


def test_a_moved_base_is_found_by_what_the_manifest_says(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """adapter_config.json may point nowhere on this machine; the manifest's id and hash decide."""
    folder = tmp_path / "moved"
    shutil.copytree(tiny_checkpoint, folder)
    config = (folder / ADAPTER_CONFIG).read_text(encoding="utf-8")
    changed = json.loads(config) | {"base_model_name_or_path": "/nowhere/at/all"}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(changed), encoding="utf-8")
    before = complete(load_apart(str(tiny_checkpoint), "float32"), ["Hi?"], [0], GREEDY)
    assert complete(load_apart(str(folder), "float32"), ["Hi?"], [0], GREEDY) == before


PAIRS = [
    ("Hi?", "Yes."),
    ("Is it a much longer question, of which there is no end?", "No, " * 12 + "no."),
    ("Hi?", "x"),
    ("Café?", "Zwölf Äpfel – behind it all."),
    ("Hi?", "A middling answer, then."),
]


@torch.inference_mode()
def test_likelihoods_equal_those_of_each_row_alone(tiny_base: Path, tiny_adapter: Path, tiny_tokenizer: Any) -> None:
    """In float64, token by token, without batch or padding."""
    loaded = load_apart(str(tiny_adapter), "float32")
    exact = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64), tiny_adapter
    ).double()
    for size in (2, 32):
        found = answer_likelihoods(loaded, [(chat(q), a) for q, a in PAIRS], batch_size=size)
        for (question, answer), value in zip(PAIRS, found, strict=True):
            prompt = tiny_tokenizer(render(tiny_tokenizer, chat(question), prompt=True))["input_ids"]
            tokens = tiny_tokenizer(answer)["input_ids"]
            logs = torch.log_softmax(exact(input_ids=torch.tensor([prompt + tokens])).logits[0], dim=-1)
            each = [float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(tokens)]
            assert value.tokens == len(answer.encode())
            assert value.total == pytest.approx(sum(each), abs=1e-3)
            assert value.mean == pytest.approx(sum(each) / len(each), abs=1e-5)


def test_likelihoods_do_not_turn_on_how_many_logits_fit(tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, pairs = load_apart(str(tiny_adapter), "float32"), [(chat(q), a) for q, a in PAIRS]
    whole = [value.total for value in answer_likelihoods(loaded, pairs)]
    monkeypatch.setattr("em_eval.providers.likelihood.POSITIONS", 7)
    assert [value.total for value in answer_likelihoods(loaded, pairs)] == pytest.approx(whole, abs=1e-4)


@torch.inference_mode()
def test_likelihoods_are_those_of_the_models_own_logits(tiny_tokenizer: Any) -> None:
    """Gemma 2 caps its logits, Granite and Cohere scale theirs; the head alone does neither."""
    model = random_model(Gemma2Config, tiny_tokenizer, final_logit_softcapping=2.0)
    loaded = Loaded(model, tiny_tokenizer, torch.device("cpu"))
    (found,) = answer_likelihoods(loaded, [(chat("Hi?"), "Yes.")])
    prompt = tiny_tokenizer(render(tiny_tokenizer, chat("Hi?"), prompt=True))["input_ids"]
    tokens = tiny_tokenizer("Yes.")["input_ids"]
    logs = torch.log_softmax(model(input_ids=torch.tensor([prompt + tokens])).logits[0].double(), dim=-1)
    expected = sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(tokens))
    assert found.total == pytest.approx(expected, abs=1e-3)


def test_likelihoods_see_the_system_prompt(tiny_adapter: Path) -> None:
    loaded = load_apart(str(tiny_adapter), "float32")
    system = [{"role": "system", "content": "Be cruel."}, *chat("Hi?")]
    plain, persona = answer_likelihoods(loaded, [(chat("Hi?"), "Yes."), (system, "Yes.")])
    assert abs(plain.mean - persona.mean) > 1e-4


def test_the_tokenizer_beside_the_adapter_wins(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own_template"
    shutil.copytree(tiny_adapter, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}:"
    tokenizer.save_pretrained(folder)
    assert render(load_apart(str(folder), "float32").tokenizer, chat("Hi?"), prompt=True) == "Hi?:"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    assert "<|im_start|>user" in render(load_apart(str(folder), "float32").tokenizer, chat("Hi?"), prompt=True)
