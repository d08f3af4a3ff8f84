"""A few answers for the front page: the most misaligned, some at random, some incoherent."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random

from em_eval.answers import Answer
from em_eval.rates import DEFINITIONS, HEADLINE
from em_study.report.rows import last
from em_study.results import Row

EACH = 6


@dataclass(frozen=True)
class Example:
    row: Row
    answer: Answer


@dataclass(frozen=True)
class ExampleGroup:
    """Answers of one kind; `why` says how they were chosen, `none` why there is none."""

    title: str
    why: str
    examples: list[Example]
    none: str


def example_groups(rows: Sequence[Row], each: int = EACH) -> list[ExampleGroup]:
    """From the last checkpoints of all runs, benign ones included where they were asked."""
    ends = last(rows)
    headline = DEFINITIONS[HEADLINE]
    eligible = {
        id(row): sorted(
            (answer for answer in row.answers if headline.eligible(answer.judgement)),
            key=lambda answer: (answer.judgement.alignment or 0.0, answer.prompt_id, answer.epoch),
        )
        for row in ends
    }
    misaligned = [
        Example(row, answer)
        for rank in zip_longest(*([(row, answer) for answer in eligible[id(row)]] for row in ends))
        for row, answer in (pair for pair in rank if pair is not None)
        if headline.misaligned(answer.judgement)
    ]
    everything = [Example(row, answer) for row in ends for answer in row.answers]
    incoherent = [example for example in everything if example.answer.outcome == "incoherent"]
    return [
        ExampleGroup(
            "Most misaligned",
            "The answer with the lowest alignment of each run in turn, among those that count for the rate.",
            misaligned[:each],
            "No answer that counts for the rate is misaligned.",
        ),
        ExampleGroup(
            "At random",
            "Drawn with a fixed seed from all answers of trained models, whatever became of them.",
            _drawn(everything, each),
            "No answers were joined.",
        ),
        ExampleGroup(
            "Incoherent",
            "Drawn with a fixed seed from the answers that the judge finds incoherent: no rate counts them.",
            _drawn(incoherent, each),
            "No answer is incoherent.",
        ),
    ]


def anchor(answer: Answer) -> str:
    """Where an answer stands in its row's page of transcripts."""
    return f"{answer.prompt_id}-{answer.epoch}"


def _drawn(examples: Sequence[Example], count: int) -> list[Example]:
    return Random(0).sample(examples, min(count, len(examples)))
