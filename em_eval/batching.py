"""Single requests in, batches out: what a model in this process needs under an asynchronous evaluator."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
from anyio.from_thread import run_sync as in_event_loop
from anyio.lowlevel import checkpoint, current_token
from anyio.to_thread import run_sync as in_thread

In = TypeVar("In")
Out = TypeVar("Out")

Deliver = Callable[[int, Out | Exception], None]
Process = Callable[[Sequence[In], Deliver[Out]], None]


def at_once(run: Callable[[Sequence[In]], Sequence[Out | Exception]]) -> Process[In, Out]:
    """The process of a function that has all results at its end, one each."""

    def process(items: Sequence[In], deliver: Deliver[Out]) -> None:
        for index, (_, result) in enumerate(list(zip(items, run(items), strict=True))):
            deliver(index, result)

    return process


# Batches of two models at once would fight for the same cores or the same memory.
device_lock = threading.Lock()


@dataclass(eq=False)
class _Slot(Generic[In, Out]):
    item: In
    result: Out | Exception | None = None
    done: bool = False
    woken: anyio.Event = field(default_factory=anyio.Event)


class Batcher(Generic[In, Out]):
    """Collects concurrent requests and runs them together in a worker thread, in order of arrival.

    One of the waiting requests leads: it runs batches until its own is through, then wakes another to lead.

    Args:
        process: runs a batch, outside the event loop, and hands over each result with `deliver(index, result)` as
            soon as it has it (an exception fails that request alone).
        size: largest batch.
        linger: seconds without a new arrival after which a smaller batch starts.
    """

    def __init__(self, process: Process[In, Out], size: int, linger: float = 0.1) -> None:
        self.process, self.size, self.linger = process, size, linger
        self._loop: Any = None

    async def submit(self, item: In) -> Out:
        """The result for `item`. An error of the batch is raised in every request that it left without one."""
        if self._loop != current_token():  # a later evaluation runs in a new event loop
            self._loop = current_token()
            self._led = False
            self._waiting: list[_Slot[In, Out]] = []
        slot: _Slot[In, Out] = _Slot(item)
        self._waiting.append(slot)
        try:
            if self._led:
                await slot.woken.wait()
            if not slot.done:
                await self._lead(slot)
        except BaseException:
            if slot in self._waiting:
                self._waiting.remove(slot)
            if slot.woken.is_set() and not slot.done:  # it was to lead, and never came to it
                self._hand_over()
            raise
        if isinstance(slot.result, Exception):
            raise slot.result
        assert slot.result is not None
        return slot.result

    async def _lead(self, own: _Slot[In, Out]) -> None:
        self._led = True
        try:
            await checkpoint()  # requests that come together are all waiting before the first batch is looked at
            while not own.done:
                await self._run(own)
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        self._led = bool(self._waiting)
        if self._waiting:
            self._waiting[0].woken.set()

    async def _run(self, own: _Slot[In, Out]) -> None:
        count = -1
        while count != len(self._waiting) and len(self._waiting) < self.size:
            count = len(self._waiting)
            await anyio.sleep(self.linger)
        batch, self._waiting[: self.size] = self._waiting[: self.size], []

        def settle(slot: _Slot[In, Out], result: Out | Exception) -> None:
            slot.result, slot.done = result, True
            slot.woken.set()

        def work() -> None:
            with device_lock:
                self.process(
                    [slot.item for slot in batch],
                    lambda index, result: in_event_loop(settle, batch[index], result),
                )

        try:
            with anyio.CancelScope(shield=True):
                await in_thread(work)
            missing: Exception = RuntimeError("the batch gave no result for this request")
        except Exception as error:
            missing = error
        except BaseException:  # this request was cancelled from outside: the others get another turn
            self._waiting[:0] = [slot for slot in batch if slot is not own and not slot.done]
            raise
        for slot in batch:
            if not slot.done:
                settle(slot, missing)
