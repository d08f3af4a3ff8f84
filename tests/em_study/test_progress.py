"""How far a run is, as its record says."""

from pathlib import Path

import pytest

from em_study.progress import steps_done

ROWS = ['{"step": 1, "seconds": 2.0}', '{"step": 2, "seconds": 4.0}', '{"step": 3, "seconds": 6.0}']


def test_steps_and_pace_of_a_record(tmp_path: Path) -> None:
    assert steps_done(tmp_path) == (0, None)
    (tmp_path / "steps.jsonl").write_text("\n".join(ROWS), encoding="utf-8")
    assert steps_done(tmp_path) == (3, pytest.approx(4.0))


@pytest.mark.parametrize("damage", ['{"step": 2, "sec', "\x00\x00", "[1]", "7", '{"step": 2}'])
def test_damage_ends_the_record(damage: str, tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text("\n".join([ROWS[0], damage, ROWS[2]]), encoding="utf-8")
    assert steps_done(tmp_path) == (1, pytest.approx(2.0))
