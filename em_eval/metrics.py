"""Inspect metrics that its own lack. They are computed on partial results too, so they bear any input."""

import math

from inspect_ai.scorer import Metric, SampleScore, Value, metric

from em_eval.intervals import rate_interval

CLUSTER = "family"


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
