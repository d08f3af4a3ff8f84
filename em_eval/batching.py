"""Single requests in, batches out: what a static model needs under an asynchronous evaluator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import current_token
from anyio.to_thread import run_sync

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass
class _Slot(Generic[In, Out]):
    item: In
    result: Out | None = None
    error: Exception | None = None
    done: bool = False


class Batcher(Generic[In, Out]):
    """Collects concurrent requests and runs them together in a worker thread, in order of arrival.

    Args:
        process: maps a batch to its results, one each (an exception fails that request alone); it runs outside the
            event loop.
        size: largest batch.
        linger: seconds without a new arrival after which a smaller batch starts.
    """

    def __init__(
        self, process: Callable[[Sequence[In]], Sequence[Out | Exception]], size: int, linger: float = 0.1
    ) -> None:
        self.process, self.size, self.linger = process, size, linger
        self._loop: Any = None

    async def submit(self, item: In) -> Out:
        """The result for `item`. An error of the batch is raised in every request that was part of it."""
        if self._loop != current_token():  # a later evaluation runs in a new event loop
            self._loop = current_token()
            self._turn = anyio.Lock()
            self._waiting: list[_Slot[In, Out]] = []
        slot: _Slot[In, Out] = _Slot(item)
        self._waiting.append(slot)
        try:
            async with self._turn:
                if not slot.done:
                    await self._run(slot)
        except BaseException:
            if slot in self._waiting:
                self._waiting.remove(slot)
            raise
        if slot.error is not None:
            raise slot.error
        assert slot.result is not None
        return slot.result

    async def _run(self, own: _Slot[In, Out]) -> None:
        count = -1
        while count != len(self._waiting) and len(self._waiting) < self.size:
            count = len(self._waiting)
            await anyio.sleep(self.linger)
        batch, self._waiting[: self.size] = self._waiting[: self.size], []
        try:
            with anyio.CancelScope(shield=True):
                results = await run_sync(self.process, [slot.item for slot in batch])
        except Exception as error:
            for slot in batch:
                slot.error, slot.done = error, True
            return
        except BaseException:  # this request was cancelled from outside: the others get another turn
            self._waiting[:0] = [slot for slot in batch if slot is not own]
            raise
        for slot, result in zip(batch, results, strict=True):
            slot.done = True
            if isinstance(result, Exception):
                slot.error = result
            else:
                slot.result = result
