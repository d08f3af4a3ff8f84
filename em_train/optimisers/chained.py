"""Several optimisers over different parameters as one, for a trainer that knows only one."""

from collections.abc import Callable
from typing import Any

import torch


class Chained(torch.optim.Optimizer):
    """Steps its parts in order. Groups and state are theirs, by identity, so that schedulers, saving and sharding
    see every part."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """torch makes new groups and a new state when it loads: hand them to the parts again."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state
