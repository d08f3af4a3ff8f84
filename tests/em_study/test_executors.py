"""Executors on real processes: workers die, jobs are pre-empted, nodes and drivers vanish, and the study ends well."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from em_core.errors import UserError
from em_core.manifest import verify
from em_study import Study
from em_study.drive import Lines, run_study
from em_study.execute import Job, perform
from em_study.executors import choose, names
from em_study.executors.base import died
from em_study.executors.local import Slots, ThisProcess, _claim
from em_study.plan import FrozenCell, freeze, frozen_plan, is_done, make_plan
from em_study.progress import progress

STEPS = 240  # long enough to strike in; a resumable state is kept every 12
LONG = 2400  # long enough for others to start anew meanwhile
ACT_S = 600  # at most, of what a test waits for before it strikes


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
        if taken >= least and not is_done(path.parent):
            return True
    return False


def assert_whole(study: str = "long", cells: int = 2) -> None:
    """Every cell is done, each step was recorded once, and the weights are those of the manifest."""
    plan = frozen_plan(study)
    assert len(plan.cells) == cells and [p.state for p in progress(plan)] == ["done"] * cells
    for cell in plan.cells:
        steps = [json.loads(line)["step"] for line in (cell.folder / "steps.jsonl").read_text("utf-8").splitlines()]
        assert steps == list(range(1, cell.config.steps + 1))
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


def test_one_process_works_here_and_more_in_slots_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without GPUs one warm worker; with several a process each; or as many as are asked for."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert isinstance(choose("local", "s", {}), ThisProcess)
    for gpus, options in ((2, {}), (0, {"workers": 3})):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        slots = choose("local", "s", options)
        assert isinstance(slots, Slots) and len(slots._free) == options.get("workers", gpus)
        slots.close()


@pytest.mark.parametrize(
    ("visible", "slot", "gpus", "claimed"),
    [(None, 0, 1, "0"), (None, 1, 1, "0"), (None, 1, 2, "1"), ("", 1, 1, "0"), ("4,7", 1, 2, "7"), ("3", 1, 1, "3")],
)
def test_a_worker_claims_the_gpu_of_its_slot(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, slot: int, gpus: int, claimed: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    _claim(slot, gpus, 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == claimed


def test_resources_that_are_no_numbers_are_one_line() -> None:
    with pytest.raises(UserError, match="executor 'ray': num_gpus must be a number of at least 0, not one"):
        choose("ray", "s", {"num_gpus": "one"})
    for wrong in ("two", 2.5, 0):
        with pytest.raises(UserError, match=f"workers must be a whole number of at least 1, not {wrong}"):
            choose("local", "s", {"workers": wrong})


def test_a_cell_whose_process_died_shows_as_failed(study: Study) -> None:
    plan = make_plan(study)
    freeze(plan)
    first = plan.cells[0]
    (line,) = died(Job("train", first.file, first.label), "died 3 times (out of memory?)")
    assert line == (
        f"training of {first.label} failed: its process died 3 times (out of memory?) (see {first.folder}/error.txt)"
    )
    failed, waiting = progress(plan)
    assert (failed.state, failed.training.failure) == ("failed", "its process died 3 times (out of memory?)")
    assert waiting.state == "waiting"


def test_a_job_that_cannot_begin_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = perform(str(tmp_path), "train", "runs/s/cells/gone.json")
    assert line.startswith("training of gone failed: UserError: cannot read cell runs/s/cells/gone.json")
    (line,) = perform(str(tmp_path / "nowhere"), "evaluate", "x.json")
    assert line.startswith("evaluation of x failed: FileNotFoundError: ")


@pytest.mark.slow
def test_a_worker_that_died_between_two_jobs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    executor = Slots(workers=1, gpus=0)

    def one_job() -> list[str]:
        executor.submit(Job("train", Path("gone.json"), "gone"))
        while not (over := executor.ended()):
            pass
        ((_, failures),) = over
        return failures

    try:
        assert "cannot read cell gone.json" in one_job()[0]
        (pool,) = executor._pools.values()
        for process in list(pool._processes.values()):
            process.kill()
            process.join()
        deadline = time.monotonic() + 20
        while not pool._broken and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "cannot read cell gone.json" in one_job()[0]
        assert executor._pools[0] is not pool
    finally:
        executor.close()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Slurm's commands as far as submitit calls them: `cluster(state="RUNNING", takes=True)` says what they answer."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    scripts = {
        "srun": "exit 0",
        "sacct": f"echo 'JobID|State|NodeList'; echo \"7|$(cat {folder}/state)|n1\"",
        "sbatch": f"if [ -e {folder}/full ]; then echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; fi; "
        f"echo x >> {folder}/submitted; echo 'Submitted batch job 7'",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("em_study.executors.slurm.POLL_S", 0.01)
    monkeypatch.setattr("submitit.SlurmJob._results_timeout_s", 0)  # it waits for a slow disk
    monkeypatch.chdir(tmp_path)

    def answer(state: str = "RUNNING", takes: bool = True) -> None:
        import submitit

        (folder / "state").write_text(state, encoding="utf-8")
        (folder / "full").unlink(missing_ok=True) if takes else (folder / "full").touch()
        submitit.SlurmJob.watcher.clear()

    return answer


def submitted() -> int:
    path = Path("slurm/submitted")
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


JOB = Job("train", Path("runs/s/cells/a.json"), "a")
STATES = [
    *[(s, 1) for s in ("PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "PREEMPTED", "REQUEUE_HOLD", "STAGE_OUT", "")],
    *[(s, 2) for s in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED by 1000", "CANCELLED+")],
]


@pytest.mark.parametrize(("state", "jobs"), STATES)
def test_a_slurm_job_is_submitted_again_only_where_it_is_over(
    cluster: Callable[..., None], state: str, jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver killed and started again; an empty state is a job that the accounting does not know (yet)."""
    from em_study.executors.slurm import Slurm

    cluster("RUNNING")
    Slurm("s", {}).submit(JOB)
    cluster(state)
    again = Slurm("s", {})
    again.submit(JOB)
    assert submitted() == jobs
    cluster(state)
    assert bool(again.ended()) == (jobs == 2)  # over for good, or followed to its end
    told = "waiting for job 7 of a" in capsys.readouterr().err
    assert told == (state in ("PREEMPTED", ""))


