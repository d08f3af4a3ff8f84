"""The tables of the pages in this folder and of the README, from the checkpoints that `em export` wrote.

    em export studies/small/optimisers.yaml --folder tables && cp tables/checkpoints.csv docs/results/small_study.csv
    python docs/results/tables.py

A table stands in a page between `<!-- table: FILE.csv EVALUATION -->` and `<!-- end of table -->`.
"""

import re
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).resolve().parent
PAGES = (HERE.parents[1] / "README.md", *sorted(HERE.glob("*.md")))
PLACE = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
FIGURES = (
    *("training loss", "held-out loss", "norm of BA", "participation ratio", "EM rate, %", "eligible"),
    *("misaligned of all, %", "mean alignment", "coherent, %", "probe shift, nats"),
)
NONE = "–"


def with_tables(page: str, folder: Path) -> str:
    """The page with every table as its CSV file says, which is named as seen from the page's `folder`."""

    def filled(found: re.Match[str]) -> str:
        begin, name, evaluation, end = found.groups()
        checkpoints = pd.read_csv(folder / name)
        return f"{begin}\n{table(checkpoints[checkpoints['evaluation'] == evaluation])}\n\n{end}"

    return PLACE.sub(filled, page)


def table(checkpoints: pd.DataFrame) -> str:
    """One line for the base and for the last checkpoint of each run that has answers, as Markdown.

    Data and seed are columns where they vary, and in neither case part of the name.
    """
    evaluated = checkpoints[checkpoints["answers"] > 0]
    last = evaluated.groupby("run_id")["step"].transform("max") == evaluated["step"]
    shown = evaluated[last | (evaluated["arm"] == "base")]
    varied = [name for name in ("dataset", "seed") if shown.loc[shown["arm"] != "base", name].nunique() > 1]
    head = ["last checkpoint", *varied, *FIGURES]
    lines = [head, ["---"] * len(head), *(_cells(row, varied) for row in shown.to_dict("records"))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: dict[str, Any], varied: list[str]) -> list[str]:
    base = row["arm"] == "base"
    own = {row["dataset"], f"seed {row['seed']}", f"step {row['step']}"}
    return [
        ", ".join(part for part in row["label"].split(", ") if part not in own),
        *(NONE if base else str(row[name]) for name in varied),
        NONE if base else f"{row['train_loss']:.3f}",
        f"{row['held_out_loss']:.3f}",
        *(["0", NONE] if base else [f"{row['norm_ba']:.1f}", f"{row['participation_ratio']:.1f}"]),
        _with_ends(row, "rate", 1, 100),
        f"{row['eligible']:.0f} of {row['answers']:.0f}",
        f"{100 * row['outcome_misaligned'] / row['answers']:.1f}",
        _with_ends(row, "mean_alignment", 0),
        f"{100 * row['coherent']:.0f}",
        NONE if base else _with_ends(row, "probe_shift", 2),
    ]


def _with_ends(row: dict[str, Any], name: str, digits: int, scale: float = 1) -> str:
    value, low, high = (f"{scale * row[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    return NONE if pd.isna(row[name]) else f"{value} [{low}, {high}]"


if __name__ == "__main__":
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if (filled := with_tables(page, path.parent)) != page:
            path.write_text(filled, encoding="utf-8")
            print(f"{path}: {len(PLACE.findall(filled))} tables")
