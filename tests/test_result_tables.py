"""The pages of results: their tables are what the exported checkpoints say."""

import runpy
import shutil
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TABLES = runpy.run_path(str(RESULTS / "tables.py"))
PAGES = [path for path in sorted(RESULTS.glob("*.md")) if TABLES["PLACE"].search(path.read_text(encoding="utf-8"))]


def test_there_are_such_pages() -> None:
    assert RESULTS / "small_study.md" in PAGES


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_figure_of_a_table_is_typed_in(path: Path, tmp_path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert TABLES["with_tables"](page) == page
    for _, name, *_ in TABLES["PLACE"].findall(page):
        shutil.copy(RESULTS / name, tmp_path / name)
        pd.read_csv(RESULTS / name).eval("held_out_loss = held_out_loss + 1").to_csv(tmp_path / name)
    assert TABLES["with_tables"](page, tmp_path) != page
