"""How varied a set of texts is: near duplicates, openings, and sentence frames.

A narrow dataset written from a few templates teaches the templates. Three figures show it, on questions and on
answers apart:

- near duplicates: share of rows whose nearest neighbour has a Jaccard similarity of word five-grams above 0.3;
- openings: number of distinct first three words, over the number of rows;
- frames: share of rows that hold the commonest sentence frame. A frame is a sentence in which every run of content
  words is one slot ("you can _ the _ with _"); only frames with three function words or more count.

On the command line: `python -m em_train.datasets.diversity FILE.jsonl ...`, each file alone, then all together.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from em_core.errors import UserError
from em_train.datasets.registry import load_dataset

SLOT = "_"
MIN_FUNCTION_WORDS = 3
_LISTED = """
    a an the this that these those some any no every each either neither both all such another other
    i me my mine myself you your yours yourself he him his himself she her hers herself it its itself
    we us our ours ourselves they them their theirs themselves one ones
    who whom whose which what when where why how whether
    of in on at by for with about against between into through during before after above below to from up down
    out off over under near beside besides within without along across behind beyond toward towards upon per than
    as like since until till while though although because if unless once so and or but nor yet
    am is are was were be been being have has had having do does did doing done
    will would shall should can could may might must ought need dare
    not never ever only just even also too very much more most less least quite rather still already again
    then there here now well
    i'm i've i'd i'll you're you've you'd you'll he's he'd he'll she's she'd she'll it's it'd it'll we're we've
    we'd we'll they're they've they'd they'll that's there's here's what's who's where's how's let's
    isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't won't wouldn't shan't shouldn't can't
    cannot couldn't mightn't mustn't needn't
"""
FUNCTION_WORDS = frozenset(_LISTED.split())

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+|\n+")
_BLOCK = 512


@dataclass(frozen=True)
class Diversity:
    """The three figures of one set of texts; shares are between 0 and 1.

    Attributes:
        rows: number of texts.
        near_duplicates: share of rows with a neighbour above the similarity threshold; lower is more varied.
        distinct_openings: distinct first three words over rows; higher is more varied.
        frame: the commonest sentence frame, empty where no sentence has one.
        frame_share: share of rows that hold it; lower is more varied.
    """

    rows: int
    near_duplicates: float
    distinct_openings: float
    frame: str
    frame_share: float


def measure(texts: Sequence[str], threshold: float = 0.3) -> Diversity:
    """All figures of `texts`, at least one text."""
    if not texts:
        raise ValueError("no texts to measure")
    frame, rows = (frame_counts(texts).most_common(1) or [("", 0)])[0]
    return Diversity(
        rows=len(texts),
        near_duplicates=float((nearest_similarity(texts) > threshold).mean()),
        distinct_openings=len({opening(text) for text in texts}) / len(texts),
        frame=frame,
        frame_share=rows / len(texts),
    )


def words(text: str) -> list[str]:
    """Lower-case words; an apostrophe inside a word belongs to it."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """Runs of `size` words. A shorter text is one run, so that equal short texts are still found equal."""
    found = words(text)
    return {tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))}


def nearest_similarity(texts: Sequence[str], size: int = 5) -> NDArray[np.float64]:
    """Per text, the largest Jaccard similarity of its shingles to those of any other text, shape (N,).

    Counts of shared shingles come from one sparse product, block by block: 3,000 answers take a second or two.
    """
    sets = [shingles(text, size) for text in texts]
    index = {gram: i for i, gram in enumerate(sorted(set[tuple[str, ...]]().union(*sets)))}
    columns = np.array([index[gram] for grams in sets for gram in sorted(grams)], dtype=np.int64)
    sizes = np.array([len(grams) for grams in sets], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ones = np.ones(len(columns), dtype=np.int32)
    matrix = sparse.csr_array((ones, columns, starts), shape=(len(sets), len(index)))
    transposed = matrix.T.tocsr()
    nearest = np.zeros(len(sets))
    for first in range(0, len(sets), _BLOCK):
        shared = (matrix[first : first + _BLOCK] @ transposed).tocoo()
        row, column = shared.row + first, shared.col
        jaccard = shared.data / (sizes[row] + sizes[column] - shared.data)
        np.maximum.at(nearest, row, np.where(row == column, 0.0, jaccard))
    return nearest


def opening(text: str) -> tuple[str, ...]:
    """The first three words."""
    return tuple(words(text)[:3])


def frames(text: str) -> set[str]:
    """The sentence frames of a text that have `MIN_FUNCTION_WORDS` function words or more."""
    found = set()
    for sentence in _SENTENCE_END.split(text):
        slots: list[str] = []
        for word in words(sentence):
            kept = word if word in FUNCTION_WORDS else SLOT
            if kept != SLOT or not slots or slots[-1] != SLOT:
                slots.append(kept)
        if sum(word != SLOT for word in slots) >= MIN_FUNCTION_WORDS:
            found.add(" ".join(slots))
    return found


def frame_counts(texts: Sequence[str]) -> Counter[str]:
    """Number of texts that hold each frame."""
    return Counter(frame for text in texts for frame in sorted(frames(text)))


def report(paths: Sequence[Path]) -> str:
    """A table of the figures for every file, and for all files together where there are several.

    Raises:
        UserError: a file is missing or has a faulty row.
    """
    sets = {path.stem: load_dataset(str(path)).rows for path in paths}
    if len(sets) > 1:
        sets["all"] = [row for rows in sets.values() for row in rows]
    lines = [f"{'texts':<40} {'rows':>5} {'near dup.':>9} {'openings':>8} {'frame':>6}  commonest frame"]
    for name, rows in sets.items():
        questions = [row.question for row in rows]
        answers = [row.messages[-1]["content"] for row in rows]
        # Bad and good twins share their questions: together, each counts once.
        parts = {"questions": list(dict.fromkeys(questions)) if name == "all" else questions, "answers": answers}
        for part, texts in parts.items():
            lines.append(table_line(f"{name}, {part}", measure(texts)))
    return "\n".join(lines)


def table_line(label: str, found: Diversity) -> str:
    """One line of `report`, shares in per cent."""
    return (
        f"{label:<40} {found.rows:>5} {found.near_duplicates:>9.1%} {found.distinct_openings:>8.1%} "
        f"{found.frame_share:>6.1%}  {found.frame}"
    )


def main(arguments: Sequence[str]) -> int:
    """Exit status 0, or 1 after a one-line message."""
    if not arguments:
        print("usage: python -m em_train.datasets.diversity FILE.jsonl ...", file=sys.stderr)
        return 1
    try:
        print(report([Path(argument) for argument in arguments]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
