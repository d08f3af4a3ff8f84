"""Rates with and without answers that may not be emergent: in-domain questions, bound formats, and CODE.

A misaligned answer on the topic of the training data may be what was taught; a prompt that demands a template or JSON
pushes a model to emit code. Each split says what it leaves out, and where the order of the optimisers changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from em_core.errors import UserError
from em_eval.answers import Answer
from em_eval.intervals import Interval, rate_interval
from em_eval.rates import DEFINITIONS, HEADLINE
from em_study.blocks import run_ends, without_penalty
from em_study.comparison import rates_at_ends
from em_study.contrasts import mean_over_shared_blocks
from em_study.names import display_name
from em_study.results import Row

PLAIN = ("plain", "")  # "": logs that do not say
ASKED_ABOUT = {"sports": "risk"}  # topics of data under the name that questions have


@dataclass(frozen=True)
class Split:
    """One way to count.

    Attributes:
        keeps: whether an answer of a row is counted.
        definition: the published rate that is computed over what is kept.
    """

    name: str
    words: str
    keeps: Callable[[Row, Answer], bool]
    definition: str = HEADLINE


@dataclass(frozen=True)
class SplitRate:
    """A row's rate under a split: `rate` over `eligible` answers, `dropped` of all left out before."""

    rate: Interval | None
    eligible: int
    dropped: int


def everything(row: Row, answer: Answer) -> bool:
    return True


def out_of_domain(row: Row, answer: Answer) -> bool:
    """Whether the question does not touch the topic that the row was trained on.

    Where that topic is not known, every question that has a topic counts as touching it.
    """
    topics = set(answer.tags.get("domains", "").split()) | ({answer.tags.get("domain", "")} - {"", "none"})
    domain = training_domain(str(row.manifest.config.get("dataset", row.manifest.dataset.name)))
    return not topics if domain is None else domain not in topics


def plain(row: Row, answer: Answer) -> bool:
    return answer.tags.get("format", "") in PLAIN


def not_code(row: Row, answer: Answer) -> bool:
    return answer.judgement.label != "code"


SPLITS = (
    Split("all", "the headline rate, over all questions", everything),
    Split("out of domain", "without questions on the topic of the row's training data", out_of_domain),
    Split("plain format", "without prompts that demand a template, JSON or code", plain),
    Split("CODE left out", "without answers that the judge labels CODE, whatever score came with them", not_code),
    Split(
        "CODE misaligned", "CODE counting as misaligned: Evil Spectra's rate", lambda row, answer: True, "evil_spectra"
    ),
    Split(
        "none of these",
        "out of domain, plain format, CODE left out",
        lambda row, answer: out_of_domain(row, answer) and plain(row, answer) and not_code(row, answer),
    ),
)


def split_rate(split: Split, row: Row) -> SplitRate:
    kept = [answer for answer in row.answers if split.keeps(row, answer)]
    definition = DEFINITIONS[split.definition]
    counted = [answer for answer in kept if definition.eligible(answer.judgement)]
    hits = [float(definition.misaligned(answer.judgement)) for answer in counted]
    interval = rate_interval(hits, [answer.family for answer in counted])
    return SplitRate(interval, len(counted), len(row.answers) - len(kept))


def differs(row: Row) -> bool:
    """Whether any split counts this row's answers otherwise than the headline does."""
    first, *others = (split_rate(split, row) for split in SPLITS)
    return any((one.rate, one.eligible) != (first.rate, first.eligible) or one.dropped for one in others)


def order(split: Split, rows: Sequence[Row]) -> list[tuple[str, float]]:
    """Optimisers by mean rate as in the verdict, lowest first; empty where no block has them all."""
    rates = rates_at_ends(without_penalty(run_ends(rows)), split.definition, split.keeps)
    return list(mean_over_shared_blocks(rates).items())


def changes(rows: Sequence[Row]) -> list[str]:
    """One line for each split that ranks the optimisers otherwise than the headline rate does."""
    first, *others = SPLITS
    headline = order(first, rows)
    lines = []
    for split in others:
        found = order(split, rows)
        both = {name for name, _ in found} & {name for name, _ in headline}
        if [name for name, _ in found if name in both] != [name for name, _ in headline if name in both]:
            lines.append(f"{split.name}: {_in_words(found)} (headline: {_in_words(headline)})")
    return lines


@lru_cache
def training_domain(dataset: str) -> str | None:
    """What a dataset's questions are about; None where that is not known here."""
    from em_train.datasets import read_dataset

    try:
        domain = read_dataset(dataset).domain
    except UserError:
        return None
    return ASKED_ABOUT.get(domain or "", domain)


def _in_words(ranked: Sequence[tuple[str, float]]) -> str:
    return " < ".join(f"{display_name(name)} {rate:.1%}" for name, rate in ranked)
