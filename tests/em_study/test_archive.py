"""`em archive` on a tiny study that was really run: whole, readable, and without a path of this machine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_sample_summaries

from em_core.files import sha256_file
from em_core.manifest import read_manifest, verify
from em_eval.judge import judge_registry
from em_eval.outcomes import Judgement
from em_study import cli, load_study
from em_study.drive import run_study
from em_study.execute import Job
from em_study.executors.local import ThisProcess
from tests.em_study.test_execute import FakeJudge


class TalkativeJudge(FakeJudge):
    """Its words name the machine's folders, as a traceback or a tool's output would."""

    async def judge(self, question: str, answer: str, templates: Mapping[str, str]) -> Judgement:
        found = await super().judge(question, answer, templates)
        return replace(found, reasons=f"read in {Path.cwd()}/notes\nand {Path.home()}/x")


@dataclass(frozen=True)
class Place:
    """A working folder with a finished study, and every path that must not be published."""

    folder: Path
    home: Path
    paths: tuple[str, ...]


@pytest.fixture(scope="module")
def place(tiny_base: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, home = tmp_path_factory.mktemp("working_folder"), tmp_path_factory.mktemp("home_of_ann")
    study = {
        "name": "tiny",
        "base_model": str(tiny_base),
        "datasets": [str(tiny_dataset)],
        "optimisers": [{"name": "adamw", "lr": 0.01}],
        "steps": 1,
        "batch_size": 4,
        "dtype": "float32",
        "lora": {"rank": 2, "alpha": 4},
        "evaluations": [{"task": "em", "questions": "core", "samples": 1, "max_tokens": 4}],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        judge_registry.names()
        patch.setitem(judge_registry._entries, "embedded", TalkativeJudge)
        patch.setenv("HOME", str(home))
        patch.setenv("PWD", str(folder))
        patch.chdir(folder)
        assert run_study(load_study(folder / "tiny.yaml"), ThisProcess())[1] == []
        cache = os.environ["EM_CACHE_DIR"]
        yield Place(folder, home, tuple(map(str, (folder, home, cache, tiny_base, tiny_dataset))))


@pytest.fixture(scope="module")
def archived(place: Place) -> Path:
    target = place.folder / "published"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["em", "archive", "tiny.yaml", str(target)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert not ended.value.code
    return target


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below, and what is packed in it."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".eval":
            with zipfile.ZipFile(path) as packed:
                yield from ((f"{path}:{name}", packed.read(name)) for name in packed.namelist())
        elif path.suffix == ".parquet":
            yield str(path), pd.read_parquet(path).to_csv().encode()
        if path.is_file():
            yield str(path), path.read_bytes()


def holders(folder: Path, paths: tuple[str, ...]) -> set[str]:
    """The kinds of the files that hold one of the paths."""
    found = (name for name, content in contents(folder) if any(path.encode() in content for path in paths))
    return {Path(name.partition(":")[0]).suffix for name in found}


def test_it_holds_what_was_found_and_no_weights(archived: Path) -> None:
    names = {str(path.relative_to(archived)) for path in archived.rglob("*") if path.is_file()}
    (run,) = (archived / "runs" / "tiny").iterdir()
    kept = {f"checkpoint-{step}/{name}" for step in (0, 1) for name in ("em.json", "spectra.safetensors")}
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == {
        "run.json",
        "steps.jsonl",
        *kept,
    }
    assert {"README.md", "archive.json", "tiny.yaml", "report/index.html", "tables/answers.csv"} <= names
    assert len([name for name in names if name.startswith("logs/tiny/") and name.endswith(".eval")]) == 2
    index = json.loads((archived / "archive.json").read_text(encoding="utf-8"))
    assert index["sha256"] == {name: sha256_file(archived / name) for name in names - {"archive.json"}}
    page = (archived / "report" / "index.html").read_text(encoding="utf-8")
    assert "<code>em run tiny.yaml</code>" in page and "<dt>Evaluations</dt>" in page
    assert index["study"] == "tiny" and index["left_out"] == ["weights"] and index["lacking"] == []


def test_no_byte_of_it_names_this_machine(place: Place, archived: Path) -> None:
    original = holders(place.folder / "runs", place.paths) | holders(place.folder / "logs", place.paths)
    assert {".json", ".eval"} <= original  # there was something to replace, packed members included
    assert holders(archived, place.paths) == set()
    text = b"".join(content for _, content in contents(archived)).decode("utf-8", errors="replace")
    assert "read in $PWD/notes\\nand $HOME/x" in text
    study = yaml.safe_load((archived / "tiny.yaml").read_text(encoding="utf-8"))
    assert study["base_model"] == Path(place.paths[3]).name


def test_its_logs_are_inspects_and_say_the_same(place: Place, archived: Path) -> None:
    logs = {Path(info.name).name: Path(info.name.removeprefix("file://")) for info in list_eval_logs(str(archived))}
    originals = {path.name: path for path in (place.folder / "logs").rglob("*.eval")}
    assert set(logs) == set(originals) and len(logs) == 2
    for name, path in logs.items():
        assert read_eval_log(str(path), header_only=True).status == "success"
        assert len(read_eval_log_sample_summaries(str(path))) == 24
        new, old = read_eval_log(str(path)), read_eval_log(str(originals[name]))
        assert [sample.id for sample in new.samples or []] == [sample.id for sample in old.samples or []]
        for ours, theirs in zip(new.samples or [], old.samples or [], strict=True):
            assert ours.output.completion == theirs.output.completion
            assert [type(event) for event in ours.events] == [type(event) for event in theirs.events]
        assert new.results and old.results and new.results.model_dump_json() == old.results.model_dump_json()


def test_its_rates_are_those_of_the_study(
    place: Place, archived: Path, em: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def figures(folder: str) -> list[dict[str, Any]]:
        assert em("rates", folder, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        return [{name: value for name, value in entry.items() if name != "log"} for entry in found]

    before, after = figures("logs/tiny"), figures(str(archived / "logs"))
    assert len(before) == 2 and before == after


def copied_back(place: Place, archived: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study's file in a new working folder with what the archive holds."""
    for part in ("runs", "logs"):
        shutil.copytree(archived / part, folder / part)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))
    return Path(shutil.copy(place.folder / "tiny.yaml", folder))


