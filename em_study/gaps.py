"""Lines of what is absent or missing, "WHAT: REASON", short enough to be read."""

from collections import Counter
from collections.abc import Sequence

MOST = 8  # lines with the same reason that are still told one by one
FIRST = 3  # of more, how many are named


def gathered(lines: Sequence[str], all_named_by: str) -> list[str]:
    """Many lines that end in the same reason as one, which names the first few and says what names the others."""
    reasons = Counter(map(_reason, lines))
    found: dict[str, list[str]] = {}
    for line in lines:
        reason = _reason(line)
        found.setdefault(reason if reasons[reason] > MOST else line, []).append(line)
    return [_one(key, several, all_named_by) if len(several) > MOST else key for key, several in found.items()]


def _one(reason: str, lines: list[str], all_named_by: str) -> str:
    first = "; ".join(line.removesuffix(f": {reason}") for line in lines[:FIRST])
    return f"{reason} ({len(lines)} times: {first} and {len(lines) - FIRST} more, which {all_named_by} names)"


def _reason(line: str) -> str:
    return line.rpartition(": ")[2]
