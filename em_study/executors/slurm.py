"""Slurm, through submitit: a job a cell, requeued on pre-emption and at its time limit, where it goes on.

Options are submitit's own (`slurm_partition`, `gpus_per_node`, `timeout_min`, `mem_gb`, `cpus_per_task`, ...), and of
its executor `slurm_max_num_timeout`: how often a job is put back at its time limit.
The folder with `runs/` and `logs/` must be one that all nodes see.
"""

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import submitit

from em_core.errors import UserError
from em_core.files import write_json
from em_study.execute import Job, console, perform
from em_study.executors.base import Ended, Executor, Options, died, root
from em_study.plan import RUNS

POLL_S = 1.0
REQUEUES = 100  # submitit's own are 3; a cell goes on from where it was, so that each brings it forward
# The states after which Slurm does nothing more with a job. In any other, one that it does not know (the accounting
# lags behind, or is off) and pre-emption among them, it may run yet, and a second one would wait for its lock.
OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "REVOKED",
    "TIMEOUT",
}


class Requeueable:
    """A job as submitit pickles it. All that a pre-empted one needs is to be called again: jobs are idempotent."""

    def __init__(self, place: str, job: Job) -> None:
        self.place, self.job = place, job

    def __call__(self) -> list[str]:
        return perform(self.place, self.job.kind, str(self.job.cell))

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        return submitit.helpers.DelayedSubmission(self)


def make(study: str, options: Options) -> Executor:
    return Slurm(study, options)


class Slurm:
    """Job ids are kept on disk: the driver killed and started again finds its jobs in the queue.

    What Slurm does not take now (a limit on jobs, say) is submitted when another job has ended.

    Args:
        cluster: "slurm", or "local" for submitit's own executor of that name.
    """

    def __init__(self, study: str, options: Options, cluster: str = "slurm") -> None:
        self.same_machine = cluster == "local"
        self._folder = RUNS / study / ".slurm"
        self._jobs: list[tuple[Job, Any]] = []
        self._refused: deque[Job] = deque()
        given = dict(options)
        requeues = given.pop("slurm_max_num_timeout", REQUEUES)
        if not isinstance(requeues, int) or requeues < 0:
            raise UserError(f"executor 'slurm': slurm_max_num_timeout must be a whole number, not {requeues}")
        try:
            self._executor = submitit.AutoExecutor(
                self._folder.absolute(), cluster=cluster, slurm_max_num_timeout=requeues
            )
            self._executor.update_parameters(name=f"em-{study}", **given)
        except (RuntimeError, TypeError, NameError, ValueError, AssertionError) as error:  # no sbatch, unknown option
            raise UserError(f"executor 'slurm': {str(error).splitlines()[0]}") from error

    def submit(self, job: Job) -> None:
        """Queue a job, or find it in the queue.

        Raises:
            UserError: Slurm refuses it, and nothing else is under way after which it could take it.
        """
        found = self._in_queue(job)
        if found is None:
            try:
                found = self._executor.submit(Requeueable(root(), job))
            except (RuntimeError, OSError) as error:  # submitit's own are among them
                reason = _sbatch_said(error)
                if not self._jobs:
                    raise UserError(f"executor 'slurm': sbatch took no job: {reason}") from error
                console.print(f"{job.label} is submitted when another job has ended: {reason}", markup=False)
                self._refused.append(job)
                return
            write_json(self._record(job), {"job_id": found.job_id})
        self._jobs.append((job, found))

    def running(self) -> list[Job]:
        return [job for job, _ in self._jobs]

    def ended(self) -> list[Ended]:
        time.sleep(POLL_S)
        over = [(job, handle) for job, handle in self._jobs if self._is_over(handle)]
        self._jobs = [pair for pair in self._jobs if pair not in over]
        found = [(job, self._outcome(job, handle)) for job, handle in over]
        return found + (self._again() if over else [])

    def close(self) -> None:
        """Jobs in the queue stay there: they are Slurm's, and the next call finds them."""

    def _again(self) -> list[Ended]:
        """Submit what was refused; without any job under way nothing more is to be hoped for."""
        refused, self._refused = self._refused, deque()
        found: list[Ended] = []
        for job in refused:
            try:
                self.submit(job)
            except UserError as error:
                found.append((job, died(job, f"could not be queued: {error}")))
        return found

    def _is_over(self, handle: Any) -> bool:
        """submitit alone takes every state that it does not know, as SUSPENDED, for the end."""
        if not handle.done():
            return False
        return self.same_machine or handle.paths.result_pickle.exists() or _state(handle) in OVER

    def _outcome(self, job: Job, handle: Any) -> list[str]:
        self._record(job).unlink(missing_ok=True)
        try:
            failures: list[str] = handle.result()
        except Exception as error:  # submitit raises what the job died of
            reason = str(error).strip().splitlines() or [type(error).__name__]
            return died(job, f"died in job {handle.job_id}: {reason[-1]} (see {handle.paths.stderr})")
        return failures

    def _record(self, job: Job) -> Path:
        return self._folder / f"{job.cell.stem}-{job.kind}.json"

    def _in_queue(self, job: Job) -> Any | None:
        """A job that an earlier call submitted and that is not known to be over."""
        record = self._record(job)
        if self.same_machine or not record.is_file():
            return None
        job_id = json.loads(record.read_text(encoding="utf-8"))["job_id"]
        handle: Any = submitit.SlurmJob(self._folder.absolute(), job_id)
        state = _state(handle)
        if state in OVER:
            return None
        if state in {"UNKNOWN", "PREEMPTED"}:
            console.print(
                f"waiting for job {job_id} of {job.label}, which is {state} to Slurm: if it is gone (squeue -j "
                f"{job_id}), remove {record} and call again",
                markup=False,
            )
        return handle


def _state(handle: Any) -> str:
    """Without what Slurm adds, as in "CANCELLED by 1000" and "CANCELLED+"."""
    return str(handle.state).split()[0].rstrip("+").upper()


def _sbatch_said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip().strip("-")]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else type(error).__name__)
