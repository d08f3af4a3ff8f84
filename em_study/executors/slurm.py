"""Slurm, through submitit: a job a cell, requeued on pre-emption and at its time limit, where it goes on.

Options are submitit's own (`slurm_partition`, `gpus_per_node`, `timeout_min`, `mem_gb`, `cpus_per_task`, ...).
The folder with `runs/` and `logs/` must be one that all nodes see.
"""

import json
import time
from pathlib import Path
from typing import Any

import submitit

from em_core.errors import UserError
from em_core.files import write_json
from em_study.execute import Job, perform
from em_study.executors.base import Ended, Executor, Options, died, root
from em_study.plan import RUNS

POLL_S = 1.0
ALIVE = {"PENDING", "RUNNING", "REQUEUED", "CONFIGURING", "COMPLETING", "SUSPENDED"}


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

    Args:
        cluster: "slurm", or "local" for submitit's own executor of that name.
    """

    def __init__(self, study: str, options: Options, cluster: str = "slurm") -> None:
        self.same_machine = cluster == "local"
        self._folder = RUNS / study / ".slurm"
        self._jobs: list[tuple[Job, Any]] = []
        try:
            self._executor = submitit.AutoExecutor(self._folder.absolute(), cluster=cluster)
            self._executor.update_parameters(name=f"em-{study}", **options)
        except (RuntimeError, TypeError, NameError, ValueError) as error:  # no sbatch here, or an unknown option
            raise UserError(f"executor 'slurm': {str(error).splitlines()[0]}") from error

    def submit(self, job: Job) -> None:
        found = self._in_queue(job)
        if found is None:
            found = self._executor.submit(Requeueable(root(), job))
            write_json(self._record(job), {"job_id": found.job_id})
        self._jobs.append((job, found))

    def running(self) -> list[Job]:
        return [job for job, _ in self._jobs]

    def ended(self) -> list[Ended]:
        time.sleep(POLL_S)
        over = [(job, handle) for job, handle in self._jobs if handle.done()]
        self._jobs = [pair for pair in self._jobs if pair not in over]
        return [(job, self._outcome(job, handle)) for job, handle in over]

    def close(self) -> None:
        """Jobs in the queue stay there: they are Slurm's, and the next call finds them."""

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
        """A job that an earlier call submitted and that is still queued or running."""
        if self.same_machine or not self._record(job).is_file():
            return None
        job_id = json.loads(self._record(job).read_text(encoding="utf-8"))["job_id"]
        handle: Any = submitit.SlurmJob(self._folder.absolute(), job_id)
        return handle if str(handle.state).split()[0] in ALIVE else None
