"""What an executor is, and the choice of one by name. Adding one is a file with a `make` function."""

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol

from em_core.errors import UserError
from em_study.execute import Job, keep_death

Options = dict[str, str | int | float]
Ended = tuple[Job, list[str]]


class Executor(Protocol):
    """Takes jobs, in any order and while others run; says which ended, with one line a failure.

    Attributes:
        same_machine: jobs run on hardware like this process's, so that `dtype: auto` means the same.
    """

    same_machine: bool

    def submit(self, job: Job) -> None: ...

    def running(self) -> list[Job]: ...

    def ended(self) -> list[Ended]:
        """Jobs that ended since the last call; waits up to a second or so for one."""
        ...

    def close(self) -> None: ...


def names() -> list[str]:
    import em_study.executors as package

    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base")


def choose(name: str, study: str, options: Options) -> Executor:
    """The executor called `name`, for the jobs of one study.

    Raises:
        UserError: unknown name or option, or its library is not installed.
    """
    if name not in names():
        raise UserError(f"unknown executor '{name}': known: {', '.join(names())}")
    module = importlib.import_module(f"em_study.executors.{name}")
    try:
        executor: Executor = module.make(study, options)
    except ImportError as error:
        raise UserError(f"executor '{name}' needs {error.name}: pip install 'em-eval[{name}]'") from error
    return executor


def root() -> str:
    return str(Path.cwd())


def died(job: Job, how: str) -> list[str]:
    """The line for a job whose process is gone, which is kept where `em status` looks."""
    return [keep_death(job, how)]
