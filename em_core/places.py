"""Where things lie on this machine: the user's cache and the offline source of data."""

import os
from pathlib import Path

import platformdirs

from em_core.errors import UserError


def cache_dir() -> Path:
    """The cache (`EM_CACHE_DIR`, else the platform's own place). Safe to delete."""
    return Path(os.environ.get("EM_CACHE_DIR") or platformdirs.user_cache_dir("evil-spectra"))


def data_dir() -> Path | None:
    """The offline source of downloads named by `EM_DATA_DIR`, or None.

    Raises:
        UserError: the variable names a folder that is not there.
    """
    value = os.environ.get("EM_DATA_DIR")
    if not value:
        return None
    path = Path(value)
    if not path.is_dir():
        raise UserError(f"EM_DATA_DIR={value} is not a folder: unset it or point it at your copy of the data")
    return path


def from_users_folder(path: str) -> str:
    """A relative path as the user meant it: Inspect builds a file's task in that file's folder, not in theirs."""
    if not Path(path).is_absolute() and not Path(path).exists():
        there = Path(os.environ.get("PWD", ".")) / path
        if there.exists():
            return str(there)
    return path
