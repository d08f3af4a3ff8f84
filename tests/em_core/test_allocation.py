"""What the allocator was told holds in the process."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from em_core import allocation
from em_core.allocation import free_memory, is_out_of_memory

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


def test_free_memory_is_the_machines_and_no_more_than_the_jobs_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert 0 < free_memory(cpu) <= psutil.virtual_memory().total
    used = psutil.Process().memory_info().rss
    monkeypatch.setattr(allocation, "_limits_of_job", lambda: [2**60, used + 10 * 2**20])
    assert abs(free_memory(cpu) - 10 * 2**20) < 5 * 2**20
    monkeypatch.setattr(allocation, "_limits_of_job", lambda: [used // 2])
    assert free_memory(cpu) == 0


@pytest.mark.parametrize(
    ("groups", "folder", "name"),
    [
        ("0::/slurm/job_7/step_0\n", "", "memory.max"),
        ("5:cpu,cpuacct:/x\n4:memory:/slurm/job_7/step_0\n0::/\n", "memory", "memory.limit_in_bytes"),
    ],
)
def test_limits_of_the_job_are_those_of_every_group_around_it(
    groups: str, folder: str, name: str, tmp_path: Path
) -> None:
    own, top = tmp_path / "cgroup", tmp_path / "fs" / folder
    own.write_text(groups)
    (top / "slurm" / "job_7" / "step_0").mkdir(parents=True)
    (top / "slurm" / "job_7" / "step_0" / name).write_text("max\n")
    (top / "slurm" / "job_7" / name).write_text("8589934592\n")
    (tmp_path / name).write_text("1\n")  # outside
    assert allocation._limits_of_job(tmp_path / "fs", own) == [8 * 1024**3]
    assert allocation._limits_of_job(tmp_path / "fs", tmp_path / "none") == []
