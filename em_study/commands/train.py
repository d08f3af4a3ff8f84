"""`em train`: one training run from a config file."""

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    app.command(epilog="Example: em train my_run.yaml runs/mine")(train)


def train(
    config: Annotated[Path, typer.Argument(help="YAML of a TrainConfig", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="run folder", show_default=False)],
) -> None:
    """One training run: a PEFT checkpoint with manifest for each kept step."""
    from em_train.config import load_config
    from em_train.run import train as train_run

    for checkpoint in train_run(load_config(config), folder):
        print(checkpoint)
