"""`em verify`, `em checkpoint relink`: look after checkpoint folders."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(help="checkpoint folder", show_default=False)]


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: em verify runs/demo/RUN/checkpoint-34")(verify)
    group = typer.Typer(help="Look after checkpoint folders.", no_args_is_help=True)
    group.command(epilog="Example: em checkpoint relink runs/demo/RUN/checkpoint-34")(relink)
    app.add_typer(group, name="checkpoint")


def verify(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's weights are those that its manifest describes."""
    from em_core.manifest import verify as verify_checkpoint

    manifest = verify_checkpoint(checkpoint)
    print(f"ok: run {manifest.run_id}, step {manifest.step}, adapter {manifest.adapter_sha256[:12]}")


def relink(
    checkpoint: Checkpoint,
    base: Annotated[str | None, typer.Option(help="base model folder, if it cannot be found by its id")] = None,
) -> None:
    """Write where the base model lies now into adapter_config.json, after checking its weights."""
    from em_core.adapters import relink as relink_checkpoint

    print(f"base model: {relink_checkpoint(checkpoint, base)}")
