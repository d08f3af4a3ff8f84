"""The checkpoint contract: a PEFT adapter folder, and beside it `em.json`, which says what it is.

Training writes it, evaluation carries it along as plain data, the study joins on it.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from em_core.errors import UserError
from em_core.files import sha256_file, sha256_json

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "em.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
BASE_PLACE = ("base_model_name_or_path", "revision")  # of the adapter's configuration


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseReference(_Plain):
    """The base model by id and content; the path in adapter_config.json is only where it lay."""

    id: str
    revision: str | None
    weights_sha256: str
    description: str


class DatasetReference(_Plain):
    """The rows that were trained on: `train_rows` of `rows`, the rest held out.

    `sha256` is of the source as it came; `tokens_sha256` of the ids and labels of the training rows, in order.
    """

    name: str
    sha256: str
    rows: int
    train_rows: int
    held_out_rows: int
    control: str | None
    kind: str
    tokens_sha256: str | None = None


class Loss(_Plain):
    """Token-weighted task loss in nats a token, penalties apart; None at step 0, where nothing was trained.

    Attributes:
        train: mean over the last `window` optimiser steps up to this checkpoint, each at the weights of its step.
        held_out: at this checkpoint's weights, without dropout, on the held-out rows.
        train_rows: the same on every training row; measured at the last step only, None before.
    """

    train: float | None
    window: int
    held_out: float | None
    train_rows: float | None = None


class Dose(_Plain):
    """How far the optimiser moved the adapter.

    Attributes:
        rms_update_a: root mean square over elements of the last step's change in all A factors.
        rms_update_b: the same for B.
        path_a: sum over steps of those root mean squares.
        path_b: the same for B.
        norm_ba: root of the summed squared Frobenius norms of all s BA, s being the LoRA scale.
        learning_rate: at the last step.
    """

    rms_update_a: float
    rms_update_b: float
    path_a: float
    path_b: float
    norm_ba: float
    learning_rate: float


class Spectrum(_Plain):
    """Means over modules of measures of the singular values of BA, over those modules where each is defined.

    Attributes:
        undefined: modules without a spectrum, because B = 0.
        undefined_condition_number: those, and modules whose BA has not full rank.
    """

    modules: int
    undefined: int
    undefined_condition_number: int | None = None  # manifests before penalties lack these three
    stable_rank: float | None
    entropy: float | None
    entropy_squared: float | None = None
    condition_number: float | None = None
    participation_ratio: float | None
    fro_over_nuclear: float | None


class Manifest(_Plain):
    """`em.json`. See the attributes' own classes for units.

    `config` is the whole resolved configuration; its `sources` say where a preset's values come from.
    `files_sha256` holds what lies beside the adapter: tokenizer, template and spectra; `adapter_config_sha256` is of
    PEFT's configuration without the base's place (`adapter_config_sha256`, the function).
    """

    schema_version: Literal[1]
    run_id: str
    step: int
    config: dict[str, Any]
    optimiser: dict[str, Any]
    dataset: DatasetReference
    base: BaseReference
    lora: dict[str, Any]
    examples_seen: int
    tokens_seen: int
    supervised_tokens_seen: int
    loss: Loss
    dose: Dose | None
    spectrum: Spectrum
    adapter_sha256: str
    files_sha256: dict[str, str] = {}
    adapter_config_sha256: str | None = None  # older manifests lack it
    first_example: str
    seconds: float
    environment: dict[str, Any]
    penalty: dict[str, Any] | None = None
    post_processing: dict[str, Any] | None = None

    def for_log(self) -> dict[str, Any]:
        """As an evaluation's log carries it: the training example and the environment stay with the checkpoint."""
        return self.model_dump(mode="json", exclude={"first_example", "environment"})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder of ours.

    Raises:
        UserError: the folder is missing, has no manifest (so it is not a checkpoint of ours, or half a one), or
            its manifest is of another schema.
    """
    if not folder.is_dir():
        raise UserError(f"checkpoint folder {folder} does not exist")
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} has no {MANIFEST}: not a complete checkpoint of ours")
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise UserError(f"{path} is not a manifest of schema {SCHEMA_VERSION}: {field}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def manifest_or_none(folder: Path) -> Manifest | None:
    """The manifest, or None where there is no whole one: such a folder is no checkpoint to who looks for them."""
    try:
        return read_manifest(folder)
    except UserError:
        return None


def verify(folder: Path) -> Manifest:
    """The manifest, after checking that the files beside it are those it describes.

    `em_train.checkpoint.verify_checkpoint` also measures the weights again.
    """
    manifest = read_manifest(folder)
    for name, expected in {ADAPTER: manifest.adapter_sha256, **manifest.files_sha256}.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing, although {MANIFEST} describes it")
        found = sha256_file(path)
        if found != expected:
            what = "the weights were" if name == ADAPTER else "it was"
            raise UserError(
                f"{path} has sha256 {found[:12]}..., its manifest says {expected[:12]}...: "
                f"{what} changed or damaged after training"
            )
    said = manifest.adapter_config_sha256
    if said is not None and adapter_config_sha256(folder) != said:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} is not the one that {MANIFEST} describes: more than the base's place was "
            "changed in it after training, so that PEFT would make another model of these weights"
        )
    return manifest


def adapter_config_sha256(folder: Path) -> str:
    """Hash of the PEFT configuration by content, without where the base lies, which `em checkpoint relink` rewrites.

    Lists are sorted: PEFT writes sets, in any order.
    """
    config = {key: value for key, value in adapter_config(folder).items() if key not in BASE_PLACE}
    return sha256_json({key: sorted(value) if isinstance(value, list) else value for key, value in config.items()})


def adapter_config(folder: Path) -> dict[str, Any]:
    """The PEFT configuration of any adapter folder.

    Raises:
        UserError: missing or not JSON.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a PEFT adapter folder") from error
    return config
