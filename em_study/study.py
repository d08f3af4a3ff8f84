"""The study file: a grid of training runs and the evaluations of their checkpoints."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from em_core import strict_yaml
from em_core.errors import UserError
from em_study.sampling import SAMPLING
from em_study.setting_paths import unknown_part
from em_train.config import LoraSettings
from em_train.steps import StepNames, steps_named


def _refusal(said: str, *at: int | str) -> PydanticCustomError:
    """What a validator raises of a part of its value: `at` leads there from where the validator stands."""
    return PydanticCustomError("refused", "{said}", {"said": said, "at": at})


def _one_or_many(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _each_once(value: tuple[Any, ...]) -> tuple[Any, ...]:
    for number, one in enumerate(value):
        if one in value[:number]:
            raise _refusal(f"{'the same' if isinstance(one, BaseModel) else one} is given twice", number)
    return value


OneOrMany = BeforeValidator(_one_or_many)
Once = AfterValidator(_each_once)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
NO_PENALTY = "none"
Schedule = Literal["linear", "cosine", "constant"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Training(_Frozen):
    """What one optimiser of the grid trains with instead of the study's own settings."""

    steps: int | None = Field(None, ge=1)
    warmup_steps: int | None = Field(None, ge=0)
    schedule: Schedule | None = None
    max_grad_norm: float | None = Field(None, ge=0)


class OptimiserAxis(_Frozen):
    """One optimiser, at one learning rate or several. Several axes of one optimiser may differ in anything else."""

    name: str
    lr: Annotated[tuple[Positive, ...], OneOrMany, Once] = Field(min_length=1)
    hyperparameters: dict[str, Any] = {}
    training: Training = Training()


class PenaltyAxis(_Frozen):
    """One penalty, at one strength or several; "none" is the plain task loss."""

    name: str
    strength: Annotated[tuple[Positive, ...], OneOrMany, Once] = Field((1.0,), min_length=1)
    hyperparameters: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def each(self) -> list[dict[str, Any] | None]:
        """One setting of `TrainConfig.penalty` a strength."""
        if self.name == NO_PENALTY:
            return [None]
        return [
            {"name": self.name, "strength": strength, "hyperparameters": self.hyperparameters}
            for strength in self.strength
        ]


class Arm(_Frozen):
    """A single run a seed beside the grid: a control, a penalty, or data that may not be on this machine."""

    dataset: str
    optimiser: str = Field(description="name of an optimiser of the grid; its first rate is used")
    penalty: PenaltyAxis = PenaltyAxis(name=NO_PENALTY)
    optional: bool = Field(False, description="leave it out, and say so, where the dataset is not at hand")


JUDGED_BY = ("reader", "two_pass", "judge_draws")  # fields of an evaluation: how its grader is asked and read
TAGS = ("format", "exclude_domain")  # and which prompts of its set are asked


