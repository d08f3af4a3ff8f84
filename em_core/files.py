"""Files that are either whole or absent, and hashes of what they hold."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from em_core.errors import UserError


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a plain value by content: key order and white space do not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write through a temporary name in the same folder, so that readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def made_folder(path: Path) -> Path:
    """The folder itself, made where it is not there yet.

    Raises:
        UserError: a file has its name or that of a folder above it, or it cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}: choose another") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"cannot write to the folder {path}: choose another")
    return path


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder; it takes its name only when the block ends well.

    Raises:
        UserError: the disk is full or not writable; nothing is left under `target`.
    """
    draft = target.parent / f".{target.name}.{uuid4().hex[:8]}"
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in draft.iterdir():
            path.chmod(0o644 if path.is_file() else 0o755)
        old = draft.with_name(draft.name + ".old")
        if target.exists():
            os.replace(target, old)
        os.replace(draft, target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors wraps the operating system's error in its own
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"could not write {target}: {getattr(error, 'strerror', None) or error}; nothing was left there: "
            "free some space or choose another folder"
        ) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def sweep_drafts(folder: Path) -> None:
    """Remove what a killed process left of its unfinished folders."""
    for draft in folder.glob(".*.????????*"):
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)


def json_object(path: Path) -> dict[str, Any]:
    """An object from a file; empty where there is none, or half a one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
