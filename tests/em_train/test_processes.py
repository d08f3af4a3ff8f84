"""Two processes on one run: the trajectory of one, the files of one, and what a launcher may not ask for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from em_core.errors import UserError
from em_core.manifest import read_manifest, verify
from em_train import TrainConfig, prepare, train
from em_train.processes import REFUSED, check_precision
from em_train.sampling import SharedOrder
from tests.em_train.runs import adapter_bytes, make_config, read_steps

# Run by both processes: one run as it is, and one that is interrupted after step 5 and goes on from step 4.
DRIVER = """
import sys
from pathlib import Path
import em_train.run as run
from em_train import TrainConfig, train

config = TrainConfig.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
folder = Path(sys.argv[2])
train(config, folder / "whole")

run.STATE_EVERY = 2
on_step_end = run._Progress.on_step_end

def stop(self, args, state, control, **kwargs):
    on_step_end(self, args, state, control, **kwargs)
    if state.global_step == 5:
        raise KeyboardInterrupt

run._Progress.on_step_end = stop
try:
    train(config, folder / "cut")
except KeyboardInterrupt:
    run._Progress.on_step_end = on_step_end
train(config, folder / "cut")
"""


@pytest.fixture(scope="module")
def config(tiny_base, tiny_dataset) -> TrainConfig:
    """36 rows, eight a step: the fifth step has four, of which each process would get its own or a repeated one."""
    return make_config(tiny_base, tiny_dataset, micro_batch_size=2, steps=7, checkpoints=(0, 3, -1))


@pytest.fixture(scope="module")
def two(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, *plain, str(folder / "driver.py"), str(folder / "config.json"), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_two_processes_follow_the_trajectory_of_one(two, config, tmp_path):
    """The same rows in every step, the short one included; only sums are in another order (1e-4 relative)."""
    train(config, tmp_path / "one")
    ours, theirs = read_steps(tmp_path / "one"), read_steps(two / "whole")
    for key in ("step", "examples", "tokens", "supervised_tokens", "lr"):
        assert [row[key] for row in theirs] == [row[key] for row in ours], key
    assert ours[4]["examples"] == 4
    for key in ("loss", "norm_ba", "rms_update_a", "rms_update_b"):
        assert [row[key] for row in theirs] == pytest.approx([row[key] for row in ours], rel=1e-4, abs=1e-9), key
    for step in (0, 3, 7):
        mine, shared = (read_manifest(folder / f"checkpoint-{step}") for folder in (tmp_path / "one", two / "whole"))
        assert shared.run_id == mine.run_id
        assert shared.loss.held_out == pytest.approx(mine.loss.held_out, rel=1e-5)
        assert (mine.environment["processes"], shared.environment["processes"]) == (1, 2)
    assert shared.loss.train_rows == pytest.approx(mine.loss.train_rows, rel=1e-5)


@pytest.mark.slow
def test_one_of_two_processes_writes(two):
    names = {path.name for path in (two / "whole").iterdir()}
    assert names == {"checkpoint-0", "checkpoint-3", "checkpoint-7", "run.json", "steps.jsonl"}
    assert json.loads((two / "whole" / "run.json").read_text(encoding="utf-8"))["state"] == "done"
    assert [row["step"] for row in read_steps(two / "whole")] == [1, 2, 3, 4, 5, 6, 7]
    for step in (0, 3, 7):
        verify(two / "whole" / f"checkpoint-{step}")


@pytest.mark.slow
def test_two_processes_resume_with_the_same_bytes(two):
    assert read_steps(two / "cut") == read_steps(two / "whole")
    for step in (0, 3, 7):
        assert adapter_bytes(two / "cut" / f"checkpoint-{step}") == adapter_bytes(two / "whole" / f"checkpoint-{step}")


def test_blank_rows_fill_up_the_last_batch_and_leave_the_order_alone():
    alone, together = SharedOrder(11, 1, seed=5), SharedOrder(11, 4, seed=5)
    first = list(together)
    assert first[:11] == list(alone) and first[11:] == [11] and len(together) == 12
    assert sorted(first[:11]) == list(range(11)) and first[:11] != list(range(11))
    again = SharedOrder(11, 4, seed=5)
    again.set_epoch(1)
    assert list(again)[:11] == list(alone) != first[:11]  # `alone` is in its second epoch now
    assert len(SharedOrder(12, 4, seed=5)) == 12


@pytest.mark.parametrize("variable", REFUSED)
def test_what_is_not_sound_is_refused_by_name(variable, tiny_base, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=REFUSED[variable].split(":")[0]):
        train(make_config(tiny_base, tiny_dataset), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked, dtype", [("bf16", "float32"), ("fp16", "float32"), ("fp16", "bfloat16")])
def test_a_launchers_other_precision_is_refused(asked, dtype, tiny_base, tiny_dataset, tmp_path, monkeypatch):
    """Else a float32 run would be computed in bfloat16 under the float32 run's id."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(UserError, match=f"mixed precision {asked}, this run's dtype is {dtype}"):
        train(make_config(tiny_base, tiny_dataset, dtype=dtype), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked, dtype", [("no", "float32"), ("no", "bfloat16"), ("bf16", "bfloat16")])
def test_a_launchers_own_precision_is_not(asked, dtype, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    check_precision(getattr(torch, dtype))


def test_a_launchers_compiler_is_refused(tiny_base, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(UserError, match="dynamo backend inductor"):
        train(make_config(tiny_base, tiny_dataset), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")  # what `accelerate launch` sets
    assert train(make_config(tiny_base, tiny_dataset, steps=1), tmp_path / "run")


def test_batch_that_processes_do_not_fill(tiny_base, tiny_dataset, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="batch_size 8 is not a multiple of micro_batch_size 2 in 3 processes"):
        prepare(make_config(tiny_base, tiny_dataset))
