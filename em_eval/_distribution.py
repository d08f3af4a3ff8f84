"""Lets Inspect see that this package is installed, wherever Python was started.

Inspect names a task `em_eval/em` only where `importlib.metadata` says that the distribution `em_eval` is installed.
An editable install leaves an `em_eval.egg-info` beside the packages. Where that folder stands first on `sys.path`
(`python -m inspect_ai` or `python -m pytest` in the repository root), it hides the real one, and
`inspect eval em_eval/em` would not be found.
"""

import sys
from pathlib import Path

from inspect_ai._util.package import (  # inspect-evals-lint: ignore[private_api_imports] -- no public name
    get_package_direct_url,
)

EGG_INFO = "em_eval.egg-info"


def prefer_installed() -> None:
    """Have Inspect look the distribution up once without folders that only hold our egg-info; it keeps the answer."""
    kept = sys.path[:]
    sys.path[:] = [entry for entry in kept if not (Path(entry or ".") / EGG_INFO).is_dir()]
    try:
        get_package_direct_url("em_eval")
    finally:
        sys.path[:] = kept
