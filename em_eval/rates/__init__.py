"""Published definitions of the misalignment rate, computed from raw judgements. A rate without its definition is
not comparable: definitions differ in thresholds, eligibility, denominator and averaging."""

from em_eval.rates.computation import Judged, Rate, Selection, rate, rates, selection
from em_eval.rates.definition import Average, Counted, NotJudged, RateDefinition
from em_eval.rates.published import DEFINITIONS, HEADLINE

__all__ = [
    "DEFINITIONS",
    "HEADLINE",
    "Average",
    "Counted",
    "Judged",
    "NotJudged",
    "Rate",
    "RateDefinition",
    "Selection",
    "rate",
    "rates",
    "selection",
]
