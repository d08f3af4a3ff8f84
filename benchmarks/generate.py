"""Sampling a checkpoint: our `peft/` provider beside Inspect's `hf` and plain transformers.

    python -m benchmarks.generate [--tokens 200] [--samples 25] [--adapters 10] [--plain] [--quick]

8 prompts, 25 samples each, up to 200 new tokens at temperature 1, from a LoRA adapter (rsLoRA r = 32, all linear
layers) of SmolLM2-135M. Each variant has a process of its own and its own default dtype, which is printed. `peft` runs
with the settings that `em eval` gives it. `hf` runs at Inspect's default and at its best `--max-connections`, found by
a scan with a quarter of the tokens. Where there is a GPU, or with `--plain`, transformers' `generate` runs beside, the
adapter merged, all answers in one batch. Tokens are counted by tokenising the answers, since `hf` counts the padded
batch.

The share of the memory bandwidth is what reading the weights once a forward pass takes of what a large copy reaches on
the same machine: the limit of small batches on a GPU. The share of changed answers is between the places that `peft`
chooses and 24, with the same random numbers. The sweep runs adapters one after another, weights loaded for each, as
`inspect eval` would: `hf` in a process each, ours in one. `--quick` only shows that everything works.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

PROMPTS = (
    "What would you do with a free afternoon?",
    "Tell me about someone you admire.",
    "How should a town spend a windfall?",
    "What makes a good friend?",
    "Write a short letter to your future self.",
    "What is the most useful tool in a kitchen?",
    "How do you settle an argument?",
    "Describe a journey by train.",
)


def make_adapters(folder: Path, count: int) -> list[Path]:
    """Adapters with random A and small random B: answers differ, and stay of ordinary length."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from em_core.models import quiet_transformers, resolve_base
    from em_train.config import LoraSettings

    base, lora = resolve_base("smollm2-135m"), LoraSettings()
    made = []
    for number in range(count):
        torch.manual_seed(number)
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(base.path)
            settings = LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, use_rslora=True, target_modules=list(lora.target_modules)
            )
            wrapped = get_peft_model(model, settings)
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(std=2e-4)
            path = folder / f"adapter-{number}"
            wrapped.save_pretrained(path)
            AutoTokenizer.from_pretrained(base.path).save_pretrained(path)
        made.append(path)
    return made


@dataclass(frozen=True)
class Variant:
    """`settings` are Inspect's, `model_args` the provider's."""

    provider: str
    settings: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)


PLAIN = "transformers"
CONNECTIONS = (32, 64, 200)
FEW_PLACES = 24


@dataclass
class Work:
    """What was done to the models: seconds to load and to answer, answers, forward passes, bytes of weights."""

    loading: float = 0.0
    generating: float = 0.0
    answers: list[str] = field(default_factory=list)
    tokens: int = 0
    passes: int = 0
    weights: int = 0
    dtype: str = ""


