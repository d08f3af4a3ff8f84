"""The table of docs/results/small_study.md, from the checkpoints that `em export` wrote.

em export studies/small/optimisers.yaml --folder tables && cp tables/checkpoints.csv docs/results/small_study.csv
python -m benchmarks.small_study_table
"""

from pathlib import Path

import pandas as pd

from em_study.names import display_name

RESULTS = Path(__file__).parents[1] / "docs" / "results"
CSV, PAGE = RESULTS / "small_study.csv", RESULTS / "small_study.md"
BEGIN, END = "<!-- table: python -m benchmarks.small_study_table -->", "<!-- end of table -->"
COLUMNS = (
    *("last checkpoint", "data", "seed", "training loss", "held-out loss", "norm of BA", "participation ratio of 32"),
    *("EM rate, %", "eligible", "misaligned of all, %", "mean alignment", "coherent, %", "probe shift, nats"),
)
NONE = "–"


def table(checkpoints: pd.DataFrame) -> str:
    """One line for the base and for the last checkpoint of each run that has answers, as Markdown."""
    evaluated = checkpoints[checkpoints["rate"].notna()]
    last = evaluated.groupby("run_id")["step"].transform("max") == evaluated["step"]
    shown = evaluated[last | (evaluated["arm"] == "base")]
    lines = [[*COLUMNS], ["---"] * len(COLUMNS), *map(_cells, shown.to_dict("records"))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: dict[str, float]) -> list[str]:
    base = row["arm"] == "base"
    name = "base (step 0)" if base else display_name(str(row["optimiser"]))
    name += "" if base or row["penalty"] == "none" else f" + {row['penalty']}"
    return [
        name,
        *([NONE] * 3 if base else [str(row["dataset"]), str(row["seed"]), f"{row['train_loss']:.3f}"]),
        f"{row['held_out_loss']:.3f}",
        *(["0", NONE] if base else [f"{row['norm_ba']:.1f}", f"{row['participation_ratio']:.1f}"]),
        _with_ends(row, "rate", 1, 100),
        f"{row['eligible']:.0f} of {row['answers']:.0f}",
        f"{100 * row['outcome_misaligned'] / row['answers']:.1f}",
        _with_ends(row, "mean_alignment", 0),
        f"{100 * row['coherent']:.0f}",
        NONE if base else _with_ends(row, "probe_shift", 2),
    ]


def _with_ends(row: dict[str, float], name: str, digits: int, scale: float = 1) -> str:
    value, low, high = (f"{scale * row[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def with_table(page: str, checkpoints: pd.DataFrame) -> str:
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no place for the table: {BEGIN} ... {END}"
    return f"{before}{BEGIN}\n\n{table(checkpoints)}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), pd.read_csv(CSV)), encoding="utf-8")
    print(f"{PAGE}: {len(table(pd.read_csv(CSV)).splitlines()) - 2} lines")
