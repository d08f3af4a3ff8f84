"""Paired differences against scipy's paired t test, formulas written out, and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from em_eval.intervals import Interval, clustered_error
from em_study.outcome import ALIGNMENT, PROBE, RATE, Outcome, combine, outcome_of
from em_study.paired import correlation, difference, judged, over_blocks, over_shared_blocks, square_and_add

RNG = np.random.default_rng(3)
FAMILIES = [f"q{i}" for i in range(40)]


def of(values: np.ndarray, families: list[str] = FAMILIES) -> Outcome:
    found = outcome_of(values.tolist(), families, PROBE)
    assert found is not None
    return found


def side(*seeds: np.ndarray) -> dict[int, Outcome]:
    return dict(enumerate(map(of, seeds)))


def test_one_seed_is_the_paired_t_test() -> None:
    a, b = RNG.normal(0, 1, 40), RNG.normal(0.2, 1, 40)
    parts = difference(side(a), side(b))
    assert parts is not None
    found, p = judged(parts)
    expected = stats.ttest_rel(a, b)
    ends = expected.confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((float(np.mean(a - b)), ends.low, ends.high))
    assert p == pytest.approx(float(expected.pvalue))


def test_what_questions_have_in_common_cancels() -> None:
    """Questions differ by 1, the optimisers by 0.1 everywhere: each mean is uncertain, their difference is not."""
    questions = RNG.normal(0, 1, 40)
    apart = difference(side(questions + 0.1 + RNG.normal(0, 0.02, 40)), side(questions))
    assert apart is not None and apart.first.alone.low < apart.second.alone.value
    found, p = judged(apart)
    assert found.low > 0.08 and found.high < 0.12 and p < 1e-6
    assert sum(square_and_add(apart.first.alone, apart.second.alone)) > 0.5


def test_unequal_families_are_a_ratio() -> None:
    """One to four answers a question: the error is `clustered_error` of the mean over answers."""
    sizes = RNG.integers(1, 5, 40)
    families = [name for name, size in zip(FAMILIES, sizes, strict=True) for _ in range(size)]
    values = RNG.normal(0, 1, len(families)) + np.repeat(RNG.normal(0, 1, 40), sizes)
    parts = difference({0: of(values, families)}, {0: of(np.zeros(40))})
    assert parts is not None
    found, _ = judged(parts)
    reach = stats.t.ppf(0.975, 39) * clustered_error(values, families)
    assert (found.value, found.high - found.value) == pytest.approx((float(values.mean()), reach))


def test_seeds_add_to_the_error_and_bound_it_from_below() -> None:
    shifts = [0.0, 0.5, 0.1]
    first, second = [RNG.normal(s, 1, 40) for s in shifts], [RNG.normal(0, 1, 40) for _ in shifts]
    parts = difference(side(*first), side(*second))
    assert parts is not None
    found, p = judged(parts)
    each = np.array(list(parts.by_seed.values()))
    of_seeds = float(each.std(ddof=1)) / math.sqrt(3)
    of_families = float(np.mean([x - y for x, y in zip(first, second, strict=True)], axis=0).std(ddof=1)) / math.sqrt(
        40
    )
    reaches = stats.t.ppf(0.975, 39) * math.hypot(of_families, of_seeds), stats.t.ppf(0.975, 2) * of_seeds
    assert found.high - found.value == pytest.approx(max(reaches)) and found.value == pytest.approx(each.mean())
    assert p == pytest.approx(
        max(
            2 * stats.t.sf(abs(each.mean()) / math.hypot(of_families, of_seeds), 39),
            2 * stats.t.sf(abs(each.mean()) / of_seeds, 2),
        )
    )


def test_only_seeds_that_both_have_count() -> None:
    a, b = side(*(np.full(40, x) + RNG.normal(0, 0.1, 40) for x in (1.0, 2.0))), {1: of(RNG.normal(0, 0.1, 40))}
    parts = difference(a, b)
    assert parts is not None and list(parts.by_seed) == [1] and judged(parts)[0].value == pytest.approx(2, abs=0.1)
    assert difference({0: a[0]}, b) is None


def rate(hits: set[int], each: int = 1) -> Outcome:
    """Of `each` answer to twenty questions, those to `hits` misaligned."""
    names = [f"q{i // each}" for i in range(20 * each)]
    found = outcome_of([float(i // each in hits) for i in range(20 * each)], names, RATE)
    assert found is not None
    return found


@pytest.mark.parametrize("second", [{0}, {0, 1, 2, 3, 4}, {7}])
def test_rates_of_few_events_are_no_surer_than_square_and_add(second: set[int]) -> None:
    """3 of 20 against others of the same questions: a paired t test alone would trust twenty zeros and ones. By
    Newcombe's (1998) formula for paired proportions, with his correction of a positive phi."""
    parts = difference({0: rate({0, 1, 2})}, {0: rate(second)})
    assert parts is not None
    both, one, other = len({0, 1, 2} & second), len({0, 1, 2} - second), len(second - {0, 1, 2})
    neither = 20 - both - one - other
    phi = both * neither - one * other
    phi = (max(phi - 10, 0) if phi > 0 else phi) / math.sqrt(3 * 17 * len(second) * (20 - len(second)))
    a, b = rate({0, 1, 2}).alone, rate(second).alone
    (l1, u1), (l2, u2) = ((abs(x.value - x.low), x.high - x.value) for x in (a, b))
    below, above = (math.sqrt(x**2 + y**2 - 2 * phi * x * y) for x, y in ((l1, u2), (u1, l2)))
    found, p = judged(parts)
    assert square_and_add(a, b, correlation(parts)) == pytest.approx((below, above))
    assert found.low <= found.value - below + 1e-9 and found.high >= found.value + above - 1e-9 and p > 0.05


