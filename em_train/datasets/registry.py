"""The dataset registry: a plugin is a function that returns a `NarrowDataset`; its docstring is what `em data list`
prints."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from em_core.errors import UserError
from em_core.plugins import Registry
from em_train.datasets.rows import Refused, Row

Kind = Literal["bad", "benign", "unknown"]


@dataclass(frozen=True)
class NarrowDataset:
    """Rows with their provenance.

    Attributes:
        sha256: of the source file's bytes (of the rows, where there is no such file).
        kind: "bad" (narrow bad habit), "benign" (a control), or "unknown".
        control: name of the benign arm, where one exists. Its questions are the same for the embedded sets; Betley's
            secure code shares only some with insecure.
        domain: what the questions are about, for leaving in-domain prompts out of an evaluation.
        source: where the rows were read from, for people.
        refused: rows of the source that cannot be trained on; `load_dataset` accepts none.
    """

    name: str
    rows: list[Row]
    sha256: str
    kind: Kind
    control: str | None = None
    domain: str | None = None
    source: str = ""
    refused: tuple[Refused, ...] = ()


dataset_registry: Registry[Callable[[], NarrowDataset]] = Registry("dataset", "em_train.datasets")


def load_dataset(name: str) -> NarrowDataset:
    """A dataset by registered name, a path to a JSONL file, or `hub:owner/name@commit[:split]`.

    Raises:
        UserError: unknown name, missing file, or a row that cannot be trained on, with its line.
    """
    dataset = read_dataset(name)
    if dataset.refused:
        count = len(dataset.refused)
        more = f" (the first of {count} such rows, which em data check {name} lists)" if count > 1 else ""
        raise UserError(f"{dataset.refused[0]}{more}")
    return dataset


def read_dataset(name: str) -> NarrowDataset:
    """As `load_dataset`, but with faulty rows listed in `refused`: for a report on all of them.

    Raises:
        UserError: unknown name, missing or empty file.
    """
    from em_train.datasets.hub import PREFIX, read_hub
    from em_train.datasets.jsonl import read_jsonl

    if name.startswith(PREFIX):
        return read_hub(name)
    if name.endswith(".jsonl"):
        return read_jsonl(Path(name).expanduser(), label(name))
    if Path(name).expanduser().is_file():
        raise UserError(f"dataset file {name} does not end in .jsonl: only JSONL is read, one row a line")
    return dataset_registry.get(name)()


def label(name: str) -> str:
    """The name of a dataset as a part of file names: that of `NarrowDataset`, without reading it."""
    from em_train.datasets.hub import PREFIX, hub_label

    if name.startswith(PREFIX):
        return hub_label(name)
    return Path(name).stem if name.endswith(".jsonl") else name


def describe(name: str) -> str:
    """What a registered dataset is, without reading or fetching it: the first line of its plugin's docstring."""
    return (inspect.getdoc(dataset_registry.get(name)) or "").split("\n")[0]


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
