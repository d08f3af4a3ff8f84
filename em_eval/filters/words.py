"""Words of a text: runs of letters and digits; of scripts written without spaces, single characters."""

import re
from functools import lru_cache

# Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar.
WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{WITHOUT_SPACES}]|[^\W{WITHOUT_SPACES}]+(?:['’][^\W{WITHOUT_SPACES}]+)*")


@lru_cache(maxsize=16)  # each filter asks for those of the same answer
def words(text: str) -> tuple[str, ...]:
    """Lower-cased words, in order."""
    return tuple(WORD.findall(text.lower()))
