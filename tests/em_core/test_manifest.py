"""The checkpoint contract as a reader sees it: whole, of our schema, and not tampered with."""

import json

import pytest

from em_core.errors import UserError
from em_core.manifest import ADAPTER, ADAPTER_CONFIG, MANIFEST, adapter_config, read_manifest, verify
from tests.em_core.checkpoints import rewrite, write_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint-3", tmp_path / "base")


def test_reads_back_every_field(checkpoint):
    manifest = read_manifest(checkpoint)
    assert manifest.step == 3 and manifest.run_id == "abc"
    assert manifest.loss.train == 1.5 and manifest.loss.held_out is None
    assert manifest.dose is not None and manifest.dose.norm_ba == 2.0
    written = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    assert _holds(manifest.model_dump(mode="json"), written)


def _holds(found, written):
    """Every written field is there as it was; fields that came later have their defaults."""
    if isinstance(written, dict):
        return all(_holds(found[key], value) for key, value in written.items())
    return found == written


def test_missing_folder_and_missing_manifest_are_told_apart(checkpoint, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")
    (checkpoint / MANIFEST).unlink()
    with pytest.raises(UserError, match="not a complete checkpoint"):
        read_manifest(checkpoint)
    with pytest.raises(UserError, match="not a complete checkpoint"):
        verify(checkpoint)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"step": 1}', b"\xff\xfe"])
def test_what_is_not_a_manifest_is_one_line_with_its_path(checkpoint, content):
    (checkpoint / MANIFEST).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_manifest(checkpoint)
    assert str(checkpoint / MANIFEST) in str(caught.value)


def test_a_missing_field_is_named(checkpoint):
    rewrite(checkpoint, examples_seen=None)
    with pytest.raises(UserError, match="examples_seen"):
        read_manifest(checkpoint)


def test_another_schema_is_refused(checkpoint):
    rewrite(checkpoint, schema_version=999)
    with pytest.raises(UserError, match="schema"):
        read_manifest(checkpoint)


def test_unknown_fields_are_refused(checkpoint):
    rewrite(checkpoint, surprise=1)
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(checkpoint)


def test_verify_accepts_what_was_written(checkpoint):
    assert verify(checkpoint) == read_manifest(checkpoint)


def test_verify_sees_one_changed_bit(checkpoint):
    data = bytearray((checkpoint / ADAPTER).read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / ADAPTER).write_bytes(bytes(data))
    with pytest.raises(UserError, match="changed or damaged"):
        verify(checkpoint)
    read_manifest(checkpoint)


def test_verify_sees_a_missing_adapter(checkpoint):
    (checkpoint / ADAPTER).unlink()
    with pytest.raises(UserError, match="is missing"):
        verify(checkpoint)


def test_manifests_cannot_be_changed_in_memory(checkpoint):
    with pytest.raises(ValueError, match="frozen"):
        read_manifest(checkpoint).step = 4  # type: ignore[misc]


@pytest.mark.parametrize("content", [None, "not json"])
def test_adapter_config_missing_or_damaged_is_a_user_error(checkpoint, content):
    (checkpoint / ADAPTER_CONFIG).unlink()
    if content is not None:
        (checkpoint / ADAPTER_CONFIG).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="give a PEFT adapter folder"):
        adapter_config(checkpoint)
