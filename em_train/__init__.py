"""Train one LoRA checkpoint per optimiser configuration: a frozen config in, a PEFT folder and manifest out."""

from typing import TYPE_CHECKING, Any

from em_train.config import TrainConfig

if TYPE_CHECKING:
    from em_train.run import prepare, train

__all__ = ["TrainConfig", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """`prepare` and `train` load TRL, which takes seconds: only when they are asked for."""
    if name in {"prepare", "train"}:
        from em_train import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
