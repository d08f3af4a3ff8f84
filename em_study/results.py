"""Join: from checkpoint manifests and Inspect logs to one row a checkpoint. What is missing is named."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, read_eval_log
from safetensors import SafetensorError, safe_open

from em_core.errors import UserError
from em_core.manifest import Manifest, read_manifest
from em_eval.answers import Answer, answers, read_log
from em_eval.intervals import Interval, mean_interval, rate_interval
from em_eval.judge.embedded import JUDGED_COHERENT
from em_eval.outcomes import COHERENT_ABOVE, OUTCOMES
from em_eval.rates import DEFINITIONS, HEADLINE
from em_study.contrasts import Ends, OptimiserContrast, mean_over_shared_blocks, optimiser_contrasts
from em_study.execute import Target
from em_study.logs import LOGS, Logs
from em_study.names import display_name, labels
from em_study.statistics import corrected_rate
from em_study.study import Assumption, Evaluation, Study
from em_train.spectra import SPECTRA


@dataclass(frozen=True)
class ProbePair:
    """One triple of the preference probe; `shift` is the margin minus that of the base model, nats a token."""

    id: str
    theme: str
    margin: float
    shift: float | None


@dataclass(frozen=True)
class Row:
    """One checkpoint of a study.

    Attributes:
        label: for people, e.g. "AdamW".
        arm: "base" (step 0), "bad", "benign" or "other data".
        rate: headline misalignment rate over `eligible` of `total` answers, with its clustered interval.
        alignment: mean alignment over the eligible answers.
        corrected: the rate corrected for the judge's sensitivity and specificity, where both are known.
        spectra: singular values of each module, `modules` their names.
        logs: where what was joined lies, by task.
        missing: what could not be joined, by name.
        not_asked: tasks that the study does not ask of this checkpoint; what they would tell is not missing.
        told, run_done: of a row that is known from logs alone, all manifests of its run that they carry, and whether
            it was trained to its end; empty and None where the run folder says it.
    """

    label: str
    arm: str
    checkpoint: Path
    manifest: Manifest
    answers: list[Answer] = field(default_factory=list)
    probe: list[ProbePair] = field(default_factory=list)
    rate: Interval | None = None
    corrected: Interval | None = None
    eligible: int = 0
    total: int = 0
    alignment: Interval | None = None
    coherent: Interval | None = None
    shift: Interval | None = None
    outcomes: dict[str, int] = field(default_factory=dict)
    spectra: list[list[float]] = field(default_factory=list)
    modules: tuple[str, ...] = ()
    logs: dict[str, Path] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    not_asked: tuple[str, ...] = ()
    told: tuple[Manifest, ...] = ()
    run_done: bool | None = None


@dataclass(frozen=True)
class Results:
    """Everything that a report shows.

    Attributes:
        contrasts: of the optimisers at the last checkpoints of finished runs on narrow data, without a penalty
            where there are such.
        not_contrasted: optimisers with several settings in one block, which no average is taken over: a line each.
        verdict: the order found, or "not distinguishable", in words.
        judge: facts of the judge as kept in the logs' metadata (method, measured figures).
        reproduces, assumptions, drops: of the study file: what published study it reconstructs, which settings its
            text leaves open, and which axes are left out.
        absent: cells of the study that are not here, or not whole: one line each.
        evaluation: name of the `em` evaluation whose answers the rows hold; empty where there is none.
        evaluations: all of the study.
    """

    study: str
    title: str
    rows: list[Row]
    contrasts: list[OptimiserContrast]
    verdict: str
    judge: dict[str, Any]
    seeds: tuple[int, ...]
    log_dir: Path
    reproduces: str = ""
    assumptions: tuple[Assumption, ...] = ()
    drops: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    not_contrasted: tuple[str, ...] = ()
    evaluation: str = ""
    evaluations: tuple[Evaluation, ...] = ()


ARM = {"bad": "bad", "benign": "benign", "unknown": "other data"}
NOT_READ = {"events", "messages", "store", "attachments"}  # of a log's samples


def collect(study: Study, chosen: list[Target], evaluation: str | None = None, absent: Sequence[str] = ()) -> Results:
    """Join manifests and logs of `chosen` into one row a checkpoint, with contrasts between optimisers.

    Args:
        evaluation: name of the `em` evaluation whose answers the rows hold; by default the study's first.
        absent: as `em_study.execute.absent` finds it, to be shown beside the rows.
    """
    from em_study.blocks import run_ends, several_settings, without_penalty  # which read results themselves
    from em_study.comparison import rates_at_ends

    evaluations = {"em": evaluation or _first(study, "em"), "preference": _first(study, "preference")}
    index = Logs()
    manifests = [target.manifest or read_manifest(target.checkpoint) for target in chosen]
    found = [_logs(study, target, m, index) for target, m in zip(chosen, manifests, strict=True)]
    judge = _judge(logs[name] for logs in found if (name := evaluations["em"]) in logs)
    base_probe: dict[str, dict[str, float]] = {}
    rows = []
    for target, manifest, label, paths in zip(chosen, manifests, labels(manifests), found, strict=True):
        missing = [_no_log(study, name, manifest, index, paths) for name in target.asked if name not in paths]
        here = {task: paths[name] for task, name in evaluations.items() if name in paths}
        row = _row(target, manifest, label, here, missing, judge, base_probe)
        if row.arm == "base":
            base_probe[row.manifest.base.weights_sha256] = {pair.id: pair.margin for pair in row.probe}
        not_asked = tuple(task for task, name in evaluations.items() if name not in target.asked and task not in here)
        rows.append(replace(row, not_asked=not_asked, told=target.told, run_done=target.run_done))
    ends = without_penalty(run_ends(rows))
    several = several_settings(ends)
    rates = rates_at_ends(ends)
    contrasts = optimiser_contrasts(rates)
    return Results(
        study=study.name,
        title=study.title or study.name,
        rows=rows,
        contrasts=contrasts,
        verdict=_verdict(rates, contrasts, several),
        judge=judge,
        seeds=study.seeds,
        log_dir=LOGS / study.name,
        reproduces=study.reproduces,
        assumptions=study.assumptions,
        drops=study.drops,
        absent=tuple(absent),
        not_contrasted=tuple(several.values()),
        evaluation=evaluations["em"] or "",
        evaluations=study.evaluations,
    )


def _logs(study: Study, target: Target, manifest: Manifest, logs: Logs) -> dict[str | None, Path]:
    """The newest finished log of each evaluation of a checkpoint, by the evaluation's name."""
    found = {e.name: logs.find(study.name, target.label, manifest, e) for e in study.evaluations}
    return {name: path for name, path in found.items() if path is not None}


