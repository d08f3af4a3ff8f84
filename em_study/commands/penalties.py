"""`em penalties`: what there is, and controls at equal loss cost."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """Examples:

em penalties match decay.yaml runs/spectral/checkpoint-34 runs/matched

em penalties match decay.yaml runs/spectral/checkpoint-34 runs/matched penalty.name=kl penalty.strength=0.1 seed=1
"""


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Penalties and their controls.", no_args_is_help=True)
    group.command("list", epilog="Example: em penalties list")(list_penalties)
    group.command(epilog=EXAMPLES)(match)
    app.add_typer(group, name="penalties")


def list_penalties() -> None:
    """Names, sources and hyper-parameters of every penalty."""
    from rich.console import Console
    from rich.table import Table

    from em_train.penalties import penalty_registry

    table = Table()
    for heading in ("penalty", "source", "hyper-parameters"):
        table.add_column(heading)
    for name in penalty_registry.names():
        plugin = penalty_registry.get(name)
        table.add_row(name, plugin.source, ", ".join(plugin.hyperparameters.model_fields))
    Console().print(table)


def match(
    config: Annotated[
        str, typer.Argument(help="YAML of a TrainConfig with a penalty, or the name of a preset", show_default=False)
    ],
    reference: Annotated[Path, typer.Argument(help="last checkpoint of the penalised run", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="folder for the runs", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings that win over the file's, keys dotted"),
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="nats a token")] = 0.002,
    runs: Annotated[int, typer.Option(min=1, help="strengths to try at most")] = 10,
) -> None:
    """Find the strength at which a control ends at the training loss of a penalised run.

    Everything but the penalty and the kept checkpoints has to be as in that run.
    """
    from em_train.config import read_config
    from em_train.penalties.equal_cost import match_strength

    matched, checkpoint = match_strength(read_config(config, overrides or []), reference, folder, tolerance, runs)
    print(f"strength {matched.penalty.strength if matched.penalty else 0:g}: {checkpoint}")
