"""`em verify`, `em card`, `em checkpoint relink`: look after checkpoint folders."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(help="checkpoint folder", show_default=False)]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: em verify runs/demo/RUN/checkpoint-34")(verify)
    app.command(epilog="Example: em card runs/demo/RUN/checkpoint-34 --push-to-hub me/em-lion")(card)
    group = typer.Typer(help="Look after checkpoint folders.", no_args_is_help=True)
    group.command(epilog="Example: em checkpoint relink runs/demo/RUN/checkpoint-34")(relink)
    app.add_typer(group, name="checkpoint")


def verify(
    checkpoint: Checkpoint,
    base: Annotated[bool, typer.Option("--base", help="hash the base model's weights as well")] = False,
) -> None:
    """Hash a checkpoint's files and measure its weights again; refuse a manifest that contradicts them."""
    from em_core.adapters import base_of
    from em_train.checkpoint import verify_checkpoint

    manifest = verify_checkpoint(checkpoint)
    if base:
        base_of(checkpoint)
    norm = f"{manifest.dose.norm_ba:.4g}" if manifest.dose else "0"
    print(f"ok: run {manifest.run_id}, step {manifest.step}, adapter {manifest.adapter_sha256[:12]}, norm of BA {norm}")


def card(
    checkpoint: Checkpoint,
    push_to_hub: Annotated[
        str | None, typer.Option("--push-to-hub", metavar="REPO", help="also upload the folder, e.g. to me/em-lion")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="make a new repository on the hub public")] = False,
) -> None:
    """Write the model card (README.md) from the manifest: what another team needs to get the same outcome."""
    from em_train.card import push, write_card

    print(write_card(checkpoint))
    if push_to_hub is not None:
        print(push(checkpoint, push_to_hub, private=not public))


def relink(
    checkpoint: Checkpoint,
    base: Annotated[str | None, typer.Option(help="base model folder, if it cannot be found by its id")] = None,
) -> None:
    """Write where the base model lies now into adapter_config.json, after checking its weights."""
    from em_core.adapters import relink as relink_checkpoint

    print(f"base model: {relink_checkpoint(checkpoint, base)}")
