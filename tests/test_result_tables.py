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
