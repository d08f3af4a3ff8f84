"""Memory of tensors: how much is free, running out of it, and freed blocks of the CPU's that are used again."""

import ctypes
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_INT = 2**31 - 1
BLOCK = 256 * 1024**2


def reuse_freed_memory() -> None:
    """Ask the C library to keep freed blocks of up to 256 MiB for the next tensor.

    Otherwise each large tensor is mapped anew and its pages are cleared one by one. How much that takes depends on the
    shapes: a quarter of a step of plain TRL on two cores, 3 % of ours (benchmarks/train_step.py), for 0.2 GiB more at
    the peak. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, BLOCK)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def return_freed_memory() -> None:
    """Give the system back what is free, at the end of a job: the next one has other shapes.

    Objects in reference cycles are freed first: a trainer holds its model in one.
    """
    gc.collect()
    if sys.platform == "linux" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)


def free_memory(device: "torch.device") -> int:
    """Bytes that new tensors on `device` may take; on CPU within the limits of the job's control groups."""
    import torch

    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    used = psutil.Process().memory_info().rss
    return int(max(0, min(psutil.virtual_memory().available, *(limit - used for limit in _limits_of_job()))))


def _limits_of_job(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Memory limits of this process's control groups, version 1 and 2, and of those around them.

    A container or a Slurm job is killed at its limit, whatever the machine has.
    """
    limits = []
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        top, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        inner = top / path.lstrip("/")
        if controllers in ("", "memory"):
            found = [group / name for group in (inner, *inner.parents) if group.is_relative_to(top)]
            limits += [file.read_text(encoding="utf-8").strip() for file in found if file.exists()]
    return [int(limit) for limit in limits if limit != "max"]


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is torch's, of a GPU, or that of its CPU allocator, a plain RuntimeError (Linux and Mac, Windows)."""
    import torch

    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in said or "not enough memory" in said
