"""This machine: one warm worker in this very process, or as many processes as there are GPUs (or `workers`)."""

import os
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context

from em_core.errors import UserError
from em_study import servers
from em_study.execute import Job, perform
from em_study.executors.base import Ended, Executor, Options, died, root

TRIES = 3  # of a job whose process dies, as for want of memory; what it kept so far is not lost
work = partial(perform, keep_server=True)  # the process is ours to the end, and so is its GPU


def make(study: str, options: Options) -> Executor:
    import torch

    unknown = set(options) - {"workers"}
    if unknown:
        raise UserError(f"executor 'local' has no option '{min(unknown)}': it knows workers")
    gpus = torch.cuda.device_count()
    workers = options.get("workers", max(1, gpus))
    if not isinstance(workers, int) or workers < 1:
        raise UserError(f"executor 'local': workers must be a whole number of at least 1, not {workers}")
    return ThisProcess() if workers == 1 else Slots(workers, gpus)


class ThisProcess:
    """One job at a time, here: imports and the base model stay warm."""

    same_machine = True

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def running(self) -> list[Job]:
        return list(self._waiting)[:1]

    def ended(self) -> list[Ended]:
        job = self._waiting[0]
        failures = work(root(), job.kind, str(job.cell))
        self._waiting.popleft()
        return [(job, failures)]

    def close(self) -> None:
        self._waiting.clear()
        servers.stop()


class Slots:
    """One warm process a slot, each with a GPU of its own where there are GPUs; a process that dies is replaced."""

    same_machine = True

    def __init__(self, workers: int, gpus: int) -> None:
        self._waiting: deque[tuple[Job, int]] = deque()
        self._busy: dict[Future[list[str]], tuple[Job, int, int]] = {}
        self._free = list(range(workers))
        self._gpus, self._workers = gpus, workers
        self._pools = {slot: self._pool(slot) for slot in self._free}

    def submit(self, job: Job) -> None:
        self._waiting.append((job, 1))
        self._start()

    def running(self) -> list[Job]:
        return [job for job, *_ in self._busy.values()]

    def ended(self) -> list[Ended]:
        finished, _ = wait(self._busy, timeout=1.0, return_when=FIRST_COMPLETED)
        found: list[Ended] = []
        for future in finished:
            job, slot, tries = self._busy.pop(future)
            self._free.append(slot)
            try:
                found.append((job, future.result()))
            except BrokenProcessPool:
                self._pools[slot] = self._pool(slot)
                if tries < TRIES:
                    self._waiting.append((job, tries + 1))
                else:
                    found.append((job, died(job, f"died {TRIES} times (out of memory?)")))
        self._start()
        return found

    def close(self) -> None:
        busy = {slot for _, slot, _ in self._busy.values()}
        for slot, pool in self._pools.items():
            if slot in busy:  # a job cannot be cancelled otherwise
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            pool.shutdown(wait=slot not in busy, cancel_futures=True)

    def _start(self) -> None:
        while self._waiting and self._free:
            slot = self._free.pop(0)
            job, tries = self._waiting.popleft()
            try:
                future = self._begin(slot, job)
            except BrokenProcessPool:  # its process died between two jobs
                self._pools[slot] = self._pool(slot)
                future = self._begin(slot, job)
            self._busy[future] = (job, slot, tries)

    def _begin(self, slot: int, job: Job) -> Future[list[str]]:
        return self._pools[slot].submit(work, root(), job.kind, str(job.cell))

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        threads = max(1, (os.cpu_count() or 1) // self._workers)
        return ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_claim, initargs=(slot, self._gpus, threads)
        )


def _claim(slot: int, gpus: int, threads: int) -> None:
    """Give a new process its GPU, or its share of the cores, before torch is imported there."""
    if gpus:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[slot % gpus] if len(visible) >= gpus else str(slot % gpus)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
