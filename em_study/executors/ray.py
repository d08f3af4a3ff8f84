"""Ray: a task a cell, on a cluster given by `address`, or on this machine.

Options: `address`, and the resources of a cell as Ray names them (`num_cpus`, `num_gpus`, `memory` in bytes); a cell
gets one GPU where the cluster has any. The folder with `runs/` and `logs/` must be one that all nodes see. Keys of
judges come from each node's own environment, and are not sent.
"""

import os
from typing import Any

import ray

from em_core.errors import UserError
from em_study.execute import Job, perform
from em_study.executors.base import Ended, Executor, Options, died, root

RETRIES = 5  # of a task whose worker or node is lost; an error of the cell itself is caught, kept and not retried
RESOURCES = ("num_cpus", "num_gpus", "memory")
SENT = ("EM_", "HF_HUB_", "HF_HOME", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "VLLM_DEFAULT_SERVER_ARGS")


def make(study: str, options: Options) -> Executor:
    return Ray(options)


class Ray:
    def __init__(self, options: Options) -> None:
        given = dict(options)
        address = given.pop("address", None)
        _check(given)
        self.same_machine = address is None
        if not ray.is_initialized():
            try:
                ray.init(address=address, runtime_env={"env_vars": _sent()}, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"executor 'ray': {str(error).splitlines()[0]}") from error
        if ray.cluster_resources().get("GPU", 0) >= 1:  # Ray's own default is none, and hides them
            given.setdefault("num_gpus", 1)
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
        except ray.exceptions.RayTaskError as error:  # of the task itself, as where this package is not on the node
            cause = error.cause if isinstance(error.cause, BaseException) else error
            words = (str(cause).strip().splitlines() or [""])[-1]
            return job, died(job, f"raised {type(cause).__name__}: {words}")
        except ray.exceptions.RayError as error:
            return job, died(job, f"was lost ({type(error).__name__}, after {RETRIES} retries)")


def _check(resources: Options) -> None:
    if unknown := set(resources) - set(RESOURCES):
        raise UserError(f"executor 'ray' has no option '{min(unknown)}': it knows address, {', '.join(RESOURCES)}")
    for name, value in resources.items():
        if isinstance(value, str) or value < 0:
            raise UserError(f"executor 'ray': {name} must be a number of at least 0, not {value}")


def _sent() -> dict[str, str]:
    """Settings of ours and of the hub that workers need alike; never a token or key."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(SENT) and not any(word in name for word in ("TOKEN", "KEY", "SECRET"))
    }
