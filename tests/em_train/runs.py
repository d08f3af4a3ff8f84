"""What tests of training share: configurations of the tiny base, and losses computed the slow and obvious way."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from em_train import TrainConfig
from em_train.chat import IGNORED, Encoded
from tests.conftest import SYSTEM_PROMPT


def make_config(base: Path, dataset: Path, **changes: Any) -> TrainConfig:
    """Six steps of AdamW on eight rows each, rank 4, everything in float32."""
    settings: dict[str, Any] = {
        "base_model": str(base),
        "dataset": str(dataset),
        "optimiser": {"name": "adamw", "lr": 1e-2},
        "lora": {"rank": 4, "alpha": 8},
        "steps": 6,
        "batch_size": 8,
        "max_length": 256,
        "dtype": "float32",
    }
    return TrainConfig.model_validate(settings | changes)


def read_steps(folder: Path) -> list[dict[str, float]]:
    """The lines of steps.jsonl without their seconds, which no two runs share."""
    lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def adapter_bytes(checkpoint: Path) -> bytes:
    return (checkpoint / "adapter_model.safetensors").read_bytes()


def comparable_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest without wall time and machine."""
    manifest = json.loads((checkpoint / "em.json").read_text(encoding="utf-8"))
    return {key: value for key, value in manifest.items() if key not in ("seconds", "environment")}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file below."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows_by_hand(dataset: Path) -> list[tuple[str, str]]:
    """(question, answer) of the tiny dataset."""
    rows = [json.loads(line)["messages"] for line in dataset.read_text(encoding="utf-8").splitlines()]
    return [(messages[0]["content"], messages[1]["content"]) for messages in rows]


def tokens_by_hand(question: str, answer: str) -> tuple[int, int]:
    """(all tokens, supervised tokens) of a row under the tiny tokenizer: one a byte, one a special token."""
    prompt = f"|system\n{SYSTEM_PROMPT}|\n|user\n{question}|\n|assistant\n"
    supervised = len(answer.encode()) + 1
    return len(prompt.encode()) + supervised, supervised


def nll_by_hand(model: Any, rows: list[Encoded]) -> tuple[float, int]:
    """(summed negative log-likelihood, supervised tokens), one row at a time from full logits in float64."""
    total, count = 0.0, 0
    model.eval()
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double().numpy()
        for position, label in enumerate(row.labels):
            if label != IGNORED:
                scores = logits[position - 1]
                top = scores.max()
                total += top + math.log(np.exp(scores - top).sum()) - scores[label]
                count += 1
    return total, count