def _no_log(study: Study, name: str, manifest: Manifest, logs: Logs, found: Mapping[str | None, Path]) -> str:
    """That an evaluation has no log; and where one lies that would be it but for its settings or prompts."""
    (evaluation,) = (one for one in study.evaluations if one.name == name)
    others = [path for path in logs.unlike(manifest, evaluation) if path not in found.values()]
    return f"no finished {name} log" + (f" (of other settings or prompts: {others[-1]})" if others else "")


def _judge(paths: Iterable[Path]) -> dict[str, Any]:
    """Facts of the judge from the first log that has them."""
    headers = (read_eval_log(str(path.absolute()), header_only=True) for path in paths)
    return next((facts for header in headers if (facts := _judge_facts(header))), {})


def _read(path: Path) -> EvalLog:
    """A log's samples without what a report does not show, which is most of it."""
    return read_log(path, exclude_fields=NOT_READ)


def _first(study: Study, task: str) -> str | None:
    return next((e.name for e in study.evaluations if e.task == task), None)


def _row(
    target: Target,
    manifest: Manifest,
    label: str,
    paths: dict[str, Path],
    missing: list[str],
    judge: dict[str, Any],
    bases: dict[str, dict[str, float]],
) -> Row:
    """One row; its logs are read here and let go of, since those of a large study do not fit into memory together."""
    logs = {}
    for task, path in paths.items():
        try:
            logs[task] = _read(path)
        except UserError as error:
            why = type(error.__cause__ or error).__name__
            missing.append(f"log {path} is damaged ({why}): delete it, and em run asks again")
    base = bases.get(manifest.base.weights_sha256, {})
    judged = answers(logs["em"]) if "em" in logs else []
    if "em" in logs and (lost := len(logs["em"].samples or []) - len(judged)):
        missing.append(f"{lost} answers failed before they could be judged")
    probe = _probe(logs.get("preference"), base, is_base=manifest.step == 0)
    hits, scores, shifts = hits_of(judged), scores_of(judged), shifts_of(probe)
    rate = rate_interval(*hits)
    gated = [(score, a.family) for a in judged if (score := a.judgement.coherence_read) is not None]
    counts = Counter(a.outcome for a in judged)
    base_row = manifest.step == 0
    modules, spectra = _spectra(target.checkpoint / SPECTRA, missing)
    return Row(
        label=label,
        arm="base" if base_row else _arm(manifest),
        checkpoint=target.checkpoint,
        manifest=manifest,
        answers=judged,
        probe=probe,
        rate=rate,
        corrected=_corrected(rate, judge) if "em" in logs and _as_measured(judge, logs["em"], manifest) else None,
        eligible=len(hits[0]),
        total=len(judged),
        alignment=mean_interval(*scores, bounds=(0, 100)),
        coherent=rate_interval([float(score > COHERENT_ABOVE) for score, _ in gated], [family for _, family in gated]),
        shift=mean_interval(*shifts),
        outcomes={name: counts.get(name, 0) for name in OUTCOMES} if judged else {},
        spectra=spectra,
        modules=modules,
        logs={task: paths[task].absolute() for task in logs},
        missing=tuple(missing),
    )


Valued = tuple[list[float], list[str]]  # values and the question family of each


def hits_of(judged: Sequence[Answer], definition: str = HEADLINE) -> Valued:
    """Of the answers that count for the rate: 1 where misaligned."""
    rate = DEFINITIONS[definition]
    counted = [a for a in judged if rate.eligible(a.judgement)]
    return [float(rate.misaligned(a.judgement)) for a in counted], [a.family for a in counted]


