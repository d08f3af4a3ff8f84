"""Sums of outcomes: their values, their influences, and the intervals that their answers make together."""

import math

import numpy as np
import pytest
from scipy import stats

from em_eval.intervals import rate_interval
from em_study.outcome import ALIGNMENT, PROBE, RATE, Outcome, Scale, combine, mean, outcome_of

RNG = np.random.default_rng(3)
FAMILIES = [f"q{i}" for i in range(40)]


def of(values: np.ndarray, families: list[str] = FAMILIES, scale: Scale = PROBE) -> Outcome:
    found = outcome_of(values.tolist(), families, scale)
    assert found is not None
    return found


def test_an_outcome_by_itself_is_what_a_checkpoint_shows() -> None:
    hits = (RNG.random(40) < 0.2).astype(float)
    found = of(hits, scale=RATE)
    expected = rate_interval(hits.tolist(), FAMILIES)
    assert expected is not None and found.alone.method == expected.method and found.few and found.answers == 40
    assert (found.alone.value, found.alone.low, found.alone.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert outcome_of([], [], RATE) is None and outcome_of([1.0, 2.0], ["q", "q"], PROBE) is None


def test_interpolation_and_means_do_the_same_to_the_influences() -> None:
    a, b = RNG.normal(0, 1, 40), RNG.normal(1, 1, 40)
    between, direct = combine([of(a), of(b)], [0.25, 0.75]), of(0.25 * a + 0.75 * b)
    assert between.value == pytest.approx(direct.value) and between.influence == pytest.approx(direct.influence)
    assert mean([of(a), of(b)]).influence == pytest.approx(of((a + b) / 2).influence)
    first = of(a)
    assert combine([first, of(b)], [1, 0]).parts == first.parts


def test_the_interval_of_a_sum_takes_answers_to_one_question_together() -> None:
    """Three seeds' means, which vary with their questions: the error is that of questions' means, over all seeds."""
    questions = RNG.normal(50, 10, 40)
    seeds = [questions + RNG.normal(0, 3, 40) for _ in range(3)]
    found = mean([of(seed, scale=ALIGNMENT) for seed in seeds]).alone
    by_question = np.mean(seeds, axis=0)
    reach = stats.t.ppf(0.975, 39) * by_question.std(ddof=1) / math.sqrt(40)
    assert (found.value, found.high - found.value) == pytest.approx((by_question.mean(), reach))


def test_seeds_without_events_are_worth_their_questions_once() -> None:
    """Nothing is seen of how much answers to one question are alike; with events apart, each answer counts."""
    none = mean([of(np.zeros(12), FAMILIES[:12], RATE) for _ in range(3)]).alone
    assert none.high == pytest.approx(stats.binomtest(0, 12).proportion_ci(0.95, method="exact").high)
    apart = [np.eye(12)[seed] for seed in range(3)]
    pooled = rate_interval(np.concatenate(apart).tolist(), FAMILIES[:12] * 3)
    found = mean([of(hits, FAMILIES[:12], RATE) for hits in apart]).alone
    assert pooled is not None and (found.low, found.high) == pytest.approx((pooled.low, pooled.high))


@pytest.mark.parametrize("scale", [RATE, ALIGNMENT])
def test_an_interval_next_to_a_checkpoint_is_nearly_that_of_the_checkpoint(scale: Scale) -> None:
    """Answers of another checkpoint that hardly count bear no new families of events, and no knowledge of how families
    spread."""
    few, other = np.arange(48) % 12 < 2, np.arange(48) % 12 >= 2
    few[12:24] = False
    here = of(few.astype(float) * scale.most, FAMILIES[:12] * 4, scale)
    there = of(other.astype(float) * scale.most, FAMILIES[:12] * 4, scale)
    three = of(np.array([1.0, 0.0, 1.0]) * scale.most, FAMILIES[:3], scale)
    many = of(np.zeros(40), scale=scale)
    for one, far in ((here, there), (three, many)):
        near = combine([one, far], [0.9999, 0.0001]).alone
        reach = 0.002 * scale.width
        assert (near.low, near.high) == pytest.approx((one.alone.low, one.alone.high), abs=reach)


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_an_interpolated_interval_covers_whatever_the_errors_do(common: float) -> None:
    """Two checkpoints whose questions err together or each by themselves: 95 % nominal."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        questions = common * rng.normal(0, 1, 30)
        ends = [of(questions + rng.normal(0, 0.5, 30), FAMILIES[:30]) for _ in range(2)]
        found = combine(ends, [0.7, 0.3]).alone
        held += found.low <= 0 <= found.high
    assert held >= 932  # 950 expected; P(< 932) is 0.7 %


def test_two_checkpoints_of_few_questions_are_not_many() -> None:
    """Six questions each, of which none is the other's: twelve, whose spread is known of half of them at a time."""
    here, there = (of(RNG.normal(50, 10, 6), FAMILIES[start : start + 6], ALIGNMENT) for start in (0, 6))
    between = mean([here, there])
    assert len(between.influence) == 12 and between.families == pytest.approx(6) and between.few
    error = math.hypot(*(one.alone.high - one.value for one in (here, there))) / 2  # each by five degrees of freedom
    assert between.alone.high - between.value == pytest.approx(error)
    assert combine([of(RNG.normal(50, 10, 40), scale=ALIGNMENT), here], [1, 0]).families == 40
    poor = combine([of(RNG.normal(50, 10, 40), scale=ALIGNMENT), here], [0.9, 0.1])
    assert poor.families == pytest.approx(1 / (0.9 / 40 + 0.1 / 6)) and poor.answers == 6


def test_a_sum_spreads_over_the_questions_of_all_its_parts() -> None:
    here, there = of(np.arange(6.0), FAMILIES[:6]), of(np.arange(8.0), [FAMILIES[0]] * 4 + FAMILIES[6:10])
    assert here.spread == pytest.approx(6) and there.spread == pytest.approx(1 / (1 / 4 + 4 / 64))
    both = [1 / 12 + 1 / 4, *[1 / 12] * 5, *[1 / 16] * 4]
    assert mean([here, there]).spread == pytest.approx(1 / sum(weight**2 for weight in both))


def test_the_error_of_a_mean_of_ratios_is_that_of_each() -> None:
    """Two checkpoints far apart, with other questions each: their distance is no error of their mean."""
    here, there = of(np.array([20.0, 21, 19, 20, 22, 18]), FAMILIES[:6]), of(np.arange(78.0, 84), FAMILIES[6:12])
    errors = [np.std(part, ddof=1) / math.sqrt(6) for part in ([20.0, 21, 19, 20, 22, 18], np.arange(78.0, 84))]
    reach = mean([here, there]).alone
    assert reach.high - reach.value == pytest.approx(stats.t.ppf(0.975, 5) * math.hypot(*errors) / 2)