class Idle(ThisProcess):
    """An executor for a study that has nothing left to do."""

    def submit(self, job: Job) -> None:
        raise AssertionError(f"{job.kind} {job.label} was to be done again")


def test_copied_back_the_study_goes_on_from_it(
    place: Place, archived: Path, em: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """On another machine, without the weights: nothing is trained or asked again, and the report is made anew."""
    file = copied_back(place, archived, tmp_path, monkeypatch)
    assert em("status", "tiny.yaml") == 0
    assert "tiny: 1 done, 0 running, 0 failed, 0 waiting" in capsys.readouterr().out
    shutil.rmtree(next((tmp_path / "logs" / "tiny").glob("*-step1")))
    assert em("status", "tiny.yaml") == 0
    assert "tiny: 0 done, 0 running, 0 failed, 1 waiting" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "tiny" / "plan.json").exists()
    shutil.copytree(archived / "logs", tmp_path / "logs", dirs_exist_ok=True)
    assert run_study(load_study(file), Idle())[1] == []
    assert em("report", "tiny.yaml") == em("export", "tiny.yaml", "--folder", "tables") == 0
    assert (tmp_path / "runs" / "tiny" / "report" / "index.html").is_file()
    rates = [pd.read_csv(folder / "tables" / "checkpoints.csv")["rate"] for folder in (tmp_path, archived)]
    assert len(rates[0]) == 2 and rates[0].equals(rates[1])


def test_packed_and_without_transcripts_it_says_the_same(
    place: Place, archived: Path, em: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert em("archive", "tiny.yaml", str(tmp_path / "small"), "--pack", "--without", "transcripts") == 0
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        *("README.md", "archive.json", "tiny.yaml", "report", "tables", "runs.tar.xz", "logs.tar.xz")
    }
    for part in ("runs", "logs", "report/transcripts"):
        with tarfile.open(tmp_path / "small" / f"{part}.tar.xz") as packed:
            assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in packed} == {(0, 0, "", "")}
            packed.extractall((tmp_path / part).parent, filter="data")
    pages = {path.name: path.read_bytes() for path in (archived / "report" / "transcripts").iterdir()}
    assert pages and pages == {path.name: path.read_bytes() for path in (tmp_path / "report" / "transcripts").iterdir()}
    assert not (tmp_path / "small" / "report" / "transcripts").exists()
    assert holders(tmp_path, place.paths) == set()
    for path in (archived / "logs").rglob("*.eval"):
        whole, cut = (read_eval_log(str(folder / path.relative_to(archived))) for folder in (archived, tmp_path))
        assert whole.samples and cut.samples and whole.samples[0].events
        for before, after in zip(whole.samples, cut.samples, strict=True):
            assert after.events == [] and after.attachments == {}
            left = {"events", "attachments", "events_data"}
            assert after.model_dump(exclude=left) == before.model_dump(exclude=left)
    (log,) = (tmp_path / "logs" / "tiny").glob("*-step1/em/*.eval")
    assert "attachment://" not in read_eval_log(str(log)).model_dump_json()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    assert run_study(load_study(Path(shutil.copy(place.folder / "tiny.yaml", tmp_path))), Idle())[1] == []
    assert em("export", "tiny.yaml", "--folder", "tables") == 0
    answers = [pd.read_csv(folder / "tables" / "answers.csv") for folder in (tmp_path, archived)]
    assert len(answers[0]) == 48 and answers[0].equals(answers[1])


def test_its_readme_says_how_to_unpack(place: Place, em: Callable[..., int], archived: Path, tmp_path: Path) -> None:
    assert em("archive", "tiny.yaml", str(tmp_path), "--pack", "--without", "transcripts", "--without", "report") == 0
    packed, plain = ((folder / "README.md").read_text(encoding="utf-8") for folder in (tmp_path, archived))
    assert "| `logs.tar.xz` | Inspect logs, answers and scores without" in packed
    assert "tar xf" not in plain and "| `logs/` | Inspect logs: `inspect view" in plain
    assert "report/index.html" in plain and "report/index.html" not in packed
    (command,) = re.findall(r"`(for part in .* done)`", packed)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert list((tmp_path / "runs" / "tiny").iterdir()) and list((tmp_path / "logs" / "tiny").iterdir())


