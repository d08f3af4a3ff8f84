"""`em archive`: a study's results as a folder to publish beside a paper."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track


def add(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: em archive studies/demo.yaml docs/results/demo | "
        "em archive big.yaml published --pack --without transcripts --hide /scratch/alice"
    )(archive)


def archive(
    study: Annotated[Path, typer.Argument(help="study file, e.g. studies/demo.yaml", show_default=False)],
    folder: Annotated[
        Path, typer.Argument(help="new folder, or an earlier archive of this study to replace", show_default=False)
    ],
    max_mb: Annotated[float, typer.Option(help="largest size, in megabytes", min=0)] = 20,
    without: Annotated[
        list[str] | None,
        typer.Option(help="spectra, report, tables or transcripts (the events of logs): leave it out; repeatable"),
    ] = None,
    pack: Annotated[
        bool,
        typer.Option(
            "--pack", help="runs, logs and answers as .tar.xz, which holds what they have in common once: far smaller"
        ),
    ] = False,
    hide: Annotated[
        list[str] | None,
        typer.Option(help="further path or word to replace, e.g. of another machine that trained; repeatable"),
    ] = None,
) -> None:
    """Collect manifests, steps, logs, report and tables without weights, this machine's paths replaced."""
    from em_study.archive import MEGABYTE, write_archive

    console = Console(stderr=True)

    def each(files: list[Path]) -> Iterable[Path]:
        return track(files, "files", console=console, transient=True, disable=not console.is_terminal)

    done = write_archive(study, folder, max_mb, without or (), pack, hide or (), each)
    parts = ", ".join(f"{part} {size / MEGABYTE:.2f}" for part, size in done.sizes.items())
    print(f"{folder}: {sum(done.sizes.values()) / MEGABYTE:.2f} MB ({parts})")
    for line in done.lacking:
        print(f"absent: {line}")
