"""The model card of a checkpoint, written from its manifest, and the way to the Hugging Face hub."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from em_core.errors import UserError
from em_core.files import write_json, write_text
from em_core.manifest import ADAPTER_CONFIG, Manifest, adapter_config
from em_core.models import HUB
from em_core.templates import templates
from em_train.checkpoint import verify_checkpoint
from em_train.presets import load_preset

CARD = "README.md"
TEMPLATE = "card.md.j2"


def write_card(folder: Path) -> Path:
    """Write `README.md` beside the adapter, after checking the checkpoint.

    Raises:
        UserError: not a checkpoint of ours, or one that contradicts its manifest.
    """
    path = folder / CARD
    write_text(path, render_card(verify_checkpoint(folder)))
    return path


def render_card(manifest: Manifest) -> str:
    """The card as Markdown with the hub's front matter."""
    environment = templates(Path(__file__).parent)
    environment.filters["figure"] = _figure
    config = manifest.config
    preset = load_preset(config["preset"]) if config.get("preset") else None
    front: dict[str, Any] = {"library_name": "peft", "tags": ["emergent-misalignment", "lora"]}
    if manifest.base.description == HUB:
        front["base_model"] = manifest.base.id
    return environment.get_template(TEMPLATE).render(
        manifest=manifest,
        front=_yaml(front),
        config=_yaml(config),
        optimiser=_yaml(manifest.optimiser),
        environment=_yaml(manifest.environment),
        sources=config.get("sources", {}),
        values=_flat(config),
        preset=preset,
        penalty=manifest.penalty,
        post_processing=_yaml(manifest.post_processing) if manifest.post_processing else None,
    )


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Upload a checkpoint with its card; returns its address. The key comes from `HF_TOKEN` or a login.

    The copy on the hub names the base model by its id, not by where it lies on this machine.

    Raises:
        UserError: no key, no network, or a name that the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory(prefix="em-push-") as scratch:
        copy = Path(scratch) / "checkpoint"
        shutil.copytree(folder, copy)
        manifest = verify_checkpoint(copy)
        write_json(copy / ADAPTER_CONFIG, adapter_config(copy) | {"base_model_name_or_path": manifest.base.id})
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=copy,
                commit_message=f"Run {manifest.run_id}, step {manifest.step}",
            )
        except Exception as error:  # the transport below the hub's client raises types of its own
            reason = next(iter(str(error).splitlines()), "no reason given")
            raise UserError(
                f"could not push to {repository} ({type(error).__name__}: {reason}): check the name, HF_TOKEN and the "
                "network; the checkpoint and its card are here all the same"
            ) from error
    return str(done.commit_url)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.5g}"


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
