"""The study file: a grid of training runs and the evaluations of their checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator

from em_core.errors import UserError
from em_core.files import sha256_json
from em_train.config import LoraSettings, OptimiserConfig, PenaltyConfig, TrainConfig, parse_config


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimiserAxis(_Frozen):
    """One optimiser, at one learning rate or several."""

    name: str
    lr: tuple[PositiveFloat, ...] = Field(min_length=1)
    hyperparameters: dict[str, Any] = {}

    @field_validator("lr", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)


class Arm(_Frozen):
    """A single run beside the grid: a control, or data that may not be on this machine."""

    dataset: str
    optimiser: str = Field(description="name of an optimiser of the grid; its first rate is used")
    optional: bool = Field(False, description="leave it out, and say so, where the dataset is not at hand")


class Evaluation(_Frozen):
    """One Inspect task on every checkpoint, with its `-T` arguments."""

    task: Literal["em", "preference"]
    questions: str = "core"
    samples: int = Field(4, ge=1)
    max_tokens: int = Field(96, ge=1)
    grader: str | None = Field(None, description="Inspect model that judges; without it, the embedded judge")
    seed: int = 0
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, description="sample among the likeliest tokens only")

    def sampling(self) -> dict[str, Any]:
        """Inspect's generation settings."""
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {name: value for name, value in chosen.items() if value is not None} if self.task == "em" else {}

    def arguments(self) -> dict[str, Any]:
        """The task's own arguments."""
        if self.task != "em":
            return {}
        judge = "model" if self.grader else "embedded"
        given = self.model_dump(include={"questions", "samples", "max_tokens", "seed"})
        return given | {"judge": judge}


class Study(_Frozen):
    """A study file, validated. Defaults of training are those of `TrainConfig` where none is given."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    base_model: str = "smollm2-135m"
    base_revision: str | None = None
    datasets: tuple[str, ...] = Field(min_length=1)
    optimisers: tuple[OptimiserAxis, ...] = Field(min_length=1)
    penalties: tuple[PenaltyConfig | None, ...] = Field((None,), min_length=1, description="null: no penalty")
    arms: tuple[Arm, ...] = ()
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    steps: int = Field(34, ge=1)
    batch_size: int = Field(16, ge=1)
    micro_batch_size: int | None = Field(None, ge=1)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_length: int = Field(512, ge=8)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraSettings = LoraSettings()
    checkpoints: tuple[Annotated[int, Field(ge=-1)], ...] = Field((0, -1), min_length=1)
    evaluations: tuple[Evaluation, ...] = ()

    @field_validator("evaluations")
    @classmethod
    def _each_task_once(cls, value: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
        tasks = [evaluation.task for evaluation in value]
        if len(set(tasks)) < len(tasks):
            raise ValueError("a task can stand only once: make a second study for other questions")
        return value


@dataclass(frozen=True)
class Cell:
    """One training run of a study. `label` is for people; the run's identity is the hash of its contents."""

    label: str
    config: TrainConfig
    optional: bool = False


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        UserError: missing, not YAML, or a wrong field; the line of the mistake is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read study file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"study file {path} is not UTF-8 (byte {error.start})") from error
    try:
        return Study.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        line = _line(text, first["loc"])
        raise UserError(f"{path}:{line}: {field}: {first['msg']}") from error


def cells(study: Study) -> Iterator[Cell]:
    """Every run of the study: the grid first, then the single arms.

    Raises:
        UserError: an arm names an optimiser that is not in the grid.
    """
    for dataset in study.datasets:
        for axis in study.optimisers:
            for lr in axis.lr:
                for penalty in study.penalties:
                    for seed in study.seeds:
                        yield _cell(study, dataset, axis, lr, seed, penalty=penalty)
    axes = {axis.name: axis for axis in study.optimisers}
    for arm in study.arms:
        if arm.optimiser not in axes:
            raise UserError(
                f"study '{study.name}': arm on {arm.dataset} names optimiser '{arm.optimiser}', "
                f"which is not in its grid: {', '.join(axes)}"
            )
        axis = axes[arm.optimiser]
        for seed in study.seeds:
            yield _cell(study, arm.dataset, axis, axis.lr[0], seed, arm.optional)


def _cell(
    study: Study,
    dataset: str,
    axis: OptimiserAxis,
    lr: float,
    seed: int,
    optional: bool = False,
    penalty: PenaltyConfig | None = None,
) -> Cell:
    given = {
        "base_model": study.base_model,
        "base_revision": study.base_revision,
        "dataset": dataset,
        "optimiser": OptimiserConfig(name=axis.name, lr=lr, hyperparameters=axis.hyperparameters),
        "lora": study.lora,
        "penalty": penalty,
        "steps": study.steps,
        "batch_size": study.batch_size,
        "micro_batch_size": study.micro_batch_size,
        "warmup_steps": study.warmup_steps,
        "schedule": study.schedule,
        "max_length": study.max_length,
        "dtype": study.dtype,
        "seed": seed,
        "data_seed": seed,
        "checkpoints": study.checkpoints,
    }
    config = parse_config(given, f"study '{study.name}'")
    name = Path(dataset).stem if dataset.endswith(".jsonl") else dataset
    return Cell(f"{name}-{axis.name}-lr{lr:g}{_penalty_label(penalty)}-seed{seed}", config, optional)


def _penalty_label(penalty: PenaltyConfig | None) -> str:
    if penalty is None:
        return ""
    settings = f"-{sha256_json(penalty.hyperparameters)[:4]}" if penalty.hyperparameters else ""
    return f"-{penalty.name}{penalty.strength:g}{settings}"


def _line(text: str, location: tuple[int | str, ...]) -> int:
    """The line of the deepest part of `location` that the file has."""
    node = yaml.compose(text)
    line = 1
    for part in location:
        children = getattr(node, "value", None)
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(children or []):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
