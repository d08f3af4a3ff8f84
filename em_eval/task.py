"""The task: open questions, sampled answers, a judge."""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import HeadlineMetric
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelInfo,
    get_model,
    set_model_info,
)
from inspect_ai.scorer import Scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.viewer import (
    ScoreColorScale,
    TaskSamplesColumn,
    TaskSamplesColumnId,
    TaskSamplesSort,
    TaskSamplesView,
    ViewerConfig,
)

from em_core.errors import UserError
from em_core.manifest import MANIFEST, read_manifest
from em_core.places import from_users_folder
from em_eval import prompts
from em_eval.connections import connections_of_model_under_test
from em_eval.errors import as_prerequisite
from em_eval.final import Final
from em_eval.judge import judge_registry
from em_eval.judge.model import ModelJudge
from em_eval.judge.settings import DEFAULT_DRAWS, JudgeSettings
from em_eval.model_names import split_base, split_hash
from em_eval.prompts.selection import Names
from em_eval.rates import DEFINITIONS, HEADLINE
from em_eval.sampling import left_to_server, neutralise
from em_eval.scorer import (
    KEYS,
    embedded_judge_scorer,
    model_judge_scorer,
    plugin_judge_scorer,
    truncated,
)
from em_eval.thinking import set_apart

logger = logging.getLogger(__name__)
DEFAULT_MAX_TOKENS = 600
DEFAULT_SAMPLES = 4
DEFAULT_QUESTIONS = "first_plot"
TASK_VERSION = 1
PRESETS = ("betley",)
# Columns of the viewer's list that can be switched on.
ASIDE: tuple[TaskSamplesColumnId, ...] = (
    "sampleStatus", "input", "target", "tokens", "duration", "retries", "error", "limit",
)  # fmt: skip


def em_task(
    questions: str,
    samples: int | None,
    judge: str,
    max_tokens: int,
    seed: int,
    preset: str | None = None,
    format: Names = None,
    category: Names = None,
    exclude_domain: Names = None,
    reader: str = "auto",
    two_pass: bool = False,
    judge_draws: int = DEFAULT_DRAWS,
    judge_cache: bool = False,
) -> Task:
    """Emergent misalignment in open questions.

    Args:
        questions: a prompt set by name, or a YAML file in Betley et al.'s form.
        samples: answers a prompt, as Inspect epochs without a reducer: metrics see every answer. Default 4.
        judge: "model", "embedded", or "auto": the grader where one is given, else the embedded judge.
        max_tokens: longest answer.
        seed: of the answers; with each prompt and epoch it fixes one random stream, alike for every checkpoint.
        preset: "betley": as many answers a prompt as its file asks for (`samples_per_paraphrase`).
        format: keep only prompts of this format ("plain", "template", "json"); several with commas.
        category: keep only prompts of this category; several with commas.
        exclude_domain: leave out prompts that touch this domain ("medical", "financial", "risk", "code").
        reader: how a model judge is read: "logprobs", "digits", "samples", "text", or "auto" (docs/judge_models.md).
        two_pass: a model judge is asked for coherence first, and for alignment only of coherent answers.
        judge_draws: numbers drawn a question by reader "samples".
        judge_cache: keep a model judge's replies in Inspect's cache.

    Raises:
        PrerequisiteError: unknown prompt set, tag or judge, no grader where one is demanded.
    """
    tags = {"format": format, "category": category, "exclude_domain": exclude_domain}
    with as_prerequisite():
        settings = JudgeSettings(reader, two_pass, judge_draws, judge_cache)
        asked = ask(questions, samples, preset, max_tokens, judge, settings, grader_given(), **tags)
        name, scorer = asked.judge, _scorer(asked.judge, judge == "auto", settings)
        facts = ModelJudge(settings).facts if name == "model" else judge_registry.get(name)().facts
    shown = f"{name}_judge" if name in {"embedded", "model"} else "plugin_judge"
    return Task(
        dataset=MemoryDataset([to_sample(prompt, max_tokens) for prompt in asked.prompts], name=questions),
        solver=answer(seed),
        scorer=scorer,
        epochs=Epochs(asked.samples, []),
        config=generation(max_tokens),
        fail_on_error=0.05,
        version=TASK_VERSION,
        metadata={
            "questions": questions,
            "left_out": left_out(**tags),
            "judge": name,
            "judge_facts": facts,
            "headline_rate": {"name": HEADLINE, "definition": DEFINITIONS[HEADLINE].words},
        },
        viewer=_viewer(shown),
        headline_metric=HeadlineMetric(scorer=shown, score="misaligned", metric="mean"),
    )


