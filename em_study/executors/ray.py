"""Ray: a task a cell, on a cluster given by `address`, or on this machine.

Options: `address`, and the resources of a cell as Ray names them (`num_cpus`, `num_gpus`, `memory` in bytes).
The folder with `runs/` and `logs/` must be one that all nodes see. Keys of judges come from each node's own
environment, and are not sent.
"""

import os
from typing import Any

import ray

from em_core.errors import UserError
from em_study.execute import Job, perform
from em_study.executors.base import Ended, Executor, Options, died, root

RETRIES = 5  # of a task whose worker or node is lost; an error of the cell itself is caught, kept and not retried
RESOURCES = ("num_cpus", "num_gpus", "memory")
SENT = ("EM_", "HF_HUB_", "HF_HOME", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")


def make(study: str, options: Options) -> Executor:
    return Ray(options)


class Ray:
    def __init__(self, options: Options) -> None:
        given = dict(options)
        address = given.pop("address", None)
        unknown = set(given) - {"num_cpus", "num_gpus", "memory"}
        if unknown:
            raise UserError(
                f"executor 'ray' has no option '{min(unknown)}': it knows address, num_cpus, num_gpus, memory"
            )
        self.same_machine = address is None
        if not ray.is_initialized():
            try:
                ray.init(address=address, runtime_env={"env_vars": _sent()}, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"executor 'ray': {str(error).splitlines()[0]}") from error
        self._task: Any = ray.remote(perform).options(max_retries=RETRIES, **given)
        self._jobs: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        self._jobs[self._task.remote(root(), job.kind, str(job.cell))] = job

    def running(self) -> list[Job]:
        return list(self._jobs.values())

    def ended(self) -> list[Ended]:
        over, _ = ray.wait(list(self._jobs), timeout=1.0)
        return [self._outcome(reference) for reference in over]

    def close(self) -> None:
        ray.shutdown()

    def _outcome(self, reference: Any) -> Ended:
        job = self._jobs.pop(reference)
        try:
            return job, ray.get(reference)
        except ray.exceptions.RayError as error:
            return job, died(job, f"was lost ({type(error).__name__}, after {RETRIES} retries)")


def _sent() -> dict[str, str]:
    """Settings of ours and of the hub that workers need alike; never a token or key."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(SENT) and not any(word in name for word in ("TOKEN", "KEY", "SECRET"))
    }
