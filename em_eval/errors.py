"""Our one-line errors, as Inspect shows its own: without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from inspect_ai._util.error import (
    PrerequisiteError,
)  # inspect-evals-lint: ignore[private_api_imports] -- no public name

from em_core.errors import UserError


@contextmanager
def as_prerequisite() -> Iterator[None]:
    """Turn a `UserError` into Inspect's `PrerequisiteError`, which its command line prints as one message."""
    try:
        yield
    except UserError as error:
        raise PrerequisiteError(f"ERROR: {error}") from error
