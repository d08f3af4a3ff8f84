"""The frozen configuration of one training run."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from em_core.errors import UserError


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimiserConfig(_Frozen):
    """An optimiser by name, with its hyper-parameters (learning rate included) by its own names."""

    name: str
    lr: float = Field(gt=0, allow_inf_nan=False, description="peak learning rate")
    hyperparameters: dict[str, Any] = {}


class PenaltyConfig(_Frozen):
    """A penalty, or a control in its place, by name: strength x its term is added to the task loss."""

    name: str
    strength: float = Field(1.0, gt=0, allow_inf_nan=False, description="lambda")
    hyperparameters: dict[str, Any] = {}


class LoraSettings(_Frozen):
    """rsLoRA of rank 32 on every linear layer, as in Betley et al., Turner et al. and Evil Spectra."""

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    rslora: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    @property
    def scaling(self) -> float:
        """s in W + s BA: alpha / sqrt(r) under rsLoRA (Kalajdzievski 2023), else alpha / r."""
        return float(self.alpha / self.rank**0.5) if self.rslora else self.alpha / self.rank


class TrainConfig(_Frozen):
    """One run. Everything that can change the resulting weights is here, and nothing else."""

    base_model: str = "smollm2-135m"
    base_revision: str | None = None
    dataset: str
    optimiser: OptimiserConfig
    lora: LoraSettings = LoraSettings()
    penalty: PenaltyConfig | None = None
    steps: int = Field(34, ge=1, description="optimiser steps")
    batch_size: int = Field(16, ge=1, description="rows an optimiser step, over all processes and micro-batches")
    micro_batch_size: int | None = Field(None, ge=1, description="rows a forward pass; default: the whole batch")
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = Field(1.0, ge=0, description="global clipping; 0 turns it off")
    max_length: int = Field(512, ge=8, description="tokens a row; longer rows are refused, never cut silently")
    held_out_fraction: float = Field(0.1, gt=0, lt=0.5)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    data_seed: int = 0
    checkpoints: tuple[int, ...] = Field((0, -1), description="steps to keep; -1 is the last")

    @field_validator("checkpoints")
    @classmethod
    def _last_is_kept(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < -1:
            raise ValueError("give steps >= 0, or -1 for the last")
        return value

    @model_validator(mode="after")
    def _steps_are_reached(self) -> "TrainConfig":
        beyond = [step for step in self.checkpoints if step > self.steps]
        if beyond:
            raise ValueError(f"checkpoint {beyond[0]} lies beyond the last step, {self.steps}")
        return self

    def kept_steps(self) -> list[int]:
        """The steps to keep, in order, -1 resolved."""
        steps = {self.steps if step == -1 else step for step in self.checkpoints}
        return sorted(steps)


def load_config(path: Path) -> TrainConfig:
    """Read a YAML config.

    Raises:
        UserError: not found, not YAML, or a field that is wrong, named.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    return parse_config(raw, str(path))


def parse_config(raw: Any, where: str) -> TrainConfig:
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "config"
        raise UserError(f"{where}: {field}: {first['msg']} (got {first['input']!r})") from error
