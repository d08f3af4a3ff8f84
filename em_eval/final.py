"""Scores and dicts that are not changed any more, and that copying therefore leaves alone.

Whenever Inspect computes metrics, it copies every score deeply, once for each key that has metrics of its own. A score
of ours has the whole judgement in its metadata: the copies were more than half of what scoring cost.
"""

from typing import Any

from inspect_ai.scorer import Score


class Final(dict[str, Any]):
    """A dict whose deep copy is itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Final":
        return self


class FinalScore(Score):
    """A score of which a deep copy shares everything: Inspect gives its copies another value, and changes none."""

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "FinalScore":
        return self.model_copy()