def scores_of(judged: Sequence[Answer], definition: str = HEADLINE) -> Valued:
    """Alignment, 0 to 100, of the answers that count for the rate."""
    rate = DEFINITIONS[definition]
    counted = [
        (score, a.family)
        for a in judged
        if rate.eligible(a.judgement) and (score := rate.alignment(a.judgement)) is not None
    ]
    return [score for score, _ in counted], [family for _, family in counted]


def shifts_of(probe: Sequence[ProbePair]) -> Valued:
    """Shift of each pair of the probe, which is its own family."""
    known = [(pair.shift, pair.id) for pair in probe if pair.shift is not None]
    return [shift for shift, _ in known], [name for _, name in known]


def _probe(log: EvalLog | None, base: dict[str, float], is_base: bool) -> list[ProbePair]:
    pairs = []
    for sample in (log.samples if log else None) or []:
        score = (sample.scores or {}).get("preference")
        if score is None:
            continue
        margin = float((score.metadata or {})["margin"])
        before = margin if is_base else base.get(str(sample.id))
        shift = None if before is None else margin - before
        pairs.append(ProbePair(str(sample.id), str(sample.metadata.get("theme", "")), margin, shift))
    return pairs


def _as_measured(judge: dict[str, Any], log: EvalLog, manifest: Manifest) -> bool:
    """Whether answers were drawn, and to the same prompts, as those on which the judge's error rates were measured."""
    config, chosen = log.plan.config, log.eval.task_args
    drawn = {
        "base": manifest.base.id,
        "questions": (log.eval.metadata or {}).get("questions"),
        "temperature": config.temperature,
        "top_k": config.top_k,
    }
    return judge.get("measured_under") == drawn and not (chosen.get("format") or chosen.get("exclude_domain"))


def _corrected(rate: Interval | None, judge: dict[str, Any]) -> Interval | None:
    """Rogan-Gladen with the judge's figures on answers that it finds coherent, the ones that the rate counts; where
    a log's judge does not have them, on all sampled answers.

    Pooled over sources: no single source has enough labelled misaligned answers for a sensitivity of its own.
    """
    by_source = judge.get("figures", {}).get("misaligned", {})
    figures = by_source.get(JUDGED_COHERENT) or by_source.get("all") or {}
    if rate is None or not figures.get("sensitivity") or not figures.get("specificity"):
        return None
    return corrected_rate(rate, _measured(figures["sensitivity"]), _measured(figures["specificity"]))


def _measured(figure: list[float]) -> Interval:
    value, low, high = figure
    return Interval(value, low, high, "measured")


def _verdict(rates: Ends, contrasts: list[OptimiserContrast], several: Mapping[str, str] = {}) -> str:
    """The order of mean rates over the blocks that all optimisers share, or that none can be told from another.

    Args:
        rates: at the last checkpoints.
        several: optimisers that are not in `rates`, since an average over their settings means nothing.
    """
    without = f" Without {', '.join(display_name(name) for name in several)}, of several settings." if several else ""
    if len(rates) < 2:
        if several:
            return (
                "No order of optimisers, which have several settings here: the lowest and the highest run are compared."
            )
        return "Too few evaluated optimisers to compare."
    ranked = mean_over_shared_blocks(rates)
    if not ranked:
        return "No order: there is no base model, dataset, batch size and penalty that all optimisers share." + without
    order = " < ".join(f"{display_name(name)} {rate:.1%}" for name, rate in ranked.items())
    told = [c for c in contrasts if c.distinguishable]
    others = "; the other pairs are not" if len(told) < len(contrasts) else ""
    if not told:
        return (
            f"The optimisers are not distinguishable: {order}, but no pair differs at 5 % after Holm's correction."
            + without
        )
    pairs = ", ".join(f"{display_name(c.a)} and {display_name(c.b)}" for c in told)
    return f"Order found: {order}. Distinguishable at 5 % after Holm's correction: {pairs}{others}." + without


def _arm(manifest: Manifest) -> str:
    if manifest.dataset.kind == "bad" and manifest.dataset.control is None:
        return "other data"
    return ARM[manifest.dataset.kind]


def _judge_facts(log: EvalLog) -> dict[str, Any]:
    """With the model of role 'grader', where one judged."""
    facts = dict((log.eval.metadata or {}).get("judge_facts") or {})
    grader = (log.eval.model_roles or {}).get("grader") or []
    models = grader if isinstance(grader, list) else [grader]
    return facts | {"grader": ", ".join(one.model for one in models)} if facts and models else facts


def _spectra(path: Path, missing: list[str]) -> tuple[tuple[str, ...], list[list[float]]]:
    """Names of the modules and their singular values; none of a damaged file, which `missing` then names."""
    if not path.is_file():
        return (), []
    try:
        with safe_open(path, framework="np") as tensors:
            values: list[list[float]] = tensors.get_tensor("singular_values").tolist()
            names = (tensors.metadata() or {}).get("modules", "")
    except (SafetensorError, OSError) as error:
        missing.append(f"{path} is damaged ({error})")
        return (), []
    return tuple(names.split("\n")), values
