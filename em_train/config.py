"""The frozen configuration of one training run, and how it is read: YAML, a preset, overrides by dotted keys."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from em_core import strict_yaml
from em_core.errors import UserError
from em_train.presets import expand, load_preset
from em_train.steps import StepNames, steps_named


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
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of A and B; bfloat16 loses small steps")
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


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class TrainConfig(_Frozen):
    """One run. Everything that can change the resulting weights is here.

    What cannot, beyond rounding or at all, is here too but outside the run's identity (`NOT_IDENTITY`): how rows
    are spread over forward passes (which counts under dropout alone), what is recomputed, and where progress is
    reported.
    """

    base_model: str = "smollm2-135m"
    base_revision: str | None = None
    dataset: str
    optimiser: OptimiserConfig
    lora: LoraSettings = LoraSettings()
    penalty: PenaltyConfig | None = None
    steps: int = Field(34, ge=1, description="optimiser steps")
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False, description="passes over the rows; decides steps")
    batch_size: int = Field(16, ge=1, description="rows an optimiser step, over all processes and micro-batches")
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows a forward pass of one process; default: its whole share of the batch"
    )
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["linear", "cosine", "constant"] | None = Field(
        None, description="default: the one that the optimiser is meant for, else linear"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="global clipping; 0 turns it off")
    max_length: int = Field(512, ge=8, description="tokens a row; longer rows are refused, never cut silently")
    held_out_fraction: float = Field(0.1, gt=0, lt=0.5)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    data_seed: int = 0
    checkpoints: StepNames = Field(
        (0, -1), description="steps to keep; -1 is the last, log:N is step 0 and N log-spaced steps up to the last"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, slower")
    report_to: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        (), description="trackers as in TRL: tensorboard, wandb, trackio, mlflow, ..."
    )
    preset: str | None = Field(None, description="the preset that the values without a source of their own came from")
    sources: dict[str, str] = Field({}, description="where the preset's values come from, by dotted key")

    @model_validator(mode="after")
    def _steps_are_reached(self) -> "TrainConfig":
        if self.epochs is None:
            self._check_steps()
        return self

    def _check_steps(self) -> None:
        beyond = [step for step in self.checkpoints if isinstance(step, int) and step > self.steps]
        if beyond:
            raise ValueError(f"checkpoint {beyond[0]} lies beyond the last step, {self.steps}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than steps, {self.steps}: lower it")

    def for_rows(self, rows: int) -> "TrainConfig":
        """This configuration with `steps` decided, where `epochs` decides it, for `rows` training rows.

        Raises:
            UserError: both were given and contradict each other, or a checkpoint or the warm-up lies beyond the end.
        """
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * -(-rows // self.batch_size)))
        if "steps" in self.model_fields_set and self.steps != steps:
            raise UserError(
                f"epochs={self.epochs:g} over {rows} rows are {steps} steps, but steps={self.steps}: give one of them"
            )
        decided = self.model_copy(update={"steps": steps})
        try:
            decided._check_steps()
        except ValueError as error:
            raise UserError(str(error)) from error
        return decided

    def kept_steps(self) -> list[int]:
        """The steps to keep, in order, with -1 and log:N resolved."""
        return steps_named(self.checkpoints, self.steps)


# Fields that leave the weights as they are (to rounding), or that other parts of the identity stand for.
NOT_IDENTITY = {
    "base_model",
    "base_revision",
    "dataset",
    "optimiser",
    "schedule",
    "penalty",
    "dtype",
    "epochs",
    "micro_batch_size",
    "checkpoints",
    "gradient_checkpointing",
    "report_to",
    "preset",
    "sources",
}


def read_config(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """A YAML file, or a preset by its name, with `overrides` on top: each KEY=VALUE, a dotted key and a YAML value.

    Raises:
        UserError: neither file nor preset, or a field that is wrong, named.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return load_config(path, overrides)
    load_preset(name)
    return parse_config(_override({"preset": name}, overrides), f"preset {name}")


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML config, with `overrides` as in `read_config`.

    Raises:
        UserError: not found, not YAML, or a field that is wrong, named.
    """
    try:
        raw = strict_yaml.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start})") from error
    except ValueError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    return parse_config(_override(raw, overrides), str(path))


def parse_config(raw: Any, where: str) -> TrainConfig:
    """A checked configuration from plain values; `preset: NAME` among them fills in what they leave open.

    Raises:
        UserError: a field that is wrong, named; nearest known names for one that does not exist.
    """
    try:
        return TrainConfig.model_validate(expand(raw))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        parts = [str(part) for part in first["loc"]]
        field = ".".join(parts) or "config"
        known = TrainConfig.model_fields if len(parts) == 1 else {}
        near = difflib.get_close_matches(field, known, n=1) if first["type"] == "extra_forbidden" else []
        hint = f": did you mean {near[0]}?" if near else ""
        got = "" if parts == [] and isinstance(first["input"], dict) else f" (got {first['input']!r})"
        raise UserError(f"{where}: {field}: {first['msg'].removeprefix('Value error, ')}{hint}{got}") from error


def _override(raw: Any, overrides: Sequence[str]) -> Any:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"'{text}' is not KEY=VALUE: write, for example, optimiser.lr=3e-4")
        try:
            parsed = strict_yaml.load(value)
        except ValueError as error:
            raise UserError(f"{key}: the value {value!r} is not YAML") from error
        raw = _without_source(_with(raw, key.split("."), parsed, key), key)
    return raw


def _without_source(raw: dict[str, Any], key: str) -> dict[str, Any]:
    """A value that was overridden is the user's own, as is what lies below it."""
    sources = raw.get("sources")
    if not isinstance(sources, dict) or key.split(".")[0] == "sources":
        return raw
    kept = {name: source for name, source in sources.items() if not f"{name}.".startswith(f"{key}.")}
    return {**raw, "sources": kept}


def _with(raw: Any, path: list[str], value: Any, key: str) -> dict[str, Any]:
    """A copy of `raw` with `value` at `path`."""
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UserError(f"{key}: there is nothing below '{raw}' to set")
    inner = value if len(path) == 1 else _with(raw.get(path[0]), path[1:], value, key)
    return {**raw, path[0]: inner}
