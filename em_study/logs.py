"""Which Inspect log answers which evaluation of which checkpoint: by content, never by the name of a folder."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, read_eval_log
from pydantic import ValidationError

from em_core.errors import UserError
from em_core.files import sha256_file, sha256_json
from em_core.manifest import Manifest
from em_eval.model_names import split_hash
from em_study.sampling import sampling_of
from em_study.study import Evaluation

LOGS = Path("logs")


def log_folder(study: str, label: str) -> Path:
    return LOGS / study / label


class Logs:
    """The finished logs under `logs/`, as they are now.

    All studies are looked through, so that one whose labels changed, or another that holds the same run, does not
    ask again.
    """

    def __init__(self) -> None:
        self._finished: dict[tuple[str, str], list[tuple[Path, EvalLog]]] = {}
        self._contents: dict[Evaluation, str | None] = {}
        self._means: dict[Evaluation, float | None] = {}
        self._manifests: dict[str, dict[int, dict[str, Any]]] = {}
        for path in sorted(LOGS.rglob("*.eval")) if LOGS.is_dir() else []:
            header = _header(path, path.stat().st_mtime_ns)
            if header is not None and header.status == "success":
                task = header.eval.task.rpartition("/")[2]
                for weights in _tested(header):
                    self._finished.setdefault((task, weights), []).append((path, header))
                if kept := (header.eval.metadata or {}).get("manifest"):
                    self._manifests.setdefault(kept.get("run_id"), {})[kept.get("step")] = kept

    def find(self, study: str, label: str, manifest: Manifest, evaluation: Evaluation) -> Path | None:
        """The newest log of `evaluation` on these weights, one of this study's own first."""
        asked = self._contents_of(evaluation)
        found = [path for path, header in self._of(manifest, evaluation) if _agrees(header, asked)]
        own = [path for path in found if path.is_relative_to(log_folder(study, label))]
        return max(own or found, key=lambda path: path.name, default=None)  # names begin with the time

    def told(self, run_id: str) -> dict[int, Manifest]:
        """By step, a run's manifests as its logs carry them: without first example and environment."""
        return dict(sorted(_manifests(self._manifests.get(run_id, {}).values())))

    def told_base(self, weights_sha256: str) -> Manifest | None:
        """The step 0 of any run on this base model, which answers as the base does."""
        kept = (run[0] for run in self._manifests.values() if 0 in run)
        return next((m for _, m in _manifests(kept) if m.base.weights_sha256 == weights_sha256), None)

    def unlike(self, manifest: Manifest, evaluation: Evaluation) -> list[Path]:
        """Logs of the same task on these weights, under whatever settings and prompts, by time."""
        return sorted(
            {path for key in _keys(manifest) for path, _ in self._finished.get((evaluation.task, key), [])},
            key=lambda path: path.name,
        )

    def folder_for(self, study: str, label: str, evaluation: Evaluation) -> Path:
        """Where the log of `evaluation` is written.

        Beside logs of other contents under the same names (an edited prompt file) it is a folder of its own, since
        Inspect goes by names: it would take those for finished, and go on with partial ones.
        """
        folder = log_folder(study, label) / evaluation.name
        contents = self._contents_of(evaluation)
        there = [header for path in folder.glob("*.eval") if (header := _header(path, path.stat().st_mtime_ns))]
        if all(_agrees(header, contents) for header in there):
            return folder
        return folder.with_name(f"{evaluation.name}-{contents}")

    def mean_seconds(self, evaluation: Evaluation) -> float | None:
        """Mean duration of the finished logs of `evaluation`, whatever they tested."""
        if evaluation not in self._means:
            same = {
                path: header
                for (task, _), pairs in self._finished.items()
                for path, header in pairs
                if task == evaluation.task and _settings(header) == _asked(evaluation)
            }
            seconds = [_seconds(header) for header in same.values()]
            self._means[evaluation] = sum(seconds) / len(seconds) if seconds else None
        return self._means[evaluation]

    def _of(self, manifest: Manifest, evaluation: Evaluation) -> list[tuple[Path, EvalLog]]:
        """Logs of these weights under these settings, whatever the prompts were."""
        wanted = _asked(evaluation)
        found = [pair for key in _keys(manifest) for pair in self._finished.get((evaluation.task, key), [])]
        return [(path, header) for path, header in found if _settings(header) == wanted]

    def _contents_of(self, evaluation: Evaluation) -> str | None:
        if evaluation not in self._contents:
            self._contents[evaluation] = contents_of(evaluation)
        return self._contents[evaluation]


