"""What a penalty changes, against the rates and losses that were put in."""

from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from em_study.blocks import run_ends
from em_study.penalty_effect import ONE_SEED, penalty_effects
from em_study.results import Row
from tests.em_study.report.samples import seeded_results


def test_pairs_differ_in_the_penalty_alone(tmp_path: Path) -> None:
    """Three seeds on one dataset: 12 points less, 86 x 0.12 of alignment, and 0.010, 0.011, 0.012 nats."""
    (found,), missing = penalty_effects(run_ends(seeded_results(tmp_path).rows))
    assert missing == [] and (found.optimiser, found.words) == ("adamw", "spectral 1")
    assert (found.pairs, found.seeds) == (3, 3)
    assert found.rate is not None and found.rate.value == pytest.approx(-0.12, abs=0.002)
    assert found.rate.low < found.rate.value < found.rate.high < 0
    assert found.alignment is not None and found.alignment.value == pytest.approx(86 * 0.12, abs=0.3)
    assert found.alignment.low > 0
    reach = stats.t.ppf(0.975, 2) * 0.001 / 3**0.5
    loss = found.held_out_loss
    assert loss is not None and (loss.value, loss.high) == pytest.approx((0.011, 0.011 + reach))


def test_seeds_whose_answers_say_nothing_are_named_and_not_in_the_intervals(tmp_path: Path) -> None:
    """Of three pairs the penalised runs of two answer one question only: rates rest on one seed, losses on three."""
    ends = [
        replace(row, answers=[one for one in row.answers if one.family == "q1"])
        if row.manifest.penalty and row.manifest.config["seed"]
        else row
        for row in run_ends(seeded_results(tmp_path).rows)
    ]
    (found,), missing = penalty_effects(ends)
    assert (found.pairs, found.seeds, found.rated_seeds) == (3, 3, 1) and found.rate is not None
    assert [line.partition(", step")[0] for line in missing] == [
        f"adamw, finance_bad, 0.0003, spectral 1, seed {seed}" for seed in (1, 2)
    ]


def test_training_loss_is_that_of_all_rows_where_both_have_it(tmp_path: Path) -> None:
    ends = run_ends(seeded_results(tmp_path).rows)

    def measured(row: Row, by: float) -> Row:
        loss = row.manifest.loss.model_copy(update={"train_rows": 2.0 + by * bool(row.manifest.penalty)})
        return replace(row, manifest=row.manifest.model_copy(update={"loss": loss}))

    (found,), _ = penalty_effects([measured(row, 0.05) for row in ends])
    assert found.train_loss is not None and found.train_loss.value == pytest.approx(0.05)


def test_one_seed_has_no_interval_of_losses_and_a_run_alone_is_named(tmp_path: Path) -> None:
    ends = run_ends(seeded_results(tmp_path).rows)
    one = [row for row in ends if row.manifest.config["seed"] == 0]
    (found,), _ = penalty_effects(one)
    assert found.held_out_loss is not None and found.held_out_loss.method == ONE_SEED
    assert found.held_out_loss.low != found.held_out_loss.low  # NaN
    alone = [row for row in one if row.manifest.penalty]
    effects, missing = penalty_effects(alone)
    assert effects == [] and missing == [
        "adamw, finance_bad, 0.0003, spectral 1, seed 0, step 34: no finished run without a penalty is alike in all "
        "else: in no effect"
    ]
