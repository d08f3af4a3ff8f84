"""Where a study's jobs run: in this process, one process a GPU, Slurm, Ray."""

from em_study.executors.base import Executor, choose, names

__all__ = ["Executor", "choose", "names"]
