"""TrainConfig and its YAML form."""

import pytest
import yaml
from pydantic import ValidationError

from em_core.errors import UserError
from em_train.config import LoraSettings, TrainConfig, load_config, parse_config, read_config
from em_train.steps import log_spaced

MINIMAL = {"dataset": "finance_bad", "optimiser": {"name": "adamw", "lr": 1e-4}}


def config(**changes) -> TrainConfig:
    return parse_config(MINIMAL | changes, "test")


def test_defaults_are_the_papers_adapter():
    lora = config().lora
    assert (lora.rank, lora.alpha, lora.rslora, lora.dropout, len(lora.target_modules)) == (32, 64, True, 0.0, 7)
    assert lora.scaling == pytest.approx(64 / 32**0.5, rel=1e-15)
    assert LoraSettings(rslora=False).scaling == 2.0


def test_config_is_frozen():
    with pytest.raises(ValidationError):
        config().seed = 3


@pytest.mark.parametrize(
    "checkpoints, steps, kept",
    [
        ((0, -1), 34, [0, 34]),
        ((-1,), 5, [5]),
        ((3, 0, 5, -1), 5, [0, 3, 5]),
        ((2, 2), 5, [2]),
        ("log:1", 5, [0, 5]),
        (("log:2", 4), 9, [0, 2, 4, 9]),
    ],
)
def test_kept_steps_are_in_order_and_once(checkpoints, steps, kept):
    assert config(checkpoints=checkpoints, steps=steps).kept_steps() == kept


def test_a_checkpoint_beyond_the_last_step_is_refused():
    with pytest.raises((UserError, ValidationError)):
        config(checkpoints=(50,), steps=5)


WRONG = [
    ({"optimiser": {"name": "adamw", "lr": 0}}, "optimiser.lr"),
    ({"optimiser": {"name": "adamw"}}, "optimiser.lr"),
    ({"optimiser": {"name": "adamw", "lr": 1, "momentum": 2}}, "optimiser.momentum"),
    ({"steps": 0}, "steps"),
    ({"batch_size": 1.5}, "batch_size"),
    ({"schedule": "polynomial"}, "schedule"),
    ({"held_out_fraction": 0}, "held_out_fraction"),
    ({"checkpoints": []}, "checkpoints"),
    ({"checkpoints": [-2]}, "checkpoints"),
    ({"checkpoints": "log:0"}, "checkpoints"),
    ({"checkpoints": ["every"]}, "checkpoints"),
    ({"lora": {"rank": 0}}, "lora.rank"),
    ({"learning_rate": 1}, "learning_rate"),
    ({"dtype": "float16"}, "dtype"),
]


@pytest.mark.parametrize("change, field", WRONG, ids=[field for _, field in WRONG])
def test_wrong_field_is_named(change, field):
    with pytest.raises(UserError) as caught:
        parse_config(MINIMAL | change, "study.yaml")
    assert str(caught.value).startswith(f"study.yaml: {field}: ")


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_what_is_not_a_mapping_is_refused(raw):
    with pytest.raises(UserError, match=r"study\.yaml: config: "):
        parse_config(raw, "study.yaml")


def test_yaml_file_round_trip(tmp_path):
    path = tmp_path / "run.yaml"
    # PyYAML reads 1e-4 (no dot) as a text.
    path.write_text("dataset: d.jsonl\noptimiser: {name: muon, lr: 1e-4}\ncheckpoints: [0, 2, -1]\n", encoding="utf-8")
    found = load_config(path)
    assert found.optimiser.lr == 1e-4 and found.checkpoints == (0, 2, -1)
    assert TrainConfig.model_validate(found.model_dump(mode="json")) == found


def test_yaml_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot read .*none"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(UserError, match="is not YAML"):
        load_config(tmp_path / "bad.yaml")


def test_yaml_that_is_not_utf8(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("dataset: Zürich".encode("latin-1"))
    with pytest.raises(UserError):
        load_config(tmp_path / "latin.yaml")


def test_log_spaced_steps_are_near_those_of_the_replication():
    """Its own list for 625 steps; ratios of (step + shift) are constant by construction."""
    theirs = [10, 20, 32, 47, 64, 85, 111, 141, 178, 223, 276, 341, 418, 512, 625]
    ours = log_spaced(625, 15)
    assert len(ours) == 15 and ours[-1] == 625
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 7
    shifted = [step + 0.075 * 625 for step in ours]
    ratios = [b / a for a, b in zip(shifted[:-1], shifted[1:], strict=True)]
    assert max(ratios) / min(ratios) < 1.03
    assert log_spaced(2, 10) == [1, 2] and log_spaced(1, 1) == [1]


RUN = "dataset: d.jsonl\noptimiser: {name: adamw, lr: 1.0e-4, hyperparameters: {eps: 1.0e-6}}\nlora: {rank: 8}\n"


@pytest.fixture
def run_yaml(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    return str(tmp_path / "run.yaml")


def test_overrides_win_and_leave_their_neighbours_alone(run_yaml):
    overrides = [
        "optimiser.lr=1e-3",
        "lora.alpha=16",
        "checkpoints=[0, 3, -1]",
        "optimiser.hyperparameters.betas=[0.8,0.9]",
    ]
    found = read_config(run_yaml, overrides)
    assert found.optimiser.lr == 1e-3 and found.optimiser.name == "adamw"
    assert found.optimiser.hyperparameters == {"eps": 1e-6, "betas": [0.8, 0.9]}
    assert (found.lora.rank, found.lora.alpha, found.checkpoints) == (8, 16, (0, 3, -1))


def test_overridden_value_loses_its_source(tmp_path):
    sources = {"optimiser.lr": "a", "lora.rank": "b", "lora.alpha": "c", "seed": "d", "data_seed": "e"}
    text = yaml.safe_dump({**MINIMAL, "sources": sources})
    (tmp_path / "again.yaml").write_text(text, encoding="utf-8")
    found = read_config(str(tmp_path / "again.yaml"), ["optimiser.lr=1e-3", "lora={rank: 4}", "seed=2"])
    assert found.sources == {"data_seed": "e"}
    assert (found.optimiser.lr, found.lora.rank, found.seed) == (1e-3, 4, 2)


def test_preset_by_its_name_with_overrides():
    found = read_config("turner", ["optimiser.name=adamw", "dataset=d.jsonl", "seed=4", "epochs=2"])
    assert (found.preset, found.seed, found.epochs, found.warmup_steps) == ("turner", 4, 2, 5)
    with pytest.raises(UserError, match="unknown preset 'turnr': did you mean turner"):
        read_config("turnr")


@pytest.mark.parametrize(
    "override, message",
    [
        ("steps", "'steps' is not KEY=VALUE"),
        ("=3", "'=3' is not KEY=VALUE"),
        ("stepz=3", "stepz: .*did you mean steps"),
        ("lora.rnk=3", "lora.rnk: Extra inputs"),
        ("dataset.name=3", "dataset.name: there is nothing below 'd.jsonl'"),
        ("steps=[1", "steps: the value '\\[1' is not YAML"),
        ("warmup_steps=99", "warmup_steps 99 is more than steps, 34: lower it$"),
    ],
)
def test_wrong_override_is_one_line(run_yaml, override, message):
    with pytest.raises(UserError, match=message) as caught:
        read_config(run_yaml, [override])
    assert "\n" not in str(caught.value)
