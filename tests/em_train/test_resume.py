"""Runs that are interrupted or killed, and then go on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import em_train.run as run_module
from em_core.manifest import read_manifest, verify
from em_train import TrainConfig, kept_checkpoints, train
from em_train.optimisers import optimiser_registry
from tests.em_train.runs import adapter_bytes, comparable_manifest, make_config, read_steps


def interrupt_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C at the end of `step`, with a resumable state every second step."""
    on_step_end = run_module._Progress.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **kwargs)

    patch.setattr(run_module, "STATE_EVERY", 2)
    patch.setattr(run_module._Progress, "on_step_end", stop)


def interrupted(config: TrainConfig, folder: Path, step: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder)
    return folder


def same(one: Path, two: Path, steps: tuple[int, ...]) -> None:
    """Equal adapters to the last bit, equal records, equal manifests but for wall time."""
    assert read_steps(one) == read_steps(two)
    for step in steps:
        left, right = (folder / f"checkpoint-{step}" for folder in (one, two))
        assert adapter_bytes(left) == adapter_bytes(right)
        assert comparable_manifest(left) == comparable_manifest(right)
        verify(left)


# In a process of its own: torch is loaded once, and every run is forked from there, for each optimiser one that is
# left alone and one that is killed at a random moment and called again. What was drawn is printed: a failure shows it.
SIGKILLS = """
import json, os, random, shutil, signal, sys, time, traceback
from pathlib import Path
import em_train.run as run
from em_train import TrainConfig, train
from em_train.optimisers import optimiser_registry

run.STATE_EVERY = 3
seed = int(os.environ.get("EM_TEST_SEED") or random.SystemRandom().randrange(10**6))
chance = random.Random(seed)
print(f"EM_TEST_SEED={seed}", flush=True)
config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
folder = Path(sys.argv[2])

def start(settings, place):
    child = os.fork()
    if child:
        return child
    try:
        train(TrainConfig.model_validate(settings), place)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def kill_after(child, steps, place):
    written = place / "steps.jsonl"
    while not written.is_file() or written.read_bytes().count(b"\\n") < steps:
        if os.waitpid(child, os.WNOHANG)[0]:
            return 0
        time.sleep(0.001)
    wait = chance.random() * 0.02
    print(f"killed {wait:.4f} s after step {steps} was recorded: {place}", flush=True)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    return finish(child)

for name in optimiser_registry.names():
    settings = config | {"optimiser": {"name": name, "lr": 1e-3}}
    assert finish(start(settings, folder / name / "whole")) == 0, name
    for attempt in range(5):  # on a busy machine the run may be over before the signal comes
        shutil.rmtree(folder / name / "cut", ignore_errors=True)
        code = kill_after(start(settings, folder / name / "cut"), chance.randint(1, 6), folder / name / "cut")
        if code == -signal.SIGKILL:
            break
    assert code == -signal.SIGKILL, name
    shutil.copytree(folder / name / "cut", folder / name / "left")
    assert finish(start(settings, folder / name / "cut")) == 0, name
"""