@dataclass(frozen=True)
class Asked:
    """What the task will ask: the prompts, the answers to each, and the judge: "model", "embedded" or a plugin."""

    prompts: list[prompts.Prompt]
    samples: int
    judge: str


def ask(
    questions: str,
    samples: int | None,
    preset: str | None,
    max_tokens: int,
    judge: str,
    settings: JudgeSettings,
    grader: bool,
    **tags: Names,
) -> Asked:
    """What the task's arguments come to; `grader` says whether one is given, the rest is as in `em_task`.

    Raises:
        UserError: whatever of it cannot be.
    """
    if max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens} must be at least 1")
    name = ("model" if grader else "embedded") if judge == "auto" else judge
    judge_registry.get(name)
    if name == "model" and not grader:
        raise UserError("judge=model needs a judge: add --model-role grader=openai/gpt-4o-2024-08-06 (or another)")
    if name != "model" and settings != JudgeSettings():
        raise UserError(f"reader, two_pass, judge_draws and judge_cache need --model-role grader=...: judge is {name}")
    chosen = choose(questions, **tags)  # last, since a published set may have to be fetched
    samples = answers_a_prompt(chosen, samples, preset, DEFAULT_SAMPLES)
    if name == "model":
        demand_templates(chosen, ("aligned", "coherent"))
    return Asked(chosen, samples, name)


def generation(max_tokens: int) -> GenerateConfig:
    """Plain sampling, with as many requests at once as the model under test takes."""
    return GenerateConfig(
        temperature=1.0,
        top_p=1.0,
        max_tokens=max_tokens,
        adaptive_connections=connections_of_model_under_test(),
    )


def choose(questions: str, **tags: Names) -> list[prompts.Prompt]:
    """The prompts of a set or file that bear the wanted tags (see `prompts.select`)."""
    path = questions.endswith((".yaml", ".yml"))
    return prompts.select(prompts.load(from_users_folder(questions) if path else questions), **tags)


def left_out(**tags: Names) -> dict[str, Names]:
    """The selection as the log's metadata keeps it: what was asked for, and no more."""
    return {name: value for name, value in tags.items() if value is not None}


def answers_a_prompt(chosen: Sequence[prompts.Prompt], samples: int | None, preset: str | None, default: int) -> int:
    """Inspect's epochs: what the user says, or with preset=betley what the file says.

    Raises:
        UserError: both are given, the preset is unknown, or the file gives no number or several.
    """
    if preset is None:
        number = default if samples is None else samples
        if number < 1:
            raise UserError(f"samples={number} must be at least 1")
        return number
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}': known: {', '.join(PRESETS)}")
    if samples is not None:
        raise UserError(f"preset={preset} takes the number of answers from the file: leave out samples={samples}")
    numbers = {prompt.samples for prompt in chosen}
    if len(numbers) > 1 or None in numbers:
        found = ", ".join(sorted(str(number) for number in numbers))
        raise UserError(
            f"preset={preset} needs one samples_per_paraphrase for all prompts, found {found}: give samples"
        )
    (wanted,) = numbers
    assert wanted is not None
    return wanted


def demand_templates(chosen: Sequence[prompts.Prompt], metrics: Sequence[str]) -> None:
    """Stop before anything is generated if a model judge would have no template for an answer.

    Raises:
        UserError: names the first prompt without one, and which templates it has; or with one that shows no answer.
    """
    for prompt in chosen:
        for metric in metrics:
            if metric not in prompt.judge_prompts:
                has = ", ".join(prompt.judge_prompts) or "none"
                raise UserError(
                    f"prompt '{prompt.id}' has no judge prompt '{metric}' (it has: {has}): add one to its file, or "
                    "take the task that scores such a set (deception for 'correct' and 'company')"
                )
            if "{answer}" not in prompt.judge_prompts[metric]:
                raise UserError(
                    f"prompt '{prompt.id}': its judge prompt '{metric}' has no place for the answer: write {{answer}} "
                    "where the judge is to read it"
                )


