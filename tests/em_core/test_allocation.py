"""What the allocator was told holds in the process."""

import subprocess
import sys

import pytest
import torch

from em_core.allocation import is_out_of_memory

# A block of 64 MB, asked for and given back again and again: page faults in all.
FAULTS = """
import resource, sys
import torch
from em_core.allocation import reuse_freed_memory
if sys.argv[1] == "reuse":
    reuse_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(16 * 1024 * 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_freed_block_is_used_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("reuse") < faults("as it is") / 2


def test_running_out_of_memory_is_recognised_by_the_allocators_own_error() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError("shapes differ"))
