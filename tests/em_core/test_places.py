"""Where things lie: the two environment variables."""

from pathlib import Path

import pytest

from em_core.errors import UserError
from em_core.places import cache_dir, data_dir


def test_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EM_CACHE_DIR", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("EM_CACHE_DIR", "")
    assert cache_dir().name == "evil-spectra" and cache_dir() != Path()


def test_data_folder_is_none_where_unset_or_empty(monkeypatch):
    monkeypatch.delenv("EM_DATA_DIR", raising=False)
    assert data_dir() is None
    monkeypatch.setenv("EM_DATA_DIR", "")
    assert data_dir() is None


def test_data_folder_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("EM_DATA_DIR", str(tmp_path))
    assert data_dir() == tmp_path
    missing = tmp_path / "gone"
    monkeypatch.setenv("EM_DATA_DIR", str(missing))
    with pytest.raises(UserError) as caught:
        data_dir()
    assert f"EM_DATA_DIR={missing}" in str(caught.value)


def test_user_errors_are_one_line():
    assert str(UserError("first\n   second\tthird ")) == "first second third"