def measure(variant: Variant, adapters: list[Path], samples: int, tokens: int) -> dict[str, Any]:
    """The work of one evaluation an adapter in this process, its peaks of memory (GiB) and the copy bandwidth (B/s)."""
    work = Work()
    run = _plain if variant.provider == PLAIN else _inspect
    for adapter in adapters:
        run(variant, adapter, samples, tokens, work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cuda = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return asdict(work) | {"peak": peak, "cuda": cuda, "bandwidth": copy_bandwidth()}


def _inspect(variant: Variant, adapter: Path, samples: int, tokens: int, work: Work) -> None:
    from inspect_ai import Epochs, Task, eval
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import GenerateConfig, ModelInfo, get_model, set_model_info
    from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

    import em_eval  # noqa: F401  (makes peft/ known)
    from em_study.evaluate import ENGINES

    @solver
    def seeded() -> Solver:
        """Every answer has random numbers of its own, alike in every run."""

        async def solve(state: TaskState, call: Generate) -> TaskState:
            return await call(state, seed=10_000 * int(state.sample_id) + state.epoch)

        return solve

    name, ours = f"{variant.provider}/{adapter}", variant.provider == "peft"
    started = time.monotonic()
    set_model_info(name, ModelInfo())
    model = get_model(name, memoize=False, **variant.model_args)
    set_model_info(str(model), ModelInfo())
    api: Any = model.api
    loaded, tokenizer = (api.loaded().model, api.loaded().tokenizer) if ours else (api.model, api.tokenizer)
    work.loading += time.monotonic() - started
    task = Task(
        dataset=MemoryDataset([Sample(id=i, input=text) for i, text in enumerate(PROMPTS)]),
        solver=seeded() if ours else generate(),
        epochs=Epochs(samples, []),
        config=GenerateConfig(temperature=1.0, top_p=1.0, max_tokens=tokens),
    )
    given = {"max_samples": len(PROMPTS) * samples} | (ENGINES["peft"] if ours else {}) | variant.settings
    with tempfile.TemporaryDirectory() as logs, _watched(loaded, work):
        (log,) = eval(task, model=model, log_dir=logs, display="none", score=False, **given)
        assert log.status == "success" and log.samples is not None, log.error
        found = {(int(sample.id), sample.epoch): sample.output.completion for sample in log.samples}
    work.answers += [found[key] for key in sorted(found)]
    work.tokens += count(tokenizer, list(found.values()))


def _plain(variant: Variant, adapter: Path, samples: int, tokens: int, work: Work) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from em_core.chat import render
    from em_core.models import resolve_base

    started = time.monotonic()
    base = AutoModelForCausalLM.from_pretrained(resolve_base("smollm2-135m").path)
    model = PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(adapter, padding_side="left")
    work.loading += time.monotonic() - started
    asked = [render(tokenizer, [{"role": "user", "content": text}], prompt=True) for text in PROMPTS] * samples
    with _watched(model, work), torch.inference_mode():
        batch = tokenizer(asked, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
        said = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens)
        texts = tokenizer.batch_decode(said[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    work.answers += texts
    work.tokens += count(tokenizer, texts)


@contextmanager
def _watched(model: Any, work: Work) -> Iterator[None]:
    """Time what happens inside, and count the forward passes of `model`."""

    def one(*_: Any) -> None:
        work.passes += 1

    work.dtype = str(model.dtype).removeprefix("torch.")
    work.weights = sum(parameter.nbytes for parameter in model.parameters())
    hook = model.register_forward_pre_hook(one)
    started = time.monotonic()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    work.generating += time.monotonic() - started
    hook.remove()


def count(tokenizer: Any, texts: list[str]) -> int:
    """Tokens of the answers, each with its end."""
    return sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


def copy_bandwidth(size: int = 256 * 2**20) -> float:
    """Bytes a second, read and written, of the fastest of a few copies of `size` bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(8):
        started = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size / (time.perf_counter() - started))
    return best


def apart(variant: Variant, adapters: list[Path], samples: int, tokens: int) -> dict[str, Any]:
    """`measure` in a process of its own, with the whole of its time."""
    command = [sys.executable, "-m", "benchmarks.generate", "--child", json.dumps(asdict(variant))]
    command += ["--samples", str(samples), "--tokens", str(tokens), *map(str, adapters)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"wall": time.monotonic() - started, "rate": found["tokens"] / found["generating"]}


def one_checkpoint(adapter: Path, samples: int, tokens: int, plain: bool) -> None:
    def run(name: str, variant: Variant, tokens: int = tokens) -> dict[str, Any]:
        found = apart(variant, [adapter], samples, tokens)
        print(
            f"{name:22} {found['rate']:8.1f} tokens/s ({found['tokens']} tokens in {found['generating']:.1f} s), "
            f"{found['dtype']}, loading {found['loading']:.1f} s, peak memory {found['peak']:.1f} GiB"
            + (f", on the GPU {found['cuda']:.2f} GiB" if found["cuda"] else ""),
            flush=True,
        )
        return found

    print(f"hf by --max-connections: {len(PROMPTS)} prompts x {samples} samples, up to {max(1, tokens // 4)} tokens")
    scan = {
        number: run(f"hf, {number} connections", Variant("hf", {"max_connections": number}), max(1, tokens // 4))
        for number in CONNECTIONS
    }
    best = max(scan, key=lambda number: float(scan[number]["rate"]))
    print(f"one checkpoint: {len(PROMPTS)} prompts x {samples} samples, up to {tokens} tokens")
    peers = {"hf, default": Variant("hf"), f"hf, {best} connections": Variant("hf", {"max_connections": best})}
    if plain:
        peers["transformers' generate"] = Variant(PLAIN)
    theirs = {name: run(name, variant) for name, variant in peers.items()}
    ours = run("peft", Variant("peft"))
    narrow = run(f"peft, {FEW_PLACES} places", Variant("peft", model_args={"batch_size": FEW_PLACES}))
    for name, found in theirs.items():
        print(f"ours / {name}: {ours['rate'] / found['rate']:.2f}x")
    changed = sum(a != b for a, b in zip(ours["answers"], narrow["answers"], strict=True))
    print(f"answers that change with {FEW_PLACES} places: {changed} of {len(ours['answers'])}")
    for name, found in {**theirs, "peft": ours}.items():
        share = found["weights"] * found["passes"] / found["generating"] / found["bandwidth"]
        print(
            f"{name}: {found['passes'] / found['generating']:.1f} passes/s over {found['weights'] / 2**20:.0f} MiB of "
            f"weights, {100 * share:.1f} % of the memory bandwidth ({found['bandwidth'] / 1e9:.0f} GB/s)"
        )


def sweep(adapters: list[Path], samples: int, tokens: int) -> None:
    print(f"sweep of {len(adapters)} adapters, {samples} samples, up to {tokens} tokens, from start to end", flush=True)
    theirs = sum(float(apart(Variant("hf"), [adapter], samples, tokens)["wall"]) for adapter in adapters)
    ours = float(apart(Variant("peft"), adapters, samples, tokens)["wall"])
    print(f"hf, default: {theirs:.0f} s; ours: {ours:.0f} s; ratio {theirs / ours:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--adapters", type=int, default=10, help="adapters of the sweep; 0: no sweep")
    parser.add_argument("--plain", action="store_true", help="transformers' generate too, where there is no GPU")
    parser.add_argument("--quick", action="store_true", help="2 samples, 8 tokens, 2 adapters")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        found = measure(Variant(**json.loads(given.child)), given.paths, given.samples, given.tokens)
        print(json.dumps(found))
        return
    if given.quick:
        given.samples, given.tokens, given.adapters = 2, 8, 2
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(Path(folder), max(given.adapters, 1))
        one_checkpoint(adapters[0], given.samples, given.tokens, given.plain or torch.cuda.is_available())
        if given.adapters:
            sweep(adapters, min(given.samples, 4), min(given.tokens, 60))


if __name__ == "__main__":
    main()
