"""A folder as one compressed file, small where the logs in it repeat each other."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import inspect_ai.log  # noqa: F401  # teaches zipfile the compression of Inspect's logs, where Python's cannot

PACKED = ".tar.xz"


def pack(folder: Path) -> Path:
    """Replace `folder` by a `.tar.xz` beside it, of which `tar xf` makes the folder again; returns its path.

    Inspect logs are zip files of which each member is compressed by itself. Here they are stored, so that what
    hundreds of logs have in common is written once; unpacked they are the same logs, only larger.
    """
    packed = folder.with_name(folder.name + PACKED)
    with tarfile.open(packed, "w:xz") as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = _stored(path) if path.suffix == ".eval" else path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(folder.parent).as_posix())  # nobody's: no user's name in it
            entry.size, entry.mtime = len(content), int(path.stat().st_mtime)
            tar.addfile(entry, io.BytesIO(content))
    shutil.rmtree(folder)
    return packed


def _stored(log: Path) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(log) as source, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            target.writestr(zipfile.ZipInfo(member.filename, member.date_time), source.read(member))
    return whole.getvalue()