class Evaluation(_Frozen):
    """One Inspect task on every checkpoint, with its `-T` arguments and their defaults.

    `name` names it in tables and log folders; it may be left open where the task and its questions say enough.
    """

    task: Literal["em", "preference"]
    name: str = Field("", pattern=r"^[A-Za-z0-9_-]*$")
    questions: str = "core"
    samples: int = Field(4, ge=1)
    max_tokens: int = Field(96, ge=1)
    grader: str | None = Field(None, description="Inspect model that judges; without it, the embedded judge")
    reader: Literal["auto", "logprobs", "digits", "samples", "text"] = "auto"
    two_pass: bool = False
    judge_draws: int = Field(5, ge=2)
    format: Annotated[tuple[str, ...], OneOrMany, Once] = ()
    exclude_domain: Annotated[tuple[str, ...], OneOrMany, Once] = ()
    seed: int = 0
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, description="sample among the likeliest tokens only")
    engine: Literal["peft", "hf", "vllm"] = Field("peft", description="what runs the checkpoints (docs/providers.md)")
    checkpoints: StepNames | None = Field(None, description="the steps to evaluate; without it, every kept one")

    @model_validator(mode="after")
    def _engine_can(self) -> "Evaluation":
        if self.task == "preference" and self.engine == "vllm":
            raise ValueError("the preference probe needs likelihoods of given text, which vllm does not tell: use peft")
        return self

    @model_validator(mode="after")
    def _grader_is_there(self) -> "Evaluation":
        for field in self.given(JUDGED_BY) if self.grader is None else ():
            raise _refusal(f"the embedded judge is read in one way: give a grader, or leave {field} out", field)
        return self

    def only_what_counts(self) -> "Evaluation":
        """Refuse what a study file gives and the task does not take (a frozen cell holds every field)."""
        for field in sorted(self.model_fields_set & EM_ONLY) if self.task != "em" else ():
            raise _refusal(f"the {self.task} probe takes no {field}: leave it out", field)
        return self

    def steps(self, kept: list[int]) -> list[int]:
        """Those of a run's `kept` steps that this evaluation asks for; -1 is the last one kept."""
        return kept if self.checkpoints is None else steps_named(self.checkpoints, kept[-1])

    def sampling(self) -> dict[str, Any]:
        """Inspect's generation settings."""
        return self.model_dump(include=set(SAMPLING), exclude_none=True) if self.task == "em" else {}

    def arguments(self) -> dict[str, Any]:
        """The task's own arguments; a log is known by them, so that later ones stand there only where they are set."""
        if self.task != "em":
            return {}
        judge = "model" if self.grader else "embedded"
        given = self.model_dump(include={"questions", "samples", "max_tokens", "seed"})
        return given | {"judge": judge} | self.given(JUDGED_BY) | self.tags()

    def tags(self) -> dict[str, Any]:
        """Which prompts of the set are asked, as the task's arguments have it."""
        return {name: ",".join(names) for name, names in self.given(TAGS).items()}

    def given(self, fields: Iterable[str]) -> dict[str, Any]:
        """Those that are not at their default."""
        defaults = type(self).model_fields
        return {name: value for name in fields if (value := getattr(self, name)) != defaults[name].default}


EM_ONLY = set(Evaluation.model_fields) - {"task", "name", "engine", "checkpoints"}


class Measured(_Frozen):
    """What running a study once took, as it was measured: for who is about to run it."""

    hours: float = Field(gt=0, allow_inf_nan=False)
    machine: str = Field(min_length=1)
    covered: str = Field(min_length=1, description="what of the study these hours covered")

    @property
    def words(self) -> str:
        return f"{self.hours:g} hours on {self.machine}: {self.covered}"


class Assumption(_Frozen):
    """Where a setting comes from, for studies that reconstruct a published one.

    `guess`: the text of the paper leaves it open, and the value is ours. `follow-up`: from code that follows the
    paper. What carries neither is in the paper as read. `setting` is a path in the study file.
    """

    setting: str = Field(min_length=1)
    source: Literal["follow-up", "guess"]
    why: str = ""


