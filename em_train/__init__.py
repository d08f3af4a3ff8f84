"""Train one LoRA checkpoint per optimiser configuration: a frozen config in, a PEFT folder and manifest out."""

from typing import TYPE_CHECKING, Any

from em_train.config import TrainConfig

if TYPE_CHECKING:
    from em_train.preparation import prepare
    from em_train.run import train

__all__ = ["TrainConfig", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """`prepare` and `train` load torch and TRL, which takes seconds: only when they are asked for."""
    if name == "prepare":
        from em_train.preparation import prepare

        return prepare
    if name == "train":
        from em_train.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