def contents_of(evaluation: Evaluation) -> str | None:
    """Hash of what an evaluation's name only points at: its prompts and its judge. None where they are not at hand."""
    from em_eval.judge import judge_registry
    from em_eval.preference import EMBEDDED
    from em_eval.task import choose

    if evaluation.task == "preference":
        return sha256_file(EMBEDDED)[:12]
    try:
        asked = [asdict(prompt) for prompt in choose(evaluation.questions, **evaluation.tags())]
        judge = evaluation.grader or judge_registry.get("embedded")().facts
    except UserError:
        return None
    return sha256_json(json.loads(json.dumps([asked, judge], default=str)))[:12]


def _manifests(kept: Iterable[dict[str, Any]]) -> Iterator[tuple[int, Manifest]]:
    """By step; what another version of ours wrote is none."""
    for one in kept:
        with suppress(ValidationError):
            manifest = Manifest.model_validate(one | {"first_example": "", "environment": {}})
            yield manifest.step, manifest


def _keys(manifest: Manifest) -> list[str]:
    """What a log on these weights may be filed under (`_tested`)."""
    base = [f"base {manifest.base.weights_sha256}"] if manifest.step == 0 else []
    return [manifest.adapter_sha256[:8], *base]


def _tested(header: EvalLog) -> list[str]:
    """The weights that a log tested. Untouched adapters (B = 0) on one base answer alike, whatever their A is."""
    manifest = (header.eval.metadata or {}).get("manifest") or {}
    # Only `peft/` names say what the weights are; behind `hf/` and `vllm/` names stands our own note of them.
    found = [split_hash(header.eval.model)[1] or manifest.get("adapter_sha256", "")[:8]]
    if manifest.get("step") == 0:
        found.append(f"base {manifest['base']['weights_sha256']}")
    return found


def _seconds(header: EvalLog) -> float:
    began, ended = header.stats.started_at, header.stats.completed_at
    return (datetime.fromisoformat(str(ended)) - datetime.fromisoformat(str(began))).total_seconds()


def _agrees(header: EvalLog, contents: str | None) -> bool:
    """Logs that others made do not say what their prompts were; then the names must do."""
    kept = (header.eval.metadata or {}).get("contents")
    return kept is None or contents is None or kept == contents


Settings = tuple[str, dict[str, Any], dict[str, Any], str | None]


def _asked(evaluation: Evaluation) -> Settings:
    return evaluation.engine, evaluation.arguments(), evaluation.sampling(), evaluation.grader


def _settings(header: EvalLog) -> Settings:
    """What determined a log's answers and scores beside the weights: engine, task arguments, sampling, grader."""
    roles = header.eval.model_roles or {}
    grader = roles.get("grader")
    name = getattr(grader[0] if isinstance(grader, list) else grader, "model", None) if grader else None
    return header.eval.model.partition("/")[0], header.eval.task_args_passed, sampling_of(header.plan.config), name


@lru_cache(maxsize=4096)
def _header(path: Path, changed_ns: int) -> EvalLog | None:
    """A log's header; None for what is no log (half a file of a killed process)."""
    try:
        return read_eval_log(str(path.absolute()), header_only=True)
    except Exception:  # Inspect raises whatever its zip and JSON readers raise
        return None
