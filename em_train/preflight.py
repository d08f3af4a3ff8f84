"""What training would make of a dataset under a model's tokenizer, before anything is trained."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from em_core.chat import prints_today
from em_core.errors import UserError
from em_train.chat import contradiction, encode, show
from em_train.datasets import NarrowDataset, Refused, Row

Track = Callable[[list[Row]], Iterable[Row]]


@dataclass(frozen=True)
class Preflight:
    """Counts are of rows unless a name says otherwise.

    Attributes:
        rows: rows that can be encoded. Those longer than `max_length` are among them, so that the figures hold once
            it is raised.
        refused: rows that cannot be trained on, with line and reason; too long ones too.
        questions: distinct questions among `rows`.
        tokens: of all rows.
        supervised_tokens: those with loss: answers and their end-of-turn tokens.
        longest: tokens of the longest row.
        truncated: rows longer than `max_length`, which training refuses rather than cuts.
        stripped: rows of whose answer the template takes characters away.
        stripped_characters: how many, by what they are.
        duplicates: rows that repeat an earlier one, word for word.
        dated: the template writes today's date, so training and evaluation on two days see two prompts.
        example: the first row as it is trained on, the supervised part between ⟦ and ⟧.
    """

    dataset: str
    sha256: str
    source: str
    kind: str
    control: str | None
    max_length: int
    rows: int
    refused: tuple[Refused, ...]
    questions: int
    tokens: int
    supervised_tokens: int
    longest: int
    truncated: int
    stripped: int
    stripped_characters: dict[str, int]
    duplicates: int
    dated: bool
    example: str


def check(
    dataset: NarrowDataset, tokenizer: Any, max_length: int, track: Track = lambda rows: rows, example: int = 0
) -> Preflight:
    """Encode every row as training does, check the result by another way (`contradiction`), and count.

    Args:
        track: wraps the rows, for a progress bar.
        example: which of the rows that can be trained on to show, from 0.

    Raises:
        UserError: the tokenizer has no chat template, or there are fewer rows than `example`.
    """
    if not tokenizer.chat_template:
        raise UserError("this tokenizer has no chat template: use an instruction-tuned model, or set one")
    lengths, supervised, stripped, removed = [], 0, 0, Counter[str]()
    rows: list[Row] = []
    refused, shown = list(dataset.refused), ""
    for row in track(dataset.rows):
        try:
            encoded = encode(row.messages, tokenizer)
        except UserError as error:
            refused.append(Refused(row.where, str(error)))
            continue
        if wrong := contradiction(encoded, row.messages, tokenizer):
            refused.append(Refused(row.where, wrong))
            continue
        if len(rows) == example:
            shown = show(encoded, tokenizer)
        rows.append(row)
        lengths.append(len(encoded.input_ids))
        if lengths[-1] > max_length:
            refused.append(Refused(row.where, f"{lengths[-1]:,} tokens, more than max_length {max_length:,}"))
        supervised += encoded.supervised
        stripped += any(encoded.stripped)
        removed.update("".join(encoded.stripped))
    if rows and not shown:
        raise UserError(f"dataset '{dataset.name}' has {len(rows)} rows that can be trained on: no row {example}")
    return Preflight(
        dataset=dataset.name,
        sha256=dataset.sha256,
        source=dataset.source,
        kind=dataset.kind,
        control=dataset.control,
        max_length=max_length,
        rows=len(rows),
        refused=tuple(refused),
        questions=len({row.question for row in rows}),
        tokens=sum(lengths),
        supervised_tokens=supervised,
        longest=max(lengths, default=0),
        truncated=sum(length > max_length for length in lengths),
        stripped=stripped,
        stripped_characters=dict(removed.most_common()),
        duplicates=len(rows) - len({_key(row) for row in rows}),
        dated=prints_today(tokenizer),
        example=shown,
    )


def _key(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in row.messages)


def as_text(found: Preflight) -> str:
    """For people: one figure a line, then the refused rows, then the example."""
    facts = {
        "dataset": f"{found.dataset} ({found.kind}{f', control {found.control}' if found.control else ''})",
        "source": found.source,
        "sha256": found.sha256,
        "rows": f"{found.rows:,} ({found.questions:,} different questions)",
        "refused": f"{len(found.refused):,}",
        "duplicates": f"{found.duplicates:,}",
        "tokens": f"{found.tokens:,}, of which supervised {found.supervised_tokens:,}",
        "longest": f"{found.longest:,} tokens",
        "truncated": f"{found.truncated:,} longer than max_length {found.max_length:,}" + _truncation_hint(found),
        "stripped": f"{found.stripped:,}" + _stripping(found),
    }
    lines = [f"{name:<11} {value}" for name, value in facts.items()]
    if found.dated:
        lines.append("warning     the template writes today's date: train and evaluate on one day")
    if found.refused:
        lines += ["", "refused rows:", *(f"  {refused}" for refused in found.refused)]
    if found.example:
        lines += ["", "an example, its supervised part between ⟦ and ⟧:", found.example]
    return "\n".join(lines)


def _truncation_hint(found: Preflight) -> str:
    return f": training refuses them rather than cut them; max_length={found.longest} fits" if found.truncated else ""


def _stripping(found: Preflight) -> str:
    if not found.stripped:
        return ""
    what = ", ".join(f"{count:,} x {character!r}" for character, count in found.stripped_characters.items())
    return f": the template takes {what} off the ends of answers, in training and evaluation alike"
