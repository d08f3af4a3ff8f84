"""Count the answers of a running evaluation in a file, so that any process can show how far it is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inspect_ai.hooks import Hooks, SampleEnd, TaskStart, hooks
from inspect_ai.model import get_model

from em_core.files import write_json

COUNT_FILE = "progress.json"
EVERY_S = 1.0


@dataclass
class _Count:
    """Answers of the evaluation that runs in this process."""

    folder: Path
    started: float
    total: int = 0
    done: int = 0
    written: float = 0.0

    def write(self) -> None:
        if time.time() - self.written > EVERY_S or self.done == self.total:
            self.written = time.time()
            facts = {"done": self.done, "total": self.total, "started": self.started, "now": self.written}
            write_json(self.folder / COUNT_FILE, facts)


_counts: list[_Count] = []


@contextmanager
def counted(folder: Path) -> Iterator[None]:
    """While this lasts, the answers of Inspect's evaluation are counted in `folder`."""
    _register()
    (folder / COUNT_FILE).unlink(missing_ok=True)  # of a process that was killed
    _counts.append(_Count(folder, time.time()))
    try:
        yield
    finally:
        _counts.pop()
        (folder / COUNT_FILE).unlink(missing_ok=True)


@cache
def _register() -> None:
    """Hook into Inspect, once. Any model makes Inspect list hooks on stdout first: ours is not for users to read."""
    get_model("mockllm/model")

    @hooks(name="em_progress", description="Counts the answers of an evaluation that em run started.")
    class Answers(Hooks):
        def enabled(self) -> bool:
            return bool(_counts)

        async def on_task_start(self, data: TaskStart) -> None:
            samples, epochs = data.spec.dataset.samples or 0, data.spec.config.epochs or 1
            _counts[-1].total, _counts[-1].done = samples * epochs, 0
            _counts[-1].write()

        async def on_sample_end(self, data: SampleEnd) -> None:
            _counts[-1].done += 1
            _counts[-1].write()
