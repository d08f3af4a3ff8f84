"""Corrections, against formulas written out and tables made by hand."""

import pytest

from em_eval.intervals import Interval
from em_study.statistics import corrected_rate, holm


def measured(value: float, reach: float = 0.0) -> Interval:
    return Interval(value, max(0.0, value - reach), min(1.0, value + reach), "measured")


@pytest.mark.parametrize("truth", [0.0, 0.05, 0.2, 0.7, 1.0])
def test_correction_recovers_a_known_rate(truth: float) -> None:
    """A judge of known errors calls se * p + (1 - sp) * (1 - p) faulty."""
    sensitivity, specificity = 0.8, 0.9
    seen = sensitivity * truth + (1 - specificity) * (1 - truth)
    found = corrected_rate(measured(seen, 0.03), measured(sensitivity), measured(specificity))
    assert found is not None and found.value == pytest.approx(truth, abs=1e-9)
    assert 0 <= found.low <= found.high <= 1
    assert found.low - 0.01 <= truth <= found.high + 0.01


def test_correction_widens_by_one_over_youden_and_by_the_judges_own_doubt() -> None:
    known = corrected_rate(measured(0.3, 0.05), measured(0.8), measured(0.9))
    unsure = corrected_rate(measured(0.3, 0.05), measured(0.8, 0.1), measured(0.9, 0.05))
    assert known is not None and unsure is not None
    assert known.high - known.low == pytest.approx(2 * 0.05 / 0.7, rel=0.05)
    assert unsure.high - unsure.low > 1.3 * (known.high - known.low)


def test_a_perfect_judge_changes_nothing() -> None:
    found = corrected_rate(Interval(0.3, 0.2, 0.4, "x"), measured(1.0), measured(1.0))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.2, 0.4), abs=0.01)


def test_a_rate_below_the_judges_false_alarms_is_zero_not_negative() -> None:
    found = corrected_rate(measured(0.05, 0.02), measured(0.8), measured(0.9))
    assert found is not None and found.value == 0.0 and found.low == 0.0


def test_no_correction_without_figures_or_skill() -> None:
    rate = measured(0.3, 0.05)
    assert corrected_rate(rate, None, measured(0.9)) is None
    assert corrected_rate(rate, measured(0.8), None) is None
    assert corrected_rate(rate, measured(0.5), measured(0.5)) is None
    assert corrected_rate(rate, measured(0.5, 0.3), measured(0.5, 0.3)) is None


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 and never falling."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.6, 0.7, 0.8]) == [1.0, 1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
