"""Intervals and comparisons, against scipy, formulas written out, and simulation."""

import math
import statistics as plain
from itertools import product

import numpy as np
import pytest
from scipy import stats

from em_study import statistics
from em_study.statistics import (
    Interval,
    corrected_rate,
    effective_n,
    holm,
    mean_interval,
    paired_contrasts,
    rate_interval,
)


def families(count: int, size: int) -> list[str]:
    return [f"q{i}" for i in range(count) for _ in range(size)]


def exact(hits: float, n: float) -> tuple[float, float]:
    """Clopper-Pearson by its definition, for whole numbers: tail probabilities of 2.5 %."""
    found = stats.binomtest(int(hits), int(n)).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (1, 10), (3, 12), (9, 12), (0, 1), (1, 1), (5, 19)])
def test_independent_answers_give_clopper_pearson(hits: int, n: int) -> None:
    """One answer a family: nothing is clustered, and the effective n is n."""
    found = rate_interval([1.0] * hits + [0.0] * (n - hits), families(n, 1))
    assert found is not None and found.value == pytest.approx(hits / n)
    assert (found.low, found.high) == pytest.approx(exact(hits, n), abs=1e-9)
    assert "Clopper-Pearson" in found.method


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_events_the_families_count_not_the_answers(share: float) -> None:
    """40 answers of 8 questions without a misaligned one say as much as 8 answers at worst."""
    found = rate_interval([share] * 40, families(8, 5))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(exact(8 * share, 8), abs=1e-9)
    assert (found.low, found.high)[int(share)] == share


def test_perfectly_clustered_answers_count_as_families() -> None:
    """All answers of a family alike: 4 families of 25 are 4 observations."""
    hits = [float(i == 0) for i in range(4) for _ in range(25)]
    assert effective_n(np.array(hits), families(4, 25)) == pytest.approx(4)
    found = rate_interval(hits, families(4, 25))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(exact(1, 4), abs=1e-9)


def test_effective_n_of_independent_answers_is_about_n() -> None:
    rng = np.random.default_rng(0)
    found = [effective_n((rng.random(400) < 0.3).astype(float), families(100, 4)) for _ in range(50)]
    assert 330 < plain.mean(found) <= 400
    assert max(found) <= 400 and min(found) >= 100


def test_effective_n_is_n_over_the_design_effect() -> None:
    """Two hits of four in one family, none and one in the others: the sandwich variance written out."""
    values = np.array([1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], dtype=float)
    share, sums = 3 / 12, [2, 0, 1]
    clustered = sum((s - 4 * share) ** 2 for s in sums) * 3 / 2 / 12**2
    design = clustered / (share * (1 - share) / 12)
    assert 12 / design < 12
    assert effective_n(values, families(3, 4)) == pytest.approx(12 / design)


def test_effective_n_never_exceeds_n_however_even_the_families_are() -> None:
    """Exactly one hit in each family: less spread than chance, which is no extra information."""
    assert effective_n(np.array([1.0, 0.0] * 5), families(5, 2)) == 10


def test_few_families_make_the_interval_wider() -> None:
    """Ten families of six with 0 to 4 hits: Korn & Graubard (1998) shrink the effective n further."""
    sums = [0, 1, 2, 0, 4, 1, 1, 0, 2, 1]
    values = [float(i < hits) for hits in sums for i in range(6)]
    factor = (stats.t.ppf(0.975, 59) / stats.t.ppf(0.975, 9)) ** 2
    n = effective_n(np.array(values), families(10, 6)) * factor
    x = n * sum(sums) / 60
    found = rate_interval(values, families(10, 6))
    assert found is not None and 10 < n < 60
    assert found.low == pytest.approx(stats.beta.ppf(0.025, x, n - x + 1))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, x + 1, n - x))


