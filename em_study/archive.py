"""What a team publishes beside a paper: everything that a study found, without weights and without machine paths."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from inspect_ai.log import write_eval_log

from em_core.errors import UserError
from em_core.files import atomic_folder, sha256_file, write_json, write_text
from em_core.manifest import MANIFEST, read_manifest
from em_core.templates import templates
from em_eval.answers import read_log
from em_study.execute import Target, absent, something
from em_study.logs import Logs, log_folder
from em_study.pack import PACKED, pack
from em_study.plan import RUN_FILE, Plan, make_plan
from em_study.redact import machine_paths, redact_file, redaction
from em_study.report import write_reports
from em_study.report.html import TRANSCRIPTS
from em_study.study import Study, load_study
from em_study.table import all_results, write_tables
from em_train.spectra import SPECTRA
from em_train.step_record import STEPS_FILE

OPTIONAL = ("spectra", "report", "tables", "transcripts")
INDEX = "archive.json"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Archived:
    """What was written.

    Attributes:
        sizes: bytes by part, largest first.
        lacking: what the study asks for and the archive does not hold, a line each.
    """

    folder: Path
    sizes: dict[str, int]
    lacking: list[str]


def write_archive(
    study_file: Path,
    folder: Path,
    max_mb: float,
    without: Collection[str] = (),
    packed: bool = False,
    hidden: Iterable[str] = (),
    each: Callable[[list[Path]], Iterable[Path]] = lambda files: files,
) -> Archived:
    """Write the archive of a study, whole or not at all.

    Args:
        folder: new, empty, or an earlier archive of this study, which is replaced.
        max_mb: the largest size, in megabytes of 10^6 bytes.
        without: parts to leave out, of `OPTIONAL`.
        packed: runs, logs and the report's pages of answers as one compressed file each (`em_study.pack`).
        hidden: further paths or words to replace.
        each: wraps the files while they are rewritten, for a progress display.

    Raises:
        UserError: an unknown part; nothing is there yet; `folder` holds something else; the archive would be too large.
    """
    study = load_study(study_file)
    _refuse_unknown(without)
    _refuse_other(folder, study.name)
    plan = make_plan(study)
    chosen = something(plan, study_file)
    redact = redaction(machine_paths(_named(study), hidden))
    with atomic_folder(folder) as draft:
        shutil.copyfile(study_file, draft / study_file.name)
        _copy_runs(plan, draft, "spectra" not in without)
        _copy_logs(study, chosen, draft)
        lacking = [redact(line) for line in _summarise(study, study_file, plan, chosen, draft, without)]
        write_text(draft / "README.md", _readme(study, study_file, without, packed, (draft / "logs").is_dir()))
        for path in each(_files(draft)):
            if path.suffix == ".eval" and "transcripts" in without:
                _drop_events(path)
            redact_file(path, redact)
        if packed:
            for part in [draft / "runs", draft / "logs", *sorted((draft / "report").rglob(TRANSCRIPTS))]:
                if part.is_dir():
                    pack(part)
        sizes = _sizes(draft)
        _refuse_large(sizes, max_mb, without, packed)
        write_json(draft / INDEX, _index(study, draft, lacking, without))
    return Archived(folder, sizes, lacking)


def _refuse_unknown(without: Collection[str]) -> None:
    for part in without:
        if part not in OPTIONAL:
            raise UserError(f"--without {part}: what can be left out is {', '.join(OPTIONAL)}")


def _refuse_other(folder: Path, study: str) -> None:
    """An archive replaces the whole folder, so that it must be nobody else's."""
    if folder.is_dir() and any(folder.iterdir()):
        if not _is_archive(folder, study):
            raise UserError(f"{folder} is not empty and no archive of study '{study}': choose a new folder")
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose a new folder")


def _is_archive(folder: Path, study: str) -> bool:
    try:
        return bool(json.loads((folder / INDEX).read_text(encoding="utf-8"))["study"] == study)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _named(study: Study) -> list[str]:
    """What a study may call by a path."""
    questions = [evaluation.questions for evaluation in study.evaluations]
    return [*study.base_model, *study.datasets, *(arm.dataset for arm in study.arms), *questions]


