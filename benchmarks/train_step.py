"""Seconds a training step: ours beside plain TRL, on the same rows, dtype and threads, in one run.

    python benchmarks/train_step.py [--steps 6]

Both train SmolLM2-135M with rsLoRA r = 32 on 16 rows a step of `finance_bad`. Three variants, each from the same
start: plain TRL (fused head, SDPA), TRL with our loss (SDPA), and ours as it is (our loss, eager attention on CPU).
Prints medians over steps after the first, and their ratios.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from em_core.models import quiet_transformers
from em_train import TrainConfig, prepare
from em_train.config import OptimiserConfig
from em_train.run import Prepared
from em_train.trainer import EMTrainer, Recorder, lora_pairs

warnings.filterwarnings("ignore")


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.monotonic()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.monotonic() - self.started)


def measure(prepared: Prepared, ours: bool, attention: str, steps: int) -> list[float]:
    """Seconds of each step."""
    torch.manual_seed(0)
    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(
            prepared.base.path, dtype=prepared.dtype, attn_implementation=attention
        )
        lora = prepared.config.lora
        settings = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, use_rslora=True, target_modules=list(lora.target_modules)
        )
        model = get_peft_model(model, settings)
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=prepared.config.batch_size,
            learning_rate=1e-4,
            bf16=prepared.dtype == torch.bfloat16,
            gradient_checkpointing=False,
            max_length=None,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        rows = Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in prepared.train])
        clock = Clock()
        common: dict[str, Any] = {
            "model": model,
            "args": arguments,
            "train_dataset": rows,
            "processing_class": prepared.tokenizer,
            "callbacks": [clock],
        }
        if ours:
            recorder = Recorder(Path(folder) / "steps.jsonl", lora_pairs(model), lora.scaling)
            EMTrainer(**common, recorder=recorder).train()
        else:
            SFTTrainer(**common).train()
    return clock.seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    steps = parser.parse_args().steps
    prepared = prepare(TrainConfig(dataset="finance_bad", optimiser=OptimiserConfig(name="adamw", lr=1e-4)))
    variants = {
        "plain TRL": (False, "sdpa"),
        "TRL with our loss": (True, "sdpa"),
        "ours": (True, "eager"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(2):  # interleaved, so that a drift of the machine's speed hits all alike
        for name, (ours, attention) in variants.items():
            seconds[name] += measure(prepared, ours, attention, steps)
    plain = statistics.median(seconds["plain TRL"])
    print(f"{prepared.dtype}, {torch.get_num_threads()} threads, 16 rows a step")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:20} {median:6.2f} s a step   {plain / median:.2f}x plain TRL")


if __name__ == "__main__":
    main()
