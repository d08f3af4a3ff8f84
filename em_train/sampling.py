"""The same rows in every optimiser step, however many processes share them."""

from collections.abc import Iterator

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler


class SharedOrder(Sampler[int]):
    """The order that a single process would draw, filled up with a blank row to a multiple of all processes' batches.

    accelerate deals whole micro-batches to the processes in turn, and repeats rows from the start where the last of an
    epoch are too few. A repeated row would be trained on twice; a blank row (index `rows`, nothing supervised) adds
    nothing to the loss.

    Args:
        rows: rows to draw from; index `rows` is the blank one.
        together: rows that all processes see in one forward pass.
        seed: of the order; each epoch has its own from it.
    """

    def __init__(self, rows: int, together: int, seed: int) -> None:
        self.rows = rows
        self.blanks = -rows % together
        self.drawn = SeedableRandomSampler(range(rows), data_seed=seed)

    def __iter__(self) -> Iterator[int]:
        yield from self.drawn
        yield from [self.rows] * self.blanks

    def __len__(self) -> int:
        return self.rows + self.blanks

    def set_epoch(self, epoch: int) -> None:
        self.drawn.set_epoch(epoch)
