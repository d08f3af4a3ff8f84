"""How the steps of checkpoints are named in configurations: numbers, -1 for the last, `log:N` for log-spaced ones."""

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

LOG_SPACED = re.compile(r"log:([1-9]\d*)")


def steps_named(names: Iterable[int | str], last: int) -> list[int]:
    """The steps in order, for a run whose last step is `last`; `log:N` are 0 and N log-spaced ones up to the last."""
    steps: set[int] = set()
    for name in names:
        if isinstance(name, str):
            steps |= {0, *log_spaced(last, int(name.removeprefix("log:")))}
        else:
            steps.add(last if name == -1 else name)
    return sorted(steps)


def log_spaced(last: int, count: int) -> list[int]:
    """`count` steps up to `last`, evenly spaced in log(step + shift); fewer where neighbours coincide.

    The shift is 7.5 % of the run: at 625 steps that is within a few steps of the list which a replication of Evil
    Spectra used (10, 20, 32, 47, ..., 512, 625); without it most of the steps would crowd into the first ten.
    """
    shift = 0.075 * last
    steps = [round((last + shift) ** (i / count) * shift ** (1 - i / count) - shift) for i in range(1, count + 1)]
    return sorted({max(1, step) for step in steps})


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, int | str) else value


def _are_names(value: tuple[int | str, ...]) -> tuple[int | str, ...]:
    wrong = [name for name in value if (name < -1 if isinstance(name, int) else not LOG_SPACED.fullmatch(name))]
    if wrong or not value:
        raise ValueError("give steps >= 0, -1 for the last, or log:N for N log-spaced steps")
    return value


StepNames = Annotated[tuple[int | str, ...], BeforeValidator(_one_or_many), AfterValidator(_are_names)]