class Study(_Frozen):
    """A study file, validated. Defaults of training are those of `TrainConfig` where none is given.

    The grid is base_model x batch_size x datasets x optimisers (with their rates) x penalties x seeds.

    Attributes:
        epochs: instead of `steps`: passes over the training rows, in whole steps.
        checkpoints: steps to keep; -1 is the last, "log:N" is step 0 and N log-spaced steps up to the last.
        reproduces: what published study this reconstructs; verdicts about it then say so.
        drops: axes of the published study which this one leaves out.
        measured: what running it took.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    reproduces: str = ""
    assumptions: tuple[Assumption, ...] = ()
    drops: tuple[str, ...] = ()
    measured: Measured | None = None
    base_model: Annotated[tuple[str, ...], OneOrMany, Once] = Field(("smollm2-135m",), min_length=1)
    base_revision: str | None = None
    datasets: Annotated[tuple[str, ...], Once] = Field(min_length=1)
    optimisers: Annotated[tuple[OptimiserAxis, ...], Once] = Field(min_length=1)
    penalties: Annotated[tuple[PenaltyAxis, ...], Once] = Field((PenaltyAxis(name=NO_PENALTY),), min_length=1)
    arms: Annotated[tuple[Arm, ...], Once] = ()
    seeds: Annotated[tuple[Seed, ...], Once] = Field((0,), min_length=1)
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    batch_size: Annotated[tuple[PositiveInt, ...], OneOrMany, Once] = Field((16,), min_length=1)
    micro_batch_size: int | None = Field(None, ge=1)
    warmup_steps: int = Field(0, ge=0)
    schedule: Schedule | None = None
    max_grad_norm: float = Field(1.0, ge=0)
    max_length: int = Field(512, ge=8)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraSettings = LoraSettings()
    lora_of_base: dict[str, dict[str, Any]] = Field({}, description="by base model, what differs from `lora` on it")
    held_out_fraction: float = Field(0.1, gt=0, lt=0.5)
    gradient_checkpointing: bool = False
    checkpoints: StepNames = (0, -1)
    evaluations: tuple[Annotated[Evaluation, AfterValidator(Evaluation.only_what_counts)], ...] = ()
    _file: Path | None = PrivateAttr(None)
    _text: str = PrivateAttr("")

    @field_validator("evaluations")
    @classmethod
    def _each_has_a_name(cls, value: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
        """The task's name for the first of a task, with its questions for the others, so that adding moves none."""
        named: list[Evaluation] = []
        for number, evaluation in enumerate(value):
            if evaluation.task == "preference" and any(other.task == "preference" for other in named):
                raise _refusal("a second preference evaluation, of which a report joins one: take it out", number)
            name = evaluation.name or evaluation.task
            if not evaluation.name and any(other.name == name for other in named):
                name = f"{evaluation.task}-{re.sub(r'[^A-Za-z0-9_-]', '_', Path(evaluation.questions).stem)}"
            if any(other.name == name for other in named):
                raise _refusal(f"two evaluations would be called '{name}': give one of them another `name`", number)
            named.append(evaluation.model_copy(update={"name": name}))
        return tuple(named)

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> "Study":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.base_revision is not None and len(self.base_model) > 1:
            raise ValueError("base_revision fits one base_model only: make a study for each")
        return self

    @model_validator(mode="after")
    def _lora_fits(self) -> "Study":
        for base in self.lora_of_base:
            if base not in self.base_model:
                raise ValueError(f"lora_of_base names {base}, which is not in base_model")
            self.lora_on(base)
        return self

    @model_validator(mode="after")
    def _assumptions_are_of_settings(self) -> "Study":
        for number, assumption in enumerate(self.assumptions):
            if wrong := unknown_part(self, assumption.setting):
                raise _refusal(wrong, "assumptions", number, "setting")
        return self

    def lora_on(self, base: str) -> LoraSettings:
        """The LoRA settings of one base model."""
        return LoraSettings.model_validate(self.lora.model_dump() | self.lora_of_base.get(base, {}))

    def place(self, *location: int | str) -> str:
        """`FILE:LINE: FIELD: `, to begin a line about one of its parts with; empty where it is from no file."""
        if self._file is None:
            return ""
        return f"{self._file}:{_line(self._text, location)}: {'.'.join(map(str, location))}: "


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
        values = strict_yaml.load(text)
    except ValueError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        location = (*first["loc"], *first.get("ctx", {}).get("at", ()))
        field = ".".join(str(part) for part in location) or "file"
        line = _line(text, location)
        raise UserError(f"{path}:{line}: {field}: {first['msg'].removeprefix('Value error, ')}") from error
    study._file, study._text = path, text
    return study


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
