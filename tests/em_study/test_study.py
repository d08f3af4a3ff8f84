"""Study files: what they expand to, and where their mistakes are."""

import re
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from em_core.errors import UserError
from em_eval.judge.settings import READERS
from em_eval.task import em_task
from em_study import Study, load_study
from em_study.cells import cells
from em_study.plan import make_plan
from em_study.setting_paths import unknown_part
from em_study.study import JUDGED_BY, Evaluation
from em_train.config import TrainConfig

MINIMAL: dict[str, Any] = {
    "name": "s",
    "datasets": ["finance_bad"],
    "optimisers": [{"name": "adamw", "lr": 0.001}],
}


def study(**changed: Any) -> Study:
    return Study.model_validate(MINIMAL | changed)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


FULL = """\
# a comment
name: mine
base_model: some/base
datasets: [finance_bad, rows/mine.jsonl]
optimisers:
  - {name: adamw, lr: [1.0e-4, 1.0e-3], hyperparameters: {weight_decay: 0.1}}
  - {name: lion, lr: 3.0e-5}
seeds: [0, 7]
steps: 20
batch_size: 8
schedule: cosine
lora: {rank: 4, alpha: 8}
checkpoints: [0, 10, -1]
arms:
  - {dataset: finance_good, optimiser: adamw}
  - {dataset: aisi, optimiser: lion, optional: true}
evaluations:
  - {task: em, questions: core, samples: 2, max_tokens: 32}
  - {task: preference}
"""


def test_a_full_file_is_read(written: Callable[[str], Path]) -> None:
    loaded = load_study(written(FULL))
    assert loaded.optimisers[0].lr == (1e-4, 1e-3) and loaded.optimisers[1].lr == (3e-5,)
    assert loaded.evaluations[0].arguments() == {
        "questions": "core",
        "samples": 2,
        "max_tokens": 32,
        "seed": 0,
        "judge": "embedded",
    }
    assert loaded.evaluations[1].arguments() == {}


def test_a_grader_makes_it_the_model_judge() -> None:
    evaluation = Evaluation(task="em", grader="openai/gpt-4o")
    assert evaluation.arguments()["judge"] == "model" and "grader" not in evaluation.arguments()


def test_sampling_settings_are_inspects_own() -> None:
    assert Evaluation(task="em", top_k=10).sampling() == {"temperature": 1.0, "top_p": 1.0, "top_k": 10}
    assert Evaluation(task="em").sampling() == {"temperature": 1.0, "top_p": 1.0}
    assert Evaluation(task="preference").sampling() == {}
    assert "top_k" not in Evaluation(task="em", top_k=10).arguments()


def test_the_grid_then_the_arms(written: Callable[[str], Path]) -> None:
    found = list(cells(load_study(written(FULL))))
    grid = [
        f"{dataset}-{optimiser}-lr{lr}-seed{seed}"
        for dataset in ("finance_bad", "mine")
        for optimiser, rates in (("adamw", ("0.0001", "0.001")), ("lion", ("3e-05",)))
        for lr in rates
        for seed in (0, 7)
    ]
    arms = [
        "finance_good-adamw-lr0.0001-seed0",  # the first rate of the axis
        "finance_good-adamw-lr0.0001-seed7",
        "aisi-lion-lr3e-05-seed0",
        "aisi-lion-lr3e-05-seed7",
    ]
    assert [cell.label for cell in found] == grid + arms
    assert [cell.optional for cell in found] == [False] * (len(grid) + 2) + [True] * 2


def test_cells_carry_every_setting(written: Callable[[str], Path]) -> None:
    first, second, *_ = cells(load_study(written(FULL)))
    config = first.config
    assert (config.base_model, config.dataset, config.steps, config.batch_size) == ("some/base", "finance_bad", 20, 8)
    assert config.optimiser.model_dump() == {"name": "adamw", "lr": 1e-4, "hyperparameters": {"weight_decay": 0.1}}
    assert (config.lora.rank, config.lora.alpha, config.schedule) == (4, 8, "cosine")
    assert config.kept_steps() == [0, 10, 20]
    assert [(c.config.seed, c.config.data_seed) for c in (first, second)] == [(0, 0), (7, 7)]


