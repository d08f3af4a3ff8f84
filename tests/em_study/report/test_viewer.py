"""Inspect's viewer beside the page: it holds the joined logs, and links name the answers in them."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log

from em_core.errors import UserError
from em_study.report import write_report
from em_study.report.viewer import VIEWER, answer_link, write_viewer
from em_study.results import Results
from tests.em_study.report.samples import sample_results


def with_logs(root: Path) -> Results:
    """The made-up results, each trained row with answers joined to a real log of its prompt."""
    rows = []
    for number, row in enumerate(sample_results().rows):
        if not row.answers:
            rows.append(row)
            continue
        samples = [Sample(id=answer.prompt_id, input=answer.question) for answer in row.answers[:1]]
        (log,) = eval(
            Task(dataset=MemoryDataset(samples), epochs=len(row.answers)),
            model="mockllm/model",
            log_dir=str(root / "logs" / "demo" / f"row {number}" / "em"),
            display="none",
        )
        rows.append(replace(row, logs={"em": Path(log.location.removeprefix("file://"))}))
    return replace(sample_results(), rows=rows)


def test_links_name_answers_in_the_bundled_logs(tmp_path: Path) -> None:
    results = with_logs(tmp_path)
    page = write_report(results, tmp_path / "report", bundle=True)
    assert (page.parent / VIEWER / "index.html").is_file()
    for row in results.rows:
        for answer in row.answers:
            link = answer_link(row, answer)
            assert link is not None
            _, _, route = link.partition("#/logs/")
            name, _, place = route.partition("/samples/sample/")
            log = read_eval_log(str(page.parent / VIEWER / "logs" / unquote(name)))
            prompt, epoch, _ = place.split("/")
            assert (unquote(prompt), int(epoch)) in {(sample.id, sample.epoch) for sample in log.samples or []}
            if answer.outcome == "misaligned":
                assert link in page.read_text(encoding="utf-8")
    assert "python -m http.server" in page.read_text(encoding="utf-8")


def test_without_it_nothing_links_there(tmp_path: Path) -> None:
    page = write_report(with_logs(tmp_path), tmp_path / "report")
    assert f"{VIEWER}/" not in page.read_text(encoding="utf-8") and not (page.parent / VIEWER).exists()
    assert all(f"{VIEWER}/" not in path.read_text(encoding="utf-8") for path in page.parent.glob("transcripts/*"))


def test_a_study_without_logs_has_nothing_to_view(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no log was joined"):
        write_viewer(sample_results().rows, tmp_path)
