"""Batching: order, errors, event loops, sizes and cancellation, without any model."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import pytest

from em_eval.batching import Batcher, at_once

QUICK = 0.01


class Recorder:
    """A process function that keeps its batches; an item "bad" makes its batch fail."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[Any]] = []
        self.started = threading.Event()

    def __call__(self, items: Sequence[Any]) -> list[str]:
        self.batches.append(list(items))
        self.started.set()
        time.sleep(self.seconds)
        if "bad" in items:
            raise ValueError("a bad item")
        return [f"<{item}>" for item in items]


async def submit_all(batcher: Batcher[Any, str], items: Sequence[Any]) -> dict[Any, Any]:
    """Results or errors by item; requests start in the order given."""
    found: dict[Any, Any] = {}

    async def one(item: Any) -> None:
        try:
            found[item] = await batcher.submit(item)
        except Exception as error:
            found[item] = error

    async with anyio.create_task_group() as group:
        for item in items:
            group.start_soon(one, item)
    return found


def test_concurrent_requests_share_a_batch_and_keep_their_order() -> None:
    process = Recorder()
    items = list(range(10))
    found = anyio.run(submit_all, Batcher(at_once(process), size=20, linger=QUICK), items)
    assert process.batches == [items]
    assert found == {item: f"<{item}>" for item in items}


def test_no_batch_is_larger_than_the_limit() -> None:
    process = Recorder()
    found = anyio.run(submit_all, Batcher(at_once(process), size=4, linger=QUICK), list(range(10)))
    assert process.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert found == {item: f"<{item}>" for item in range(10)}


def test_a_full_batch_does_not_linger() -> None:
    started = time.monotonic()
    anyio.run(submit_all, Batcher(at_once(Recorder()), size=3, linger=5.0), [1, 2, 3])
    assert time.monotonic() - started < 2.0


def test_requests_that_trickle_in_are_waited_for() -> None:
    process = Recorder()
    batcher: Batcher[Any, str] = Batcher(at_once(process), size=20, linger=0.3)

    async def trickle() -> None:
        async with anyio.create_task_group() as group:
            for item in range(4):
                group.start_soon(batcher.submit, item)
                await anyio.sleep(0.02)

    anyio.run(trickle)
    assert process.batches == [[0, 1, 2, 3]]


def test_the_loop_goes_on_while_a_batch_runs() -> None:
    process = Recorder(seconds=0.3)
    batcher: Batcher[Any, str] = Batcher(at_once(process), size=4, linger=QUICK)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.sleep(0.01)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            await batcher.submit("a")
            group.cancel_scope.cancel()

    anyio.run(main)
    assert ticks > 10


def test_an_error_reaches_every_member_of_its_batch_and_no_other() -> None:
    process = Recorder()
    found = anyio.run(submit_all, Batcher(at_once(process), size=3, linger=QUICK), [1, "bad", 3, 4, 5])
    assert process.batches == [[1, "bad", 3], [4, 5]]
    assert [str(found[item]) for item in (1, "bad", 3)] == ["a bad item"] * 3
    assert all(isinstance(found[item], ValueError) for item in (1, "bad", 3))
    assert (found[4], found[5]) == ("<4>", "<5>")


def test_too_few_results_are_an_error_of_every_member() -> None:
    def short(items: Sequence[Any]) -> list[str]:
        return ["only one"]

    found = anyio.run(submit_all, Batcher(at_once(short), size=3, linger=QUICK), [1, 2, 3])
    assert all(isinstance(found[item], ValueError) for item in (1, 2, 3))


def test_two_event_loops_in_sequence() -> None:
    process = Recorder()
    batcher: Batcher[Any, str] = Batcher(at_once(process), size=8, linger=QUICK)
    assert anyio.run(submit_all, batcher, ["a", "b"]) == {"a": "<a>", "b": "<b>"}
    assert anyio.run(submit_all, batcher, ["c", "d"]) == {"c": "<c>", "d": "<d>"}
    assert process.batches == [["a", "b"], ["c", "d"]]


def test_a_loop_that_broke_off_leaves_nothing_to_the_next() -> None:
    process = Recorder()
    batcher: Batcher[Any, str] = Batcher(at_once(process), size=8, linger=QUICK)

    async def broken_off() -> None:
        async with anyio.create_task_group() as group:
            for item in ("lost", "lost too"):
                group.start_soon(batcher.submit, item)
            await anyio.sleep(0)
            group.cancel_scope.cancel()

    anyio.run(broken_off)
    assert anyio.run(submit_all, batcher, ["next"]) == {"next": "<next>"}
    assert process.batches == [["next"]]


