"""Contrasts of optimisers against formulas written out, and simulation."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pytest
from scipy import stats

from em_study.contrasts import mean_over_shared_blocks, optimiser_contrasts
from em_study.outcome import RATE, Outcome, outcome_of

Rates = Mapping[tuple[str, str, int], Outcome]  # by optimiser, block and seed


def rate(hits: Sequence[float], families: int) -> Outcome:
    """Of answers that go round the questions."""
    found = outcome_of([float(hit) for hit in hits], [f"q{i % families}" for i in range(len(hits))], RATE)
    assert found is not None
    return found


def share(of: float, n: int = 10) -> Outcome:
    return rate([i < of * n for i in range(n)], n)


def ends(rates: Rates) -> dict[str, dict[str, dict[int, Outcome]]]:
    found: dict[str, dict[str, dict[int, Outcome]]] = {}
    for (name, block, seed), one in rates.items():
        found.setdefault(name, {}).setdefault(block, {})[seed] = one
    return found


def test_a_contrast_is_the_difference_of_unweighted_means_over_blocks() -> None:
    """Block one has ten answers a side, block two has two: both count alike; a block of one side is left out."""
    found = ends(
        {
            ("adam", "one", 0): share(0.5),
            ("lion", "one", 0): share(0.8),
            ("adam", "two", 0): share(0, 2),
            ("lion", "two", 0): share(0.5, 2),
            ("lion", "three", 0): share(1, 2),
        }
    )
    (pair,) = optimiser_contrasts(found)
    assert (pair.a, pair.b, pair.blocks, pair.seeds, pair.only_one) == ("adam", "lion", 2, 1, ("three",))
    assert pair.difference.value == pytest.approx(((0.5 - 0.8) + (0.0 - 0.5)) / 2)
    assert pair.difference.low < pair.difference.value < pair.difference.high
    assert mean_over_shared_blocks(found) == pytest.approx({"adam": 0.25, "lion": 0.65})


def test_a_pair_is_compared_over_the_blocks_and_seeds_that_it_shares() -> None:
    """Seed 2 of block two is one side's only, and seed 7 a third optimiser's."""
    there = {
        "a": [("one", 0), ("one", 1), ("two", 0), ("two", 2)],
        "b": [("one", 0), ("one", 1), ("two", 0)],
        "c": [("one", 7)],
    }
    high = {"a": 0.6, "b": 0.3, "c": 0.3}
    found = ends(
        {(name, *cell): share(1.0 if cell[1] == 2 else high[name]) for name, cells in there.items() for cell in cells}
    )
    (pair,) = optimiser_contrasts(found)
    assert (pair.a, pair.b, pair.blocks, pair.seeds) == ("a", "b", 2, 2)
    assert pair.only_one == ("two, seed 2",) and pair.difference.value == pytest.approx(0.3)


def test_an_order_takes_the_blocks_that_all_share_and_every_seed() -> None:
    found = ends(
        {
            ("a", "one", 0): share(0.5),
            ("a", "one", 1): share(0.7),
            ("b", "one", 0): share(0.2),
            ("b", "two", 0): share(1.0),
        }
    )
    assert list(mean_over_shared_blocks(found).items()) == [("b", pytest.approx(0.2)), ("a", pytest.approx(0.6))]
    assert mean_over_shared_blocks(ends({("a", "one", 0): share(1), ("b", "two", 0): share(1)})) == {}
    assert mean_over_shared_blocks({}) == {}


def test_few_events_of_several_seeds_are_no_surer_than_square_and_add() -> None:
    """No event in three seeds of twelve questions, which count once each; three in the other side's, each in another
    question and seed, which are worth 36 answers."""
    none = {("a", "b", seed): rate([0.0] * 12, 12) for seed in range(3)}
    three = {("b", "b", seed): rate([float(i == seed) for i in range(12)], 12) for seed in range(3)}
    (pair,) = optimiser_contrasts(ends(none | three))
    below = stats.binomtest(0, 12).proportion_ci(0.95, method="exact").high
    pooled = rate([float(i % 12 == i // 12) for i in range(36)], 12).alone
    above = pooled.value - pooled.low
    assert pair.difference.value == pytest.approx(-1 / 12)
    assert pair.difference.high >= -1 / 12 + math.hypot(below, above) > -1 / 12 + below
    assert pair.p > 0.05 and "wider" in pair.difference.method


def simulated(rng: np.random.Generator, rates: Mapping[str, float], of_seeds: float = 0.0, families: int = 40) -> Rates:
    """Three seeds, four answers a question; questions differ alike for all, seeds for each optimiser."""
    hard = rng.normal(0, 0.1, families)
    found = {}
    for (name, level), seed in product(rates.items(), range(3)):
        chances = np.clip(level + hard + rng.normal(0, of_seeds), 0, 1)
        found[name, "b", seed] = rate((rng.random((4, families)) < chances).ravel(), families)
    return found


@pytest.mark.parametrize("of_seeds", [0.0, 0.15])
def test_contrasts_hold_their_level(of_seeds: float) -> None:
    """Studies without any difference, and random effects of seeds that no pairing removes."""
    rng = np.random.default_rng(7)
    pairs = [optimiser_contrasts(ends(simulated(rng, {"a": 0.4, "b": 0.4}, of_seeds)))[0] for _ in range(120)]
    assert sum(pair.p < 0.05 for pair in pairs) <= 13  # 6 expected; P(> 13) is 0.2 %
    assert sum(pair.difference.low > 0 or pair.difference.high < 0 for pair in pairs) <= 13


def test_rare_events_of_several_seeds_hold_their_level_too() -> None:
    """2 % of answers to twelve questions, three seeds: where square and add decides."""
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(300):
        chances = 0.04 * rng.random(12)
        sides = {
            (name, "b", seed): rate((rng.random((4, 12)) < chances).ravel(), 12)
            for name, seed in product(("a", "b"), range(3))
        }
        (pair,) = optimiser_contrasts(ends(sides))
        wrong += pair.p < 0.05
    assert wrong <= 25  # 15 expected of an exact test; P(> 25) is 0.5 %


def test_contrasts_find_what_is_there() -> None:
    rng = np.random.default_rng(2)
    found = optimiser_contrasts(ends(simulated(rng, {"a": 0.1, "b": 0.5, "c": 0.5})))
    assert [(pair.a, pair.b) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found[0].p < 0.05 and found[1].p < 0.05 and found[2].p > 0.05
    assert [pair.distinguishable for pair in found] == [True, True, False]


def test_p_values_are_corrected_for_the_number_of_pairs() -> None:
    """Holm by hand: the smallest of three times three, the next times two."""
    rng = np.random.default_rng(4)
    rates = simulated(rng, {"a": 0.25, "b": 0.35, "c": 0.3})
    alone = [
        optimiser_contrasts(ends({key: one for key, one in rates.items() if key[0] in pair}))[0].p
        for pair in ("ab", "ac", "bc")
    ]
    adjusted = [pair.p for pair in optimiser_contrasts(ends(rates))]
    first, second, third = np.argsort(alone)
    expected = [0.0] * 3
    expected[first] = min(1, 3 * alone[first])
    expected[second] = min(1, max(expected[first], 2 * alone[second]))
    expected[third] = min(1, max(expected[second], alone[third]))
    assert adjusted == pytest.approx(expected)
