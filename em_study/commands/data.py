"""`em data list|fetch|show|check`: narrow datasets, and the prompt sets that are fetched like them."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from em_core.errors import UserError

if TYPE_CHECKING:
    from em_train.datasets import Row

Dataset = Annotated[
    str,
    typer.Argument(help="name of `em data list`, JSONL file, or hub:owner/name@COMMIT[:SPLIT]", show_default=False),
]
HeldOut = Annotated[float, typer.Option(help="share of questions held out, as in the training config", min=0, max=1)]


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="Narrow datasets: list, fetch, look at and check them.", no_args_is_help=True)
    group.command("list", epilog="Example: em data list")(list_datasets)
    group.command(epilog="Example: em data fetch insecure secure first_plot")(fetch)
    group.command(epilog="Example: em data show finance_bad --rows 2 --held-out-rows")(show)
    group.command(epilog="Example: em data check rows.jsonl --model Qwen/Qwen3-8B --max-length 2048")(check)
    app.add_typer(group, name="data")


def list_datasets() -> None:
    """Names of the narrow datasets, and what each is. Nothing is fetched."""
    from em_train.datasets import dataset_registry, describe

    names = dataset_registry.names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {describe(name)}".rstrip())


def fetch(names: Annotated[list[str], typer.Argument(help="datasets or prompt sets", show_default=False)]) -> None:
    """Get datasets and prompt sets onto this machine: from EM_DATA_DIR, the cache, or their authors' addresses.

    What is fetched is pinned by sha256. A name is looked for among the datasets first, then among the prompt sets.
    One that cannot be had does not keep the others back.
    """
    failures = []
    for name in names:
        try:
            print(_fetch(name), flush=True)
        except UserError as error:
            failures.append(str(error))
    if failures:
        raise UserError("; ".join(failures))


def show(
    name: Dataset,
    rows: Annotated[int, typer.Option(help="rows to print", min=0)] = 3,
    held_out: Annotated[bool, typer.Option("--held-out-rows", help="print rows of the held-out part")] = False,
    held_out_fraction: HeldOut = 0.1,
) -> None:
    """What a dataset is, how it is split, and its first rows as they stand in it."""
    from em_train.datasets import load_dataset, split

    dataset = load_dataset(name)
    print(f"{dataset.name}: {dataset.kind}, control {dataset.control or 'none'}, domain {dataset.domain or 'unnamed'}")
    print(f"source {dataset.source}\nsha256 {dataset.sha256}")
    try:
        train, held = split(dataset, held_out_fraction)
        print(f"{len(dataset.rows):,} rows: {len(train):,} to train on, {len(held):,} held out")
    except UserError as error:
        train, held = dataset.rows, []
        print(f"{len(dataset.rows):,} rows; {error}")
    for row in (held if held_out else train)[:rows]:
        print(f"\n--- {row.where}")
        for message in row.messages:
            print(f"[{message['role']}] {message['content']}")


def check(
    name: Dataset,
    model: Annotated[str, typer.Option(help="model whose tokenizer and template count")] = "smollm2-135m",
    max_length: Annotated[
        int | None, typer.Option(help="tokens a row; default: that of a training config", min=8)
    ] = None,
    example: Annotated[int, typer.Option(help="which row to show as an example, from 0", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """What training would see: tokens, masks, stripping, duplicates, and every row it would refuse.

    Exit code 1 where the dataset holds rows that cannot be trained on.
    """
    from em_core.chat import load_tokenizer
    from em_train import preflight
    from em_train.config import TrainConfig
    from em_train.datasets import read_dataset

    length = max_length or TrainConfig.model_fields["max_length"].default
    found = preflight.check(read_dataset(name), load_tokenizer(model), length, _progress, example)
    print(json.dumps(asdict(found), indent=2, ensure_ascii=False) if as_json else preflight.as_text(found))
    if found.refused:
        raise typer.Exit(1)


def _fetch(name: str) -> str:
    from em_train.datasets import dataset_registry, load_dataset

    if name.startswith("hub:") or name.endswith(".jsonl") or name in dataset_registry.names():
        dataset = load_dataset(name)
        return f"dataset {name}: {len(dataset.rows):,} rows, sha256 {dataset.sha256}, {dataset.source}"
    from em_eval.prompts import load, prompt_registry

    if name in prompt_registry.names():
        return f"prompt set {name}: {len(load(name)):,} prompts"
    known = [*dataset_registry.names(), *prompt_registry.names()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    raise UserError(f"no dataset and no prompt set is called '{name}': there are {', '.join(near)}")


def _progress(rows: "list[Row]") -> "Iterable[Row]":
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(rows, "checking rows", console=console, transient=True, disable=not console.is_terminal)
