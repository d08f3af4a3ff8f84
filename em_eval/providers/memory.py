"""What running out of memory looks like."""

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is torch's, of a GPU, or the CPU allocator's, which has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
