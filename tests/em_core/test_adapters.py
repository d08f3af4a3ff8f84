"""From an adapter to its base, after either of them moved."""

import json
import shutil

import pytest

from em_core.adapters import base_of, relink
from em_core.errors import UserError
from em_core.manifest import ADAPTER_CONFIG, MANIFEST, adapter_config
from tests.em_core.checkpoints import rewrite_base, weights_hash, write_base, write_checkpoint


def test_base_where_it_was(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "base")
    base = base_of(checkpoint)
    assert base.path == (tmp_path / "base").resolve()
    assert base.weights_sha256 == weights_hash()


def test_moved_checkpoint_with_a_stale_path_finds_its_base_by_id(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "base", named="/another/machine/base")
    moved = tmp_path / "far" / "away"
    moved.parent.mkdir()
    shutil.move(checkpoint, moved)
    assert base_of(moved).path == (tmp_path / "base").resolve()
    assert relink(moved) == (tmp_path / "base").resolve()
    assert adapter_config(moved)["base_model_name_or_path"] == str((tmp_path / "base").resolve())
    assert adapter_config(moved)["peft_type"] == "LORA"


def test_moved_base_is_found_after_relinking_to_it(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "base")
    shutil.move(tmp_path / "base", tmp_path / "new_base")
    with pytest.raises(UserError):
        base_of(checkpoint)
    assert relink(checkpoint, str(tmp_path / "new_base")) == (tmp_path / "new_base").resolve()
    assert base_of(checkpoint).path == (tmp_path / "new_base").resolve()


def test_changed_base_weights_are_refused(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "base")
    write_base(tmp_path / "base", b"other weights")
    with pytest.raises(UserError) as caught:
        base_of(checkpoint)
    assert weights_hash()[:12] in str(caught.value)
    assert weights_hash(b"other weights")[:12] in str(caught.value)


def test_relinking_to_another_base_is_refused_and_changes_nothing(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "base")
    before = (checkpoint / ADAPTER_CONFIG).read_bytes()
    write_base(tmp_path / "other", b"other weights")
    with pytest.raises(UserError, match="not the base"):
        relink(checkpoint, str(tmp_path / "other"))
    assert (checkpoint / ADAPTER_CONFIG).read_bytes() == before


def test_a_relative_id_that_means_another_base_here_does_not_hide_the_right_one(tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "training" / "base")
    rewrite_base(checkpoint, id="base")
    write_base(tmp_path / "evaluating" / "base", b"a namesake")
    monkeypatch.chdir(tmp_path / "evaluating")
    assert base_of(checkpoint).path == (tmp_path / "training" / "base").resolve()


def test_foreign_adapter_is_found_by_its_path(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "base")
    (checkpoint / MANIFEST).unlink()
    assert base_of(checkpoint).path == (tmp_path / "base").resolve()


def test_foreign_adapter_with_a_base_beside_it(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "base", named="../base")
    (checkpoint / MANIFEST).unlink()
    assert base_of(checkpoint).path == (tmp_path / "base").resolve()


@pytest.mark.parametrize("named", [None, ""])
def test_foreign_adapter_that_names_no_base(tmp_path, named):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tmp_path / "base")
    (checkpoint / MANIFEST).unlink()
    config = {"peft_type": "LORA"} | ({"base_model_name_or_path": named} if named is not None else {})
    (checkpoint / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="names no base model"):
        base_of(checkpoint)


def test_folder_that_is_no_adapter(tmp_path):
    with pytest.raises(UserError, match="give a PEFT adapter folder"):
        base_of(tmp_path)
