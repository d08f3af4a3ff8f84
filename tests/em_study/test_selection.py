"""Which cells of a study `--only` chooses."""

from dataclasses import dataclass

import pytest

from em_core.errors import UserError
from em_study.selection import selected


@dataclass(frozen=True)
class Named:
    label: str


CELLS = [Named(f"bad-{optimiser}-lr0.1-seed{seed}") for optimiser in ("adam", "lion") for seed in (0, 1, 10)]


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["*-seed1"], [1, 4]),
        (["*lion*"], [3, 4, 5]),
        (["*-seed10", "bad-adam-*"], [0, 1, 2, 5]),
        (["bad-lion-lr0.1-seed0"], [3]),
    ],
)
def test_cells_whose_label_fits_a_pattern_in_their_order(only: list[str], chosen: list[int]) -> None:
    assert selected(CELLS, only) == [CELLS[place] for place in chosen]


def test_a_pattern_that_fits_nothing_is_an_error_that_shows_a_label() -> None:
    with pytest.raises(UserError, match=r"--only LION: fits no cell of the study, .* like bad-adam-lr0.1-seed0"):
        selected(CELLS, ["*lion*", "LION"])
