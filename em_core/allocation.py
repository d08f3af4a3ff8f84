"""Memory of CPU tensors: freed blocks are used again instead of going back to the system; running out of it."""

import ctypes
import gc
import sys

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


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is torch's, of a GPU, or that of its CPU allocator, a plain RuntimeError (Linux and Mac, Windows)."""
    import torch

    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in said or "not enough memory" in said
