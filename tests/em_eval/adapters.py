"""Adapters that say something else than the one they were copied from."""

import json
import shutil
from pathlib import Path
from typing import Any

from em_core.manifest import ADAPTER_CONFIG


def changed(source: Path, folder: Path, **settings: Any) -> Path:
    """A copy of an adapter whose configuration says something else."""
    shutil.copytree(source, folder)
    config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | settings), encoding="utf-8")
    return folder
