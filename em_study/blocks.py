"""What must be equal for two runs to be compared, and what a trainer chose.

A block is base model, dataset, batch size and penalty. What an optimiser is set to within it (rate, hyper-parameters,
schedule, length) is its setting: the rate of one of several settings is not the optimiser's.
"""

from collections.abc import Sequence

from em_study.names import display_name
from em_study.plan import is_done
from em_study.results import Row
from em_study.table import settings

NOT_COMPARED = ("base", "benign")
SETTINGS = ("lr", "hyperparameters", "schedule", "training")  # columns of the tables: an optimiser's own


def run_ends(rows: Sequence[Row]) -> list[Row]:
    """The last checkpoint of each run on narrow data; a run that is not done has no end yet. Once, whatever the number
    of cells that name it."""
    return once(last_of_runs([row for row in rows if row.arm not in NOT_COMPARED and trained_to_its_end(row)]))


def last_of_runs(rows: Sequence[Row]) -> list[Row]:
    """Of each run the rows of its last checkpoint among these."""
    steps: dict[str, int] = {}
    for row in rows:
        steps[row.manifest.run_id] = max(row.manifest.step, steps.get(row.manifest.run_id, 0))
    return [row for row in rows if row.manifest.step == steps[row.manifest.run_id]]


def once(rows: Sequence[Row]) -> list[Row]:
    """A run's rows once, whatever the number of cells that name it."""
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        found.setdefault((row.manifest.run_id, row.manifest.step), row)
    return list(found.values())


def trained_to_its_end(row: Row) -> bool:
    return is_done(row.checkpoint.parent) if row.run_done is None else row.run_done


def without_penalty(rows: Sequence[Row]) -> list[Row]:
    """Those that optimisers are compared on: base models, and runs without a penalty, or all where there is no such."""
    plain = [row for row in rows if row.arm == "base" or not row.manifest.penalty]
    return plain if any(row.arm != "base" for row in plain) else list(rows)


def data_of(row: Row) -> str:
    """Base model, dataset and batch size: what no choice of the optimiser changes."""
    found = settings(row)
    base = str(found["base_model"]).rsplit("/", 1)[-1]
    return f"{base}, {found['dataset']}, batch {found['batch_size']}"


def block_of(row: Row) -> str:
    penalty = settings(row)["penalty"]
    return data_of(row) if penalty == "none" else f"{data_of(row)}, penalty {penalty}"


def setting_of(row: Row) -> str:
    """Everything that the optimiser was set to; seeds of one setting are repeats."""
    found = settings(row)
    return "; ".join(str(found[name]) for name in SETTINGS)


def seed_of(row: Row) -> int:
    return int(row.manifest.config.get("seed") or 0)


def several_settings(ends: Sequence[Row]) -> dict[str, str]:
    """Optimisers that have several settings in one block, each with a line that says so."""
    found: dict[str, dict[str, set[str]]] = {}
    for row in ends:
        blocks = found.setdefault(str(row.manifest.optimiser["name"]), {})
        blocks.setdefault(block_of(row), set()).add(setting_of(row))
    lines = {}
    for name, blocks in found.items():
        block, most = max(blocks.items(), key=lambda item: len(item[1]))
        if len(most) > 1:
            lines[name] = f"{display_name(name)} has {len(most)} settings in {block}: no one rate stands for it"
    return lines
