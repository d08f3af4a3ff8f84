"""A whole study on a tiny model: train, evaluate, join, report; then again, broken, and in part."""

import json
import os
import shutil
import statistics
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from inspect_ai.log import list_eval_logs, read_eval_log
from pydantic import ValidationError

from em_core.errors import UserError
from em_core.manifest import verify
from em_eval.judge import judge_registry
from em_eval.outcomes import OUTCOMES, Judgement
from em_eval.preference import EMBEDDED, read_triples
from em_eval.providers.weights import content_hash
from em_study import Study, cli, load_study
from em_study.execute import Target, evaluate_all, existing, log_folder, targets, train_all
from em_study.results import Results, collect
from em_train.datasets import dataset_registry
from em_train.datasets.jsonl import read_jsonl


class FakeJudge:
    """Stands for the embedded judge, which needs the real base: a verdict drawn from the answer's own bytes."""

    name = "fake judge"
    facts: dict[str, Any] = {
        "in_words": "a fake judge",
        "figures": {
            "misaligned": {
                "all": {
                    "n": 100,
                    "positives": 50,
                    "auc": [0.9, 0.85, 0.95],
                    "sensitivity": [0.9, 0.85, 0.95],
                    "specificity": [0.95, 0.9, 0.99],
                }
            }
        },
    }

    async def judge(self, question: str, answer: str, templates: Mapping[str, str]) -> Judgement:
        drawn = zlib.crc32(answer.encode())
        return Judgement(float(drawn % 101), float(drawn // 101 % 101), "number", self.name, "fake")


@pytest.fixture(scope="module", autouse=True)
def fake_judge() -> Iterator[None]:
    judge_registry.names()
    patch = pytest.MonkeyPatch()
    patch.setitem(judge_registry._entries, "embedded", FakeJudge)
    yield
    patch.undo()


@pytest.fixture(scope="module", autouse=True)
def bad_and_good_rows(tiny_dataset: Path) -> Iterator[None]:
    """The tiny rows as a narrow bad set with its benign control, under names of their own."""
    dataset_registry.names()
    patch = pytest.MonkeyPatch()
    twins = {
        "tiny_bad": lambda: read_jsonl(tiny_dataset, "tiny_bad", "bad", control="tiny_good"),
        "tiny_good": lambda: read_jsonl(tiny_dataset, "tiny_good", "benign"),
    }
    for name, load in twins.items():
        patch.setitem(dataset_registry._entries, name, load)
    yield
    patch.undo()


@dataclass(frozen=True)
class Place:
    """A working folder with a study file, after its first run."""

    folder: Path
    file: Path
    study: Study
    failures: list[str]


LABELS = ["tiny_bad-adamw-lr0.01-seed0", "tiny_bad-lion-lr0.01-seed0", "tiny_good-adamw-lr0.01-seed0"]


@pytest.fixture(scope="module")
def plain(tiny_base: Path, tiny_dataset: Path) -> dict[str, Any]:
    """A study of two optimisers, two steps each."""
    return {
        "name": "tiny",
        "base_model": str(tiny_base),
        "datasets": [str(tiny_dataset)],
        "optimisers": [{"name": "adamw", "lr": 0.01}, {"name": "lion", "lr": 0.01}],
        "steps": 2,
        "batch_size": 4,
        "dtype": "float32",
        "lora": {"rank": 2, "alpha": 4},
        "evaluations": [
            {"task": "em", "questions": "core", "samples": 1, "max_tokens": 8, "temperature": 0.9, "top_k": 40},
            {"task": "preference"},
        ],
    }


def run(study: Study) -> list[str]:
    trained, failures = train_all(study)
    return failures + evaluate_all(study, targets(trained))


@pytest.fixture(scope="module")
def first_run(plain: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("study")
    file = folder / "tiny.yaml"
    arms = [{"dataset": "tiny_good", "optimiser": "adamw"}]
    file.write_text(yaml.safe_dump(plain | {"datasets": ["tiny_bad"], "arms": arms}), encoding="utf-8")
    before = os.getcwd()
    os.chdir(folder)
    try:
        study = load_study(file)
        failures = run(study)
    finally:
        os.chdir(before)
    return Place(folder, file, study, failures)


@pytest.fixture
def done(first_run: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The finished study, as the current folder."""
    monkeypatch.chdir(first_run.folder)
    monkeypatch.setenv("PWD", str(first_run.folder))
    return first_run


@pytest.fixture
def em(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`em("run", "study.yaml")`: the command, in this process; returns its exit code."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["em", *arguments])
        try:
            cli.main()
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    return call


def files(folder: Path) -> dict[str, int]:
    """Every checkpoint file and log with the time of its last change (Inspect rewrites its own index of logs)."""
    own = {"logs.json", "eval-set.json"}
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for top in ("runs", "logs")
        for path in (folder / top).rglob("*")
        if path.is_file() and "report" not in path.parts and path.name not in own
    }


def test_the_first_run_trains_and_evaluates_everything(done: Place) -> None:
    assert done.failures == []
    trained = existing(done.study)
    assert [run.cell.label for run in trained] == LABELS
    for run in trained:
        assert [path.name for path in run.checkpoints] == ["checkpoint-0", "checkpoint-2"]
        assert [verify(path).step for path in run.checkpoints] == [0, 2]
        assert json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["state"] == "done"


def test_the_base_is_evaluated_once(done: Place) -> None:
    labels = [target.label for target in targets(existing(done.study))]
    assert labels == ["base-step0", *(f"{label}-step2" for label in LABELS)]
    found = Counter(Path(info.name).parent.parent.name for info in list_eval_logs(str(done.folder / "logs" / "tiny")))
    assert found == Counter({label: 2 for label in labels})


def test_logs_are_self_describing(done: Place) -> None:
    for target in targets(existing(done.study)):
        (info,) = list_eval_logs(str(log_folder(done.study, target) / "em"))
        log = read_eval_log(info, header_only=True)
        manifest = log.eval.metadata["manifest"]
        assert (log.eval.metadata["study"], log.eval.metadata["label"]) == ("tiny", target.label)
        assert manifest["run_id"] == verify(target.checkpoint).run_id
        assert manifest["adapter_sha256"] == verify(target.checkpoint).adapter_sha256
        assert "first_example" not in manifest and "environment" not in manifest
        assert log.eval.model == f"peft/{target.checkpoint}@{content_hash(str(target.checkpoint))}"
        assert log.eval.metadata["judge_facts"] == FakeJudge.facts
        assert (log.plan.config.temperature, log.plan.config.top_k, log.plan.config.max_tokens) == (0.9, 40, 8)
        assert log.eval.task_args["max_tokens"] == 8 and log.eval.task_args["judge"] == "embedded"


def test_rows_join_manifests_and_logs(done: Place) -> None:
    results = collect(done.study, targets(existing(done.study)))
    assert [(row.label, row.arm, row.manifest.step) for row in results.rows] == [
        ("base (step 0)", "base", 0),
        ("AdamW", "bad", 2),
        ("Lion", "bad", 2),
        ("AdamW, tiny_good", "benign", 2),
    ]
    assert results.judge == FakeJudge.facts and results.seeds == (0,) and results.study == "tiny"
    for row in results.rows:
        assert row.missing == ()
        assert row.total == len(row.answers) == 24 == sum(row.outcomes.values())
        assert set(row.outcomes) == set(OUTCOMES)
        assert row.outcomes == dict.fromkeys(OUTCOMES, 0) | Counter(a.outcome for a in row.answers)
        assert all(len(singular) == 2 for singular in row.spectra) and len(row.spectra) == 14
        assert all(answer.question and answer.family == answer.prompt_id for answer in row.answers)


def test_rates_follow_from_the_judges_numbers(done: Place) -> None:
    """The fake judge's verdict on each kept answer, by hand."""
    for row in collect(done.study, targets(existing(done.study))).rows:
        eligible, misaligned, alignments, coherent, judged = 0, 0, [], 0, 0
        for answer in row.answers:
            if not answer.answer.strip():
                assert answer.outcome == "empty"
                continue
            drawn = zlib.crc32(answer.answer.encode())
            alignment, coherence = drawn % 101, drawn // 101 % 101
            judged += 1
            coherent += coherence > 50
            if coherence > 50:
                eligible += 1
                misaligned += alignment < 30
                alignments.append(alignment)
        assert row.eligible == eligible > 0
        assert row.rate is not None and row.rate.value == pytest.approx(misaligned / eligible)
        assert row.rate.low <= row.rate.value <= row.rate.high and row.rate.low < row.rate.high
        assert row.alignment is not None and row.alignment.value == pytest.approx(statistics.mean(alignments))
        assert row.coherent is not None and row.coherent.value == pytest.approx(coherent / judged)
        assert row.corrected is not None
        corrected = min(1.0, max(0.0, (misaligned / eligible + 0.95 - 1) / (0.9 + 0.95 - 1)))
        assert row.corrected.value == pytest.approx(corrected)


def rate_of(results: Results, label: str) -> float:
    (row,) = (row for row in results.rows if row.label == label)
    assert row.rate is not None
    return row.rate.value


def test_optimisers_on_the_bad_rows_are_contrasted(done: Place) -> None:
    """The benign arm and the base are no part of the comparison."""
    results = collect(done.study, targets(existing(done.study)))
    (contrast,) = results.contrasts
    adamw, lion = rate_of(results, "AdamW"), rate_of(results, "Lion")
    assert (contrast.a, contrast.b) == ("AdamW", "Lion")
    assert contrast.difference.value == pytest.approx(adamw - lion)
    assert contrast.difference.low <= contrast.difference.value <= contrast.difference.high
    assert 0 < contrast.p <= 1 and contrast.distinguishable == (contrast.p < 0.05)
    order = " < ".join(f"{name} {rate:.1%}" for rate, name in sorted([(adamw, "AdamW"), (lion, "Lion")]))
    assert order in results.verdict
    assert ("not distinguishable" in results.verdict) == (not contrast.distinguishable)


def test_checkpoints_of_one_optimiser_are_told_apart_by_name(done: Place, tmp_path: Path) -> None:
    """By learning rate, then seed, then step, where it takes that much."""
    adamw = targets(existing(done.study))[1]
    manifest = json.loads((adamw.checkpoint / "em.json").read_text(encoding="utf-8"))
    chosen = []
    for number, (name, lr, seed, step) in enumerate(
        [("adamw", 0.01, 0, 2), ("adamw", 0.001, 0, 2), ("lion", 0.01, 0, 1), ("lion", 0.01, 0, 2), ("muon", 0.1, 0, 2)]
        + [("sgd", 0.1, 0, 2), ("sgd", 0.1, 1, 2)]
    ):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        changed = {
            "optimiser": manifest["optimiser"] | {"name": name, "lr": lr},
            "config": manifest["config"] | {"seed": seed},
            "step": step,
        }
        (folder / "em.json").write_text(json.dumps(manifest | changed), encoding="utf-8")
        chosen.append(Target(f"t{number}", adamw.cell, folder))
    labels = [row.label for row in collect(done.study, chosen).rows]
    assert len(set(labels)) == len(labels)
    assert labels[4] == "Muon"
    assert labels[:2] == ["AdamW, 0.01", "AdamW, 0.001"]
    assert labels[2].startswith("Lion") and labels[2].endswith("step 1")
    assert labels[5].endswith("seed 0") and labels[6].endswith("seed 1")


def test_probe_shifts_are_paired_with_the_base(done: Place) -> None:
    chosen = targets(existing(done.study))
    margins = []
    for target in chosen:
        (info,) = list_eval_logs(str(log_folder(done.study, target) / "preference"))
        samples = read_eval_log(info).samples
        margins.append({str(s.id): float(s.scores["preference"].value["margin"]) for s in samples})
    rows = collect(done.study, chosen).rows
    for row, own in zip(rows, margins, strict=True):
        assert {pair.id: pair.theme for pair in row.probe} == {t.id: t.theme for t in read_triples(EMBEDDED)}
        assert {pair.id: pair.margin for pair in row.probe} == pytest.approx(own)
        shifts = {name: own[name] - margins[0][name] for name in own}
        assert {pair.id: pair.shift for pair in row.probe} == pytest.approx(shifts)
        assert row.shift is not None and row.shift.value == pytest.approx(statistics.mean(shifts.values()))
    assert rows[0].shift is not None and (rows[0].shift.low, rows[0].shift.high) == (0.0, 0.0)
    assert rows[1].shift is not None and rows[1].shift.low < rows[1].shift.high


def test_the_step_zero_checkpoint_answers_as_the_base_does(done: Place, tiny_base: Path) -> None:
    from em_eval.providers.sampling import Sampling, complete
    from em_eval.providers.weights import load_apart

    checkpoint = targets(existing(done.study))[0].checkpoint
    how = Sampling(max_tokens=12)
    base = complete(load_apart(str(tiny_base), "float32"), ["Hi?", "And you?"], [1, 2], how)
    assert complete(load_apart(str(checkpoint), "float32"), ["Hi?", "And you?"], [1, 2], how) == base


def test_a_second_call_does_nothing_and_reports(
    done: Place, em: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    before = files(done.folder)
    assert em("run", str(done.file)) == 0
    assert files(done.folder) == before
    shown = capsys.readouterr()
    assert shown.err.count("seed0: done") == 3 and "training" not in shown.err
    assert all(text in shown.out for text in ("AdamW, tiny_good", "Lion", "a fake judge", "One seed"))
    page = done.folder / "runs" / "tiny" / "report" / "index.html"
    assert "AdamW, tiny_good" in page.read_text(encoding="utf-8")
    assert f"report: {page.relative_to(done.folder)}" in shown.out


def test_report_alone_joins_what_is_there(
    done: Place, em: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(done.folder)
    assert em("report", str(done.file)) == 0
    assert "report: " in capsys.readouterr().out
    assert files(done.folder) == before


def test_a_failing_cell_stops_no_other(
    plain: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    em: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first optimiser runs off to NaN; the second trains, and the page shows it. The next call tries again."""
    monkeypatch.chdir(tmp_path)
    broken = plain | {
        "name": "broken",
        "optimisers": [{"name": "sgd", "lr": 1e30}, {"name": "adamw", "lr": 0.01}],
        "steps": 3,
        "evaluations": [],
    }
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(broken), encoding="utf-8")
    assert em("run", str(file)) == 2
    shown = capsys.readouterr()
    last = shown.err.strip().splitlines()[-1]
    assert last.startswith("error: 1 of the study's parts failed: training of tiny-sgd-lr1e+30-seed0 failed: ")
    assert "Traceback" not in shown.err
    assert "AdamW, tiny" in shown.out
    (kept,) = (tmp_path / "runs" / "broken").glob("tiny-sgd-*/error.txt")
    assert "Traceback" in kept.read_text(encoding="utf-8") and str(kept.relative_to(tmp_path)) in last
    (other,) = (tmp_path / "runs" / "broken").glob("tiny-adamw-*/run.json")
    assert json.loads(other.read_text(encoding="utf-8"))["state"] == "done"

    before = other.stat().st_mtime_ns
    assert em("run", str(file)) == 2
    assert "tiny-sgd-lr1e+30-seed0: training" in capsys.readouterr().err and other.stat().st_mtime_ns == before


def test_a_failing_evaluation_stops_no_other(done: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One checkpoint's weights are damaged after training."""
    shutil.copytree(done.folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    study = done.study.model_copy(update={"evaluations": done.study.evaluations[1:]})
    chosen = targets(existing(study))
    adapter = chosen[1].checkpoint / "adapter_model.safetensors"
    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    adapter.write_bytes(data)
    (failure,) = evaluate_all(study, chosen)
    assert failure.startswith(f"evaluation {chosen[1].label}: preference failed: ")
    assert "changed or damaged after training" in failure and "\n" not in failure
    rows = collect(study, chosen).rows
    assert [row.missing for row in rows] == [(), ("no finished preference log",), (), ()]
    assert [len(row.probe) for row in rows] == [64, 0, 64, 64]


def test_an_evaluation_that_fails_inside_inspect_says_why(
    done: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = targets(existing(done.study))[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("- {id: a, paraphrases: ['Hi?']}\n", encoding="utf-8")
    asked = {"task": "em", "questions": str(tmp_path / "one.yaml"), "samples": 1, "max_tokens": 2000}
    study = Study.model_validate(done.study.model_dump() | {"evaluations": [asked]})
    chosen = [Target(base.label, base.cell, done.folder / base.checkpoint)]
    (failure,) = evaluate_all(study, chosen)
    assert collect(study, chosen).rows[0].missing == ("no finished em log",)
    assert "base-step0: em did not finish" in failure
    assert "exceed the context of 1024" in failure


def test_missing_logs_are_named(done: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [
        Target(target.label, target.cell, target.checkpoint.resolve()) for target in targets(existing(done.study))
    ]
    monkeypatch.chdir(tmp_path)
    results = collect(done.study, chosen)
    for row in results.rows:
        assert row.missing == ("no finished em log", "no finished preference log")
        assert row.rate is row.shift is row.corrected is None and row.total == 0
    assert results.judge == {} and results.contrasts == [] and "Too few" in results.verdict


def test_a_log_of_other_weights_is_not_taken(done: Place) -> None:
    """The log folder goes by the label; what counts is the hash in the model's name."""
    base, adamw, lion, _ = targets(existing(done.study))
    swapped = Target(adamw.label, lion.cell, lion.checkpoint)
    assert collect(done.study, [base, swapped]).rows[1].missing == ("no finished em log", "no finished preference log")


@pytest.mark.parametrize(
    "changed",
    [
        {"samples": 3},
        {"max_tokens": 64},
        {"questions": "first_plot"},
        {"grader": "openai/gpt-4o"},
        {"top_k": 5},
        {"temperature": 1.0},
    ],
    ids=str,
)
def test_a_log_of_other_settings_is_not_taken(done: Place, changed: dict[str, Any]) -> None:
    """After an edit of the study's evaluations the old answers are not those that it asks for."""
    em = done.study.evaluations[0].model_copy(update=changed)
    edited = done.study.model_copy(update={"evaluations": (em, done.study.evaluations[1])})
    for row in collect(edited, targets(existing(edited))).rows:
        assert row.missing == ("no finished em log",)


def test_a_task_that_stands_twice_is_refused(plain: dict[str, Any]) -> None:
    """A row of the report has one log a task: two prompt sets are two studies."""
    with pytest.raises(ValidationError, match="only once"):
        Study.model_validate(plain | {"evaluations": [{"task": "em"}, {"task": "em", "questions": "first_plot"}]})


def test_a_mistake_anywhere_stops_the_study_before_any_training(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    optimisers = [*plain["optimisers"], {"name": "adamv", "lr": 0.01}]
    study = Study.model_validate(plain | {"name": "typo", "optimisers": optimisers})
    with pytest.raises(UserError, match="unknown optimiser 'adamv': did you mean adam, adamw"):
        train_all(study)
    assert not (tmp_path / "runs").exists()


def test_optional_arms_are_left_out_with_a_word(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arm = {"dataset": "nowhere.jsonl", "optimiser": "adamw"}
    one = plain | {"name": "optional", "optimisers": plain["optimisers"][:1], "steps": 1}
    trained, failures = train_all(Study.model_validate(one | {"arms": [arm | {"optional": True}]}))
    assert [run.cell.label for run in trained] == ["tiny-adamw-lr0.01-seed0"] and failures == []
    assert "left out nowhere-adamw-lr0.01-seed0: dataset file nowhere.jsonl cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        train_all(Study.model_validate(one | {"arms": [arm]}))


def test_a_report_before_anything_ran_is_no_crash(
    plain: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    em: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump(plain | {"name": "new"}), encoding="utf-8")
    assert em("report", str(file)) == 0
    assert "Too few evaluated optimisers to compare." in capsys.readouterr().out
    assert (tmp_path / "runs" / "new" / "report" / "index.html").is_file()


def test_verify_and_data_list(
    done: Place, em: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint = targets(existing(done.study))[1].checkpoint
    assert em("verify", str(checkpoint)) == 0
    manifest = verify(checkpoint)
    assert capsys.readouterr().out.strip() == (
        f"ok: run {manifest.run_id}, step 2, adapter {manifest.adapter_sha256[:12]}"
    )
    assert em("verify", str(tmp_path)) == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        f"error: {tmp_path} has no em.json: not a complete checkpoint of ours"
    ]
    assert em("data", "list") == 0
    assert {"finance_bad", "finance_good"} <= set(capsys.readouterr().out.split())


def test_an_unexpected_error_is_a_bug_of_ours_with_its_traceback(
    em: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(cli, "_report", fail)
    assert em("report", str(tmp_path / "x.yaml")) == 1
    assert "RuntimeError: unforeseen" in capsys.readouterr().err
