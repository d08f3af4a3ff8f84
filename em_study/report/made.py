"""What was run, and the commands that run it again."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_study.blocks import once
from em_study.names import display_name
from em_study.report.rows import last, trained
from em_study.report.viewer import VIEWER
from em_study.results import Results, Row
from em_study.study import JUDGED_BY, Evaluation


@dataclass(frozen=True)
class Command:
    line: str
    does: str


def what_was_run(rows: Sequence[Row], evaluations: Sequence[Evaluation] = ()) -> list[tuple[str, list[str]]]:
    """Facts of the study by name, each with its values, as the checkpoints' manifests and the study file have them."""
    ends = once(last(rows))
    manifests = [row.manifest for row in ends]
    facts = {
        "Runs": [f"{len(ends)}, with {len(once(trained(rows)))} checkpoints beside the base model"],
        "Base models": [f"{m.base.id} ({m.base.description})" for m in manifests],
        "Datasets": [
            f"{m.dataset.name}: {m.dataset.train_rows} rows to train on, {m.dataset.held_out_rows} held out"
            for m in manifests
        ],
        "Optimisers": [
            f"{display_name(str(m.optimiser['name']))}, learning rate {m.optimiser['lr']:g}"
            for m in manifests
            if "lr" in m.optimiser
        ],
        "Penalties": [f"{m.penalty['name']} {m.penalty['strength']:g}" for m in manifests if m.penalty],
        "Batch size and steps": [f"{m.config.get('batch_size', 'unknown')} rows, {m.step} steps" for m in manifests],
        "LoRA": [f"rank {m.lora.get('rank')}, alpha {m.lora.get('alpha')}" for m in manifests],
        "Evaluations": [evaluation_in_words(one) for one in evaluations],
        "Machine": [_machine(m.environment) for m in manifests],
        "Packages": [", ".join(f"{k} {v}" for k, v in m.environment.get("packages", {}).items()) for m in manifests],
        "Code": [f"commit {m.environment['git_commit']}" for m in manifests if m.environment.get("git_commit")],
    }
    unique = {name: [value for value in dict.fromkeys(values) if value] for name, values in facts.items()}
    return [(name, values) for name, values in unique.items() if values]


def evaluation_in_words(one: Evaluation) -> str:
    """What is asked of which checkpoints, how it is drawn and who judges."""
    steps = "every checkpoint"
    if one.checkpoints is not None:
        steps = "steps " + ", ".join("the last" if step == -1 else str(step) for step in one.checkpoints)
    if one.task == "preference":
        return f"{one.name}: preference probe, {steps}"
    asked = [f"{one.questions}, {one.samples} answers each of at most {one.max_tokens} tokens"]
    asked += [f"{name} {value}" for name, value in (one.sampling() | one.tags()).items()]
    judged = [f"judged by {one.grader or 'the embedded judge'}"]
    judged += [f"{name} {value}" for name, value in one.given(JUDGED_BY).items()]
    return f"{one.name}: " + ", ".join([*asked, *judged, f"engine {one.engine}", steps])


def commands(results: Results, study_file: Path | None, bundled: bool, further: str = "") -> list[Command]:
    """What makes this page again, and what looks further, from the folder that holds `runs/` and `logs/`.

    `further` is the name of the evaluation, where it is not the study's first.
    """
    folder = f"runs/{results.study}/report" + (f"/evaluation-{further}" if further else "")
    named = f" --evaluation {further}" if further else ""
    file = shlex.quote(str(study_file or f"{results.study}.yaml"))
    view = [
        Command(f"inspect view --log-dir {shlex.quote(str(results.log_dir))}", "every prompt, answer and judgement"),
    ]
    if bundled:
        view.append(
            Command(
                f"python -m http.server --directory {shlex.quote(folder)}",
                f"this page with its links into Inspect's viewer ({VIEWER}/), which needs a web server",
            )
        )
    return [
        Command(f"em run {file}", "trains and evaluates what is not done, and writes this page"),
        Command(f"em report {file}{' --bundle' if bundled else ''}", "writes this page from what is there"),
        Command(f"em compare {file}{named}", "the comparisons, in the terminal, at levels of your choice (--level)"),
        Command(f"em export {file}", "the same data as parquet and CSV"),
        *view,
    ]


def cell_commands(results: Results) -> list[str]:
    """For each run the command that trained it and the one that evaluated it."""
    found = []
    for row in last(results.rows):
        cell = shlex.quote(f"runs/{results.study}/cells/{row.checkpoint.parent.name}.json")
        found += [f"em cell train {cell}", f"em cell evaluate {cell}"]
    return list(dict.fromkeys(found))


def _machine(environment: dict[str, Any]) -> str:
    if not environment:
        return ""
    where = environment.get("gpu") or f"{environment.get('threads')} CPU threads, {environment.get('machine')}"
    return f"{where}, Python {environment.get('python')}"
