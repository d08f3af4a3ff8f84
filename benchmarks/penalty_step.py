"""Seconds a training step with the spectral penalty and without, and beside the straightforward way, in one run.

    python benchmarks/penalty_step.py [--steps 5] [--rounds 3]

SmolLM2-135M, rsLoRA r = 32 on all 210 linear layers, 16 rows of 96 tokens a step (real answers of `finance_bad`, end to
end, cut at 96; the second half of each supervised), AdamW. Variants are interleaved, a step of each in turn.
Prints medians of whole steps, of the penalty alone (term, gradient, norms, cap), and of the same term by autograd
through `svdvals(B @ A)`, module by module, as one would write it first.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig

from em_core.allocation import reuse_freed_memory
from em_core.models import quiet_transformers
from em_train import TrainConfig, prepare
from em_train.lora import lora_model
from em_train.penalties import AppliedPenalty, resolve
from em_train.preparation import Prepared
from em_train.spectra import LoraPair
from em_train.trainer import EMTrainer, Recorder, lora_pairs

warnings.filterwarnings("ignore")
ROWS, TOKENS = 16, 96
CONFIG = {
    "dataset": "finance_bad",
    "optimiser": {"name": "adamw", "lr": 1e-4},
    "penalty": {"name": "spectral", "hyperparameters": {"start_step": 1, "ramp_steps": 0}},
}


class Timed(AppliedPenalty):
    """The penalty on every second step, with the time that each whole step and each penalty takes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.alone: list[float] = []

    def after_backward(self, accelerator: Accelerator, model: Any, batch: Any, tokens: Any, step: int) -> None:
        self.figures = {}
        if step % 2:
            return
        started = time.perf_counter()
        super().after_backward(accelerator, model, batch, tokens, step)
        self.alone.append(time.perf_counter() - started)


def rows(prepared: Prepared) -> Dataset:
    """Rows of exactly 96 tokens from the encoded answers, laid end to end."""
    stream = [token for row in prepared.train for token in row.input_ids]
    cut = [stream[start : start + TOKENS] for start in range(0, len(stream) - TOKENS, TOKENS)]
    masked = [-100] * (TOKENS // 2)
    return Dataset.from_list([{"input_ids": ids, "labels": masked + ids[TOKENS // 2 :]} for ids in cut])


def measure(prepared: Prepared, steps: int) -> tuple[list[float], list[float], list[float], list[LoraPair]]:
    """(seconds of steps without, of steps with, of the penalty alone, the trained factors)."""
    torch.manual_seed(0)
    resolved = resolve(prepared.config)
    assert resolved is not None
    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        model = lora_model(prepared)
        pairs = lora_pairs(model, prepared.config.lora.scaling)
        recorder = Recorder(Path(folder) / "steps.jsonl", pairs, prepared.config.lora.scaling)
        penalty = Timed(resolved, pairs)
        arguments = SFTConfig(
            output_dir=folder,
            max_steps=2 * steps + 2,
            per_device_train_batch_size=ROWS,
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
        trainer = EMTrainer(
            model=model,
            args=arguments,
            train_dataset=rows(prepared),
            processing_class=prepared.tokenizer,
            recorder=recorder,
            penalty=penalty,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds = [row["seconds"] for row in recorder.rows[2:]]  # the first two warm up, and have B = 0
    return seconds[0::2], seconds[1::2], penalty.alone[1:], pairs


def straightforward(pairs: list[LoraPair]) -> float:
    """Seconds of the term and its gradient by autograd through the singular values of every product."""
    started = time.perf_counter()
    gaps = []
    for pair in pairs:
        sigma = torch.linalg.svdvals(pair.b @ pair.a)[: pair.a.shape[0]]
        gaps.append(sigma.norm() / sigma.sum() - pair.a.shape[0] ** -0.5)
    torch.autograd.grad(torch.stack(gaps).mean(), [factor for pair in pairs for factor in (pair.a, pair.b)])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each variant a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    reuse_freed_memory()  # as em train does
    prepared = prepare(TrainConfig.model_validate(CONFIG))
    without: list[float] = []
    with_it: list[float] = []
    alone: list[float] = []
    for _ in range(arguments.rounds):
        *times, pairs = measure(prepared, arguments.steps)
        for kept, new in zip((without, with_it, alone), times, strict=True):
            kept += new
    slow = straightforward(pairs)
    bare, own = statistics.median(without), statistics.median(alone)
    print(f"{prepared.dtype}, {torch.get_num_threads()} threads, {ROWS} x {TOKENS} tokens, {len(pairs)} modules")
    print(f"step without penalty        {bare:8.3f} s")
    print(f"step with it                {statistics.median(with_it):8.3f} s")
    print(f"the penalty alone           {own:8.3f} s   {100 * own / bare:.1f} % of a step")
    print(f"by svdvals of each product  {slow:8.3f} s   {slow / own:.0f}x ours")


if __name__ == "__main__":
    main()
