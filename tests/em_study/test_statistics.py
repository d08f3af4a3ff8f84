"""Comparisons and corrections, against formulas written out and tables made by hand."""

import math
import statistics as plain

import numpy as np
import pytest

from em_eval.intervals import Interval, rate_interval
from em_study.statistics import corrected_rate, holm, paired_contrasts


def families(count: int, size: int) -> list[str]:
    return [f"q{i}" for i in range(count) for _ in range(size)]


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


def arm(share: float, seed: int, count: int = 24, size: int = 10) -> tuple[list[float], list[str]]:
    rng = np.random.default_rng(seed)
    return (rng.random(count * size) < share).astype(float).tolist(), families(count, size)


def test_clearly_different_arms_are_told_apart() -> None:
    found = paired_contrasts({"a": arm(0.1, 1), "b": arm(0.6, 2), "c": arm(0.1, 3)})
    by_pair = {(a, b): (interval, p) for a, b, interval, p in found}
    assert set(by_pair) == {("a", "b"), ("a", "c"), ("b", "c")}
    difference, p = by_pair[("a", "b")]
    shares = {name: plain.mean(arm(share, seed)[0]) for name, share, seed in (("a", 0.1, 1), ("b", 0.6, 2))}
    assert difference.value == pytest.approx(shares["a"] - shares["b"])
    assert difference.low < difference.value < difference.high < 0
    assert p < 0.01
    alike, p_alike = by_pair[("a", "c")]
    assert alike.low < 0 < alike.high and p_alike > 0.05


def test_identical_arms_differ_by_nothing() -> None:
    ((_, _, difference, p),) = paired_contrasts({"a": arm(0.3, 1), "b": arm(0.3, 1)})
    assert (difference.value, difference.low, difference.high, p) == (0.0, 0.0, 0.0, 1.0)


def test_p_values_are_holms() -> None:
    """Two arms have one pair, whose p is not adjusted; among three arms it is multiplied."""
    arms = {"a": arm(0.30, 1, size=4), "b": arm(0.42, 2, size=4)}
    ((*_, alone),) = paired_contrasts(arms)
    assert 0.001 < alone < 0.5
    among = {(a, b): p for a, b, _, p in paired_contrasts(arms | {"c": arm(0.9, 3, size=4)})}
    assert among[("a", "b")] == pytest.approx(alone, abs=0.02)  # the largest of three p: times one
    assert among[("a", "c")] == pytest.approx(3 * 2 / 10_001, abs=1e-4)  # the smallest: times three


def test_contrasts_are_paired_by_question() -> None:
    """Questions differ wildly, arms by a constant: unpaired, the difference would drown."""
    base = [float(i % 2) for i in range(24)]
    low = [x for i in range(24) for x in ([base[i]] * 9 + [0.0])]
    high = [x for i in range(24) for x in ([base[i]] * 9 + [1.0])]
    ((_, _, difference, p),) = paired_contrasts({"low": (low, families(24, 10)), "high": (high, families(24, 10))})
    assert difference.value == pytest.approx(-0.1)
    assert difference.high - difference.low < 0.01 and p < 0.001
    alone = rate_interval(low, families(24, 10))
    assert alone is not None and alone.high - alone.low > 0.2


def test_contrasts_bear_arms_with_other_questions() -> None:
    few = ([1.0, 0.0, 1.0], ["q0", "q0", "only here"])
    found = paired_contrasts({"a": few, "b": arm(0.3, 1)})
    assert len(found) == 1 and math.isfinite(found[0][2].value) and 0 < found[0][3] <= 1
    assert paired_contrasts({"a": arm(0.3, 1)}) == []
