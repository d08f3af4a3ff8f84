"""The page on the small study: its table is what the exported checkpoints say."""

import pandas as pd

from benchmarks.small_study_table import CSV, PAGE, with_table


def test_no_figure_of_the_table_is_typed_in() -> None:
    page = PAGE.read_text(encoding="utf-8")
    checkpoints = pd.read_csv(CSV)
    assert with_table(page, checkpoints) == page
    changed = checkpoints.assign(held_out_loss=checkpoints["held_out_loss"] + 1)
    assert with_table(page, changed) != page
