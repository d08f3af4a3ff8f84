"""Variance shares, regressions, matched runs and extremes, against formulas written out and simulation."""

import math
from dataclasses import replace
from itertools import count, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from em_core.errors import UserError
from em_core.manifest import Loss
from em_eval.intervals import Interval, rate_interval
from em_study.comparison import _shares, runs_by
from em_study.extremes import extremes
from em_study.loss_alignment import loss_alignment
from em_study.matched import Point, Run, at_end, at_level, furthest_common, match
from em_study.means import mean_over_seeds
from em_study.outcome import ALIGNMENT, PROBE, RATE, Outcome, Scale, outcome_of
from em_study.results import Row
from em_study.table import checkpoint_table
from em_study.variance import REST, sampling_variance, variance_shares
from tests.em_study.report.samples import followed_results, judged_answers, sample_results, trained_row


def grid(optimisers: int = 3, datasets: int = 2, seeds: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        [
            {"optimiser": f"o{o}", "dataset": f"d{d}", "batch": 2, "rate": 0.1 * o + 0.03 * d + rng.normal(0, 0.02)}
            for o, d, _ in product(range(optimisers), range(datasets), range(seeds))
        ]
    )


def test_shares_of_variance_are_those_of_the_balanced_formulas() -> None:
    data = grid()
    found = variance_shares(data, "rate", ["optimiser", "dataset", "batch"])
    whole = data["rate"].mean()
    total = ((data["rate"] - whole) ** 2).sum()
    for axis, each in (("optimiser", 4), ("dataset", 6)):
        by_hand = sum(each * (part["rate"].mean() - whole) ** 2 for _, part in data.groupby(axis)) / total
        assert found.shares[axis] == pytest.approx(by_hand)
    within = sum(
        ((part["rate"] - part["rate"].mean()) ** 2).sum() for _, part in data.groupby(["optimiser", "dataset"])
    )
    cells = data.groupby(["optimiser", "dataset"])["rate"].mean()
    crossed = 2 * sum(
        (mean - data[data.optimiser == o].rate.mean() - data[data.dataset == d].rate.mean() + whole) ** 2
        for (o, d), mean in cells.items()
    )
    assert found.shares[REST] == pytest.approx((within + crossed) / total)
    assert sum(found.shares.values()) == pytest.approx(1) and found.balanced and found.sampling is None
    assert set(found.shares) == {"optimiser", "dataset", REST} and found.runs == 12
    rest = found.shares[REST] / 8
    f = found.shares["optimiser"] / 2 / rest
    assert found.p["optimiser"] == pytest.approx(stats.f.sf(f, 2, 8))


def test_settings_of_an_optimiser_are_no_spread_between_seeds() -> None:
    """Two rates of each optimiser, two seeds of each rate: the sums of squares by hand."""
    rng = np.random.default_rng(6)
    data = pd.DataFrame(
        [
            {"optimiser": o, "lr": lr, "schedule": None, "rate": base + lift + rng.normal(0, 0.01)}
            for o, base, rates in (("adam", 0.1, {1e-5: 0.0, 1e-4: 0.2}), ("lion", 0.3, {1e-6: 0.0, 1e-5: 0.3}))
            for lr, lift in rates.items()
            for _ in range(2)
        ]
    )
    found = variance_shares(data, "rate", ["optimiser"], ["lr", "schedule"])
    total = ((data["rate"] - data["rate"].mean()) ** 2).sum()
    rest = sum(((part["rate"] - part["rate"].mean()) ** 2).sum() for _, part in data.groupby(["optimiser", "lr"]))
    means = data.groupby(["optimiser", "lr"])["rate"].mean().unstack(0)
    between = 2 * sum(((means[name].dropna() - means[name].mean()) ** 2).sum() for name in ("adam", "lion"))
    assert found.shares[REST] == pytest.approx(rest / total)
    assert found.shares["settings"] == pytest.approx(between / total) and found.shares["settings"] > 0.3
    assert sum(found.shares.values()) == pytest.approx(1) and found.balanced
    single = variance_shares(data.groupby(["optimiser", "lr"], as_index=False).first(), "rate", ["optimiser"], ["lr"])
    assert set(single.shares) == {"optimiser", "settings", REST}


