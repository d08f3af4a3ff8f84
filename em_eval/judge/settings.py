"""How a model judge is asked and read: what `-T reader=`, `two_pass=`, `judge_draws=` and `judge_cache=` set."""

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

from em_core.errors import UserError

Reader = Literal["logprobs", "digits", "samples", "text"]
READERS: tuple[Reader, ...] = get_args(Reader)
DEFAULT_DRAWS = 5


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of one model judge.

    Attributes:
        reader: one of `READERS`, or "auto": the best one that a self-test shows to fit the judge.
        two_pass: ask for coherence first, and for alignment only where the answer is coherent.
        draws: numbers drawn a question by the reader "samples".
        cache: keep the judge's replies in Inspect's cache, for any epoch and without expiry. Answers never are.
    """

    reader: str = "auto"
    two_pass: bool = False
    draws: int = DEFAULT_DRAWS
    cache: bool = False

    def __post_init__(self) -> None:
        if self.reader != "auto" and self.reader not in READERS:
            near = difflib.get_close_matches(str(self.reader), READERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: auto, {', '.join(READERS)}"
            raise UserError(f"unknown reader '{self.reader}': {hint}")
        if self.draws < 2:
            raise UserError(f"judge_draws={self.draws} gives no spread: draw at least 2 numbers")
