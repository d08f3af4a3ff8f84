"""Executors on real processes: workers die, jobs are pre-empted, nodes and drivers vanish, and the study ends well."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from em_core.errors import UserError
from em_core.manifest import verify
from em_study import Study
from em_study.drive import Lines, run_study
from em_study.execute import Job
from em_study.executors import choose, names
from em_study.executors.local import Slots
from em_study.plan import frozen_plan
from em_study.progress import progress

STEPS = 240  # long enough to strike in; a resumable state is kept every 12


@pytest.fixture
def study(tiny_base: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two long cells on the tiny base, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return Study.model_validate(
        {
            "name": "long",
            "base_model": str(tiny_base),
            "datasets": [str(tiny_dataset)],
            "optimisers": [{"name": "adamw", "lr": 0.01}, {"name": "lion", "lr": 0.001}],
            "steps": STEPS,
            "batch_size": 8,
            "dtype": "float32",
            "lora": {"rank": 2, "alpha": 4},
            "checkpoints": [-1],
        }
    )


class Intruder(Lines):
    """A display that strikes once, when the first cell is well under way."""

    def __init__(self, strike: Callable[[], bool]) -> None:
        self.strike, self.struck, self.lines = strike, False, list[str]()

    def line(self, text: str) -> None:
        self.lines.append(text)

    def follow(self, running: list[Job]) -> None:
        if not self.struck and under_way():
            self.struck = self.strike()


def under_way(least: int = 14) -> bool:
    """Whether some run has taken steps that a state was kept of, and has not ended."""
    for path in Path("runs/long").glob("tiny-*/steps.jsonl"):
        taken = len(path.read_text(encoding="utf-8").splitlines())
        if least <= taken < STEPS:
            return True
    return False


def assert_whole(study: str = "long", cells: int = 2) -> None:
    """Every cell is done, each step was recorded once, and the weights are those of the manifest."""
    plan = frozen_plan(study)
    assert len(plan.cells) == cells and [p.state for p in progress(plan)] == ["done"] * cells
    for cell in plan.cells:
        steps = [json.loads(line)["step"] for line in (cell.folder / "steps.jsonl").read_text("utf-8").splitlines()]
        assert steps == list(range(1, STEPS + 1))
        assert verify(cell.checkpoints()[-1]).run_id == cell.run_id
        assert not (cell.folder / "error.txt").exists()


def children(name: str) -> list[psutil.Process]:
    """Those of our descendants that run `name`; one that ends while we look is not among them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one too
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_executors_are_found_by_name() -> None:
    assert names() == ["local", "ray", "slurm"]
    with pytest.raises(UserError, match="unknown executor 'kubernetes': known: local, ray, slurm"):
        choose("kubernetes", "s", {})
    with pytest.raises(UserError, match="executor 'local' has no option 'gpus': it knows workers"):
        choose("local", "s", {"gpus": 2})
    with pytest.raises(UserError, match="executor 'ray' has no option 'cpus': it knows address, num_cpus"):
        choose("ray", "s", {"cpus": 2})


def test_slurm_without_slurm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="executor 'slurm': ") as caught:
        choose("slurm", "s", {})
    assert "\n" not in str(caught.value)


def test_auto_dtype_is_refused_where_machines_may_differ(study: Study) -> None:
    class Elsewhere(Slots):
        same_machine = False

        def __init__(self) -> None:
            pass

    with pytest.raises(UserError, match="write dtype: bfloat16"):
        run_study(study.model_copy(update={"dtype": "auto"}), Elsewhere())


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_a_failing_cell_stops_no_other(study: Study) -> None:
    broken = {"name": "sgd", "lr": 1e30}
    given = study.model_dump(mode="json", exclude={"optimisers", "steps", "epochs"})
    given["optimisers"] = [{"name": "adamw", "lr": 0.01}, broken]
    changed = Study.model_validate(given | {"steps": STEPS})
    executor = Slots(workers=1, gpus=0)

    def strike() -> bool:
        (pool,) = executor._pools.values()
        for pid in pool._processes:
            os.kill(pid, signal.SIGKILL)
        return True

    shown = Intruder(strike)
    try:
        plan, failures = run_study(changed, executor, shown)
    finally:
        executor.close()
    assert shown.struck
    (failure,) = failures
    assert failure.startswith("training of tiny-sgd-lr1e+30-seed0 failed: ") and failure in shown.lines
    assert "\n" not in failure
    adamw, sgd = plan.cells
    assert [p.state for p in progress(plan)] == ["done", "failed"]
    assert verify(adamw.checkpoints()[-1]).step == STEPS
    assert "Traceback" in (sgd.folder / "error.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_preempted_slurm_job_is_requeued_and_goes_on(study: Study) -> None:
    """On submitit's local executor, which requeues as Slurm does: same signal, same pickle."""
    from em_study.executors.slurm import Slurm

    one = study.model_copy(update={"optimisers": study.optimisers[:1]})
    executor = Slurm("long", {"timeout_min": 60}, cluster="local")

    def strike() -> bool:
        tasks = children("submitit.core._submit")
        for task in tasks:
            task.send_signal(signal.SIGUSR2)
        return bool(tasks)

    shown = Intruder(strike)
    _, failures = run_study(one, executor, shown)
    assert failures == [] and shown.struck
    assert_whole(cells=1)
    log = "".join(path.read_text(encoding="utf-8") for path in Path("runs/long/.slurm").glob("*_0_log.*"))
    assert "this job is preempted" in log and "Requeued job" in log
    assert list(Path("runs/long/.slurm").glob("*-train.json")) == []


@pytest.mark.slow
def test_a_ray_cluster_loses_its_driver_a_worker_and_a_node(study: Study, tmp_path: Path) -> None:
    """Two nodes of one core. The driver is killed; the next one loses a worker, then a node; all cells end done."""
    import ray
    from ray.cluster_utils import Cluster

    from em_study.executors.ray import Ray

    given = study.model_dump(mode="json", exclude={"epochs"}) | {"steps": STEPS}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        command = [str(Path(sys.executable).parent / "em"), "run", "long.yaml", "--executor", "ray"]
        with (tmp_path / "driver.txt").open("w", encoding="utf-8") as output:
            driver = subprocess.Popen(
                [*command, "--address", cluster.address], stdout=output, stderr=output, cwd=tmp_path
            )
            deadline = time.monotonic() + 180
            while not under_way():
                assert time.monotonic() < deadline and driver.poll() is None, Path("driver.txt").read_text("utf-8")
                time.sleep(0.1)
            driver.send_signal(signal.SIGKILL)
            driver.wait()

        removed: list[Any] = []

        def strike() -> bool:
            workers = children("ray::perform")
            if workers:
                workers[0].kill()
                cluster.remove_node(second, allow_graceful=False)
                removed.append(second)
            return bool(workers)

        executor = Ray({"address": cluster.address, "num_cpus": 1})
        shown = Intruder(strike)
        try:
            _, failures = run_study(study, executor, shown)
        finally:
            executor.close()
        assert failures == [] and shown.struck and removed == [second]
        assert_whole()
    finally:
        ray.shutdown()
        cluster.shutdown()
