"""Train one LoRA checkpoint per optimiser configuration: a frozen config in, a PEFT folder and manifest out."""

from em_train.config import TrainConfig
from em_train.run import prepare, train

__all__ = ["TrainConfig", "prepare", "train"]
