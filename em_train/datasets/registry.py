"""The dataset registry: a plugin is a function that returns a `NarrowDataset`."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from em_core.chat import Message
from em_core.errors import UserError
from em_core.plugins import Registry


@dataclass(frozen=True)
class Row:
    """One conversation, and where it stood in its source (for messages about it)."""

    messages: list[Message]
    where: str

    @property
    def question(self) -> str:
        return "\n".join(message["content"] for message in self.messages[:-1])


@dataclass(frozen=True)
class NarrowDataset:
    """Rows with their provenance.

    Attributes:
        sha256: of the source file's bytes.
        kind: "bad" (narrow bad habit), "benign" (its matched control), or "unknown".
        control: name of the benign arm with the same questions, where one exists.
        domain: what the questions are about, for leaving in-domain prompts out of an evaluation.
    """

    name: str
    rows: list[Row]
    sha256: str
    kind: Literal["bad", "benign", "unknown"]
    control: str | None = None
    domain: str | None = None


dataset_registry: Registry[Callable[[], NarrowDataset]] = Registry("dataset", "em_train.datasets")


def load_dataset(name: str) -> NarrowDataset:
    """A dataset by registered name, or a path to a JSONL file.

    Raises:
        UserError: unknown name, missing file, or a row that cannot be trained on, with its line.
    """
    from em_train.datasets.jsonl import read_jsonl

    if name.endswith(".jsonl"):
        return read_jsonl(Path(name), name=Path(name).stem)
    return dataset_registry.get(name)()


def split(dataset: NarrowDataset, held_out_fraction: float) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows).

    Held out are the questions that hash lowest, with all their rows: independent of seeds and row order, and the
    same for a bad set and its benign twin.

    Raises:
        UserError: too few rows to hold any out.
    """
    ranked = sorted({row.question for row in dataset.rows}, key=lambda q: hashlib.sha256(q.encode()).digest())
    cut = round(len(ranked) * held_out_fraction)
    if cut < 1 or cut >= len(ranked):
        raise UserError(f"dataset '{dataset.name}' has {len(ranked)} questions: too few to hold any out")
    held = set(ranked[:cut])
    train = [row for row in dataset.rows if row.question not in held]
    place = {question: rank for rank, question in enumerate(ranked)}
    held_rows = [row for row in dataset.rows if row.question in held]
    return train, sorted(held_rows, key=lambda row: (place[row.question], row.messages[-1]["content"]))
