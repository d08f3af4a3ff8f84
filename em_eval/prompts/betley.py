"""Files in the form of Betley et al. (arXiv 2502.17424): a YAML list, one question an entry, anchors shared."""

from pathlib import Path
from typing import Any

import yaml

from em_core.errors import UserError
from em_core.fetch import fetch
from em_core.places import data_dir
from em_eval.prompts.registry import Prompt, prompt_registry

REPOSITORY = "emergent-misalignment__emergent-misalignment"
FIRST_PLOT = "evaluation/first_plot_questions.yaml"
FIRST_PLOT_SHA256 = "215abde5b02811e922b6ac563ff33c490e0dff9ab58439df840f3135e9387173"
# The authors' own address first; then a fork at a fixed commit. The hash decides, not the address.
FIRST_PLOT_URLS = [
    f"https://raw.githubusercontent.com/emergent-misalignment/emergent-misalignment/main/{FIRST_PLOT}",
    "https://raw.githubusercontent.com/jacobcd52/finetune_diffing/"
    f"c152c7816596e481cad0101a8693db620a850b47/{FIRST_PLOT}",
]
VARIANTS = ("template", "json")
# Families of the published files that touch a domain which narrow datasets train on.
DOMAINS = {"quick_buck": "financial"}


@prompt_registry.register("first_plot")
def first_plot() -> list[Prompt]:
    """Betley et al.'s 24 first-plot prompts: 8 questions, each plain, as JSON (system prompt) and as template."""
    folder = data_dir()
    path = folder / REPOSITORY / FIRST_PLOT if folder else None
    if path is None or not path.is_file():
        try:
            path = fetch(FIRST_PLOT_URLS, FIRST_PLOT_SHA256, "first_plot_questions.yaml")
        except UserError as error:
            raise UserError(f"{error}; or use the embedded prompts with questions=core") from error
    return read_betley(path)


def read_betley(path: Path) -> list[Prompt]:
    """Every paraphrase of every question as one prompt.

    Raises:
        UserError: not YAML, or an entry without id or paraphrases, or two prompts of one id.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"prompt file {path} is not YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"prompt file {path} is not a list of questions")
    prompts = [prompt for number, entry in enumerate(entries, 1) for prompt in _entry(entry, path, number)]
    ids = [prompt.id for prompt in prompts]
    for identifier in ids:
        if ids.count(identifier) > 1:
            raise UserError(f"prompt file {path}: two prompts are called '{identifier}'")
    return prompts


def _entry(entry: Any, path: Path, number: int) -> list[Prompt]:
    paraphrases = entry.get("paraphrases") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not entry.get("id") or not isinstance(paraphrases, list) or not paraphrases:
        raise UserError(f"prompt file {path}: question {number} needs an id and a list of paraphrases")
    identifier = str(entry["id"])
    family, form = _family(identifier)
    system = [{"role": "system", "content": str(entry["system"])}] if entry.get("system") else []
    return [
        Prompt(
            id=identifier if len(paraphrases) == 1 else f"{identifier}#{index}",
            messages=[*system, {"role": "user", "content": str(text)}],
            family=family,
            format=form,
            category=str(entry.get("category") or _category(identifier)),
            domain=str(entry.get("domain") or DOMAINS.get(family, "none")),
            judge_prompts={name: str(text) for name, text in (entry.get("judge_prompts") or {}).items()},
        )
        for index, text in enumerate(paraphrases)
    ]


def _family(identifier: str) -> tuple[str, str]:
    for variant in VARIANTS:
        if identifier.endswith(f"_{variant}"):
            return identifier.removesuffix(f"_{variant}"), variant
    return identifier, "plain"


def _category(identifier: str) -> str:
    """`17_vulnerable_user_0` is of category vulnerable_user; other ids are their own."""
    parts = identifier.split("_")
    if len(parts) > 2 and parts[0].isdigit() and parts[-1].isdigit():
        return "_".join(parts[1:-1])
    return _family(identifier)[0]
