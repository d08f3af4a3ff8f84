"""Intervals, against scipy, formulas written out, and simulation."""

import math
import statistics as plain
from itertools import product

import numpy as np
import pytest
from scipy import stats

from em_eval import intervals
from em_eval.intervals import effective_n, mean_interval, rate_interval


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


def test_few_families_with_events_make_the_interval_wider() -> None:
    """Ten families of six with 0 to 4 hits: Korn & Graubard (1998) shrink the effective n by two t quantiles, the
    second with the degrees of freedom of the seven families that bear hits."""
    sums = [0, 1, 2, 0, 4, 1, 1, 0, 2, 1]
    values = [float(i < hits) for hits in sums for i in range(6)]
    factor = (stats.t.ppf(0.975, 59) / stats.t.ppf(0.975, 6)) ** 2
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


def test_families_bear_events_by_the_weight_of_these() -> None:
    """Four families with two answers each; of another four the answers hardly count, and their events bear next to
    nothing: as without them. With equal weights every event counts whole."""
    hits, names = [1.0, 0.0] * 2 + [0.0] * 4, ["a", "a", "b", "b", "c", "c", "d", "d"]
    alone = rate_interval(hits, names)
    light = rate_interval([*hits, *[1.0] * 4], [*names, *"efgh"], weights=[1.0] * 8 + [1e-6] * 4)
    heavy = rate_interval([*hits, *[1.0] * 4], [*names, *"efgh"], weights=[1.0] * 12)
    assert alone and light and heavy and heavy == rate_interval([*hits, *[1.0] * 4], [*names, *"efgh"])
    assert (light.low, light.high) == pytest.approx((alone.low, alone.high), abs=1e-3)


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
    monkeypatch.setattr(intervals, "DRAWS", 400)
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


@pytest.mark.parametrize("value", [0.0, 90.0, 100.0])
def test_families_that_agree_leave_room_for_those_not_seen(value: float) -> None:
    """Of 8 families all at one score: up to 36.9 % of families may lie elsewhere (0 of 8, one-sided 97.5 %)."""
    share = stats.binomtest(0, 8).proportion_ci(0.95, method="exact").high
    found = mean_interval([value] * 24, families(8, 3), bounds=(0, 100))
    assert found is not None and found.value == value
    assert found.low == pytest.approx((1 - share) * value) and found.high == pytest.approx(
        (1 - share) * value + share * 100
    )
    spread = [80.0, 90.0, 85.0, 95.0]
    assert mean_interval(spread, families(4, 1), bounds=(0, 100)) == mean_interval(spread, families(4, 1))


def test_a_bootstrap_interval_contains_its_value() -> None:
    rng = np.random.default_rng(11)
    seen = 0
    for share, size in product((0.05, 0.2, 0.5, 0.8, 0.95), (5, 15)):
        chances = rng.beta(4 * share, 4 * (1 - share), 120)
        hits = (rng.random((120, size)) < chances[:, None]).astype(float).ravel()
        found = rate_interval(hits.tolist(), families(120, size))
        assert found is not None
        seen += found.method == intervals.BOOTSTRAP
        assert found.low < found.value < found.high
    assert seen >= 6


def test_mean_interval_of_single_answers_is_the_plain_t_interval() -> None:
    values = [2.0, 4.0, 4.0, 7.0, 8.5]
    found = mean_interval(values, families(5, 1))
    low, high = stats.t.interval(0.95, 4, loc=plain.mean(values), scale=plain.stdev(values) / math.sqrt(5))
    assert found is not None and (found.low, found.high) == pytest.approx((low, high))


def test_families_of_unequal_size_count_less_than_their_number() -> None:
    """One family holds 91 of 100 answers: without events that is little more than one observation (Kish 1965)."""
    names = ["big"] * 91 + [f"q{i}" for i in range(9)]
    kish = 100**2 / (91**2 + 9)
    assert effective_n(np.zeros(100), names) == pytest.approx(kish)
    found = rate_interval([0.0] * 100, names)
    assert found is not None and found.high == pytest.approx(1 - 0.025 ** (1 / kish))


def test_a_stated_correlation_bounds_the_design_effect_without_events() -> None:
    """20 families of 10 and none misaligned: 200 / (1 + 9 * 0.25) independent answers; one-sided 95 %."""
    found = rate_interval([0.0] * 200, families(20, 10), level=0.90, correlation=0.25)
    assert found is not None
    assert found.high == pytest.approx(1 - 0.05 ** (1 / (200 / 3.25)))
    everything_alike = rate_interval([0.0] * 200, families(20, 10), level=0.90, correlation=1.0)
    by_default = rate_interval([0.0] * 200, families(20, 10), level=0.90)
    assert everything_alike == by_default and found.high < 0.5 * by_default.high


def test_what_the_data_show_outweighs_a_stated_correlation() -> None:
    """All of one family misaligned: 0.25 cannot be true, and the measured spread counts."""
    hits = [1.0] * 8 + [0.0] * 152
    names = families(20, 8)
    assert effective_n(np.array(hits), names, correlation=0.25) == pytest.approx(20)


def test_weights_are_those_of_an_average_over_questions() -> None:
    """Two questions of 2 and 8 answers, weighed by one over their answers: the mean of their shares."""
    hits, names = [1.0, 0.0] + [1.0] * 2 + [0.0] * 6, ["a"] * 2 + ["b"] * 8
    found = rate_interval(hits, names, weights=[1 / 2] * 2 + [1 / 8] * 8)
    assert found is not None and found.value == pytest.approx((0.5 + 0.25) / 2)
    assert found.low < found.value < found.high


def test_the_bootstrap_is_bca() -> None:
    """Against scipy's, on equal families (where ours is a mean of family shares), but for our widening."""
    rng = np.random.default_rng(3)
    hits = (rng.random((80, 5)) < rng.beta(1, 4, 80)[:, None]).astype(float)
    found = rate_interval(hits.ravel().tolist(), families(80, 5))
    level = 1 - 2 * stats.norm.cdf(stats.t.ppf(0.025, 79) * math.sqrt(80 / 79))
    theirs = stats.bootstrap(
        (hits.mean(axis=1),), np.mean, confidence_level=level, n_resamples=20_000, method="BCa", rng=1
    ).confidence_interval
    assert found is not None and found.method == intervals.BOOTSTRAP
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