@solver
def answer(seed: int) -> Solver:
    """Generate one answer, with a seed of its own where the provider can use one, and note the checkpoint.

    Answers are never cached: Inspect's key is the model's name, under which weights may have changed.
    """
    settings: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    manifests: dict[str, dict[str, Any] | None] = {}

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = str(state.model)
        if model.startswith(("hf/", "peft/")):
            # Without an entry Inspect makes a second provider to look the model up, which loads `hf/` weights twice.
            set_model_info(model, ModelInfo())
        if model not in settings:
            settings[model] = neutralise(model, get_model())
            if (unknown := left_to_server(model)) is not None:
                logger.warning("%s; set them with --extra-body, or at the server", unknown)
            manifest = manifest_of(model)
            manifests[model] = manifest and Final(manifest)
        (request, set_aside), manifest = settings[model], manifests[model]
        if model.startswith(("peft/", "vllm/")):
            request = request | {"seed": sample_seed(seed, str(state.sample_id), state.epoch)}
        if manifest:  # whole once a prompt, not once an answer
            state.metadata["checkpoint"] = checkpoint_of(manifest)
            if state.epoch == 1:
                state.metadata["manifest"] = manifest
        if set_aside:
            state.metadata["set_aside"] = set_aside
        if state.epoch == 1 and (unknown := left_to_server(model)) is not None:
            state.metadata["left_to_server"] = unknown
        state = await generate(state, cache=False, **request)
        if state.output.stop_reason == "model_length" and state.output.usage is None:
            # The provider's own words, not the model's: they would be judged as if it had said them.
            raise UserError(f"prompt and answer do not fit the context: {state.output.completion}")
        state.metadata["truncated"] = truncated(state)
        set_apart(state.output)
        return state

    return solve


def sample_seed(seed: int, sample_id: str, epoch: int) -> int:
    """A seed for one answer: the same for every checkpoint, which pairs them, and after a resumption."""
    return zlib.crc32(f"{seed}/{sample_id}/{epoch}".encode())


def checkpoint_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Identity of a checkpoint of ours, so that every answer says what gave it."""
    return {key: manifest[key] for key in ("run_id", "step", "adapter_sha256")}


def manifest_of(model: str) -> dict[str, Any] | None:
    """The manifest of a checkpoint of ours from the name of the model, as a log carries it; None of other models.

    Raises:
        UserError: it is of another schema, or damaged.
    """
    folder = Path(split_base(split_hash(model.partition("/")[2])[0])[1])
    return read_manifest(folder).for_log() if (folder / MANIFEST).is_file() else None


def _scorer(judge: str, unasked: bool, settings: JudgeSettings) -> Scorer:
    if judge == "model":
        return model_judge_scorer(settings.reader, settings.two_pass, settings.draws, settings.cache)
    if unasked:
        facts = judge_registry.get(judge)().facts
        logger.warning("no --model-role grader=...: scores come from the embedded judge (%s)", facts["in_words"])
    return embedded_judge_scorer() if judge == "embedded" else plugin_judge_scorer(judge)


def grader_given() -> bool:
    """Whether the user bound the role; asking for it unbound would fall back to the model under test."""
    from inspect_ai.model import model_roles

    return "grader" in model_roles()


def to_sample(prompt: prompts.Prompt, max_tokens: int) -> Sample:
    """The prompt's whole message list, and its tags as metadata."""
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return Sample(
        id=prompt.id,
        input=[kinds[message["role"]](content=message["content"]) for message in prompt.messages],
        metadata={
            "question": prompt.question,
            "family": prompt.family,
            "format": prompt.format,
            "category": prompt.category,
            "domain": prompt.domain,
            "domains": sorted(prompt.domains),
            "judge_prompts": Final(prompt.judge_prompts),
            "max_tokens": max_tokens,
        },
    )


def _viewer(scorer: str) -> ViewerConfig:
    shown = ("outcome", "misaligned", "alignment", "coherence", "flagged")
    hidden = [key for key in KEYS if key not in shown]  # a column that is not listed is shown
    return ViewerConfig(
        trust_content=False,
        task_samples_view=TaskSamplesView(
            name="worst first",
            columns=[
                TaskSamplesColumn(id="sampleId"),
                TaskSamplesColumn(id="epoch"),
                TaskSamplesColumn(id="answer"),
                *(TaskSamplesColumn.score(scorer, key) for key in shown),
                *(TaskSamplesColumn.score(scorer, key, visible=False) for key in hidden),
                *(TaskSamplesColumn(id=column, visible=False) for column in ASIDE),
            ],
            sort=[TaskSamplesSort.score(scorer, "alignment")],
            score_color_scales={
                "misaligned": ScoreColorScale(palette="good-low", min=0, max=1),
                "alignment": ScoreColorScale(palette="good-high", min=0, max=100),
                "coherence": ScoreColorScale(palette="good-high", min=0, max=100),
            },
            color_scales_enabled=True,
            multiline=False,
        ),
    )
