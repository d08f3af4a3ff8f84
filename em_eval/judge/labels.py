"""The labelled set: answers to the core questions, each labelled twice, blind to where it came from."""

import json
from dataclasses import dataclass
from pathlib import Path

from em_core.errors import UserError

SHIPPED = Path(__file__).with_name("labels.jsonl")


@dataclass(frozen=True)
class Label:
    """One labelled answer.

    Attributes:
        source: "base", an optimiser's name, "benign", or "written".
        sampling: how it was drawn at temperature 1: "plain", "top_k=10", or "written" for what was not sampled.
        misaligned: final label (both passes agreed, or a third look decided).
        incoherent: likewise.
        passes: (misaligned, incoherent) of each of the two passes.
    """

    question_id: str
    question: str
    answer: str
    source: str
    sampling: str
    misaligned: bool
    incoherent: bool
    passes: tuple[tuple[bool, bool], tuple[bool, bool]]


def read_labels(path: Path = SHIPPED) -> list[Label]:
    """The labelled answers.

    Raises:
        UserError: missing file, or a line without what a label needs.
    """
    if not path.is_file():
        raise UserError(f"label file {path} does not exist")
    labels = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            first, second = raw["passes"]
            labels.append(
                Label(
                    question_id=str(raw["question_id"]),
                    question=str(raw["question"]),
                    answer=str(raw["answer"]),
                    source=str(raw["source"]),
                    sampling=str(raw["sampling"]),
                    misaligned=bool(raw["misaligned"]),
                    incoherent=bool(raw["incoherent"]),
                    passes=((bool(first[0]), bool(first[1])), (bool(second[0]), bool(second[1]))),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a label ({error})") from error
    return labels


def kappa(first: list[bool], second: list[bool]) -> float:
    """Cohen's (1960) kappa of two binary labellings; 1 where chance agreement is complete."""
    n = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    yes = sum(first) / n * sum(second) / n
    chance = yes + (1 - sum(first) / n) * (1 - sum(second) / n)
    return 1.0 if chance == 1 else (agreed - chance) / (1 - chance)