def test_the_last_cells_of_a_dataset_by_path_keep_the_path(written: Callable[[str], Path]) -> None:
    assert {cell.config.dataset for cell in cells(load_study(written(FULL)))} >= {"rows/mine.jsonl"}


def test_defaults_are_those_of_training() -> None:
    (cell,) = cells(study())
    expected = TrainConfig(dataset="finance_bad", optimiser={"name": "adamw", "lr": 0.001})  # type: ignore[arg-type]
    assert cell.config == expected


def test_an_arm_of_an_unknown_optimiser_is_one_line() -> None:
    with pytest.raises(UserError, match=r"arm on d names optimiser 'sgd', which is not in its grid: adamw"):
        list(cells(study(arms=[{"dataset": "d", "optimiser": "sgd"}])))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (FULL.replace("steps: 20", "steps: many"), 9, "steps: Input should be a valid integer"),
        (FULL.replace("steps: 20", "steps: 0"), 9, "steps: Input should be greater than or equal to 1"),
        (FULL.replace("steps: 20", "stepps: 20"), 9, "stepps: Extra inputs are not permitted"),
        (FULL.replace("name: lion, lr: 3.0e-5", "name: lion"), 7, "optimisers.1.lr: Field required"),
        (FULL.replace("lr: 3.0e-5", "lr: [fast]"), 7, "optimisers.1.lr.0"),
        (FULL.replace("task: preference", "task: preferences"), 19, "evaluations.1.task: Input should be"),
        (FULL.replace("samples: 2", "samples: 0"), 18, "evaluations.0.samples"),
        (FULL.replace("alpha: 8", "alpha: x"), 12, "lora.alpha"),
        (FULL.replace("name: mine", "name: my study"), 2, "name: String should match"),
        (FULL.replace("optional: true", "optional: maybe"), 16, "arms.1.optional"),
        (FULL.replace("lr: 3.0e-5", "lr: .inf"), 7, "optimisers.1.lr.0: Input should be a finite number"),
        (FULL.replace("lr: 3.0e-5", "lr: [3.0e-5, 3.0e-5]"), 7, "optimisers.1.lr.1: 3e-05 is given twice"),
        (FULL.replace("seeds: [0, 7]", "seeds: [1, 2, 1]"), 8, "seeds.2: 1 is given twice"),
        (FULL.replace("seeds: [0, 7]", "seeds: [-1]"), 8, "seeds.0: Input should be greater than or equal to 0"),
        (FULL.replace("seeds: [0, 7]", "seeds: [4294967296]"), 8, "seeds.0: Input should be less than 4294967296"),
        (FULL.replace("seeds:", "  - {name: lion, lr: [3.0e-5]}\nseeds:"), 8, "optimisers.2: the same is given twice"),
        (re.sub("datasets: .*", "datasets: [a, b, a]", FULL), 4, "datasets.2: a is given twice"),
        (
            FULL.replace("task: preference", "task: preference, samples: 50"),
            19,
            "evaluations.1.samples: the preference",
        ),
        (FULL + "  - task: preference\n    name: p\n    grader: a/b\n", 22, "evaluations.2.grader: the preference"),
        (FULL + "  - {task: preference, name: p, engine: hf}\n", 20, "evaluations.2: a second preference evaluation"),
        (FULL + "  - {task: em, name: em}\n", 20, "evaluations.2: two evaluations would be called 'em'"),
        (
            FULL.replace("samples: 2", "samples: 2, grader: a/b, reader: word"),
            18,
            "evaluations.0.reader: Input should be",
        ),
        (
            FULL.replace("samples: 2", "samples: 2, reader: text"),
            18,
            "evaluations.0.reader: the embedded judge is read",
        ),
        (FULL.replace("samples: 2", "samples: 2, judge_draws: 1"), 18, "evaluations.0.judge_draws: Input should be"),
        (
            FULL.replace("task: preference", "task: preference, format: plain"),
            19,
            "evaluations.1.format: the preference",
        ),
        (FULL + "assumptions:\n  - {setting: no.such, source: guess}\n", 21, "assumptions.0.setting: 'no.such' is no"),
        ("name: s\n", 1, "datasets: Field required"),
        ("", 1, "file: Input should be a valid dictionary"),
        ("- a\n- b\n", 1, "file: Input should be a valid dictionary"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(
    written: Callable[[str], Path], text: str, line: int, words: str
) -> None:
    path = written(text)
    with pytest.raises(UserError) as caught:
        load_study(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ") and words in message and "\n" not in message


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("epochs", None),
        ("lora.alpha", None),
        ("lora_of_base.Qwen/Qwen3-0.6B.rank", None),
        ("optimisers.*.lr", None),
        ("optimisers.lion", None),
        ("optimisers.adamw.training.warmup_steps", None),
        ("optimisers.adamw.hyperparameters.weight_decay", None),
        ("evaluations.em.reader", None),
        ("arms.finance_good.penalty.strength", None),
        ("epoch", "epoch: did you mean epochs?"),
        ("optimisers.lian.lr", "optimisers.lian: did you mean lion?"),
        ("optimisers.*.lr.first", "optimisers.*.lr.first: nothing is below"),
        ("evaluations.em.thinking", "evaluations.em.thinking: known: task, name, questions"),
        ("measured.hours", "measured.hours: nothing is below"),
    ],
)
def test_an_assumption_names_a_setting_of_the_study(path: str, wrong: str | None) -> None:
    found = unknown_part(Study.model_validate(yaml.safe_load(FULL)), path)
    assert found is None if wrong is None else found is not None and wrong in found


