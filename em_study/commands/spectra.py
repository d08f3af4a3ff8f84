"""`em spectra PATH`, `em spectra flatten`: the singular values of adapters."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Adapter = Annotated[Path, typer.Argument(help="PEFT LoRA adapter folder, ours or not", show_default=False)]


class _PathOrCommand(TyperGroup):
    """`em spectra PATH` is `em spectra show PATH`: what is no command and no call for help goes to `show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["show", *args]
        return super().parse_args(ctx, args)


def add(app: typer.Typer) -> None:
    group = typer.Typer(
        cls=_PathOrCommand,
        help="Singular values of BA in an adapter, and how flat they are. `em spectra PATH` means "
        "`em spectra show PATH`.",
        epilog="Example: em spectra runs/demo/RUN/checkpoint-34 --json",
        no_args_is_help=True,
        subcommand_metavar="PATH | COMMAND [ARGS]...",
    )
    group.command(epilog="Example: em spectra show runs/demo/RUN/checkpoint-34 --plot spectra.png")(show)
    group.command(epilog="Example: em spectra flatten runs/demo/RUN/checkpoint-34 flattened --amount 1")(flatten)
    app.add_typer(group, name="spectra")


def show(
    path: Adapter,
    as_json: Annotated[bool, typer.Option("--json", help="everything as JSON on standard output")] = False,
    plot: Annotated[Path | None, typer.Option(help="draw the singular values into this file (png, pdf, svg)")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="compute them as Evil Spectra does, in float32")] = False,
) -> None:
    """Spectra of every module: a table of means, or JSON, or a figure.

    Values are of BA itself; the adapter's scale s multiplies them in the model. What is undefined (B = 0, an
    infinite condition number) is left out of the means and counted.
    """
    from em_train.spectra import as_json as to_json
    from em_train.spectra import read_spectra

    spectra = read_spectra(path, "paper" if paper else "exact")
    if plot is not None:
        from em_train.spectra.plot import save_plot

        save_plot(spectra, plot)
    if as_json:
        print(json.dumps(to_json(spectra), allow_nan=False))
    else:
        _print_table(to_json(spectra))


def flatten(
    path: Adapter,
    target: Annotated[Path, typer.Argument(help="new folder for the flattened adapter", show_default=False)],
    amount: Annotated[float, typer.Option(min=0, max=1, help="0: nothing, 1: all singular values equal")] = 1.0,
) -> None:
    """Make the singular values of each BA equal, its directions and Frobenius norm kept: a control."""
    from em_train.spectra import flatten_adapter, read_spectra, summarise

    before = summarise([one.sigma for one in read_spectra(path)])
    after = flatten_adapter(path, target, amount)
    if before.stable_rank is None or after.stable_rank is None:
        print(f"{target}: written; B = 0 everywhere, so there was nothing to flatten")
    else:
        print(f"{target}: mean stable rank {before.stable_rank:.2f} -> {after.stable_rank:.2f}")


def _print_table(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from em_train.spectra import MEASURES

    mean, modules = found["mean"], found["modules"]
    table = Table()
    table.add_column("measure of the singular values of BA")
    for heading in ("mean", "least", "most", "undefined"):
        table.add_column(heading, justify="right")
    for name in MEASURES:
        values = [one[name] for one in modules.values() if one[name] is not None]
        shown = [f"{value:.4g}" for value in (mean[name], min(values), max(values))] if values else ["-"] * 3
        table.add_row(name.replace("_", " "), *shown, str(len(modules) - len(values)))
    console = Console()
    console.print(table)
    ranks = sorted({len(one["singular_values"]) for one in modules.values()})
    scalings = sorted({one["scaling"] for one in modules.values()})
    console.print(
        f"{len(modules)} modules, {_range(ranks)} values each, scaling {_range(scalings)}; "
        f"B below the paper's floor in {mean['unresolved']}"
    )


def _range(values: list[Any]) -> str:
    return f"{values[0]:.6g}" if len(values) == 1 else f"{values[0]:.6g} to {values[-1]:.6g}"