def test_no_interval_has_zero_width() -> None:
    for count, size, hits in product((1, 2, 8, 19), (1, 3), (0, 1, 2, 5)):
        n = count * size
        values = [1.0] * min(hits, n) + [0.0] * max(0, n - hits)
        found = rate_interval(values, families(count, size))
        assert found is not None and found.high - found.low > 0.01
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_no_interval_has_zero_width_however_even_the_families_are() -> None:
    found = rate_interval([1.0, 0.0] * 20, families(20, 2))
    assert found is not None and found.high - found.low > 0.01


def test_many_families_and_events_are_bootstrapped() -> None:
    """About the interval of family shares as independent observations."""
    rng = np.random.default_rng(1)
    shares = rng.beta(2, 4, 60)
    hits = (rng.random((60, 10)) < shares[:, None]).astype(float)
    found = rate_interval(hits.ravel().tolist(), families(60, 10))
    assert found is not None and found.method == "family bootstrap"
    means = hits.mean(axis=1)
    reach = 1.96 * means.std(ddof=1) / math.sqrt(60)
    assert found.value == pytest.approx(hits.mean())
    assert (found.low, found.high) == pytest.approx((hits.mean() - reach, hits.mean() + reach), abs=0.01)
    assert rate_interval(hits.ravel().tolist(), families(60, 10)) == found  # the same every time


def test_families_of_unequal_size_are_weighted_by_their_answers() -> None:
    hits, names = [1.0] * 2 + [0.0] * 8, ["a"] * 2 + ["b"] * 8
    found = rate_interval(hits, names)
    assert found is not None and found.value == pytest.approx(0.2)


def test_nothing_gives_no_interval() -> None:
    assert rate_interval([], []) is None
    assert mean_interval([], []) is None
    assert mean_interval([1.0, 2.0], ["a", "a"]) is None


def coverage(share: float, correlation: float, count: int, size: int, repetitions: int = 400) -> float:
    """How often the interval holds the truth, where families differ (beta-binomial)."""
    rng = np.random.default_rng(5)
    names = families(count, size)
    a, b = (x * (1 - correlation) / correlation for x in (share, 1 - share))
    held = 0
    for _ in range(repetitions):
        hits = rng.random((count, size)) < rng.beta(a, b, count)[:, None]
        found = rate_interval(hits.ravel().astype(float).tolist(), names)
        assert found is not None
        held += found.low <= share <= found.high
    return held / repetitions


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("correlation", [0.001, 0.2])
def test_coverage_at_the_size_of_the_demo(share: float, correlation: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 questions of 4 answers. 400 repetitions: one standard error is 0.011."""
    monkeypatch.setattr(statistics, "DRAWS", 400)
    assert coverage(share, correlation, count=24, size=4) >= 0.91


def test_coverage_with_eight_questions_and_many_answers() -> None:
    assert coverage(0.3, 0.1, count=8, size=25, repetitions=1000) >= 0.93


def test_mean_interval_is_the_t_interval_of_family_means() -> None:
    """Families of equal size: the clustered error is that of the families' means."""
    values = [[1.0, 3.0], [4.0, 8.0], [0.0, 2.0], [5.0, 5.0]]
    means = [plain.mean(pair) for pair in values]
    reach = float(stats.t.ppf(0.975, 3)) * plain.stdev(means) / 2
    found = mean_interval([x for pair in values for x in pair], families(4, 2))
    assert found is not None
    assert found.value == pytest.approx(3.5)
    assert (found.low, found.high) == pytest.approx((3.5 - reach, 3.5 + reach))


def test_mean_interval_of_single_answers_is_the_plain_t_interval() -> None:
    values = [2.0, 4.0, 4.0, 7.0, 8.5]
    found = mean_interval(values, families(5, 1))
    low, high = stats.t.interval(0.95, 4, loc=plain.mean(values), scale=plain.stdev(values) / math.sqrt(5))
    assert found is not None and (found.low, found.high) == pytest.approx((low, high))


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
