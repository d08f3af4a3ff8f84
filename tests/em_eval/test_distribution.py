"""Inspect's names of our tasks, from wherever Python was started."""

import os
import subprocess
import sys
from pathlib import Path

NAME = "from inspect_ai._util.registry import registry_info; import em_eval; print(registry_info(em_eval.em).name)"


def test_an_egg_info_that_stands_first_does_not_take_the_package_from_task_names(tmp_path: Path) -> None:
    """As in the root of an editable checkout: `python -m inspect_ai eval em_eval/em` must find the task."""
    folder = tmp_path / "em_eval.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: em_eval\nVersion: 0.1.0\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", NAME],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "em_eval/em"