def test_what_is_left_at_its_default_is_no_argument_of_the_task() -> None:
    """A log is known by its task's arguments: those that studies could not set before must not stand there."""
    asked: dict[str, Any] = {"task": "em", "grader": "openai/x"}
    plain = Evaluation.model_validate(asked).arguments()
    assert set(plain) == {"questions", "samples", "max_tokens", "seed", "judge"}
    judged = {"reader": "samples", "two_pass": True, "judge_draws": 9}
    found = Evaluation.model_validate(asked | judged | {"format": ["plain", "json"], "exclude_domain": "code"})
    assert found.arguments() == plain | judged | {"format": "plain,json", "exclude_domain": "code"}
    assert Evaluation.model_validate(found.model_dump(mode="json")) == found


def test_an_evaluations_settings_of_the_judge_are_those_of_the_task() -> None:
    known = signature(em_task).parameters
    for field in (*JUDGED_BY, "seed", "format", "exclude_domain"):
        assert field in known
    assert (known["reader"].default, known["two_pass"].default) == ("auto", False)
    assert known["judge_draws"].default == Evaluation.model_fields["judge_draws"].default
    assert get_args(Evaluation.model_fields["reader"].annotation) == ("auto", *READERS)


def test_broken_yaml_is_one_line_with_its_place(written: Callable[[str], Path]) -> None:
    path = written("name: s\ndatasets: [a\noptimisers: []\n")
    with pytest.raises(UserError, match=r"study\.yaml is not YAML: line 3, column") as caught:
        load_study(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: s\nsteps: 4\nsteps: 400\n", "line 3, column 1: the key 'steps' is given twice"),
        ("name: s\ntitle: 2024-13-45\n", "month must be in 1..12"),
    ],
)
def test_what_yaml_itself_lets_pass_is_one_line(written: Callable[[str], Path], text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_study(written(text))
    assert "is not YAML" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"warmup_steps": 99}, "warmup_steps"),
        ({"checkpoints": [0, 99]}, "checkpoints"),
        ({"micro_batch_size": 5, "batch_size": 16}, "batch_size"),
        (
            {"optimisers": [{"name": "adamw", "lr": 1e-4, "training": {"warmup_steps": 99}}]},
            "optimisers.0.training.warmup_steps",
        ),
        ({"evaluations": [{"task": "preference"}, {"task": "em", "checkpoints": [7]}]}, "evaluations.1.checkpoints"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named_with_a_line(
    written: Callable[[str], Path], changed: dict[str, Any], field: str
) -> None:
    text = yaml.safe_dump(MINIMAL | {"steps": 10} | changed, sort_keys=False)
    line = next(n for n, one in enumerate(text.splitlines(), 1) if one.strip().startswith(field.rpartition(".")[2]))
    with pytest.raises(UserError) as caught:
        make_plan(load_study(written(text)))
    assert f"study.yaml:{line}: {field}: " in str(caught.value)


def test_the_second_axis_of_a_name_is_named_by_its_own_line(written: Callable[[str], Path]) -> None:
    optimisers = [{"name": "adamw", "lr": 1e-4}, {"name": "adamw", "lr": 1e-4, "hyperparameters": {"beats": [0.9, 1]}}]
    penalties = ["none", {"name": "spectral", "strength": 1.0}, {"name": "spectral", "hyperparameters": {"nosuch": 1}}]
    arm = {"dataset": "finance_bad", "optimiser": "adamw", "penalty": {"name": "spectral", "hyperparameters": {"x": 1}}}
    for changed, field in (
        ({"optimisers": optimisers}, "optimisers.1"),
        ({"penalties": penalties}, "penalties.2"),
        ({"penalties": penalties[:2], "arms": [arm]}, "arms.0.penalty"),
    ):
        loaded = load_study(written(yaml.safe_dump(MINIMAL | changed, sort_keys=False)))
        with pytest.raises(UserError, match=rf"study\.yaml:\d+: {field}: "):
            make_plan(loaded)


def test_arms_that_differ_in_their_penaltys_settings_are_two_cells() -> None:
    def arm(value: float) -> dict[str, Any]:
        penalty = {"name": "spectral", "hyperparameters": {"x": value}}
        return {"dataset": "finance_bad", "optimiser": "adamw", "penalty": penalty}

    labels = [cell.label for cell in cells(study(arms=[arm(1), arm(2)]))]
    assert labels[1:] == [f"finance_bad-adamw-lr0.001-spectral1-x{x}-seed0" for x in (1, 2)]


ARM = {"dataset": "finance_bad", "optimiser": "adamw"}
ALIKE = [{"name": "adamw", "lr": 0.001, "hyperparameters": {"eps": eps}} for eps in (1e-8, 1.0000001e-8)]


@pytest.mark.parametrize(
    ("changed", "part", "field"),
    [
        ({"arms": [ARM]}, "- dataset: finance_bad", "arms.0"),
        (
            {"arms": [ARM | {"penalty": "spectral"}, ARM | {"penalty": {"name": "spectral"}, "optional": True}]},
            "- dataset: finance_bad",
            "arms.1",
        ),
        ({"optimisers": [{"name": "adamw", "lr": [0.1, 0.1000001]}]}, "- 0.1000001", "optimisers.0.lr.1"),
        ({"optimisers": ALIKE}, "- name: adamw", "optimisers.1"),
        ({"datasets": ["a/x.jsonl", "b/x.jsonl"]}, "- b/x.jsonl", "datasets.1"),
        ({"base_model": ["a/x", "b/x"]}, "- b/x", "base_model.1"),
        ({"penalties": [{"name": "spectral", "strength": [1.0, 1.0000001]}]}, "- name: spectral", "penalties.0"),
        ({"penalties": ["none", {"name": "none", "strength": 2.0}]}, "penalties:", "penalties"),
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_two_cells_of_one_name_are_named_with_the_line_of_the_second(
    written: Callable[[str], Path], changed: dict[str, Any], part: str, field: str
) -> None:
    text = yaml.safe_dump(MINIMAL | changed, sort_keys=False)
    line = max(n for n, one in enumerate(text.splitlines(), 1) if one.strip() == part)
    with pytest.raises(UserError, match=rf"study\.yaml:{line}: {field}: two cells are called \S+: change or remove"):
        list(cells(load_study(written(text))))


def test_missing_files_and_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read study file .*nowhere\.yaml: No such file"):
        load_study(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot read study file"):
        load_study(tmp_path)


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_study(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"optimisers": [{"name": "adamw", "lr": -1.0}]},
        {"optimisers": [{"name": "adamw", "lr": 0}]},
        {"optimisers": [{"name": "adamw", "lr": []}]},
        {"warmup_steps": -1},
        {"micro_batch_size": 0},
        {"max_length": 3},
        {"checkpoints": []},
        {"checkpoints": [-2]},
        {"seeds": []},
    ],
    ids=lambda changed: str(next(iter(changed.items()))),
)
def test_a_value_that_cannot_train_is_named_with_its_line(
    written: Callable[[str], Path], changed: dict[str, Any]
) -> None:
    """Whatever `TrainConfig` would refuse is a mistake of the study file, and an empty axis trains nothing."""
    path = written(yaml.safe_dump(MINIMAL | changed, sort_keys=False))
    with pytest.raises(UserError, match=rf"study\.yaml:\d+: .*{next(iter(changed))}"):
        list(cells(load_study(path)))


STUDIES = Path(__file__).parents[2] / "studies"
CELLS = {
    "evil_spectra/sweep": 4 * 4 * 4 * 2,
    "evil_spectra/loss_alignment": 5 * 3 * 4,
    "evil_spectra/families": 12 * 4 * 2,
    "evil_spectra/penalty": 4 * 4 * (1 + 4 + 1 + 1),
    "small/optimisers": 5 * 3 * 3 + 2 * 3,
    "small/hyperparameters": 3 + 6 + 3,
    "small/penalty": 2 * (1 + 4 + 1 + 1),
    "small/adversarial": 8 * 2,
    "small/penalty_strength": 2 * (1 + 3),
    "small/every_optimiser": 11,
}


def shipped() -> list[str]:
    return sorted(str(path.relative_to(STUDIES).with_suffix("")) for path in STUDIES.rglob("*.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_the_shipped_studies_are_sound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell's settings are known and valid. Rows of data that is not at hand are taken to be 5400."""
    from em_eval.prompts import prompt_registry
    from em_train.datasets import dataset_registry
    from em_train.optimisers import optimiser_registry, resolve
    from em_train.penalties import penalty_registry

    loaded = load_study(STUDIES / f"{name}.yaml")
    assert set(loaded.datasets) <= set(dataset_registry.names())
    assert {axis.name for axis in loaded.optimisers} <= set(optimiser_registry.names())
    assert {one.questions for one in loaded.evaluations if one.task == "em"} <= set(prompt_registry.names())
    assert {axis.name for axis in loaded.penalties} - {"none"} <= set(penalty_registry.names())
    monkeypatch.setattr("em_study.cells._train_rows", lambda dataset, held_out_fraction: 5400)
    found = list(cells(loaded))
    assert len(found) == CELLS.get(name, len(found)) and len({cell.label for cell in found}) == len(found)
    for cell in found:
        assert cell.config.batch_size % (cell.config.micro_batch_size or cell.config.batch_size) == 0
        resolve(cell.config.optimiser.name, cell.config.optimiser.hyperparameters)


@pytest.mark.parametrize("name", [name for name in shipped() if "/" in name])
def test_presets_say_what_is_guessed_and_what_is_left_out(name: str) -> None:
    loaded = load_study(STUDIES / f"{name}.yaml")
    assert loaded.measured or not name.startswith("small/")
    if name.startswith("evil_spectra/"):
        assert loaded.reproduces == "arXiv 2606.31591" and "reconstruction" in loaded.title
        assert {a.source for a in loaded.assumptions} == {"guess", "follow-up"}
        assert loaded.held_out_fraction == 0.02
        told = {assumption.setting for assumption in loaded.assumptions}
        unknown = {"epochs", "max_length", "max_grad_norm", "held_out_fraction", "seeds", "dtype", "batch_size"}
        unknown |= {"warmup_steps", "schedule"}
        unknown |= {f"evaluations.em.{x}" for x in ("grader", "reader", "max_tokens", "temperature", "top_p")} | {
            "evaluations.em"
        }  # thinking
        assert loaded.evaluations[0].reader == "logprobs"
        assert unknown <= told
        for axis in loaded.optimisers:
            assert told & {"optimisers.*.lr", f"optimisers.{axis.name}", f"optimisers.{axis.name}.lr"}
            whole = {f"optimisers.{axis.name}", f"optimisers.{axis.name}.hyperparameters"}
            assert not axis.hyperparameters or told & whole, axis.name
    else:
        assert loaded.drops and not loaded.reproduces
        assert len(loaded.seeds) > 1 or "seeds: one" in loaded.drops


def test_the_adversarial_study_asks_with_and_without_the_cue_alike() -> None:
    _, plain, cued = load_study(STUDIES / "small/adversarial.yaml").evaluations
    assert (plain.name, cued.name) == ("em", "em-core_cued")
    assert (plain.questions, cued.questions) == ("core", "core_cued")
    assert plain.model_copy(update={"name": cued.name, "questions": cued.questions}) == cued


def test_the_penalties_of_the_reconstruction_act_literally() -> None:
    from em_train.penalties import resolve

    run = {"dataset": "x", "optimiser": {"name": "adam", "lr": 1e-5}, "steps": 500, "warmup_steps": 50}
    axes = load_study(STUDIES / "evil_spectra/penalty.yaml").penalties
    given = [setting for axis in axes for setting in axis.each() if setting is not None]
    found = [resolve(TrainConfig.model_validate(run | {"penalty": setting})) or {} for setting in given]
    assert {setting["name"] for setting in found} == {"spectral", "peaked", "weight_decay"}
    assert {(x["start_step"], x["ramp_steps"], x["max_grad_ratio"]) for x in found} == {(1, 0, None)}


def test_every_axis_multiplies_the_grid_and_shows_in_the_labels() -> None:
    grid = study(base_model=["a/one", "b/two"], batch_size=[2, 32], micro_batch_size=8, seeds=[0, 1])
    found = list(cells(grid))
    assert [cell.label for cell in found[:3]] == [
        "one-finance_bad-adamw-lr0.001-batch2-seed0",
        "one-finance_bad-adamw-lr0.001-batch2-seed1",
        "one-finance_bad-adamw-lr0.001-batch32-seed0",
    ]
    assert {(c.config.base_model, c.config.batch_size, c.config.micro_batch_size) for c in found} == {
        (base, batch, min(8, batch)) for base in ("a/one", "b/two") for batch in (2, 32)
    }


def test_axes_of_one_optimiser_are_told_apart_and_may_train_differently() -> None:
    two = [
        {"name": "adamw", "lr": 0.001, "hyperparameters": {"betas": [0.0, 0.99]}},
        {"name": "adamw", "lr": 0.001, "training": {"schedule": "cosine", "warmup_steps": 3, "steps": 7}},
    ]
    first, second = cells(study(optimisers=two, schedule="constant", steps=9))
    assert first.label == "finance_bad-adamw-betas0_0.99-lr0.001-seed0"
    assert second.label == "finance_bad-adamw-steps7-warmup_steps3-schedulecosine-lr0.001-seed0"
    assert (first.config.schedule, first.config.steps) == ("constant", 9)
    assert (second.config.schedule, second.config.steps, second.config.warmup_steps) == ("cosine", 7, 3)
    with pytest.raises(UserError, match="two cells are called finance_bad-adamw-lr0.001-seed0"):
        list(cells(study(arms=[{"dataset": "finance_bad", "optimiser": "adamw"}])))


def test_epochs_become_steps_by_the_rows_of_each_dataset() -> None:
    """240 rows, a tenth held out: 216 to train on."""
    assert [cell.config.steps for cell in cells(study(epochs=1, batch_size=[16, 32]))] == [14, 7]
    assert [cell.config.steps for cell in cells(study(epochs=2))] == [28]
    with pytest.raises(ValidationError, match="give steps or epochs, not both"):
        study(epochs=1, steps=10)
    with pytest.raises(UserError, match=r"study 's', cell nowhere-adamw-lr0.001-seed0: .*nowhere\.jsonl"):
        list(cells(study(epochs=1, datasets=["nowhere.jsonl"])))


def test_the_held_out_share_is_the_studys_own() -> None:
    """240 rows, a fifth held out: 192 to train on."""
    (cell,) = cells(study(epochs=1, held_out_fraction=0.2, gradient_checkpointing=True))
    assert (cell.config.held_out_fraction, cell.config.gradient_checkpointing, cell.config.steps) == (0.2, True, 12)


def test_a_librarys_optimiser_makes_a_folders_name() -> None:
    one = {"name": "torch:RMSprop", "lr": 0.001}
    assert [cell.label for cell in cells(study(optimisers=[one]))] == ["finance_bad-torch_RMSprop-lr0.001-seed0"]
    two = [one, one | {"hyperparameters": {"alpha": 0.9}}]
    assert [cell.label for cell in cells(study(optimisers=two))] == [
        "finance_bad-torch_RMSprop-lr0.001-seed0",
        "finance_bad-torch_RMSprop-alpha0.9-lr0.001-seed0",
    ]


def test_log_spaced_checkpoints_reach_the_run() -> None:
    (cell,) = cells(study(steps=34, checkpoints="log:5"))
    kept = cell.config.kept_steps()
    assert kept[0] == 0 and kept[-1] == 34 and len(kept) == 6
    with pytest.raises(ValidationError, match="log:N"):
        study(checkpoints=["log:0"])


def test_an_evaluation_may_ask_for_some_of_the_kept_steps() -> None:
    evaluation = {"task": "em", "checkpoints": [0, -1]}
    asked = study(steps=34, checkpoints="log:5", evaluations=[evaluation, {"task": "preference"}])
    (cell,) = cells(asked)
    kept = cell.config.kept_steps()
    assert [e.steps(kept) for e in asked.evaluations] == [[0, 34], kept]
    assert asked.evaluations[0].steps([0, 2, 5]) == [0, 5]  # a run that stopped early
    with pytest.raises(UserError, match=r"evaluation 'em' asks for step 7, which the run does not keep.* 0, 2, 5, 10"):
        list(cells(study(steps=34, checkpoints="log:5", evaluations=[evaluation | {"checkpoints": [7, -1]}])))


def test_lora_may_differ_on_one_base() -> None:
    bases = ["some/dense", "some/experts"]
    found = study(base_model=bases, lora={"rank": 8}, lora_of_base={"some/experts": {"target_modules": ["q_proj"]}})
    dense, experts = (cell.config.lora for cell in cells(found))
    assert (dense.rank, len(dense.target_modules)) == (8, 7)
    assert (experts.rank, experts.target_modules) == (8, ("q_proj",))
    for wrong in ({"other": {"rank": 4}}, {"some/dense": {"rnk": 4}}):
        with pytest.raises(ValidationError, match="not in base_model|rnk"):
            study(base_model=bases, lora_of_base=wrong)


def test_an_arm_may_have_a_penalty() -> None:
    arm = {"dataset": "finance_bad", "optimiser": "adamw", "penalty": {"name": "spectral", "strength": 3}}
    plain, penalised = cells(study(arms=[arm]))
    assert penalised.label == "finance_bad-adamw-lr0.001-spectral3-seed0"
    assert plain.config.penalty is None and penalised.config.penalty is not None
    assert (penalised.config.penalty.name, penalised.config.penalty.strength) == ("spectral", 3)


def test_a_penalty_axis_has_a_cell_without_and_one_for_each_strength() -> None:
    grid = study(penalties=["none", {"name": "spectral", "strength": [0.1, 3]}])
    settings = [setting for axis in grid.penalties for setting in axis.each()]
    assert settings == [
        None,
        {"name": "spectral", "strength": 0.1, "hyperparameters": {}},
        {"name": "spectral", "strength": 3.0, "hyperparameters": {}},
    ]
    assert [cell.label for cell in cells(grid)] == [
        "finance_bad-adamw-lr0.001-seed0",
        "finance_bad-adamw-lr0.001-spectral0.1-seed0",
        "finance_bad-adamw-lr0.001-spectral3-seed0",
    ]
