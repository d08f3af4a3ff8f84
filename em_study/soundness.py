"""What is refused before anything trains: by `em run` of all that a study names, by a dry run of what is here already.

Whatever both look at, they look at with the same code and in the same order.
"""

import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TypeVar

from em_core.errors import NotHere, UserError
from em_study import blame
from em_study.cells import Cell
from em_study.study import Evaluation, Study

T = TypeVar("T")


def sound_cells(
    study: Study, every: Iterable[Cell], look: Callable[[Cell], T], fetch: bool = True
) -> tuple[list[tuple[Cell, T]], dict[str, str]]:
    """Every cell with what `look` finds of it; and by label the optional ones that it refuses, with the reason.

    Args:
        fetch: whether `look` fetches what is not here yet.

    Raises:
        UserError: it refuses another one. Names file and line of a study from a file.
    """
    found, left_out = [], {}
    for cell in every:
        try:
            found.append((cell, look(cell)))
        except UserError as error:
            if not cell.optional:
                place = blame.by_trial(study, cell.config, fetch)
                place = place or blame.by_words(study, cell.config.base_model, str(error))
                raise UserError(f"{place}{error}") from error
            left_out[cell.label] = str(error)
    return found, left_out


def check_at_hand(
    study: Study, every: Iterable[Cell], uncounted: Collection[str], no_rows: Callable[[str], UserError | None]
) -> dict[str, str]:
    """Look at what shows without fetching anything: settings, names, data and the structure of models that are here.

    Args:
        uncounted: datasets that are not here and which the steps of their cells hang on.
        no_rows: why the rows of a dataset cannot be had, where they cannot.

    Returns:
        As `sound_cells`: the optional cells that are left out.

    Raises:
        UserError: what `em run` would refuse.
    """
    from em_core.models import base_at_hand
    from em_train.lora import check_targets
    from em_train.optimisers import resolve
    from em_train.penalties import resolve as resolve_penalty
    from em_train.preparation import micro_batch_size, resolve_schedule

    def look(cell: Cell) -> None:
        config = cell.config
        resolve(config.optimiser.name, config.optimiser.hyperparameters)
        resolve_schedule(config)
        why = no_rows(config.dataset)
        if why is not None and (cell.optional or not isinstance(why, NotHere)):
            raise why
        resolve_penalty(config)
        micro_batch_size(config)
        base = base_at_hand(config.base_model, config.base_revision)
        if base is not None:
            check_targets(config.base_model, base, config.lora)

    def endless(cell: Cell) -> Cell:  # of unknown length, so that no setting lies beyond its end
        return replace(cell, config=cell.config.model_copy(update={"steps": sys.maxsize}))

    check_evaluations(study, fetch=False)
    known = (endless(cell) if cell.config.dataset in uncounted else cell for cell in every)
    return sound_cells(study, known, look, fetch=False)[1]


def check_evaluations(study: Study, fetch: bool = True) -> None:
    """Prompts and judges, which are wanted only after the first training.

    Args:
        fetch: else what is not here yet counts as sound.

    Raises:
        UserError: a prompt set that is unknown or not to be had, without the templates that a judge model needs; a
            judge that Inspect has no provider for.
    """
    for number, evaluation in enumerate(study.evaluations):
        for field, check in _checks(evaluation, fetch) if evaluation.task == "em" else ():
            try:
                check()
            except UserError as error:
                if fetch or not isinstance(error, NotHere):
                    raise UserError(f"{study.place('evaluations', number, field)}{error}") from error
                break


def _checks(evaluation: Evaluation, fetch: bool) -> list[tuple[str, Callable[[], object]]]:
    """Of an `em` evaluation, in order, each with the field that it is about."""
    from em_eval.judge import judge_registry
    from em_eval.task import choose, demand_templates
    from em_study.grader import check_provider

    grader, questions, tags = evaluation.grader, evaluation.questions, evaluation.tags()
    found: list[tuple[str, Callable[[], object]]] = []
    if grader is not None:
        found.append(("grader", lambda: check_provider(grader)))
    elif fetch:
        found.append(("grader", lambda: judge_registry.get("embedded")()))
    found += [
        ("questions", lambda: choose(questions)),
        ("format", lambda: choose(questions, format=tags.get("format"))),
        ("exclude_domain", lambda: choose(questions, **tags)),
    ]
    if grader is not None:
        found.append(("questions", lambda: demand_templates(choose(questions, **tags), ("aligned", "coherent"))))
    return found
