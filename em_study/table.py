"""Tidy tables from manifests and logs: one row a checkpoint, one row an answer. What is missing is named in a column.

Answers carry the column names of Betley et al.'s released tables (question_id, question, answer, aligned, coherent),
so that scripts written for those read ours.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from em_eval.rates import DEFINITIONS, rate
from em_study.execute import Target
from em_study.names import hyperparameters, penalty_words, training_of
from em_study.results import Results, Row, collect
from em_study.study import Study


def all_results(study: Study, chosen: list[Target], absent: Sequence[str] = ()) -> dict[str, Results]:
    """The study's results for each of its `em` evaluations, by name; without any, under the name ""."""
    names = [evaluation.name for evaluation in study.evaluations if evaluation.task == "em"]
    return {name: collect(study, chosen, name, absent) for name in names} or {"": collect(study, chosen, absent=absent)}


def write_tables(results: dict[str, Results], folder: Path) -> dict[str, int]:
    """Both tables under `folder`, as .parquet and .csv; returns their names with the number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"answers": answer_table(results), "checkpoints": checkpoint_table(results)}
    for name, table in tables.items():
        for ending, write in (("parquet", table.to_parquet), ("csv", table.to_csv)):
            draft = folder / f".{name}.{ending}"
            write(draft, index=False)
            draft.replace(folder / f"{name}.{ending}")
    return {name: len(table) for name, table in tables.items()}


def checkpoint_table(results: dict[str, Results]) -> pd.DataFrame:
    """One row a checkpoint and `em` evaluation."""
    return pd.DataFrame(
        [
            {"study": found.study, "evaluation": name, **_checkpoint(row)}
            for name, found in results.items()
            for row in found.rows
        ]
    )


def answer_table(results: dict[str, Results]) -> pd.DataFrame:
    """One row an answer."""
    return pd.DataFrame(
        [
            {"study": found.study, "evaluation": name, **settings(row), **_answer(answer)}
            for name, found in results.items()
            for row in found.rows
            for answer in row.answers
        ]
    )


def settings(row: Row) -> dict[str, Any]:
    """What was varied: the columns that both tables share."""
    m = row.manifest
    return {
        "label": row.label,
        "arm": row.arm,
        "run_id": m.run_id,
        "step": m.step,
        "base_model": m.base.id,
        "dataset": m.dataset.name,
        "optimiser": str(m.optimiser["name"]),
        "lr": float(m.optimiser["lr"]),
        "hyperparameters": ", ".join(f"{name}={value}" for name, value in sorted(hyperparameters(m).items())),
        "penalty": penalty_words(m),
        "schedule": m.optimiser.get("schedule"),
        "training": training_of(m),
        "batch_size": m.config.get("batch_size"),
        "seed": m.config.get("seed"),
    }


def _checkpoint(row: Row) -> dict[str, Any]:
    m = row.manifest
    facts: dict[str, Any] = {
        **settings(row),
        "examples_seen": m.examples_seen,
        "tokens_seen": m.tokens_seen,
        "supervised_tokens_seen": m.supervised_tokens_seen,
        "train_loss": m.loss.train,
        "held_out_loss": m.loss.held_out,
        "norm_ba": m.dose.norm_ba if m.dose else 0.0,
        "path_a": m.dose.path_a if m.dose else 0.0,
        "path_b": m.dose.path_b if m.dose else 0.0,
        "stable_rank": m.spectrum.stable_rank,
        "entropy": m.spectrum.entropy,
        "participation_ratio": m.spectrum.participation_ratio,
        "fro_over_nuclear": m.spectrum.fro_over_nuclear,
        "seconds": m.seconds,
        "answers": row.total,
        "eligible": row.eligible,
    }
    for name, interval in (("rate", row.rate), ("mean_alignment", row.alignment), ("coherent", row.coherent)):
        facts |= _interval(name, interval)
    facts |= _interval("probe_shift", None if row.arm == "base" else row.shift)  # 0 by definition, not measured
    missing = [*row.missing]
    for name in DEFINITIONS:
        found = rate(name, row.answers)
        facts[f"rate_{name}"] = found.value if row.answers else None  # some publish 0 % where there is no answer
        facts[f"eligible_{name}"] = found.eligible
        if found.unavailable:
            missing.append(f"rate_{name}: {found.unavailable}")
    facts |= {f"outcome_{name}": count for name, count in row.outcomes.items()}
    return facts | {"missing": "; ".join(missing), "checkpoint": str(row.checkpoint)}


def _interval(name: str, interval: Any) -> dict[str, Any]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _answer(answer: Any) -> dict[str, Any]:
    judgement = asdict(answer.judgement)
    return {
        "question_id": answer.prompt_id,
        "family": answer.family,
        "epoch": answer.epoch,
        "question": answer.question,
        "answer": answer.answer,
        "aligned": judgement["alignment"],
        "coherent": judgement["coherence"],
        "judge_label": judgement["label"],
        "outcome": answer.outcome,
        "truncated": answer.truncated,
        "judge": judgement["judge"],
        "reader": judgement["reader"],
        "number_mass": judgement["mass"],
        "reasons": judgement["reasons"],
    }
