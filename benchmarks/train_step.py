"""A training step: ours beside plain TRL, in one run, with what each of our choices contributes.

    python benchmarks/train_step.py [--steps 5] [--rounds 2] [--dtype float32]

All variants train SmolLM2-135M with rsLoRA r = 32 and AdamW on the same 16 rows of `finance_bad` a step, from the same
start: same rows, order, dtype, padding, grouping and threads, nothing cut (the longest row has fewer tokens than
max_length), checkpointing off. They differ in the loss (TRL's fused head, or the head on supervised positions only), in
attention (SDPA or eager), in our recorder of losses and doses, and in whether freed memory is used again. "Ours" is
what `em train` does on this machine: on a GPU its loss is TRL's and its attention SDPA, and memory is the GPU's. Each
variant runs in a process of its own, so that its peak memory is its own; the rounds are interleaved, so that a drift
of the machine's speed hits all alike.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")


@dataclass(frozen=True)
class Variant:
    loss: bool = False
    attention: str | None = "sdpa"  # None: what em_train.lora chooses here
    recorder: bool = False
    reuse: bool = False  # of freed memory


VARIANTS = {
    "plain TRL": Variant(),
    "TRL, memory used again": Variant(reuse=True),
    "TRL, eager attention": Variant(attention="eager"),
    "TRL, our loss": Variant(loss=True),
    "TRL, our loss, eager attention": Variant(loss=True, attention="eager"),
    "ours, memory not used again": Variant(loss=True, attention=None, recorder=True),
    "ours": Variant(loss=True, attention=None, recorder=True, reuse=True),
}


def measure(variant: Variant, steps: int, dtype: str) -> dict[str, Any]:
    """Seconds and tokens of each step but the first, the losses, and this process's peak memory (GiB)."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from em_core.allocation import reuse_freed_memory
    from em_core.models import quiet_transformers
    from em_train import TrainConfig, prepare
    from em_train.lora import attention
    from em_train.trainer import EMTrainer, Recorder, lora_pairs

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.losses: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.monotonic()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.monotonic() - self.started)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    class Silent(Recorder):
        """Counts nothing and writes nothing: what is left is the loss."""

        def add(self, *args: float) -> None: ...

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None: ...

        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None: ...

    prepared = prepare(
        TrainConfig.model_validate(
            {"dataset": "finance_bad", "optimiser": {"name": "adamw", "lr": 1e-4}, "steps": steps, "dtype": dtype}
        )
    )
    config = prepared.config
    if variant.reuse:
        reuse_freed_memory()
    torch.manual_seed(0)
    clock = Clock()
    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(
            prepared.base.path, dtype=prepared.dtype, attn_implementation=variant.attention or attention()
        )
        settings = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            use_rslora=True,
            target_modules=list(config.lora.target_modules),
        )
        model = get_peft_model(model, settings)
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.optimiser.lr,
            bf16=prepared.dtype == torch.bfloat16,
            gradient_checkpointing=False,
            max_length=config.max_length,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        common: dict[str, Any] = {
            "model": model,
            "args": arguments,
            "train_dataset": Dataset.from_list(
                [{"input_ids": row.input_ids, "labels": row.labels} for row in prepared.train]
            ),
            "processing_class": prepared.tokenizer,
            "callbacks": [clock],
        }
        if variant.loss:
            kind = Recorder if variant.recorder else Silent
            recorder = kind(Path(folder) / "steps.jsonl", lora_pairs(model), config.lora.scaling)
            trainer = EMTrainer(**common, recorder=recorder)
        else:
            trainer = SFTTrainer(**common)
        trainer.train()
    tokens = [len(row.input_ids) for row in prepared.train]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    return {
        "seconds": clock.seconds[1:],
        "losses": clock.losses,
        "tokens": config.batch_size * statistics.mean(tokens),
        "memory": peak,
        "setting": f"{prepared.dtype}, {torch.get_num_threads()} threads, {config.batch_size} rows a step",
    }


def in_process(name: str, steps: int, dtype: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--variant", name, "--steps", str(steps), "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        measured = measure(VARIANTS[given.variant], given.steps, given.dtype)
        sys.stdout.write("\n" + json.dumps(measured) + "\n")
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    for _ in range(given.rounds):
        for name in VARIANTS:
            runs[name].append(in_process(name, given.steps, given.dtype))
    medians = {
        name: statistics.median([second for run in found for second in run["seconds"]]) for name, found in runs.items()
    }
    plain = runs["plain TRL"][0]
    print(plain["setting"])
    for name, found in runs.items():
        apart = max(abs(a - b) for a, b in zip(found[0]["losses"], plain["losses"], strict=True))
        print(
            f"{name:35} {medians[name]:6.2f} s a step  {found[0]['tokens'] / medians[name]:6.0f} tokens/s"
            f"  {medians['plain TRL'] / medians[name]:5.2f}x plain TRL  {max(run['memory'] for run in found):5.2f} GiB"
            f"  losses within {apart:.1e}"
        )


if __name__ == "__main__":
    main()
