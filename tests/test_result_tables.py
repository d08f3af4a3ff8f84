"""The pages of results: their tables are what the exported checkpoints say."""

import runpy
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
TABLES = runpy.run_path(str(ROOT / "docs" / "results" / "tables.py"))
PAGES = [path for path in TABLES["PAGES"] if TABLES["PLACE"].search(path.read_text(encoding="utf-8"))]


def test_there_are_such_pages() -> None:
    assert {path.name for path in PAGES} >= {"README.md", "small_study.md"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_figure_of_a_table_is_typed_in(path: Path, tmp_path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert TABLES["with_tables"](page, path.parent) == page
    for _, name, *_ in TABLES["PLACE"].findall(page):
        changed = pd.read_csv(path.parent / name).eval("held_out_loss = held_out_loss + 1")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        changed.to_csv(tmp_path / name)
    assert TABLES["with_tables"](page, tmp_path) != page


def test_a_last_checkpoint_none_of_whose_answers_counts_is_shown_as_that() -> None:
    checkpoints = pd.read_csv(TABLES["HERE"] / "adversarial.csv").query("evaluation == 'em-core_cued'")
    lines = [line.split(" | ") for line in TABLES["table"](checkpoints).splitlines()[2:]]
    assert len(lines) == 17  # the base and 16 runs
    none = {line[0].removeprefix("| "): line[5:7] for line in lines if line[6] == "0 of 96"}
    assert none == {name: ["–", "0 of 96"] for name in ("Lion, 0.0001", "SGD, 0.01", "SGD + peaked 1, 0.01")}
