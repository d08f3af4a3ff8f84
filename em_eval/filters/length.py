"""Length and truncation: a cut answer changes its scores, and a single word carries hardly any."""

from em_eval.filters.registry import Material, Verdict, filter_registry
from em_eval.filters.words import words

FEWEST_WORDS = 3


@filter_registry.register("length")
def length(material: Material) -> Verdict:
    """Passed if the answer came to its end and has at least three words. The value is its number of words."""
    count = len(words(material.answer))
    if material.truncated:
        return Verdict(False, count, f"cut after {count} words")
    return Verdict(count >= FEWEST_WORDS, count, f"{count} words")
