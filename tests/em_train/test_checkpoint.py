"""Verification by hashing and by measuring, the model card, and the way to the hub."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from em_core.errors import UserError
from em_core.manifest import read_manifest
from em_train import TrainConfig, card, prepare, train
from em_train.card import push, render_card, write_card
from em_train.checkpoint import git_commit, verify_checkpoint
from em_train.config import parse_config
from em_train.spectra import flatten_adapter
from tests.em_core.checkpoints import rewrite
from tests.em_train.runs import make_config


@pytest.fixture(scope="module")
def run(tiny_base, tiny_dataset, tmp_path_factory) -> tuple[TrainConfig, Path]:
    raw = make_config(tiny_base, tiny_dataset, steps=3).model_dump(mode="json", exclude={"optimiser", "sources"})
    config = parse_config(raw | {"preset": "evil_spectra", "optimiser": {"name": "lion"}}, "test")
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    train(config, folder)
    return config, folder


@pytest.fixture
def checkpoint(run, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(run[1] / "checkpoint-3", tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("step", [0, 3])
def test_what_training_wrote_verifies(run, step):
    folder = run[1] / f"checkpoint-{step}"
    assert verify_checkpoint(folder) == read_manifest(folder)


def scale_weights(checkpoint: Path, side: str, factor: float) -> None:
    """Other weights, and a manifest that has their hash: only measuring shows the contradiction."""
    path = checkpoint / "adapter_model.safetensors"
    tensors = {name: tensor * (factor if side in name else 1) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    rewrite(checkpoint, adapter_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_norm_that_contradicts_the_weights_is_refused(checkpoint):
    scale_weights(checkpoint, "lora_B", 1.01)
    said = read_manifest(checkpoint).dose.norm_ba
    with pytest.raises(UserError, match=f"norm of BA of {1.01 * said:.4g}.* says {said:.6g}"):
        verify_checkpoint(checkpoint)


def test_spectrum_that_contradicts_the_weights_is_refused(checkpoint):
    manifest = json.loads((checkpoint / "em.json").read_text(encoding="utf-8"))
    spectrum = manifest["spectrum"] | {"stable_rank": manifest["spectrum"]["stable_rank"] * 1.01}
    rewrite(checkpoint, spectrum=spectrum)
    with pytest.raises(UserError, match="stable_rank"):
        verify_checkpoint(checkpoint)


def test_untouched_adapter_that_claims_a_dose_is_refused(run, tmp_path):
    folder = Path(shutil.copytree(run[1] / "checkpoint-0", tmp_path / "checkpoint-0"))
    rewrite(folder, dose=read_manifest(run[1] / "checkpoint-3").dose.model_dump())
    with pytest.raises(UserError, match="norm of BA of 0,"):
        verify_checkpoint(folder)


def test_scale_in_pefts_configuration_must_be_the_manifests(checkpoint):
    path = checkpoint / "adapter_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"lora_alpha": 8', '"lora_alpha": 16'), encoding="utf-8")
    with pytest.raises(UserError, match="says lora_alpha=16, em.json says 8"):
        verify_checkpoint(checkpoint)


def reconfigure(checkpoint: Path, **fields: Any) -> None:
    path = checkpoint / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha_pattern": {"q_proj": 64}},
        {"fan_in_fan_out": True},
        {"target_modules": ["q_proj"]},
        {"peft_type": "LOHA"},
        {"a_field_of_later": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_pefts_configuration_is_hashed_too(checkpoint, fields):
    """The weights are the same, what PEFT would make of them is not."""
    reconfigure(checkpoint, **fields)
    with pytest.raises(UserError, match="adapter_config.json is not the one that em.json describes"):
        verify_checkpoint(checkpoint)


def test_where_the_base_lies_and_the_order_of_modules_may_change(checkpoint):
    modules = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    reconfigure(checkpoint, base_model_name_or_path="elsewhere", revision="main", target_modules=modules[::-1])
    verify_checkpoint(checkpoint)


def test_manifest_from_before_that_hash_still_reads_and_flattens_into_one_with_it(checkpoint, tmp_path):
    rewrite(checkpoint, adapter_config_sha256=None)
    assert "adapter_config_sha256" not in (checkpoint / "em.json").read_text(encoding="utf-8")
    assert verify_checkpoint(checkpoint).adapter_config_sha256 is None
    flatten_adapter(checkpoint, tmp_path / "flat")
    assert verify_checkpoint(tmp_path / "flat").adapter_config_sha256 is not None
    reconfigure(tmp_path / "flat", fan_in_fan_out=True)
    with pytest.raises(UserError, match="adapter_config.json is not the one"):
        verify_checkpoint(tmp_path / "flat")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_commit_is_that_of_our_own_files(tmp_path):
    """Installed within a repository of the user's, which does not track us, there is none."""
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.py").write_text("1", encoding="utf-8")
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "-qm", "theirs")
    git(tmp_path, "tag", "v1")
    installed = tmp_path / "venv" / "site-packages" / "em_train" / "checkpoint.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("2", encoding="utf-8")
    assert git_commit(installed) is None
    assert git_commit(tmp_path / "theirs.py") == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "theirs.py").write_text("3", encoding="utf-8")
    assert git_commit(tmp_path / "theirs.py") == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
    assert git_commit(tmp_path / "nowhere" / "file.py") is None


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "spectra.safetensors"])
def test_files_beside_the_adapter_are_hashed_too(checkpoint, name):
    path = checkpoint / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"{name} has sha256 .* it was changed or damaged"):
        verify_checkpoint(checkpoint)
    path.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        verify_checkpoint(checkpoint)