def test_what_few_unequal_questions_have_in_common() -> None:
    """Five answers to one question and one to each of three more: as much as 64/28 equal questions, by hand."""
    names = ["a"] * 5 + ["b", "c", "d"]
    sides = [outcome_of(hits, names, RATE) for hits in ([1.0, 1, 0, 0, 0, 1, 0, 0], [1.0, 1, 1, 0, 0, 1, 0, 0])]
    parts = difference(*({0: one} for one in sides if one))
    assert parts is not None
    pulls = [np.array([n - 5 * p, 1 - p, -p, -p]) / 8 for n, p in ((2, 3 / 8), (3, 4 / 8))]
    product = (pulls[0] @ pulls[1] - 0.5 / (64 / 28) ** 2) / math.prod(np.linalg.norm(pull) for pull in pulls)
    assert correlation(parts) == pytest.approx(max(product, 0))
    seeds = {at: rate({at, at + 1, at + 2}) for at in (0, 1)}
    many = difference(seeds, {at: rate({at, at + 1}) for at in (0, 1)})
    assert many is not None
    pulls = [sum((np.isin(np.arange(20), list(range(at, at + n))) - n / 20) / 40 for at in (0, 1)) for n in (3, 2)]
    assert correlation(many) == pytest.approx(
        (pulls[0] @ pulls[1] - 0.5 / 20**2) / math.prod(np.linalg.norm(pull) for pull in pulls)
    )


def test_few_events_of_one_question_are_not_sure_to_be_alike() -> None:
    """Four answers to each question; of both sides those to one are misaligned, and the same: not a difference of 0."""
    parts = difference({0: rate({3}, 4)}, {0: rate({3}, 4)})
    assert parts is not None
    found, p = judged(parts)
    assert found.high > 0.1 and found.low < -0.1 and p == 1
    nothing = difference({0: rate(set())}, {0: rate(set())})
    assert nothing is not None and judged(nothing)[0].high > 0.1 and judged(nothing)[1] == 1


def test_means_over_few_families_are_no_surer_than_square_and_add() -> None:
    """Three questions of one side, forty of the other: the three decide how sure the difference can be."""
    few, many = of(np.array([20.0, 21.0, 25.0]), FAMILIES[:3]), of(RNG.normal(20, 1, 40))
    parts = difference({0: few}, {0: many})
    assert parts is not None
    found, _ = judged(parts)
    below, above = square_and_add(few.alone, many.alone)
    assert found.value - found.low >= below - 1e-9 and found.high - found.value >= above - 1e-9
    error = math.sqrt(sum(pull**2 for pull in parts.influence.values()))
    assert found.high - found.value >= stats.t.ppf(0.975, 2) * error - 1e-9


def test_a_difference_that_is_the_same_everywhere_may_be_another_elsewhere() -> None:
    """Of forty questions all differ by 10 of 100: at most 1 - 0.025^(1/40) of others may not. Rounding is no error."""
    questions = RNG.normal(50, 5, 40)
    ten, none = ({0: found} for found in map(scored, (questions + 10, questions)))
    parts = difference(ten, none)
    assert parts is not None
    found, p = judged(parts)
    reach = 100 * (1 - 0.025 ** (1 / 40))
    assert (found.value, found.high) == pytest.approx((10, 10 + reach)) and 0.01 < p < 0.1
    equal = difference({0: combine([ten[0], scored(questions + 10)], [0.3, 0.7])}, ten)
    assert equal is not None
    found, p = judged(equal)
    assert found.value == pytest.approx(0, abs=1e-9) and found.high == pytest.approx(reach) and p > 0.99