def run_with_cancelled(
    process: Recorder, cancelled: int, when: Callable[[], Coroutine[Any, Any, None]]
) -> dict[int, Any]:
    """Three requests of which one is cancelled after `when`."""
    batcher: Batcher[Any, str] = Batcher(at_once(process), size=8, linger=0.05)
    found: dict[int, Any] = {}

    async def one(item: int, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                found[item] = await batcher.submit(item)
            except Exception as error:
                found[item] = error

    async def main() -> None:
        scopes = [anyio.CancelScope() for _ in range(3)]
        async with anyio.create_task_group() as group:
            for item, scope in enumerate(scopes):
                group.start_soon(one, item, scope)
            await when()
            scopes[cancelled].cancel()

    anyio.run(main)
    return found


@pytest.mark.parametrize("cancelled", [0, 1, 2])  # 0 is the one that collects the batch
def test_a_request_cancelled_while_waiting_is_left_out_of_the_batch(cancelled: int) -> None:
    process = Recorder()
    found = run_with_cancelled(process, cancelled, lambda: anyio.sleep(0.01))
    others = [item for item in range(3) if item != cancelled]
    assert found == {item: f"<{item}>" for item in others}
    assert process.batches == [others]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_a_request_cancelled_while_its_batch_runs_costs_the_others_nothing(cancelled: int) -> None:
    process = Recorder(seconds=0.2)

    async def running() -> None:
        while not process.started.is_set():
            await anyio.sleep(0.005)

    found = run_with_cancelled(process, cancelled, running)
    assert process.batches == [[0, 1, 2]]
    for item in range(3):
        if item != cancelled:
            assert found[item] == f"<{item}>"


@pytest.mark.parametrize(("cancelled", "stopped"), [([0], False), ([1, 2], False), ([0, 1, 2], True)])
def test_a_batch_is_told_to_stop_when_nobody_waits_for_it(cancelled: list[int], stopped: bool) -> None:
    """Cancelled requests return at once, while the thread still computes."""
    running, go_on, seen = threading.Event(), threading.Event(), []

    def process(items: Sequence[int], deliver: Any, stop: threading.Event) -> None:
        running.set()
        go_on.wait(timeout=20)
        seen.append(stop.is_set())
        for index, item in enumerate(items):
            deliver(index, item)

    batcher: Batcher[int, int] = Batcher(process, size=8, linger=QUICK)
    found: dict[int, int] = {}
    over: list[int] = []

    async def one(item: int, scope: anyio.CancelScope) -> None:
        with scope:
            found[item] = await batcher.submit(item)
        over.append(item)

    async def main() -> None:
        scopes = [anyio.CancelScope() for _ in range(3)]
        async with anyio.create_task_group() as group:
            for item, scope in enumerate(scopes):
                group.start_soon(one, item, scope)
            while not running.is_set():
                await anyio.sleep(QUICK)
            for item in cancelled:
                scopes[item].cancel()
            await anyio.sleep(QUICK)
            assert sorted(over) == cancelled
            go_on.set()
        assert await batcher.submit(9) == 9  # in a batch after that one

    anyio.run(main)
    assert seen[0] is stopped
    assert found == {item: item for item in range(3) if item not in cancelled}


def test_results_that_come_before_an_error_are_kept() -> None:
    def process(items: Sequence[str], deliver: Any, stop: threading.Event) -> None:
        deliver(0, "early")
        raise ValueError("later")

    found = anyio.run(submit_all, Batcher(process, size=2, linger=QUICK), ["a", "b"])
    assert found["a"] == "early" and str(found["b"]) == "later"


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 4])
def test_the_moment_of_a_cancellation_does_not_matter(ticks: int) -> None:
    process = Recorder(seconds=0.05)
    batcher: Batcher[Any, str] = Batcher(at_once(process), size=3, linger=QUICK)
    found: dict[int, Any] = {}

    async def one(item: int, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                found[item] = await batcher.submit(item)
            except Exception as error:
                found[item] = error

    async def main() -> None:
        scopes = [anyio.CancelScope() for _ in range(3)]
        async with anyio.create_task_group() as group:
            for item, scope in enumerate(scopes):
                group.start_soon(one, item, scope)
            for _ in range(ticks):
                await anyio.sleep(0)
            scopes[0].cancel()

    anyio.run(main)
    assert [found[1], found[2]] == ["<1>", "<2>"]


@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_time_out_of_plain_asyncio_costs_the_others_nothing(cancelled: int) -> None:
    process = Recorder(seconds=0.2)
    batcher: Batcher[Any, str] = Batcher(at_once(process), size=8, linger=QUICK)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(batcher.submit(item)) for item in range(3)]
        while not process.started.is_set():
            await asyncio.sleep(0.005)
        tasks[cancelled].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(main())
    assert isinstance(found[cancelled], asyncio.CancelledError)
    assert [found[item] for item in range(3) if item != cancelled] == [
        f"<{item}>" for item in range(3) if item != cancelled
    ]