def test_the_sampling_of_answers_is_no_effect_of_seeds() -> None:
    """Forty equal runs of 24 questions, four answers each: their whole spread is what sampling alone makes."""
    rng = np.random.default_rng(12)
    difficulty = rng.uniform(0, 0.8, 24)
    families = [f"q{f}" for f in range(24) for _ in range(4)]
    drawn = [rng.binomial(1, np.repeat(difficulty, 4)).astype(float).tolist() for _ in range(200)]
    pooled = sampling_variance([(values, families) for values in drawn])
    assert pooled == pytest.approx(float((difficulty * (1 - difficulty)).mean() / 96), rel=0.05)
    runs = pd.DataFrame(
        {"optimiser": [i % 4 for i in range(40)], "seed": [i // 4 for i in range(40)]}
        | {"rate": [np.mean(values) for values in drawn[:40]]}
    )
    found = variance_shares(runs, "rate", ["optimiser", "seed"], answers=[(v, families) for v in drawn[:40]])
    assert found.sampling == pytest.approx(1, abs=0.4) and found.balanced and set(found.p) == {"optimiser", "seed"}
    assert sampling_variance([([1.0], ["q"])]) is None


def test_penalties_are_an_axis_only_where_all_runs_have_them() -> None:
    """Ten runs, two of them penalised: no balanced grid; the eight without are one."""
    rows = [
        trained_row(f"{name}, seed {seed}", "bad", 0.1 * number + 0.01 * seed * number, 3.0, [1.0])
        for number, name in enumerate(("adam", "lion"))
        for seed in range(4)
    ]
    for number, row in enumerate(rows):
        rows[number] = _of_seed(row, number % 4)
    rows += [_of_seed(row, row.manifest.config["seed"], {"name": "spectral", "strength": 1.0}) for row in rows[:2]]
    found = _shares(rows, checkpoint_table({"": replace(sample_results(), rows=rows)}), "rate", "rate")
    assert found.runs == 8 and found.balanced and {"optimiser", "seed"} <= set(found.shares)
    both = [
        *rows[:8],
        *(_of_seed(row, row.manifest.config["seed"], {"name": "spectral", "strength": 1.0}) for row in rows[:8]),
    ]
    found = _shares(both, checkpoint_table({"": replace(sample_results(), rows=both)}), "rate", "rate")
    assert found.runs == 16 and found.balanced and "penalty" in found.shares


def _of_seed(row: Row, seed: int, penalty: dict[str, object] | None = None) -> Row:
    config = row.manifest.config | {"seed": seed, "penalty": penalty}
    own = row.manifest.model_copy(update={"config": config, "penalty": penalty, "run_id": f"{row.label}{penalty}"})
    return replace(row, manifest=own, checkpoint=Path(f"runs/{row.label}{penalty}/checkpoint-34"), run_done=True)


def test_an_unbalanced_grid_says_so_and_a_poor_one_is_refused() -> None:
    assert not variance_shares(grid().iloc[1:], "rate", ["optimiser", "dataset"]).balanced
    with pytest.raises(UserError, match="2 runs that vary optimiser: too few"):
        variance_shares(grid(2, 1, 1), "rate", ["optimiser", "dataset"])


def points(slopes: dict[str, float], offsets: dict[str, float], noise: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    return pd.DataFrame(
        [
            {
                "run_id": f"{name}{dataset}{i}",
                "label": f"{name}{dataset}{i}",
                "optimiser": name,
                "dataset": dataset,
                "train_loss": loss,
                "mean_alignment": 70 + offsets[name] + slopes[name] * math.log(loss) + rng.normal(0, noise),
            }
            for name in slopes
            for dataset in ("d1", "d2")
            for i, loss in enumerate([0.6, 0.9, 1.4, 2.2])
        ]
    )


def test_regressions_agree_with_the_normal_equations() -> None:
    """All three fits by numpy's least squares, R2 and its adjustment by their formulas, F tests from the residuals."""
    data = points({"adam": 20, "lion": 35, "muon": 12}, {"adam": 0, "lion": -25, "muon": 8}, noise=2.0)
    found = loss_alignment(data)
    x, y = np.log(data["train_loss"].to_numpy()), data["mean_alignment"].to_numpy()
    dummies = np.stack([(data["optimiser"] == name).to_numpy(float) for name in ("lion", "muon")], axis=1)
    ones = np.ones((len(x), 1))
    designs = {
        "pooled": np.hstack([ones, x[:, None]]),
        "common slope": np.hstack([ones, dummies, x[:, None]]),
        "own slopes": np.hstack([ones, dummies, x[:, None], dummies * x[:, None]]),
    }
    sums, total = {}, float(((y - y.mean()) ** 2).sum())
    for name, design in designs.items():
        beta, *_ = np.linalg.lstsq(design, y, rcond=None)
        sums[name] = float(((y - design @ beta) ** 2).sum())
        r2, n, k = 1 - sums[name] / total, len(y), design.shape[1]
        assert found.fits[name].r2 == pytest.approx(r2) and found.fits[name].n == n
        assert found.fits[name].adjusted_r2 == pytest.approx(1 - (1 - r2) * (n - 1) / (n - k))
        if name == "common slope":
            assert found.offsets["lion"].value == pytest.approx(beta[1]) and found.reference == "adam"
            assert found.fits[name].slope.value == pytest.approx(beta[3])
            error = math.sqrt(sums[name] / (n - k) * np.linalg.inv(design.T @ design)[3, 3])
            reach = stats.t.ppf(0.975, n - k) * error
            assert found.fits[name].slope.high - beta[3] == pytest.approx(reach)
    f = (sums["common slope"] - sums["own slopes"]) / 2 / (sums["own slopes"] / (24 - 6))
    assert found.p_slopes == pytest.approx(stats.f.sf(f, 2, 18))
    f = (sums["pooled"] - sums["common slope"]) / 2 / (sums["common slope"] / (24 - 4))
    assert found.p_optimiser == pytest.approx(stats.f.sf(f, 2, 20))
    assert found.slopes["lion"] == pytest.approx(35, abs=5) and found.warnings == [] and found.left_out == []


def test_leaving_one_out_predicts_it_from_the_others() -> None:
    data = points({"adam": 20, "lion": 20}, {"adam": 0, "lion": -10})
    by_group = {left.group: left for left in loss_alignment(data).without_optimiser}
    assert by_group["lion"].bias == pytest.approx(-10) and by_group["lion"].rmse == pytest.approx(10)
    assert by_group["adam"].bias == pytest.approx(10) and by_group["adam"].n == 8
    datasets = loss_alignment(data).without_dataset
    assert [left.group for left in datasets] == ["d1", "d2"] and datasets[0].bias == pytest.approx(0)


def test_simpson_reversals_are_warned_of() -> None:
    """Within each dataset alignment falls with loss, between them it rises."""
    data = points({"adam": -10}, {"adam": 0})
    data.loc[data["dataset"] == "d2", "train_loss"] *= 20
    data.loc[data["dataset"] == "d2", "mean_alignment"] += 60
    (warning,) = loss_alignment(data).warnings
    assert warning.startswith("the slope turns round within datasets (-10.00 against +")
    odd = points({"adam": 20, "lion": 20, "sgd": -5}, {"adam": 0, "lion": 0, "sgd": 0})
    (warning,) = loss_alignment(odd).warnings
    assert warning.startswith("the slope within optimiser sgd (-5.00) is opposite to the pooled one (+")


def test_checkpoints_of_one_run_are_clustered_and_lost_ones_named() -> None:
    data = points({"adam": 20}, {"adam": 0}, noise=3)
    data["run_id"] = data["dataset"].map({"d1": "r1", "d2": "r2"}) + (data["train_loss"] > 1).map(
        {True: "a", False: "b"}
    )
    data.loc[0, "mean_alignment"] = None
    found = loss_alignment(data)
    assert found.left_out == ["adamd10"] and list(found.fits) == ["pooled"] and found.fits["pooled"].n == 7
    slope = found.fits["pooled"].slope
    assert slope is not None and "clustered by run" in slope.method
    with pytest.raises(UserError, match="2 checkpoints have both held_out_loss and mean alignment"):
        loss_alignment(data.head(3).assign(held_out_loss=1.0), "held_out_loss")


def test_tests_of_optimisers_are_clustered_by_run() -> None:
    """Wald's statistic from the sandwich over runs, by hand; checkpoints that repeat each other are no evidence."""
    data = points({"adam": 20, "lion": 20}, {"adam": 0, "lion": -6}, noise=4.0)
    data["run_id"] = data["optimiser"] + data["dataset"] + (data.index % 4 // 2).astype(str)
    found = loss_alignment(data, base_model="m")
    x = np.log(data["train_loss"].to_numpy())
    design = np.stack([np.ones(16), (data["optimiser"] == "lion").to_numpy(float), x], axis=1)
    y = data["mean_alignment"].to_numpy()
    bread = np.linalg.inv(design.T @ design)
    beta = bread @ design.T @ y
    scores = pd.DataFrame(design * (y - design @ beta)[:, None]).groupby(data["run_id"]).sum().to_numpy()
    runs, n, k = len(scores), len(y), 3
    sandwich = bread @ scores.T @ scores @ bread * runs / (runs - 1) * (n - 1) / (n - k)
    assert runs == 8 and found.clustered and found.base_model == "m"
    assert found.p_optimiser == pytest.approx(stats.f.sf(beta[1] ** 2 / sandwich[1, 1], 1, runs - 1))
    few = loss_alignment(data.assign(run_id=data["optimiser"]))
    assert few.p_optimiser is None and few.offsets == {} and few.fits["pooled"].slope is None


COUNTER = count()
FAMILIES = 400  # so many that t is a normal


def around(value: float, reach: float = 0.1, scale: Scale = PROBE) -> Outcome:
    """An outcome of families of its own, nothing in common with any other."""
    names = [str(next(COUNTER)) for _ in range(FAMILIES)]
    apart = reach / stats.t.ppf(0.975, FAMILIES - 1) * math.sqrt(FAMILIES - 1)
    found = outcome_of([value + (apart if i % 2 else -apart) for i in range(FAMILIES)], names, scale)
    assert found is not None
    return found


def run(name: str, xs: list[float], ys: list[float], block: str = "b", seed: int = 0, scale: Scale = PROBE) -> Run:
    points = tuple(Point(10 * i, x, around(y, scale=scale)) for i, (x, y) in enumerate(zip(xs, ys, strict=True)))
    return Run(name, name.split()[0], block, points, seed=seed)


def test_a_run_is_interpolated_where_it_first_crosses_the_level() -> None:
    found = at_level(run("adam", [3.0, 2.0, 1.0, 2.5], [0.0, 0.2, 0.6, 0.9]), 1.25)
    assert found.step == pytest.approx(17.5)
    assert found.outcome is not None and found.outcome.value == pytest.approx(0.25 * 0.2 + 0.75 * 0.6)
    assert found.outcome.alone.high - 0.5 == pytest.approx(0.1 * math.hypot(0.25, 0.75), rel=1e-2)
    exact = at_level(run("adam", [3.0, 2.0], [0.0, 0.2]), 2.0)
    assert exact.outcome is not None and (exact.outcome.value, exact.step) == (pytest.approx(0.2), 10)


def test_the_crossing_is_found_by_every_checkpoint_that_tells_the_loss() -> None:
    """Evaluated at steps 0, 10 and 34; the loss is lowest at 19, which the evaluated ones do not show.

    Level 3.9 lies a quarter of the way from step 5 to 10. 3.775 is crossed between 10 and 19, and nowhere by the
    evaluated checkpoints alone; the outcome at that step lies between those of 10 and 34.
    """
    points = (Point(0, 4.6, around(0.0)), Point(10, 3.8, around(0.3)), Point(34, 3.82, around(0.2)))
    told = Run("sgd", "sgd", "b", points, between=((2, 4.5), (5, 4.2), (19, 3.75), (50, 3.0)))
    assert [step for step, _ in told.path] == [0, 2, 5, 10, 19, 34]
    early = at_level(told, 3.9)
    assert early.step == pytest.approx(5 + 5 * 0.3 / 0.4) and early.outcome is not None
    assert early.outcome.value == pytest.approx(0.3 * early.step / 10)
    late = at_level(told, 3.775)
    assert late.step == pytest.approx(14.5) and late.outcome is not None
    assert late.outcome.value == pytest.approx(0.3 - 0.1 * 4.5 / 24)
    assert at_level(replace(told, between=()), 3.775).outcome is None
    assert furthest_common("held_out_loss", [told]) == 3.75


def test_checkpoints_that_nobody_evaluated_tell_their_losses(tmp_path: Path) -> None:
    """The loss of step 20 is in its manifest; a checkpoint with half a manifest is none."""
    row = replace(
        trained_row("Adam, step 34", "bad", 0.2, 3.7, [1.0]),
        checkpoint=tmp_path / "run" / "checkpoint-34",
        answers=judged_answers(0.2),
    )
    losses = {0: 4.6, 20: 3.5, 34: 3.7}
    for step, loss in losses.items():
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        own = row.manifest.model_copy(update={"step": step, "loss": Loss(train=1.0, window=1, held_out=loss)})
        (folder / "em.json").write_text(own.model_dump_json(), encoding="utf-8")
    (tmp_path / "run" / "checkpoint-5").mkdir()
    (tmp_path / "run" / "checkpoint-5" / "em.json").write_text('{"schema', encoding="utf-8")
    (tmp_path / "run" / "run.json").write_text('{"state": "done"}', encoding="utf-8")
    ((run,), missing) = runs_by(
        replace(sample_results(), rows=[replace(sample_results().rows[0], answers=row.answers), row]),
        "held_out_loss",
        "rate",
    )
    assert missing == [] and run.path == [(0, 4.6), (20, 3.5), (34, 3.7)] and len(run.points) == 2


def test_a_run_that_never_reaches_the_level_is_listed_as_such() -> None:
    runs = [run("adam", [3, 1], [0, 1]), run("sgd", [3, 2.5], [0, 0.1]), run("lion", [3], [0])]
    (block,), short = match("train_loss", runs, level=2.0)
    (found,) = block.contrasts
    assert [one.outcome is None for one in found.runs] == [False, True] and found.difference is None
    assert found.runs[1].why == "never reaches 2 (from 3 to 2.5)"
    assert short == ["lion (b): 1 of the two checkpoints that following it takes"]
    assert at_level(Run("x", "x", "b", ()), 1.0).why == "never reaches 1 (without a checkpoint)"


@pytest.mark.parametrize(("quantity", "level"), [("held_out_loss", 2.5), ("norm_ba", 2.5)])
def test_the_level_is_the_furthest_that_all_reach(quantity: str, level: float) -> None:
    falling = [run("adam", [3, 1], [0, 1]), run("sgd", [3, 2.5], [0, 1])]
    rising = [run("adam", [0, 9], [0, 1]), run("sgd", [0, 2.5], [0, 1])]
    assert furthest_common(quantity, falling if quantity == "held_out_loss" else rising) == level
    assert furthest_common(quantity, [run("adam", [1], [1])]) is None and furthest_common(quantity, []) is None


def test_blocks_are_matched_apart_and_optimisers_contrasted_within() -> None:
    runs = [
        run("adam 0", [3, 1], [0, 1]), run("adam 1", [3, 1], [0, 0.8], seed=1),
        run("lion 0", [3, 2], [0, 0.9]), run("lion 1", [3, 2], [0, 0.5], seed=1),
        run("adam 2", [5, 4], [0, 1], "c"), run("lion 2", [5, 3], [0, 1], "c"),
    ]  # fmt: skip
    (first, second), short = match("train_loss", runs)
    (contrast,) = first.contrasts
    assert (first.block, contrast.level, second.block, second.contrasts[0].level) == ("b", 2, "c", 4) and short == []
    assert (contrast.a, contrast.b, contrast.set_by) == ("adam", "lion", "lion 0")
    assert contrast.difference.value == pytest.approx((0.5 + 0.4) / 2 - (0.9 + 0.5) / 2)
    assert second.contrasts[0].difference.value == pytest.approx(1.0 - 0.5)


def test_a_run_that_does_not_learn_spoils_its_own_pairs_only() -> None:
    runs = [run("adam", [3, 1], [0, 1]), run("lion", [3, 1.5], [0, 0.9]), run("sgd", [3, 3.1], [0, 0])]
    (found,), _ = match("held_out_loss", runs)
    by_pair = {(one.a, one.b): one for one in found.contrasts}
    assert by_pair["adam", "lion"].level == 1.5 and by_pair["adam", "lion"].difference.value == pytest.approx(-0.15)
    for pair in (("adam", "sgd"), ("lion", "sgd")):
        assert by_pair[pair].level == 3 and by_pair[pair].set_by == "sgd"


def test_settings_count_alike_at_a_level_and_have_no_common_end() -> None:
    """Two seeds of one rate and one of another: 0.9 and 0.5 for Adam at loss 2, not the mean over its runs."""
    ends = (("x", 0.8), ("x", 1.0), ("y", 0.5))
    adam = [replace(run("adam", [3, 2], [0, y]), label=f"adam {setting} {y}", setting=setting) for setting, y in ends]
    (found,), _ = match("held_out_loss", [*adam, run("lion", [3, 2], [0, 0.1])])
    (contrast,) = found.contrasts
    assert contrast.difference.value == pytest.approx((0.9 + 0.5) / 2 - 0.1) and contrast.settings == (2, 1)
    assert at_end([*adam, run("lion", [3, 2], [0, 0.1])]) == []


def test_the_two_ends_of_many_treatments_allow_for_having_been_picked() -> None:
    """At the end and at the loss that all runs reach which learn; intervals from the studentised range, by hand."""
    made = {"a": ([3, 2], [0, 0.1]), "b": ([3, 1], [0, 0.6]), "c": ([3, 1.5], [0, 0.3]), "d": ([3, 2.9], [0, 0.9])}
    runs = [replace(run(name, *points), treatment=name, data="m") for name, points in made.items()]
    (end, level), missing = extremes(runs, runs)
    assert missing == [] and end.level is None and (end.lowest.treatment, end.highest.treatment) == ("a", "d")
    reach = stats.studentized_range.ppf(0.95, 4, FAMILIES - 1) / math.sqrt(2) * math.hypot(0.1, 0.1) / 1.96
    assert (end.difference.low, end.difference.high) == pytest.approx((0.8 - reach, 0.8 + reach), rel=1e-2)
    assert level.level == 2 and (level.lowest.treatment, level.highest.treatment) == ("a", "b")
    assert level.difference.value == pytest.approx(0.3 - 0.1) and level.treatments == 3
    assert level.short == ("d: never reaches 2 (from 3 to 2.9)",)
    seeds = [
        replace(one, label=f"{one.label}{i}", points=(Point(0, 3, around(i / 2)),)) for one in runs for i in (0, 1)
    ]
    ((few,), missing) = extremes(seeds[:4], seeds[:4])
    assert missing == ["extremes at equal held-out loss, m: no two runs whose loss falls along checkpoints"]
    reach = stats.studentized_range.ppf(0.95, 2, 2) * math.sqrt(0.125 / 2)  # of seeds, by far the larger
    assert few.difference.value == 0 and few.difference.high == pytest.approx(reach) and few.highest.runs == 2
    assert few.highest.answers == FAMILIES


def test_one_question_says_nothing_of_a_range_and_two_little() -> None:
    assert outcome_of([1.0, 0.0], ["q", "q"], RATE) is None
    sides = {y: outcome_of([y, y], ["q", "r"], RATE) for y in (0.0, 1.0)}
    ends = [Run(str(y), "o", "b", (Point(1, 1, one),), treatment=str(y)) for y, one in sides.items() if one]
    ((found,), _) = extremes(ends, [])
    assert found.difference.value == found.difference.high == 1 and -1 < found.difference.low < 0


def test_a_range_of_equal_scores_is_not_sure_to_be_none() -> None:
    """Two treatments whose 24 questions got the same scores: other questions may differ, as of two optimisers."""
    scores, names = [50.0 + i for i in range(24)], [f"q{i}" for i in range(24)]
    runs = [
        Run(name, name, "b", (Point(1, 1, one),), treatment=name, data="m")
        for name in ("a", "b")
        if (one := outcome_of(scores, names, ALIGNMENT))
    ]
    ((found,), _) = extremes(runs, [])
    assert found.difference.high == pytest.approx(100 * (1 - 0.025 ** (1 / 24))) == -found.difference.low


def test_runs_at_their_start_are_the_same(tmp_path: Path) -> None:
    """The level at which neither has learnt anything: the base model's answers on both sides."""
    runs, _ = runs_by(followed_results(tmp_path), "held_out_loss", "rate")
    (block, *_), _ = match("held_out_loss", runs, level=4.0)
    assert block.contrasts[0].difference == Interval(0, 0, 0, "paired by family and seed") and block.contrasts[0].p == 1


def test_a_range_of_few_events_is_square_and_add_stretched() -> None:
    """Three treatments with 1, 3 and 8 events of twenty questions: by hand, as for two but by Tukey's range."""
    names = [f"q{i}" for i in range(20)]
    made = {hits: outcome_of([float(i < hits) for i in range(20)], names, RATE) for hits in (1, 3, 8)}
    runs = [
        Run(str(hits), "o", "b", (Point(1, 1, one),), treatment=str(hits), data="m")
        for hits, one in made.items()
        if one
    ]
    ((found,), _) = extremes(runs, [])
    few, many = (stats.binomtest(hits, 20).proportion_ci(0.95, method="exact") for hits in (1, 8))
    phi = max(1 * 12 - 0 * 7 - 10, 0) / math.sqrt(8 * 12 * 1 * 19)
    down, up = 0.4 - many.low, few.high - 0.05
    reach = math.sqrt(down**2 + up**2 - 2 * phi * down * up)
    stretch = stats.studentized_range.ppf(0.95, 3, 19) / math.sqrt(2) / stats.t.ppf(0.975, 19)
    assert found.difference.value == pytest.approx(0.35)
    assert found.difference.value - found.difference.low == pytest.approx(stretch * reach)


@pytest.mark.parametrize(("families", "seeds", "of_seeds"), [(24, 1, 0.0), (64, 3, 0.0), (24, 3, 0.15), (64, 3, 0.3)])
def test_a_range_of_equal_treatments_is_covered(families: int, seeds: int, of_seeds: float) -> None:
    """Seven treatments without any difference, which answer the same questions: picking the ends finds one in about 5 %
    of studies, not in half."""
    rng = np.random.default_rng(9)
    names = [f"q{i}" for i in range(families)]
    wrong = 0
    for _ in range(150):
        questions = rng.normal(0, 1, families)
        runs = []
        for treatment, seed in product(range(7), range(seeds)):
            values = (questions + rng.normal(0, 1, families) + rng.normal(0, of_seeds)).tolist()
            y = outcome_of(values, names, PROBE)
            assert y is not None
            runs.append(Run(f"{treatment} {seed}", "o", "b", (Point(1, 1, y),), treatment=str(treatment), data="m"))
        ((found,), _) = extremes(runs, [])
        wrong += found.difference.low > 0
    assert wrong <= 16  # 7.5 expected; P(> 16) is 0.2 %


def test_intervals_of_means_by_hand() -> None:
    few = mean_over_seeds([around(0.4), around(0.6)])
    reach = stats.t.ppf(0.975, 1) * np.std([0.4, 0.6], ddof=1) / math.sqrt(2)
    assert (few.value, few.high) == pytest.approx((0.5, 0.5 + reach))  # seeds differ more than the answers' errors say
    assert mean_over_seeds([around(0.5), around(0.5)]).high == pytest.approx(0.5 + 0.1 / math.sqrt(2), rel=1e-2)
    spread = np.std([0.3, 0.3, 0.3, 0.4, 0.4, 0.4], ddof=1) / math.sqrt(6)
    many = mean_over_seeds([around(value) for value in (0.3, 0.3, 0.3, 0.4, 0.4, 0.4)])
    assert (
        stats.t.ppf(0.975, 5) * spread
        < many.high - 0.35
        == pytest.approx(math.hypot(0.1 / math.sqrt(6), 1.96 * spread), rel=1e-2)
    )


def test_a_mean_of_seeds_with_few_events_is_that_of_all_their_answers() -> None:
    """One event in each of three seeds, of other questions: as many answers as all three have, exactly."""
    names = [f"q{i}" for i in range(12)]
    seeds = [outcome_of([float(i == seed) for i in range(12)], names, RATE) for seed in range(3)]
    found = mean_over_seeds([one for one in seeds if one])
    pooled = rate_interval([float(i == seed) for seed in range(3) for i in range(12)], names * 3)
    assert pooled is not None and (found.low, found.high) == pytest.approx((pooled.low, pooled.high))


def test_means_of_seeds_are_covered_where_questions_and_seeds_vary() -> None:
    rng = np.random.default_rng(11)
    names, held = [f"q{i}" for i in range(30)], 0
    for _ in range(400):
        questions = rng.normal(0, 1, 30)
        seeds = [
            outcome_of((questions + rng.normal(0, 0.3, 30) + rng.normal(0, 0.2)).tolist(), names, PROBE)
            for _ in range(3)
        ]
        found = mean_over_seeds([one for one in seeds if one])
        held += found.low <= 0 <= found.high
    assert held >= 368  # 380 expected at 95 %; P(< 368) is 0.6 %


def test_intervals_end_where_the_outcome_does() -> None:
    """Two seeds at 22 and 40 %: Student's t with one degree of freedom would reach from -82 to 144."""
    share = Scale(0, 1)
    two = mean_over_seeds([around(0.22, scale=share), around(0.40, scale=share)])
    assert (two.value, two.low, two.high) == (pytest.approx(0.31), 0, 1)
    seeds = [
        replace(run(name, [3, 2], [0, y], seed=i, scale=share), label=f"{name}{y}")
        for name, ends in (("adam", (0.2, 0.9)), ("lion", (0.8, 0.1)))
        for i, y in enumerate(ends)
    ]
    ((found,), _) = match("held_out_loss", seeds)
    assert found.contrasts[0].difference == Interval(pytest.approx(0.1), -1, 1, "paired by family and seed")
    (end,) = at_end(seeds)
    assert (end.contrasts[0].difference.low, end.contrasts[0].difference.high) == (-1, 1)
    ends = [replace(one, treatment=one.optimiser, data="m") for one in seeds]
    ((ranked, *_), _) = extremes(ends, ends)
    assert ranked.highest.outcome.high == 1 and -1 <= ranked.difference.low < ranked.difference.high <= 1


def test_pairs_of_a_block_are_corrected_together_and_seeds_of_one_side_alone_are_named() -> None:
    runs = [run(name, [3, 1], [0, y]) for name, y in (("adam", 0.3), ("lion", 0.1), ("muon", 0.1))]
    runs.append(replace(run("lion", [3, 1], [0, 0.9], seed=1), label="lion, seed 1"))
    (found,), _ = match("held_out_loss", runs)
    one, other, same = found.contrasts
    raw = 2 * stats.norm.sf(0.2 / (math.hypot(0.1, 0.1) / 1.96))
    assert one.p == other.p == pytest.approx(3 * raw, rel=0.05) and same.p == 1.0
    assert [(run.run.label, run.why) for run in one.runs if run.outcome is None] == [
        ("lion, seed 1", "has a seed that the other lacks there")
    ]
    assert one.difference is not None and one.difference.value == pytest.approx(0.2)
    assert one.over == "2 runs, 1 seed"


def test_a_setting_without_a_seed_is_no_spread_between_seeds() -> None:
    """Two rates of Adam, of which one was run with seed 0 alone: seed 1 would be the other rate's."""
    runs = [
        replace(run("adam", [3, 1], [0, y], seed=seed), label=f"adam {lr} {seed}", setting=lr)
        for lr, seed, y in (("x", 0, 0.1), ("x", 1, 0.1), ("y", 0, 0.9))
    ]
    runs += [replace(run("lion", [3, 1], [0, 0.5], seed=seed), label=f"lion {seed}") for seed in (0, 1)]
    (found,), _ = match("held_out_loss", runs)
    (one,) = found.contrasts
    assert one.difference is not None and one.difference.value == pytest.approx(0.0, abs=1e-9)
    assert {run.run.label: run.why for run in one.runs if run.outcome is None} == {
        "adam x 1": "has a seed that not all settings of its optimiser have there",
        "lion 1": "has a seed that the other lacks there",
    }


def test_a_level_at_which_a_run_turns_round_says_so() -> None:
    runs = [run("adam", [3, 2, 2.5], [0, 0.5, 1]), run("lion", [3, 1], [0, 1])]
    (found,), _ = match("held_out_loss", runs)
    assert (found.contrasts[0].level, found.contrasts[0].set_by) == (2, "adam, where it turns round")