def scored(values: np.ndarray) -> Outcome:
    found = outcome_of(values.tolist(), FAMILIES, ALIGNMENT)
    assert found is not None
    return found


def test_a_checkpoint_beside_itself_does_not_differ() -> None:
    own = side(RNG.normal(0, 1, 40))
    parts = difference(own, own)
    assert parts is not None
    assert judged(parts) == (Interval(0.0, 0.0, 0.0, "paired by family and seed"), 1.0)


def test_blocks_are_those_that_were_chosen() -> None:
    """Two datasets whose differences are 0.1 and 0.5: the mean's error is that of answers and seeds within them."""
    noise = lambda: RNG.normal(0, 0.05, 40)  # noqa: E731
    blocks = [difference(side(noise() + d, noise() + d), side(noise(), noise())) for d in (0.1, 0.5)]
    found, p = judged(over_blocks([one for one in blocks if one]))
    assert found.value == pytest.approx(0.3, abs=0.03) and found.high - found.value < 0.15 and p < 0.05


def test_blocks_of_unlike_seeds_do_not_pass_for_seeds() -> None:
    """Seeds 0 to 2 in one block, 3 to 5 in the other, 0.6 apart; and one block with one seed: pooled, by hand."""
    flat = {seed: of(np.full(40, x) + RNG.normal(0, 0.01, 40)) for seed, x in enumerate((0.1, 0.2, 0.3, 0.7, 0.8, 0.9))}
    zero = {seed: of(RNG.normal(0, 0.01, 40)) for seed in flat}
    blocks = [difference({seed: flat[seed] for seed in seeds}, zero) for seeds in ((0, 1, 2), (3, 4, 5))]
    found = over_blocks([one for one in blocks if one])
    assert found.value == pytest.approx(0.5, abs=0.02) and found.seed_freedom == 2
    assert found.seed_error == pytest.approx(math.sqrt(0.01 / 3 * 2) / 2, rel=0.1)
    single = difference({5: flat[5]}, zero)
    uneven = over_blocks([one for one in (blocks[0], single) if one])
    assert uneven.seed_error == pytest.approx(math.sqrt(0.01 / 3 + 0.01) / 2, rel=0.1) and uneven.seed_freedom == 2
    alone = over_blocks([one for one in (difference({0: flat[0]}, zero), single) if one])
    assert (alone.seed_error, alone.seed_freedom) == (0.0, 0)


def test_seeds_that_several_blocks_have_may_move_them_all() -> None:
    """Four blocks with seeds 0 to 2 and one with 0 to 3; a seed moves all blocks alike: 95 % of intervals hold 0."""
    rng = np.random.default_rng(10)
    zero = {seed: of(rng.normal(0, 0.01, 40)) for seed in range(4)}
    held = 0
    for _ in range(200):
        effects = rng.normal(0, 0.3, 4)
        blocks = [
            difference({seed: of(effects[seed] + rng.normal(0, 0.05, 40)) for seed in range(3 + (block == 4))}, zero)
            for block in range(5)
        ]
        found, _ = judged(over_blocks([one for one in blocks if one]))
        held += found.low <= 0 <= found.high
    assert held >= 182  # 190 expected at 95 %; P(< 182) is 0.8 %. Taken as independent: about 165.


def test_coverage_where_questions_and_seeds_both_vary() -> None:
    """No difference between two optimisers: 95 % of intervals hold 0, for all that they pair."""
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(400):
        questions = rng.normal(0, 1, 40)
        sides = [
            {seed: of(questions + rng.normal(0, 0.3, 40) + own) for seed, own in enumerate(rng.normal(0, 0.1, 3))}
            for _ in range(2)
        ]
        parts = difference(*sides)
        assert parts is not None
        held += judged(parts)[0].low <= 0 <= judged(parts)[0].high
    assert held >= 368  # 380 expected at 95 %; P(< 368) is 0.6 %


def test_blocks_that_both_sides_have_are_compared() -> None:
    rows = {name: side(RNG.normal(level, 0.1, 40)) for name, level in (("one", 1.0), ("two", 2.0), ("three", 9.0))}
    zero = side(RNG.normal(0, 0.1, 40))
    found = over_shared_blocks(rows, {"one": zero, "two": zero, "three": {5: zero[0]}, "four": zero})
    assert found is not None and found[1] == 2 and found[0].value == pytest.approx(1.5, abs=0.1)
    assert over_shared_blocks(rows, {"four": zero}) is None
