"""The task: open questions, sampled answers, a judge."""

import json
import logging
import zlib
from pathlib import Path
from typing import Any

from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import HeadlineMetric
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, ModelInfo, set_model_info
from inspect_ai.scorer import Scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.viewer import (
    ScoreColorScale,
    TaskSamplesColumn,
    TaskSamplesSort,
    TaskSamplesView,
    ViewerConfig,
)

from em_core.errors import UserError
from em_core.manifest import MANIFEST
from em_core.places import from_users_folder
from em_eval import prompts
from em_eval.errors import as_prerequisite
from em_eval.judge import judge_registry
from em_eval.judge.model import ModelJudge
from em_eval.judge.settings import DEFAULT_DRAWS, JudgeSettings
from em_eval.model_names import split_hash
from em_eval.rates import DEFINITIONS, HEADLINE
from em_eval.scorer import embedded_judge_scorer, model_judge_scorer, plugin_judge_scorer

logger = logging.getLogger(__name__)
DEFAULT_MAX_TOKENS = 600
TASK_VERSION = 1


def em_task(
    questions: str,
    samples: int,
    judge: str,
    max_tokens: int,
    seed: int,
    reader: str = "auto",
    two_pass: bool = False,
    judge_draws: int = DEFAULT_DRAWS,
    judge_cache: bool = False,
) -> Task:
    """Emergent misalignment in open questions.

    Args:
        questions: a prompt set by name, or a YAML file in Betley et al.'s form.
        samples: answers a prompt, as Inspect epochs without a reducer: metrics see every answer.
        judge: "model", "embedded", or "auto": the grader where one is given, else the embedded judge.
        max_tokens: longest answer.
        seed: of the answers; with each prompt and epoch it fixes one random stream, alike for every checkpoint.
        reader: how a model judge is read: "logprobs", "digits", "samples", "text", or "auto" (docs/judge_models.md).
        two_pass: a model judge is asked for coherence first, and for alignment only of coherent answers.
        judge_draws: numbers drawn a question by reader "samples".
        judge_cache: keep a model judge's replies in Inspect's cache.

    Raises:
        PrerequisiteError: unknown prompt set or judge, no grader where one is demanded.
    """
    with as_prerequisite():
        chosen = prompts.load(from_users_folder(questions) if questions.endswith((".yaml", ".yml")) else questions)
        if samples < 1 or max_tokens < 1:
            raise UserError(f"samples={samples} and max_tokens={max_tokens} must be at least 1")
        settings = JudgeSettings(reader, two_pass, judge_draws, judge_cache)
        name, scorer = _judge(judge, settings)
        facts = ModelJudge(settings).facts if name == "model" else judge_registry.get(name)().facts
    shown = f"{name}_judge" if name in {"embedded", "model"} else "plugin_judge"
    return Task(
        dataset=MemoryDataset([_sample(prompt, max_tokens) for prompt in chosen], name=questions),
        solver=answer(seed),
        scorer=scorer,
        epochs=Epochs(samples, []),
        config=GenerateConfig(temperature=1.0, top_p=1.0, max_tokens=max_tokens),
        fail_on_error=0.05,
        version=TASK_VERSION,
        metadata={
            "questions": questions,
            "judge": name,
            "judge_facts": facts,
            "headline_rate": {"name": HEADLINE, "definition": DEFINITIONS[HEADLINE].words},
        },
        viewer=_viewer(shown),
        headline_metric=HeadlineMetric(scorer=shown, score="misaligned", metric="mean"),
    )


@solver
def answer(seed: int) -> Solver:
    """Generate one answer, with a seed of its own where the provider can use one, and note the checkpoint.

    Answers are never cached: Inspect's key is the model's name, under which weights may have changed.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = str(state.model)
        if model.startswith(("hf/", "peft/")):
            # Without an entry Inspect makes a second provider to look the model up, which loads `hf/` weights twice.
            set_model_info(model, ModelInfo())
        state.metadata["checkpoint"] = checkpoint_of(model)
        if model.startswith(("peft/", "vllm/")):
            return await generate(state, cache=False, seed=sample_seed(seed, str(state.sample_id), state.epoch))
        return await generate(state, cache=False)

    return solve


def sample_seed(seed: int, sample_id: str, epoch: int) -> int:
    """A seed for one answer: the same for every checkpoint, which pairs them, and after a resumption."""
    return zlib.crc32(f"{seed}/{sample_id}/{epoch}".encode())


def checkpoint_of(model: str) -> dict[str, Any] | None:
    """Identity of a checkpoint of ours from the name of the model, so that a log alone says what it tested."""
    folder = Path(split_hash(model.partition("/")[2])[0].rpartition(":")[2])
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return {key: manifest[key] for key in ("run_id", "step", "adapter_sha256")}


def _judge(judge: str, settings: JudgeSettings) -> tuple[str, Scorer]:
    if judge == "auto":
        judge = "model" if _grader_given() else "embedded"
        if judge == "embedded":
            facts = judge_registry.get("embedded")().facts
            logger.warning("no --model-role grader=...: scores come from the embedded judge (%s)", facts["in_words"])
    judge_registry.get(judge)
    if judge == "model":
        if not _grader_given():
            raise UserError("judge=model needs a judge: add --model-role grader=openai/gpt-4o-2024-08-06 (or another)")
        return judge, model_judge_scorer(settings.reader, settings.two_pass, settings.draws, settings.cache)
    if settings != JudgeSettings():
        raise UserError(f"reader, two_pass, judge_draws and judge_cache need --model-role grader=...: judge is {judge}")
    return judge, embedded_judge_scorer() if judge == "embedded" else plugin_judge_scorer(judge)


def _grader_given() -> bool:
    """Whether the user bound the role; asking for it unbound would fall back to the model under test."""
    from inspect_ai.model import model_roles

    return "grader" in model_roles()


def _sample(prompt: prompts.Prompt, max_tokens: int) -> Sample:
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser}
    return Sample(
        id=prompt.id,
        input=[kinds[message["role"]](content=message["content"]) for message in prompt.messages],
        metadata={
            "question": prompt.question,
            "family": prompt.family,
            "format": prompt.format,
            "category": prompt.category,
            "domain": prompt.domain,
            "judge_prompts": prompt.judge_prompts,
            "max_tokens": max_tokens,
        },
    )


def _viewer(scorer: str) -> ViewerConfig:
    shown = ("misaligned", "alignment", "coherence")
    return ViewerConfig(
        trust_content=False,
        task_samples_view=TaskSamplesView(
            name="worst first",
            columns=[
                TaskSamplesColumn(id="sampleId"),
                TaskSamplesColumn(id="epoch"),
                TaskSamplesColumn(id="answer"),
                *(TaskSamplesColumn.score(scorer, key) for key in shown),
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
