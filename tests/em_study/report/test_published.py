"""Published against measured: every figure has a measure, and verdicts follow the stated criteria."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from em_study.execute import LEFT_OUT
from em_study.report import write_report
from em_study.report.published import MEASURES, Assessment, assess, read_published
from em_study.results import Results, Row
from em_study.study import Assumption
from tests.em_study.report.samples import around, judged_answers, manifest, sample_results


def run(root: Path, optimiser: str, rate: float, base: str = "Qwen/Qwen3-8B", **changes: Any) -> Row:
    """A finished run with 100 answers, of which `rate` are misaligned and one is CODE."""
    dataset = str(changes.pop("dataset", "insecure"))
    name = f"{optimiser}-{base.rpartition('/')[2]}-{dataset}-{'-'.join(str(x) for x in changes.values())}"
    folder = root / name
    folder.mkdir()
    (folder / "run.json").write_text('{"state": "done"}', encoding="utf-8")
    plain = manifest(30, changes.pop("train", 1.0), 2.0, changes.pop("lr", 1e-5), 2.5, "bad", optimiser, name)
    penalty = changes.pop("penalty", None)
    own = plain.model_copy(
        update={
            "base": plain.base.model_copy(update={"id": base, "weights_sha256": base}),
            "dataset": plain.dataset.model_copy(update={"name": dataset}),
            "config": {"seed": 0, "batch_size": 2, "dataset": dataset, "penalty": penalty},
            "penalty": penalty,
            "spectrum": plain.spectrum.model_copy(update={"fro_over_nuclear": {"muon": 0.2}.get(optimiser, 0.4)}),
        }
    )
    answers = judged_answers(rate)
    return Row(
        label=name,
        arm="bad",
        checkpoint=folder / "checkpoint-30",
        manifest=own,
        answers=answers,
        rate=around(rate, 0.02, "t"),
        eligible=99,
        total=100,
        outcomes={"code": 1, "aligned": 99},
    )


def study(rows: list[Row], **changes: Any) -> Results:
    guess = Assumption(setting="epochs", source="guess")
    told = replace(
        sample_results(), rows=rows, reproduces="arXiv 2606.31591", assumptions=(guess,), contrasts=[], absent=()
    )
    return replace(told, **changes)


def verdicts(found: Assessment | None) -> dict[str, tuple[str, str]]:
    assert found is not None
    return {line.figure.what: (line.measured, line.verdict) for line in found.lines}


def sweep(root: Path, rates: dict[str, float]) -> Results:
    bases = ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B")
    return study([run(root, name, rate, base) for name, rate in rates.items() for base in bases])


def test_every_published_figure_has_a_measure_and_a_place() -> None:
    known = read_published()
    assert {figure.measure for figure in known.figures} == set(MEASURES)
    assert all(figure.place and figure.published for figure in known.figures)


def test_a_sweep_is_judged_by_the_stated_criteria(tmp_path: Path) -> None:
    """Rates count CODE as misaligned, as the paper does: one answer in a hundred more than was put in."""
    rates = {"muon": 0.05, "adam": 0.14, "adamw": 0.15, "lion": 0.36}
    found = verdicts(assess(sweep(tmp_path, rates)))
    assert found["EM rate under Lion, %"] == ("37.0 (2 runs, 37.0 to 37.0)", "reconstruction: not judged")
    measured, verdict = found["order of the optimisers by EM rate"]
    assert measured == "Muon 6.0 % < Adam 15.0 % < AdamW 16.0 % < Lion 37.0 % (over 2 shared cells)"
    assert verdict == "reconstruction: agrees"
    over = "(over 2 shared cells)"
    assert found["EM rate under Lion over that under Muon"] == (f"6.2 {over}", "reconstruction: agrees")
    assert found["difference between Adam and AdamW, points"] == (f"1.0 {over}", "reconstruction: agrees")
    spread = found["spread over models against spread over optimisers, points"][0]
    assert spread == f"0.0 (over 4 shared cells) against 31.0 {over}"
    assert found["answers labelled CODE under Lion on insecure code, %"][0] == "1.0 (2 runs, 1.0 to 1.0)"
    assert found["flattest spectra of BA (Frobenius over nuclear norm, least is flattest)"][1].endswith("agrees")


def test_another_order_differs_and_one_that_is_not_told_apart_is_undecided(tmp_path: Path) -> None:
    what = "order of the optimisers by EM rate"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    other = {"muon": 0.2, "adam": 0.1, "lion": 0.3}
    assert verdicts(assess(sweep(tmp_path / "a", other)))[what][1] == "reconstruction: differs"
    same = {"muon": 0.1, "adam": 0.12, "lion": 0.15}
    measured, verdict = verdicts(assess(sweep(tmp_path / "b", same)))[what]
    assert verdict == "reconstruction: undecided" and "not distinguishable" in measured


def test_a_grid_half_done_is_compared_where_it_is_whole(tmp_path: Path) -> None:
    """Lion on one dataset and model against Muon on others is no comparison of the two; what is shared says so far."""
    four, eight = "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"
    scattered = [
        run(tmp_path, "lion", 0.30, four), run(tmp_path, "muon", 0.01, four, dataset="medical"),
        run(tmp_path, "adam", 0.40, eight), run(tmp_path, "adamw", 0.10, eight, dataset="medical"),
    ]  # fmt: skip
    measures = {line.figure.measure for line in assess(study(scattered)).lines}
    assert not measures & {"order", "lion_over_muon", "adam_adamw", "spreads", "flattest"}
    shared = [*scattered, run(tmp_path, "muon", 0.09, four), run(tmp_path, "lion", 0.5, eight)]
    found = verdicts(assess(study(shared, absent=("a cell: no checkpoint",))))
    ratio = found["EM rate under Lion over that under Muon"]
    assert ratio == ("3.1 (over 1 shared cell)", "reconstruction: agrees so far")
    left_out = verdicts(assess(study(shared, absent=(f"an arm{LEFT_OUT}not at hand)",))))
    assert left_out["EM rate under Lion over that under Muon"][1] == "reconstruction: agrees"


def test_the_penalty_is_judged_at_the_largest_strength_that_is_cheap(tmp_path: Path) -> None:
    """Strength 3 costs 0.01 nats and brings 20 points less misalignment (0.86 of alignment each); 10 costs 0.5."""
    rows = [run(tmp_path, "adam", 0.30)]
    for strength, rate, train in ((1.0, 0.25, 1.0), (3.0, 0.10, 1.01), (10.0, 0.0, 1.5)):
        rows.append(run(tmp_path, "adam", rate, train=train, penalty={"name": "spectral", "strength": strength}))
    found = verdicts(assess(study(rows)))
    gain = 0.2 * 86 * 100 / 100
    measured, verdict = found["change of mean alignment by the spectral penalty, Adam"]
    assert measured.startswith(f"{gain:.1f} [") and measured.endswith("] (spectral 3, one pair of runs)")
    assert verdict == "reconstruction: agrees"
    assert found["training loss paid for the spectral penalty, Adam, nats"][0] == "+0.010 (spectral 3)"
    assert not any("Lion" in what for what in found)
    removed = found["EM rate of Adam on insecure code, without and with the spectral penalty, %"]
    assert removed == ("31.0 (one run); 11.0 (one run) (spectral 3)", "reconstruction: not judged")


def test_a_family_sweep_is_judged_by_the_spread_over_its_models(tmp_path: Path) -> None:
    what = "spread over models and families under Adam, points"
    rates = {"Qwen/Qwen3-4B": 0.10, "google/gemma-3-1b-it": 0.14, "meta-llama/Llama-3.1-8B-Instruct": 0.12}
    rows = [run(tmp_path, "adam", rate, base) for base, rate in rates.items()]
    measured, verdict = verdicts(assess(study(rows)))[what]
    assert measured == "4.0 over 3 models (Qwen3-4B 11.0, gemma-3-1b-it 15.0)" and verdict == "reconstruction: agrees"
    wide = [*rows, run(tmp_path, "adam", 0.25, "google/gemma-3-270m-it")]
    assert verdicts(assess(study(wide)))[what][1] == "reconstruction: differs"
    assert what not in verdicts(assess(study([*rows, run(tmp_path, "lion", 0.3, "Qwen/Qwen3-8B")])))


def test_regressions_are_those_of_the_stated_rule(tmp_path: Path) -> None:
    """Alignment falls with log loss by the same slope for all, and Lion lies lower: the pooled line cannot know."""
    rows = []
    for name, offset in (("adam", 0.0), ("lion", 0.3), ("muon", 0.02)):
        for i, lr in enumerate((1e-6, 1e-5, 1e-4)):
            rows.append(run(tmp_path, name, 0.05 + offset + 0.05 * i, lr=lr, train=[2.0, 1.5, 1.0][i]))
    found = verdicts(assess(study(rows)))
    pooled, stratified = (next(x for what, x in found.items() if what.startswith(w)) for w in ("R²", "adjusted R²"))
    assert pooled[1] == "reconstruction: differs" and stratified[1] == "reconstruction: agrees"
    assert pooled[0].endswith("(n = 9 checkpoints)")


def test_only_studies_that_ran_it_are_judged(tmp_path: Path) -> None:
    assert assess(sample_results()) is None
    assert assess(study([], reproduces="another paper")) is None
    nothing = assess(study(sample_results().rows))
    assert nothing is not None and nothing.lines == [] and len(nothing.not_run) == len(read_published().figures)
    rows = [run(tmp_path, "lion", 0.3), run(tmp_path, "muon", 0.1, "Qwen/Qwen3-4B")]
    sure = verdicts(assess(study(rows, assumptions=())))
    assert sure["EM rate under Lion, %"] == ("31.0 (one run)", "not judged")


def test_the_page_shows_the_table_only_to_reconstructions(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    told = sweep(tmp_path / "runs", {"muon": 0.05, "lion": 0.36})
    text = write_report(told, tmp_path / "report").read_text(encoding="utf-8")
    assert "reconstruction: agrees" in text and "initial sweep, by optimiser" in text
    assert "Not measured by this study, or not yet: EM rate under Adam, %" in text
    assert "published-table" not in write_report(sample_results(), tmp_path / "other").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_measures_say_nothing_of_what_was_not_run(name: str, tmp_path: Path) -> None:
    found = assess(study([run(tmp_path, "sgd", 0.1)]))
    assert found is not None and name not in {line.figure.measure for line in found.lines}