def test_what_slurm_does_not_take_waits_for_another_jobs_end(cluster: Callable[..., None]) -> None:
    from em_study.executors.slurm import Slurm

    other = Job("train", Path("runs/s/cells/b.json"), "b")
    cluster(takes=False)
    executor = Slurm("s", {})
    with pytest.raises(UserError, match="sbatch took no job: sbatch: error: QOSMaxSubmitJobPerUserLimit"):
        executor.submit(JOB)
    cluster()
    executor.submit(JOB)
    cluster(takes=False)
    executor.submit(other)
    assert executor.running() == [JOB] and executor.ended() == []
    cluster("FAILED")
    ((ended, failures),) = executor.ended()
    assert ended == JOB and "training of a failed: its process died in job 7" in failures[0]
    assert executor.running() == [other] and submitted() == 2


def test_time_limit_requeues_are_the_users_to_set(cluster: Callable[..., None]) -> None:
    from em_study.executors.slurm import REQUEUES, Slurm

    assert Slurm("s", {})._executor._executor.max_num_timeout == REQUEUES
    assert Slurm("s", {"slurm_max_num_timeout": 7})._executor._executor.max_num_timeout == 7
    with pytest.raises(UserError, match="slurm_max_num_timeout must be a whole number, not many"):
        Slurm("s", {"slurm_max_num_timeout": "many"})


def test_what_a_ray_task_raised_is_not_called_a_lost_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Ray's own errors, without a cluster."""
    import ray

    from em_study.executors.ray import Ray

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    raised = ray.exceptions.RayTaskError("perform", "Traceback", ModuleNotFoundError("No module named 'em_study'"))
    errors = {"task": raised.as_instanceof_cause(), "node": ray.exceptions.NodeDiedError("gone")}

    def get(reference: str) -> None:
        raise errors[reference]

    monkeypatch.setattr(ray, "get", get)
    executor = Ray({})
    executor._jobs |= {"task": JOB, "node": JOB}
    (line,) = executor._outcome("task")[1]
    assert "training of a failed: its process raised ModuleNotFoundError: No module named 'em_study'" in line
    (line,) = executor._outcome("node")[1]
    assert "its process was lost (NodeDiedError, after 5 retries)" in line


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


LEAKS = """
import multiprocessing
from em_study.executors.local import Slots

held = []

def hold():
    held.append(multiprocessing.get_context("spawn").Lock())  # as progress bars do

if __name__ == "__main__":
    executor = Slots(workers=2, gpus=0)
    for pool in executor._pools.values():
        pool.submit(hold).result()
    executor.close()
    print(multiprocessing.active_children())
"""


