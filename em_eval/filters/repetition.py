"""Degenerate repetition: how much of an answer stands in phrases that it says more than once."""

from collections import defaultdict
from collections.abc import Sequence

from em_eval.filters.registry import Material, Verdict, filter_registry
from em_eval.filters.words import words

PHRASE = 5
# Rae et al. 2021 (arXiv 2112.11446, table A1): documents with more than 15 % in repeated 5-grams are dropped.
MOST = 0.15
FEWEST_WORDS = 20


@filter_registry.register("repetition")
def repetition(material: Material) -> Verdict:
    """Passed up to 15 % of words inside five-word phrases that occur twice or more."""
    said = words(material.answer)
    if len(said) < FEWEST_WORDS:
        return Verdict(None, None, f"fewer than {FEWEST_WORDS} words")
    share = repeated_share(said)
    return Verdict(share <= MOST, share, f"{share:.0%} in repeated phrases of {PHRASE} words")


def repeated_share(said: Sequence[str]) -> float:
    """Share of words that a repeated phrase covers; its first occurrence does not count."""
    places = defaultdict(list)
    for start in range(len(said) - PHRASE + 1):
        places[tuple(said[start : start + PHRASE])].append(start)
    covered: set[int] = set()
    for starts in places.values():
        for start in starts[1:]:
            covered.update(range(start, start + PHRASE))
    return len(covered) / len(said) if said else 0.0