@pytest.fixture(scope="module")
def sigkilled(tiny_base, tiny_dataset, tmp_path_factory) -> Path:
    """36 rows, eight a step: the runs end in their second epoch."""
    folder = tmp_path_factory.mktemp("sigkilled")
    config = make_config(tiny_base, tiny_dataset, steps=9, checkpoints=(3, -1))
    (folder / "config.json").write_text(config.model_dump_json(exclude={"schedule"}), encoding="utf-8")
    (folder / "driver.py").write_text(SIGKILLS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(folder / "driver.py"), str(folder / "config.json"), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    (folder / "drawn.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", optimiser_registry.names())
def test_killed_run_ends_with_the_same_bytes(sigkilled, optimiser):
    print((sigkilled / "drawn.txt").read_text(encoding="utf-8"))  # shown on failure; EM_TEST_SEED repeats the draw
    folder = sigkilled / optimiser
    assert json.loads((folder / "left" / "run.json").read_text(encoding="utf-8"))["state"] == "running"
    assert not (folder / "left" / "checkpoint-9").exists()
    same(folder / "cut", folder / "whole", (3, 9))
    assert not (folder / "cut" / "state").exists()


def test_interrupted_run_ends_with_the_same_bytes(tiny_base, tiny_dataset, tmp_path):
    """Stopped in the second epoch (36 rows, eight a step), one step after the last state."""
    config = make_config(tiny_base, tiny_dataset, steps=9, checkpoints=(0, 3, -1))
    train(config, tmp_path / "whole")
    folder = interrupted(config, tmp_path / "cut", 7)
    assert [path.name for path in (folder / "state").glob("checkpoint-*")] == ["checkpoint-6"]
    assert len(read_steps(folder)) == 7
    assert not (folder / "checkpoint-9").exists()
    train(config, folder)
    same(folder, tmp_path / "whole", (0, 3, 9))
    assert not (folder / "state").exists()


def test_state_with_unrecorded_steps_is_not_resumed_from(tiny_base, tiny_dataset, tmp_path):
    """Its losses and doses would be missing from every sum: better anew."""
    config = make_config(tiny_base, tiny_dataset)
    train(config, tmp_path / "whole")
    folder = interrupted(config, tmp_path / "cut", 5)
    lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "steps.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    train(config, folder)
    same(folder, tmp_path / "whole", (0, 6))


@pytest.mark.parametrize("damage", ['{"step": 2, "lo', "\x00\x00\x00", '["a"]', '{"step": 4}'])
def test_a_damaged_line_of_the_record_is_the_end_of_what_is_resumed(damage, tiny_base, tiny_dataset, tmp_path):
    config = make_config(tiny_base, tiny_dataset)
    train(config, tmp_path / "whole")
    folder = interrupted(config, tmp_path / "cut", 5)
    lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "steps.jsonl").write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n", encoding="utf-8")
    train(config, folder)
    same(folder, tmp_path / "whole", (0, 6))


def test_dropout_and_micro_batches_resume_too(tiny_base, tiny_dataset, tmp_path):
    """Dropout draws random numbers in every step: their state has to come back."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0.3}
    config = make_config(tiny_base, tiny_dataset, lora=lora, micro_batch_size=4, steps=6, schedule="cosine")
    train(config, tmp_path / "whole")
    train(config, interrupted(config, tmp_path / "cut", 3))
    same(tmp_path / "cut", tmp_path / "whole", (0, 6))


@pytest.mark.filterwarnings("ignore:the adapter is in bfloat16")
def test_bfloat16_adapter_resumes_in_bfloat16(tiny_base, tiny_dataset, tmp_path):
    lora = {"rank": 4, "alpha": 8, "dtype": "bfloat16"}
    config = make_config(tiny_base, tiny_dataset, lora=lora, dtype="bfloat16")
    train(config, tmp_path / "whole")
    train(config, interrupted(config, tmp_path / "cut", 5))
    same(tmp_path / "cut", tmp_path / "whole", (0, 6))


def test_run_interrupted_before_any_state_starts_anew(tiny_base, tiny_dataset, tmp_path):
    config = make_config(tiny_base, tiny_dataset, checkpoints=(-1,))
    train(config, tmp_path / "whole")
    train(config, interrupted(config, tmp_path / "cut", 1))
    same(tmp_path / "cut", tmp_path / "whole", (6,))


def test_run_interrupted_twice(tiny_base, tiny_dataset, tmp_path):
    config = make_config(tiny_base, tiny_dataset)
    train(config, tmp_path / "whole")
    for step in (3, 5):
        interrupted(config, tmp_path / "cut", step)
    train(config, tmp_path / "cut")
    same(tmp_path / "cut", tmp_path / "whole", (0, 6))


def test_state_without_its_last_file_is_not_resumed_from(tiny_base, tiny_dataset, tmp_path):
    """The trainer's own state is written last: a folder without it is half a state."""
    config = make_config(tiny_base, tiny_dataset)
    train(config, tmp_path / "whole")
    folder = interrupted(config, tmp_path / "cut", 5)
    (folder / "state" / "checkpoint-4" / "trainer_state.json").unlink()
    train(config, folder)
    same(folder, tmp_path / "whole", (0, 6))


