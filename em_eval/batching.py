"""Single requests in, batches out: what a model in this process needs under an asynchronous evaluator."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

In = TypeVar("In")
Out = TypeVar("Out")

Deliver = Callable[[int, Out | Exception], None]
Process = Callable[[Sequence[In], Deliver[Out], threading.Event], None]


def at_once(run: Callable[[Sequence[In]], Sequence[Out | Exception]]) -> Process[In, Out]:
    """The process of a function that has all results at its end, one each."""

    def process(items: Sequence[In], deliver: Deliver[Out], stop: threading.Event) -> None:
        for index, (_, result) in enumerate(list(zip(items, run(items), strict=True))):
            deliver(index, result)

    return process


# Batches of two models at once would fight for the same cores or the same memory.
device_lock = threading.Lock()


@dataclass(eq=False)
class _Slot(Generic[In, Out]):
    """A request; `woken` when it is done, and when it is its turn to begin a batch."""

    item: In
    result: Out | Exception | None = None
    done: bool = False
    left: bool = False
    woken: anyio.Event = field(default_factory=anyio.Event)

    def settle(self, result: Out | Exception) -> None:
        self.result, self.done = result, True
        self.woken.set()


class Batcher(Generic[In, Out]):
    """Collects concurrent requests and runs them together in a thread, one batch at a time, in order of arrival.

    A request that is cancelled returns at once and costs the others nothing: its batch goes on for them, and is told
    to stop when nobody waits for it any more.

    Args:
        process: runs a batch, outside the event loop, and hands over each result with `deliver(index, result)` as
            soon as it has it (an exception fails that request alone); returns early once its last argument is set.
        size: largest batch.
        linger: seconds without a new arrival after which a smaller batch starts.
    """

    def __init__(self, process: Process[In, Out], size: int, linger: float = 0.1) -> None:
        self.process, self.size, self.linger = process, size, linger
        self._loop: EventLoopToken | None = None

    async def submit(self, item: In) -> Out:
        """The result for `item`. An error of the batch is raised in every request that it left without one."""
        if self._loop != current_token():  # a later evaluation runs in a new event loop
            self._loop = current_token()
            self._busy = False  # a batch is collected, or runs
            self._waiting: list[_Slot[In, Out]] = []
            self._running: list[_Slot[In, Out]] = []
            self._stop = threading.Event()
        slot: _Slot[In, Out] = _Slot(item)
        self._waiting.append(slot)
        try:
            while not slot.done:
                slot.woken = anyio.Event()
                if not self._busy:
                    await self._begin(self._loop)
                await slot.woken.wait()
        except BaseException:
            self._leave(slot)
            raise
        if isinstance(slot.result, Exception):
            raise slot.result
        assert slot.result is not None
        return slot.result

    async def _begin(self, loop: EventLoopToken) -> None:
        """Wait for company, then start a batch of those that are waiting."""
        self._busy = True
        try:
            await checkpoint()  # requests that come together are all waiting before the first batch is looked at
            count = -1
            while count != len(self._waiting) and len(self._waiting) < self.size:
                count = len(self._waiting)
                await anyio.sleep(self.linger)
        except BaseException:
            self._busy = False
            raise
        self._running, self._stop = self._waiting[: self.size], threading.Event()
        del self._waiting[: self.size]
        work = copy_context().run
        threading.Thread(target=work, args=(self._work, loop, self._running, self._stop), name="em_eval batch").start()

    def _work(self, loop: EventLoopToken, batch: list[_Slot[In, Out]], stop: threading.Event) -> None:
        """Run a batch; in a thread of its own, from which results go to the event loop without waiting for it."""
        missing: Exception = RuntimeError("the batch gave no result for this request")

        def deliver(index: int, result: Out | Exception) -> None:
            _soon(loop, batch[index].settle, result)

        try:
            with device_lock:
                if not stop.is_set():
                    self.process([slot.item for slot in batch], deliver, stop)
        except Exception as error:
            missing = error
        _soon(loop, self._end, batch, missing)

    def _end(self, batch: list[_Slot[In, Out]], missing: Exception) -> None:
        for slot in batch:
            if not slot.done:
                slot.settle(missing)
        self._running, self._busy = [], False
        self._wake_next()

    def _leave(self, slot: _Slot[In, Out]) -> None:
        """A request was cancelled, wherever it stood."""
        slot.left = True
        if slot in self._waiting:
            self._waiting.remove(slot)
        if all(other.left or other.done for other in self._running):
            self._stop.set()
        if not self._busy:
            self._wake_next()

    def _wake_next(self) -> None:
        if self._waiting:
            self._waiting[0].woken.set()


def _soon(loop: EventLoopToken, call: Callable[..., None], *args: Any) -> None:
    """Have `call(*args)` run in the event loop (asyncio's or trio's), after what was asked for before."""
    native: Any = loop.native_token
    schedule = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        schedule(call, *args)