@pytest.mark.slow
def test_workers_that_have_nothing_to_do_end_in_peace(tmp_path: Path) -> None:
    """Killed, they would leave semaphores behind, of which Python warns at the end of `em run`."""
    script = tmp_path / "leaks.py"
    script.write_text(LEAKS, encoding="utf-8")
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=True)
    assert ended.stdout.strip() == "[]" and ended.stderr == ""


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


class Acts(Lines):
    """A display that lets a test look on once a round, and strike: its generator yields what it waits for."""

    def __init__(self, acts: Callable[["Acts"], Iterator[str]]) -> None:
        self.running = list[Job]()
        self.waits_for, self._since, self._acts = "", time.monotonic(), acts(self)

    def follow(self, running: list[Job]) -> None:
        self.running = running
        waits_for = next(self._acts, "nothing")
        if waits_for != self.waits_for:
            self.waits_for, self._since = waits_for, time.monotonic()
        assert waits_for == "nothing" or time.monotonic() - self._since < ACT_S, waits_for


def steps_of(cell: FrozenCell) -> int:
    path = cell.folder / "steps.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def at_work_on(cell: FrozenCell) -> psutil.Process | None:
    """The Ray worker that trains the cell now: the one that holds its lock."""
    for process in children("ray::perform"):
        with contextlib.suppress(psutil.Error):
            if any(Path(file.path).name == f"{cell.run_id}.lock" for file in process.open_files()):
                return process
    return None


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_ray_cluster_loses_its_driver_a_worker_and_a_node(study: Study, tmp_path: Path) -> None:
    """Two nodes of one core, three cells. The driver is killed. Of the next one a worker dies, whose cell goes on; then
    a node with the cell on it, which goes on elsewhere. What was done before stays as it was."""
    import ray
    from ray.cluster_utils import Cluster

    from em_study.executors.ray import Ray

    given = study.model_dump(mode="json", exclude={"epochs", "optimisers"}) | {"steps": LONG}
    short = {"name": "adamw", "lr": 0.01, "training": {"steps": STEPS}}
    given["optimisers"] = [short, {"name": "lion", "lr": 0.001}, {"name": "sgd", "lr": 0.01}]
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        command = [str(Path(sys.executable).parent / "em"), "run", "long.yaml", "--executor", "ray"]
        with (tmp_path / "driver.txt").open("w", encoding="utf-8") as output:
            driver = subprocess.Popen(
                [*command, "--address", cluster.address], stdout=output, stderr=output, cwd=tmp_path
            )
            deadline = time.monotonic() + ACT_S
            while not under_way():
                assert time.monotonic() < deadline and driver.poll() is None, Path("driver.txt").read_text("utf-8")
                time.sleep(0.1)
            driver.send_signal(signal.SIGKILL)
            driver.wait()

        before: dict[Path, tuple[int, bytes]] = {}
        (raylet,) = second.all_processes["raylet"]

        def acts(shown: Acts) -> Iterator[str]:
            first, *others = cells = frozen_plan("long").cells
            while not is_done(first.folder) or first.label in {job.label for job in shown.running}:
                yield "the first cell's end"
            before.update(contents(first.folder))

            def struck() -> tuple[FrozenCell, psutil.Process] | None:
                under_way = ((cell, at_work_on(cell)) for cell in others if steps_of(cell) >= 14)
                return next(((cell, worker) for cell, worker in under_way if worker), None)

            while (found := struck()) is None:
                yield "a worker in the middle of a cell"
            cell, worker = found
            reached = steps_of(cell)
            worker.kill()
            while steps_of(cell) <= reached or (again := at_work_on(cell)) is None or again.pid == worker.pid:
                assert not is_done(cell.folder)
                yield "another worker that gets further with the cell"

            def on_second() -> bool:
                workers = [worker for cell in cells if (worker := at_work_on(cell)) and steps_of(cell) >= 14]
                return any(raylet.process.pid in {parent.pid for parent in worker.parents()} for worker in workers)

            while not on_second():
                yield "a cell on the second node"
            cluster.remove_node(second, allow_graceful=False)

        executor = Ray({"address": cluster.address, "num_cpus": 1})
        shown = Acts(acts)
        try:
            plan, failures = run_study(Study.model_validate(given), executor, shown)
        finally:
            executor.close()
        assert failures == [] and shown.waits_for == "nothing"
        assert_whole(cells=3)
        assert before and contents(plan.cells[0].folder) == before
    finally:
        ray.shutdown()
        cluster.shutdown()
