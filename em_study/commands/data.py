"""`em data`: narrow datasets."""

import typer


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Narrow datasets.", no_args_is_help=True)
    group.command("list", epilog="Example: em data list")(list_datasets)
    app.add_typer(group, name="data")


def list_datasets() -> None:
    """Names of the narrow datasets."""
    from em_train.datasets import dataset_registry

    for name in dataset_registry.names():
        print(name)
