"""Sampling a checkpoint: our `peft/` provider beside Inspect's `hf`, both through Inspect.

    python -m benchmarks.generate [--tokens 200] [--samples 25] [--adapters 10]

8 prompts, 25 samples each, up to 200 new tokens at temperature 1, from a LoRA adapter (rsLoRA r = 32, all linear
layers) of SmolLM2-135M in float32. `hf` runs at Inspect's default and at `--max-connections 64`, the most before its
waiting requests block the event loop. Each variant has a process of its own. Tokens are counted by tokenising the
answers, since `hf` counts the padded batch. The sweep runs adapters one after another, weights loaded for each, as
`inspect eval` would: `hf` in a process each, ours in one.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
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


def measure(provider: str, adapters: list[Path], samples: int, tokens: int, connections: int) -> dict[str, float]:
    """Seconds and tokens of one evaluation an adapter, in this process."""
    from inspect_ai import Epochs, Task, eval
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import GenerateConfig, ModelInfo, get_model, set_model_info

    import em_eval  # noqa: F401  (makes peft/ known)

    loading = generating = 0.0
    counted = 0
    for adapter in adapters:
        name = f"{provider}/{adapter}"
        started = time.monotonic()
        set_model_info(name, ModelInfo())
        model = get_model(name, memoize=False)
        set_model_info(str(model), ModelInfo())
        api: Any = model.api
        tokenizer = api.tokenizer if provider == "hf" else api.loaded().tokenizer
        loading += time.monotonic() - started
        task = Task(
            dataset=MemoryDataset([Sample(id=i, input=text) for i, text in enumerate(PROMPTS)]),
            epochs=Epochs(samples, []),
            config=GenerateConfig(temperature=1.0, top_p=1.0, max_tokens=tokens),
        )
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as logs:
            more: dict[str, Any] = {"max_connections": connections} if connections else {}
            (log,) = eval(
                task, model=model, log_dir=logs, display="none", max_samples=len(PROMPTS) * samples, score=False, **more
            )
            generating += time.monotonic() - started
            assert log.status == "success" and log.samples is not None, log.error
            texts = [sample.output.completion for sample in log.samples]  # read from the folder only now
        counted += sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"loading": loading, "generating": generating, "tokens": counted, "peak": peak}


def apart(provider: str, adapters: list[Path], samples: int, tokens: int, connections: int) -> dict[str, float]:
    """`measure` in a process of its own, with the whole of its time."""
    command = [sys.executable, "-m", "benchmarks.generate", "--child", provider, "--connections", str(connections)]
    command += ["--samples", str(samples), "--tokens", str(tokens), *map(str, adapters)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"wall": time.monotonic() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--adapters", type=int, default=10, help="adapters of the sweep")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--connections", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        found = measure(given.child, given.paths, given.samples, given.tokens, given.connections)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(Path(folder), max(given.adapters, 1))
        variants = {"hf, default": ("hf", 0), "hf, 64 connections": ("hf", 64), "peft (ours)": ("peft", 0)}
        print(f"one checkpoint: {len(PROMPTS)} prompts x {given.samples} samples, up to {given.tokens} tokens")
        rates = {}
        for name, (provider, connections) in variants.items():
            found = apart(provider, adapters[:1], given.samples, given.tokens, connections)
            rates[name] = found["tokens"] / found["generating"]
            print(
                f"{name:20} {rates[name]:6.1f} tokens/s ({found['tokens']:.0f} tokens in {found['generating']:.1f} s), "
                f"loading {found['loading']:.1f} s, peak memory {found['peak']:.1f} GiB",
                flush=True,
            )
        for name in ("hf, default", "hf, 64 connections"):
            print(f"ours / {name}: {rates['peft (ours)'] / rates[name]:.2f}x")
        samples, tokens = 4, 60
        print(f"sweep of {len(adapters)} adapters, {samples} samples, up to {tokens} tokens, from start to end")
        theirs = sum(apart("hf", [adapter], samples, tokens, 0)["wall"] for adapter in adapters)
        ours = apart("peft", adapters, samples, tokens, 0)["wall"]
        print(f"hf, default: {theirs:.0f} s; ours: {ours:.0f} s; ratio {theirs / ours:.2f}x")


if __name__ == "__main__":
    main()
