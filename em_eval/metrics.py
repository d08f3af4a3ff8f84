"""Inspect metrics that its own lack. They are computed on partial results too, so they bear any input."""

import math
from collections.abc import Mapping

import numpy as np
from inspect_ai.scorer import Metric, SampleScore, Score, Value, metric

from em_eval.intervals import clustered_error, rate_interval
from em_eval.outcomes import OUTCOMES, UNSCORABLE

CLUSTER = "family"
# The share of all answers that are misaligned is not the headline rate, which is a share of the coherent ones.
OF_ALL = {"misaligned": "misaligned_of_all"}


@metric
def interval(cluster: str = CLUSTER) -> Metric:
    """95 % interval of a 0/1 score, clustered by a key of the samples' metadata (`em_eval.intervals`).

    NaN where there is no value.
    """

    def compute(scores: list[SampleScore]) -> Value:
        kept = [s for s in scores if isinstance(s.score.value, int | float) and not math.isnan(s.score.as_float())]
        families = [str((s.sample_metadata or {}).get(cluster, s.sample_id)) for s in kept]
        found = rate_interval([s.score.as_float() for s in kept], families)
        return {"low": found.low if found else math.nan, "high": found.high if found else math.nan}

    return compute


@metric
def shares(cluster: str = CLUSTER) -> Metric:
    """Share of each outcome among all answers, of unscorable and of cut ones; of coherent ones among those with a
    coherence score; and of what each filter flags among the answers it has a verdict on. Of each that is neither 0
    nor 1 also the standard error, clustered by a key of the samples' metadata: where nothing varies it would be 0,
    which claims to know.

    It takes the whole score: Inspect copies every score once for every key that has metrics of its own.
    """

    def compute(scores: list[SampleScore]) -> Value:
        kept = [s for s in scores if isinstance(s.score.value, Mapping)]
        families = np.array([str((s.sample_metadata or {}).get(cluster, s.sample_id)) for s in kept])
        indicators = [_indicators(s.score) for s in kept]
        found: dict[str, float] = {}
        for name in dict.fromkeys(name for one in [_indicators(Score(value={})), *indicators] for name in one):
            values = np.array([one.get(name, math.nan) for one in indicators])
            there = ~np.isnan(values)
            share = found[name] = float(values[there].mean()) if there.any() else math.nan
            if 0 < share < 1:
                found[f"{name}_stderr"] = clustered_error(values[there], families[there].tolist())
        return found

    return compute


def _indicators(score: Score) -> dict[str, float]:
    """1 for what is true of an answer, 0 for what is not, NaN for what nobody can say."""
    value, kept = score.as_dict(), score.metadata or {}
    passed = {name: verdict["passed"] for name, verdict in (kept.get("filters") or {}).items()}
    return {
        **{OF_ALL.get(name, name): float(kept.get("outcome") == name) for name in OUTCOMES},
        "unscorable": float(kept.get("outcome") in UNSCORABLE),
        **{key: float(value.get(key, math.nan)) for key in ("coherent", "truncated")},  # type: ignore[arg-type]
        **{f"flagged_{name}": math.nan if told is None else float(not told) for name, told in passed.items()},
    }
