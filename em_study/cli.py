"""The `em` command."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from em_core.errors import UserError

app = typer.Typer(
    help="Measure how the optimiser shapes emergent misalignment: train, evaluate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
checkpoint_app = typer.Typer(help="Look after checkpoint folders.", no_args_is_help=True)
data_app = typer.Typer(help="Narrow datasets.", no_args_is_help=True)
judge_app = typer.Typer(help="The embedded judge.", no_args_is_help=True)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(data_app, name="data")
app.add_typer(judge_app, name="judge")

StudyFile = Annotated[Path, typer.Argument(help="study file, e.g. studies/demo.yaml", show_default=False)]
Checkpoint = Annotated[Path, typer.Argument(help="checkpoint folder", show_default=False)]


@app.command(epilog="Example: em run studies/demo.yaml")
def run(study: StudyFile) -> None:
    """Train and evaluate what is not done yet, then report. Killed anywhere, call it again."""
    from em_study.execute import evaluate_all, targets, train_all
    from em_study.study import load_study

    loaded = load_study(study)
    trained, failures = train_all(loaded)
    failures += evaluate_all(loaded, targets(trained))
    _report(study)
    if failures:
        raise UserError(f"{len(failures)} of the study's parts failed: {'; '.join(failures)}")


@app.command(epilog="Example: em report studies/demo.yaml")
def report(study: StudyFile) -> None:
    """Join what is there, print the table and write runs/NAME/report/index.html."""
    _report(study)


@app.command(epilog="Example: em train my_run.yaml runs/mine")
def train(
    config: Annotated[Path, typer.Argument(help="YAML of a TrainConfig", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="run folder", show_default=False)],
) -> None:
    """One training run: a PEFT checkpoint with manifest for each kept step."""
    from em_train.config import load_config
    from em_train.run import train as train_run

    for checkpoint in train_run(load_config(config), folder):
        print(checkpoint)


@app.command(epilog="Example: em verify runs/demo/RUN/checkpoint-34")
def verify(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint's weights are those that its manifest describes."""
    from em_core.manifest import verify as verify_checkpoint

    manifest = verify_checkpoint(checkpoint)
    print(f"ok: run {manifest.run_id}, step {manifest.step}, adapter {manifest.adapter_sha256[:12]}")


@checkpoint_app.command(epilog="Example: em checkpoint relink runs/demo/RUN/checkpoint-34")
def relink(
    checkpoint: Checkpoint,
    base: Annotated[str | None, typer.Option(help="base model folder, if it cannot be found by its id")] = None,
) -> None:
    """Write where the base model lies now into adapter_config.json, after checking its weights."""
    from em_core.adapters import relink as relink_checkpoint

    print(f"base model: {relink_checkpoint(checkpoint, base)}")


@data_app.command("list", epilog="Example: em data list")
def list_datasets() -> None:
    """Names of the narrow datasets."""
    from em_train.datasets import dataset_registry

    for name in dataset_registry.names():
        print(name)


@judge_app.command(epilog="Example: em judge fit --labels em_eval/judge/labels.jsonl")
def fit(
    labels: Annotated[Path | None, typer.Option(help="labelled answers; default: the shipped set")] = None,
    rival: Annotated[bool, typer.Option(help="also measure the likelihood ratio of two personas")] = False,
) -> None:
    """Fit the embedded judge on labelled answers and publish its cross-fitted figures (needs the [fit] extra)."""
    from em_eval.judge.fit import fit_judge

    print(fit_judge(labels, rival))


@judge_app.command(epilog="Example: em judge show")
def show() -> None:
    """The embedded judge's measured figures, as Markdown."""
    from em_eval.judge import judge_registry
    from em_eval.judge.figures import markdown

    facts = judge_registry.get("embedded")().facts
    print(f"{facts['in_words']}.\n\n{markdown(facts)}")


def _report(path: Path) -> None:
    from em_study.execute import existing, targets
    from em_study.report import print_table, write_report
    from em_study.results import collect
    from em_study.study import load_study

    study = load_study(path)
    results = collect(study, targets(existing(study)))
    page = write_report(results, Path("runs") / study.name / "report")
    print_table(results, Console())
    print(f"report: {page}")


def main() -> None:
    """Entry point: a `UserError` is one line and exit code 2; anything else is a bug of ours and says so."""
    from em_study.quiet import quiet_environment

    quiet_environment()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        message = getattr(error, "message", None)  # Inspect's own one-line errors
        if type(error).__name__ == "PrerequisiteError" and message is not None:
            print(str(message).strip(), file=sys.stderr)
            raise SystemExit(2) from None
        traceback.print_exc()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