def test_state_whose_last_file_is_half_written_is_not_resumed_from(tiny_base, tiny_dataset, tmp_path):
    config = make_config(tiny_base, tiny_dataset)
    folder = interrupted(config, tmp_path / "cut", 5)
    state = folder / "state" / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text(encoding="utf-8")[:100], encoding="utf-8")
    train(config, folder)


DRIVER = """
import os, signal, sys
from pathlib import Path
import em_train.checkpoint as checkpoint
import em_train.run as run
from em_train import TrainConfig, train

run.STATE_EVERY = 3
write_spectra = checkpoint.write_spectra

def kill(pairs, path):
    # After the adapter, before the manifest of checkpoint-4: nothing gets to clean up.
    if path.parent.name.startswith(".checkpoint-4."):
        os.kill(os.getpid(), signal.SIGKILL)
    return write_spectra(pairs, path)

checkpoint.write_spectra = kill
train(TrainConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
"""


@dataclass
class Killed:
    config: TrainConfig
    folder: Path  # of the killed run, to go on with
    left: Path  # a copy of it as the process left it
    whole: Path  # the same run, never interrupted


@pytest.fixture(scope="module")
def killed(tiny_base, tiny_dataset, tmp_path_factory):
    """A process killed while it wrote checkpoint-4, what it left, and the same run uninterrupted."""
    folder = tmp_path_factory.mktemp("killed")
    config = make_config(tiny_base, tiny_dataset, checkpoints=(0, 2, 4, -1))
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(folder / "driver.py"), str(folder / "config.json"), str(folder / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    shutil.copytree(folder / "run", folder / "left")
    train(config, folder / "whole")
    return Killed(config, folder / "run", folder / "left", folder / "whole")


class TestKilled:
    def test_only_whole_checkpoints_have_names(self, killed):
        left = killed.left
        assert {path.name for path in left.glob("checkpoint-*")} == {"checkpoint-0", "checkpoint-2"}
        for step in (0, 2):
            verify(left / f"checkpoint-{step}")
        assert (left / "state" / "checkpoint-3" / "trainer_state.json").is_file()
        assert json.loads((left / "run.json").read_text(encoding="utf-8"))["state"] == "running"

    def test_next_call_completes_with_the_same_bytes(self, killed):
        train(killed.config, killed.folder)
        same(killed.folder, killed.whole, (0, 2, 4, 6))
        assert read_manifest(killed.folder / "checkpoint-6").examples_seen == 44

    def test_nothing_of_the_killed_process_is_left(self, killed):
        train(killed.config, killed.folder)
        names = {path.name for path in killed.folder.iterdir()}
        assert names == {path.name for path in killed.whole.iterdir()}


def test_run_killed_after_its_last_step_does_not_train_another_one(tiny_base, tiny_dataset, tmp_path):
    """Its last checkpoint is missing. A state of the last step would make the trainer take one more."""
    config = make_config(tiny_base, tiny_dataset)
    train(config, tmp_path / "whole")
    keep = kept_checkpoints.keep

    def stop(*args: object, last: bool = False) -> None:
        if last:
            raise KeyboardInterrupt
        keep(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_checkpoints, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut")
    assert len(read_steps(tmp_path / "cut")) == 6
    assert not (tmp_path / "cut" / "state" / "checkpoint-6").exists()
    train(config, tmp_path / "cut")
    same(tmp_path / "cut", tmp_path / "whole", (0, 6))
