"""Some of a study's cells: what one sitting, or one of several machines, works on."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from em_core.errors import UserError


class Labelled(Protocol):
    @property
    def label(self) -> str: ...


T = TypeVar("T", bound=Labelled)


def selected(cells: Sequence[T], only: Sequence[str]) -> list[T]:
    """The cells whose label fits one of the patterns (`*-seed0`, `*lion*`); all where there is no pattern.

    Raises:
        UserError: a pattern fits none.
    """
    for pattern in only:
        if not any(fnmatchcase(cell.label, pattern) for cell in cells):
            example = f" {cells[0].label}" if cells else ""
            raise UserError(f"--only {pattern}: fits no cell of the study, which are called like{example}")
    return [cell for cell in cells if not only or any(fnmatchcase(cell.label, pattern) for pattern in only)]
