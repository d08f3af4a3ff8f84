"""What the allocator was told holds in the process."""

import subprocess
import sys

import pytest

# A block of 64 MB, given back and asked for again: page faults of the second time, with and without the setting.
FAULTS = """
import resource, sys
import torch
from em_core.allocation import reuse_freed_memory
if sys.argv[1] == "reuse":
    reuse_freed_memory()
torch.ones(16 * 1024 * 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 * 1024 * 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_freed_block_is_used_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("reuse") < 100
