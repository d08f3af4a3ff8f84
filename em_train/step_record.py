"""A run's record, steps.jsonl: one JSON line an optimiser step, from the trainer to whoever looks at the run."""

import json
from pathlib import Path

STEPS_FILE = "steps.jsonl"


def recorded_steps(path: Path) -> list[dict[str, float]]:
    """The rows of a record, one a step from 1 on, up to the first that is damaged or out of turn.

    The last one may have been cut short by a kill; after damage a run goes on from its last state before it.
    """
    rows: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or row.get("step") != len(rows) + 1 or "seconds" not in row:
            break
        rows.append(row)
    return rows