def _copy_runs(plan: Plan, draft: Path, spectra: bool) -> None:
    """The run folders without weights, tokenizers and resumable states; a run of another study as if it were here."""
    for cell in plan.cells:
        kept = [cell.folder / RUN_FILE, cell.folder / STEPS_FILE]
        for checkpoint in cell.checkpoints():
            if (checkpoint / MANIFEST).is_file():
                kept += [checkpoint / MANIFEST, *([checkpoint / SPECTRA] if spectra else [])]
        for path in filter(Path.is_file, kept):
            _copy(path, draft / path)


def _copy_logs(study: Study, chosen: list[Target], draft: Path) -> None:
    """The logs that answer this study, wherever they lie, under its own labels."""
    logs = Logs()
    for target in chosen:
        manifest = target.manifest or read_manifest(target.checkpoint)
        for evaluation in study.evaluations:
            path = logs.find(study.name, target.label, manifest, evaluation)
            if path is not None:
                _copy(path, draft / log_folder(study.name, target.label) / evaluation.name / path.name)


def _drop_events(path: Path) -> None:
    """What remains of each sample: its input, messages, answer, scores and metadata."""
    log = read_log(path, resolve_attachments=True)
    for sample in log.samples or []:
        sample.events, sample.attachments = [], {}
    write_eval_log(log, str(path.absolute()))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _summarise(
    study: Study, study_file: Path, plan: Plan, chosen: list[Target], draft: Path, without: Collection[str]
) -> list[str]:
    """Report and tables, made anew so that they agree with the logs beside them; returns what is lacking."""
    lacking = absent(plan)
    results = all_results(study, chosen, lacking)
    if "tables" not in without:
        write_tables(results, draft / "tables")
    if "report" not in without:
        write_reports(results, draft / "report", Path(study_file.name))
    missing = [f"{row.label}: {why}" for found in results.values() for row in found.rows for why in row.missing]
    return lacking + list(dict.fromkeys(missing))


def _readme(study: Study, study_file: Path, without: Collection[str], packed: bool, logged: bool) -> str:
    template = templates(Path(__file__).parent).get_template("archive.md.j2")
    return template.render(
        study=study,
        file=study_file.name,
        version=version("em-eval"),
        without=without,
        packed=packed,
        logged=logged,
        suffix=PACKED if packed else "/",
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sizes(draft: Path) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for path in _files(draft):
        inside = path.relative_to(draft)
        whole = inside.parts[0].removesuffix(PACKED)
        part = "spectra" if path.name == SPECTRA else "study file" if whole == path.name else whole
        sizes[part] += path.stat().st_size
    return dict(sizes.most_common())


def _refuse_large(sizes: dict[str, int], max_mb: float, without: Collection[str], packed: bool) -> None:
    total = sum(sizes.values()) / MEGABYTE
    if total <= max_mb:
        return
    largest = ", ".join(f"{part} {size / MEGABYTE:.1f}" for part, size in list(sizes.items())[:3])
    spare = [part for part in [*sizes, "transcripts"] if part in OPTIONAL and part not in without]
    ways = [] if packed else ["pack runs, logs and answers (--pack)"]
    ways += [f"leave a part out (--without {part})" for part in spare[:1]]
    mend = " or ".join([*ways, "raise --max-mb"])
    raise UserError(f"the archive would be {total:.1f} MB, more than --max-mb {max_mb:g} (largest: {largest}): {mend}")


def _index(study: Study, draft: Path, lacking: list[str], without: Collection[str]) -> dict[str, object]:
    files = {str(path.relative_to(draft)): sha256_file(path) for path in _files(draft)}
    left_out = ["weights", *sorted(without)]
    made_with = {name: version(name) for name in ("em-eval", "inspect-ai")}
    return {"study": study.name, "made_with": made_with, "left_out": left_out, "lacking": lacking, "sha256": files}
