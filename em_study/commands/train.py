"""`em train`: one training run from a config file or a preset."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """Examples:

em train my_run.yaml

em train my_run.yaml optimiser.name=lion optimiser.lr=1e-4 seed=1

em train evil_spectra optimiser.name=muon dataset=insecure.jsonl base_model=Qwen/Qwen3-4B

accelerate launch --multi_gpu --num_processes 2 --no_python em train my_run.yaml
"""


def add(app: typer.Typer) -> None:
    app.command(epilog=EXAMPLES)(train)


def train(
    config: Annotated[str, typer.Argument(help="YAML of a TrainConfig, or the name of a preset", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings that win over the file's, keys dotted"),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", "-o", help="run folder; default: runs/train/NAME-RUN")
    ] = None,
) -> None:
    """One training run: a PEFT checkpoint with manifest for each kept step.

    Killed anywhere, the same command goes on. Presets: evil_spectra, evil_spectra_tuned, turner, betley.
    """
    from em_train.config import read_config
    from em_train.preparation import resolve_run
    from em_train.processes import is_main
    from em_train.run import train as train_run

    given = read_config(config, overrides or [])
    if folder is None:
        folder = Path("runs") / "train" / f"{Path(config).stem}-{resolve_run(given).run_id}"
    checkpoints = train_run(given, folder)
    if is_main():
        print(*checkpoints, sep="\n")
