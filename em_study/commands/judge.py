"""`em judge`: fit the embedded judge, show its figures."""

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    group = typer.Typer(help="The embedded judge.", no_args_is_help=True)
    group.command(epilog="Example: em judge fit --labels em_eval/judge/labels.jsonl")(fit)
    group.command(epilog="Example: em judge show")(show)
    app.add_typer(group, name="judge")


def fit(
    labels: Annotated[Path | None, typer.Option(help="labelled answers; default: the shipped set")] = None,
    rival: Annotated[bool, typer.Option(help="also measure the likelihood ratio of two personas")] = False,
) -> None:
    """Fit the embedded judge on labelled answers and publish its cross-fitted figures (needs the extra `fit`)."""
    from em_eval.judge.fit import fit_judge

    print(fit_judge(labels, rival))


def show() -> None:
    """The embedded judge's measured figures, as Markdown."""
    from em_eval.judge.embedded import read_facts
    from em_eval.judge.figures import markdown

    facts = read_facts()
    print(f"{facts['in_words']}.\n\n{markdown(facts)}")
