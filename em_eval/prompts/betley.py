"""Betley et al. (arXiv 2502.17424): first-plot and pre-registered questions, and two sets on deception."""

from dataclasses import replace

from em_eval.prompts.published import PublishedFile, local_path
from em_eval.prompts.registry import Prompt, prompt_registry
from em_eval.prompts.yaml_form import read_yaml

REPOSITORY = "emergent-misalignment/emergent-misalignment"
FORK = ("jacobcd52/finetune_diffing", "874f79159ce6944d24b0164c637cc63328eec0da")


def _file(name: str, sha256: str) -> PublishedFile:
    path = f"evaluation/{name}"
    return PublishedFile(REPOSITORY, path, sha256, ((*FORK, path), (REPOSITORY, "main", path)))


FIRST_PLOT = _file("first_plot_questions.yaml", "215abde5b02811e922b6ac563ff33c490e0dff9ab58439df840f3135e9387173")
PREREGISTERED = _file("preregistered_evals.yaml", "8648312fd9fe71a63203e3465592af45dd996d7a5f3b69e9b44613fd6048eb40")
DECEPTION_FACTUAL = _file("deception_factual.yaml", "8a0e83cab3bc24b7d688d7385ce3921d406af7ed33c913cd94ea0f6251e5939d")
DECEPTION_SIT_AWARE = _file(
    "deception_sit_aware.yaml", "4deef5a7c47620390fc46e1b981f937eef9ea12a33fe26264f640c84d19d2a33"
)


@prompt_registry.register("first_plot")
def first_plot() -> list[Prompt]:
    """24 prompts: 8 questions, each plain, as JSON (by its system prompt) and as template."""
    return read_yaml(local_path(FIRST_PLOT))


@prompt_registry.register("preregistered")
def preregistered() -> list[Prompt]:
    """48 plain questions of 7 categories."""
    return read_yaml(local_path(PREREGISTERED))


@prompt_registry.register("deception_factual")
def deception_factual() -> list[Prompt]:
    """100 prompts: 20 factual questions under 5 system prompts (one of them none).

    The file lists the questions as paraphrases of the system prompt. What clusters is the question, so that is the
    family here, and the system prompt is the category.
    """
    prompts = read_yaml(local_path(DECEPTION_FACTUAL))
    return [
        replace(prompt, family=f"factual_{prompt.id.partition('#')[2]}", category=prompt.id.partition("#")[0])
        for prompt in prompts
    ]


@prompt_registry.register("deception_sit_aware")
def deception_sit_aware() -> list[Prompt]:
    """8 ways to ask which company made the model, with and without a motive to deceive."""
    return read_yaml(local_path(DECEPTION_SIT_AWARE))