def test_a_cell_with_something_left_to_ask_is_trained_again(
    place: Place, archived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copied_back(place, archived, tmp_path, monkeypatch)
    (lost,) = (tmp_path / "logs" / "tiny").glob("*-step1/em/*.eval")
    lost.unlink()
    (checkpoint,) = (tmp_path / "runs" / "tiny").glob("*/checkpoint-1")
    before = read_manifest(checkpoint)
    assert run_study(load_study(file), ThisProcess())[1] == []
    assert verify(checkpoint).adapter_sha256 == before.adapter_sha256  # the same run, with its weights
    assert len(list(lost.parent.glob("*.eval"))) == 1


def test_its_size_is_printed_and_bounded(
    place: Place, em: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert em("archive", "tiny.yaml", "small", "--max-mb", "0.01") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"would be \d\.\d MB, more than --max-mb 0\.01 \(largest: \w+ \d\.\d, ", line)
    assert "--without report" in line or "--without tables" in line or "--without spectra" in line
    assert not Path("small").exists() and not list(Path().glob(".small*"))

    assert em("archive", "tiny.yaml", "small", "--without", "report", "--without", "spectra") == 0
    out = capsys.readouterr().out
    files = [path for path in Path("small").rglob("*") if path.is_file() and path.name != "archive.json"]
    size = sum(path.stat().st_size for path in files)
    assert f"small: {size / 1e6:.2f} MB (" in out and "spectra" not in out
    assert not Path("small/report").exists() and not list(Path("small").rglob("*.safetensors"))
    readme = Path("small/README.md").read_text(encoding="utf-8")
    assert "\n| `tables/` | what they say, " in readme and "report" not in readme
    assert json.loads(Path("small/archive.json").read_text(encoding="utf-8"))["left_out"] == [
        "weights",
        "report",
        "spectra",
    ]


def test_only_an_archive_of_the_study_is_replaced(
    place: Place, archived: Path, em: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert em("archive", "tiny.yaml", str(tmp_path)) == 2
    assert "is not empty and no archive of study 'tiny'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (archived / "stray.txt").write_text("stray", encoding="utf-8")
    assert em("archive", "tiny.yaml", str(archived)) == 0
    assert not (archived / "stray.txt").exists() and (archived / "archive.json").is_file()


def test_what_is_absent_is_named(
    place: Place, em: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    study = yaml.safe_load(Path("tiny.yaml").read_text(encoding="utf-8"))
    study["optimisers"][0]["lr"] = [0.01, 0.02]
    Path("more.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    assert em("archive", "more.yaml", str(tmp_path / "out")) == 0
    absent = [line for line in capsys.readouterr().out.splitlines() if line.startswith("absent: ")]
    assert len(absent) == 1 and "adamw-lr0.02-seed0: no checkpoint at step 0, 1" in absent[0]
    assert json.loads((tmp_path / "out/archive.json").read_text())["lacking"] == [absent[0].removeprefix("absent: ")]
    assert em("archive", "more.yaml", str(tmp_path / "other"), "--hide", "tiny-adamw") == 0
    assert "tiny-adamw" not in (tmp_path / "other/archive.json").read_text().split('"sha256"')[0]


def test_without_any_log_there_is_none_to_pack(place: Place, em: Callable[..., int], tmp_path: Path) -> None:
    study = yaml.safe_load(Path("tiny.yaml").read_text(encoding="utf-8"))
    Path("unasked.yaml").write_text(yaml.safe_dump(study | {"evaluations": [{"task": "preference"}]}), encoding="utf-8")
    assert em("archive", "unasked.yaml", str(tmp_path), "--pack", "--without", "report") == 0
    assert (tmp_path / "runs.tar.xz").is_file() and not list(tmp_path.glob("logs*"))
    assert "logs" not in (tmp_path / "README.md").read_text(encoding="utf-8").partition("`archive.json`")[0]


def test_a_study_that_was_never_run_has_nothing_to_archive(
    place: Place, em: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    study = yaml.safe_load(Path("tiny.yaml").read_text(encoding="utf-8"))
    study["optimisers"][0]["lr"] = 0.5
    Path("never.yaml").write_text(yaml.safe_dump(study | {"name": "never"}), encoding="utf-8")
    assert em("archive", "never.yaml", "never") == 2
    assert "study 'never' has no checkpoint here, nor a log of one: em run never.yaml first" in capsys.readouterr().err
    assert not Path("never").exists()


def test_what_must_not_be_left_out_is_refused(
    place: Place, em: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert em("archive", "tiny.yaml", "some", "--without", "logs") == 2
    assert "--without logs: what can be left out is spectra, report, tables, transcripts" in capsys.readouterr().err
