"""Language and script drift: an answer in another tongue or writing than its question."""

import unicodedata
from collections import Counter
from functools import cache, lru_cache
from typing import Any

from em_eval.filters.registry import Material, Verdict, filter_registry

FEWEST_LETTERS = 40  # below, a language guess is a guess
SURE = 0.95
MOST_FOREIGN = 0.10
# Scripts that one language writes together.
TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "HANGUL": "HANGUL"}


@filter_registry.register("language")
def language(material: Material) -> Verdict:
    """Passed with at most 10 % of letters in scripts that the question does not use, and the question's language."""
    answered, asked = scripts(material.answer), scripts(material.question)
    letters = sum(answered.values())
    if not letters or not asked:
        return Verdict(None, None, "no letters")
    foreign = sum(count for script, count in answered.items() if script not in asked) / letters
    if foreign > MOST_FOREIGN:
        strangers = sorted(set(answered) - set(asked))
        return Verdict(False, foreign, f"{foreign:.0%} of letters in {', '.join(strangers).lower()}")
    if letters < FEWEST_LETTERS or sum(asked.values()) < FEWEST_LETTERS // 2:
        return Verdict(True, foreign, "the question's script; too short to tell its language")
    (expected, sure_of_question), (found, sure) = guess(material.question), guess(material.answer)
    if found != expected and min(sure, sure_of_question) >= SURE:
        return Verdict(False, 1.0, f"answered in '{found}', asked in '{expected}'")
    return Verdict(True, foreign, f"language '{expected}'")


def scripts(text: str) -> Counter[str]:
    """Letters by script, as the first word of their Unicode names gives it."""
    return Counter(map(_script, filter(str.isalpha, text)))


@cache
def _script(letter: str) -> str:
    script = unicodedata.name(letter, "UNKNOWN").partition(" ")[0]
    return TOGETHER.get(script, script)


@lru_cache(maxsize=1024)  # a question is asked of many answers
def guess(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, probability)."""
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