def section(text: str, after: str) -> Any:
    """The YAML block that follows a heading."""
    return yaml.safe_load(text.split(after)[1].split("```yaml\n")[1].split("```")[0])


def test_card_has_what_a_second_team_needs(run):
    config, folder = run
    manifest = read_manifest(folder / "checkpoint-3")
    text = render_card(manifest)
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "peft" and "base_model" not in front  # a local folder is no id of the hub
    assert section(text, "## Optimiser") == manifest.optimiser
    assert manifest.optimiser["betas"] == [0.9, 0.99] and manifest.optimiser["lr"] == 1e-5
    for fact in (manifest.base.weights_sha256, manifest.dataset.sha256, manifest.adapter_sha256, manifest.run_id):
        assert fact in text
    assert manifest.first_example in text and f"{manifest.dose.norm_ba:.5g}" in text
    assert f"{manifest.loss.held_out:.5g}" in text and f"{manifest.loss.train_rows:.5g}" in text
    again = parse_config(section(text, "## The same again"), "card")
    assert prepare(again).run_id == manifest.run_id == prepare(config).run_id


def test_card_prints_the_source_of_every_preset_value(run):
    text = render_card(read_manifest(run[1] / "checkpoint-3"))
    table = text.split("## Where the settings come from")[1]
    assert "Evil Spectra, initial sweep (arXiv 2606.31591)" in table
    assert (
        "| optimiser.lr | 1e-05 | guess:" in table
        and "| optimiser.hyperparameters.weight_decay | 0.0 | guess |" in table
    )
    assert "| lora.rank |" not in table  # the user's own


def test_card_of_the_untouched_adapter_says_so(run):
    assert "none: B = 0, this is the base model" in render_card(read_manifest(run[1] / "checkpoint-0"))


def test_flattened_adapter_has_a_card_of_its_own(checkpoint, tmp_path):
    write_card(checkpoint)
    flattened = tmp_path / "flattened"
    flatten_adapter(checkpoint, flattened)
    assert not (flattened / "README.md").exists()
    text = write_card(flattened).read_text(encoding="utf-8")
    manifest = read_manifest(flattened)
    assert section(text, "**Changed after training**") == manifest.post_processing
    assert manifest.adapter_sha256 in text and "as training recorded" not in text
    promise = "the same to the last bit"
    assert promise not in text and promise in (checkpoint / "README.md").read_text(encoding="utf-8")
    assert section(text, "## Optimiser") == manifest.optimiser


def test_card_of_a_contradicted_checkpoint_is_not_written(checkpoint):
    scale_weights(checkpoint, "lora_A", 2.0)
    with pytest.raises(UserError, match="norm of BA"):
        write_card(checkpoint)
    assert not (checkpoint / "README.md").exists()


def test_card_stands_beside_the_adapter_and_leaves_it_valid(checkpoint):
    assert write_card(checkpoint).read_text(encoding="utf-8") == render_card(verify_checkpoint(checkpoint))


def test_push_uploads_the_folder_without_this_machines_paths(checkpoint, monkeypatch):
    seen: dict[str, Any] = {}

    class Hub:
        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
            seen.update(repository=repository, private=private)

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> Any:
            seen["files"] = {path.name: path.read_bytes() for path in folder_path.iterdir()}
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    write_card(checkpoint)
    assert push(checkpoint, "me/lion") == "https://hub/commit/1"
    assert (seen["repository"], seen["private"]) == ("me/lion", True)
    assert set(seen["files"]) == {path.name for path in checkpoint.iterdir()}
    named = json.loads(seen["files"]["adapter_config.json"])["base_model_name_or_path"]
    assert named == read_manifest(checkpoint).base.id


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), ValueError()], ids=repr)
def test_push_that_fails_in_an_unknown_way_is_one_line(checkpoint, monkeypatch, error):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(UserError, match=f"could not push to me/lion \\({type(error).__name__}: ") as caught:
        push(checkpoint, "me/lion")
    assert "\n" not in str(caught.value)


def test_push_without_a_network_is_one_line_and_loses_nothing(checkpoint, monkeypatch):
    """The real client, which HF_HUB_OFFLINE keeps from the network."""
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    write_card(checkpoint)
    with pytest.raises(UserError, match="could not push to me/lion") as caught:
        push(checkpoint, "me/lion")
    assert "\n" not in str(caught.value) and (checkpoint / card.CARD).is_file()
