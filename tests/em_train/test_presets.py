"""Presets: every value has a source, what the user writes wins, and the figures are those of the published settings."""

import pytest
from pydantic import ValidationError

from em_core.errors import UserError
from em_train.config import parse_config
from em_train.presets import Preset, expand, load_preset, preset_names

NAMES = preset_names()


def config(preset: str, optimiser: str = "adamw", **given):
    return parse_config({"preset": preset, "dataset": "d.jsonl", "optimiser": {"name": optimiser}, **given}, "test")


def test_the_four_are_there():
    assert NAMES == ["betley", "evil_spectra", "evil_spectra_tuned", "turner"]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_valid_and_has_a_source(name):
    preset = load_preset(name)
    for optimiser, settings in preset.optimisers.items():
        found = config(name, optimiser)
        wanted = set(preset.values) | {f"optimiser.{key}" for key in settings}
        assert set(found.sources) == wanted
        assert all(source.strip() for source in found.sources.values())
        assert found.preset == name and found.epochs is not None


def test_a_value_without_a_source_is_refused():
    with pytest.raises(ValidationError):
        Preset.model_validate({"title": "t", "reference": "r", "values": {"seed": [0]}, "optimisers": {}})


def test_evil_spectra_is_one_rate_for_all_but_sgd():
    rates = {name: config("evil_spectra", name).optimiser.lr for name in ("adam", "adamw", "lion", "muon", "sgd")}
    assert rates == {"adam": 1e-5, "adamw": 1e-5, "lion": 1e-5, "muon": 1e-5, "sgd": 0.1}
    found = config("evil_spectra", "muon")
    assert (found.lora.rank, found.lora.alpha, found.lora.rslora, found.batch_size) == (32, 64, True, 32)
    assert (found.warmup_steps, found.schedule, found.max_length, found.epochs) == (50, "cosine", 2048, 1)
    assert found.optimiser.hyperparameters["adjust_lr_fn"] == "original"
    assert found.for_rows(6000).kept_steps()[-1] == 188 and len(found.for_rows(6000).kept_steps()) == 16


def test_tuned_preset_changes_rates_and_epochs_and_inherits_the_rest():
    plain, tuned = (config(name, "muon") for name in ("evil_spectra", "evil_spectra_tuned"))
    assert tuned.optimiser.lr == 3e-5 and config("evil_spectra_tuned", "lion").optimiser.lr == 3e-6
    assert tuned.epochs == 2 and tuned.lora == plain.lora and tuned.warmup_steps == plain.warmup_steps
    assert tuned.optimiser.hyperparameters == plain.optimiser.hyperparameters


def test_turner_is_two_rows_by_eight():
    found = config("turner")
    assert (found.batch_size, found.micro_batch_size, found.warmup_steps, found.schedule) == (16, 2, 5, "linear")
    assert found.optimiser.hyperparameters == {"weight_decay": 0.01}


def test_what_the_user_writes_wins_and_loses_its_source():
    found = config("evil_spectra", "lion", lora={"rank": 8}, seed=3)
    assert found.lora.rank == 8 and found.lora.alpha == 64 and found.seed == 3
    assert "lora.rank" not in found.sources and "lora.alpha" in found.sources
    assert "guess" in found.sources["optimiser.lr"]
    mine = parse_config(
        {"preset": "evil_spectra", "dataset": "d", "optimiser": {"name": "lion", "lr": 1e-4}, "steps": 100}, "test"
    )
    assert mine.optimiser.lr == 1e-4 and "optimiser.lr" not in mine.sources
    assert mine.steps == 100 and mine.epochs is None and "epochs" not in mine.sources


def test_an_expanded_config_is_not_expanded_again():
    """A manifest's configuration reads back as it was, whatever the preset says by then."""
    found = config("evil_spectra", "lion")
    written = found.model_dump(mode="json") | {"warmup_steps": 7}
    assert expand(written) == written
    assert parse_config(written, "em.json").warmup_steps == 7


@pytest.mark.parametrize(
    "raw, message",
    [
        ({"preset": "evil_spectr"}, "unknown preset 'evil_spectr': did you mean evil_spectra"),
        ({"preset": "xyz"}, "known: betley, evil_spectra"),
        ({"preset": "turner"}, "give optimiser.name"),
        (
            {"preset": "turner", "optimiser": {"name": "adamw"}, "lora": 3},
            r"lora\.\w+: there is nothing below '3' to set",
        ),
        ({"preset": "turner", "optimiser": {"name": "lion"}}, "no learning rate for 'lion': give optimiser.lr"),
    ],
)
def test_what_a_preset_cannot_fill_in_is_named(raw, message):
    with pytest.raises(UserError, match=message):
        parse_config({"dataset": "d", **raw}, "test")
