"""OpenAI's core misalignment questions (Wang et al., arXiv 2506.19823): 44 of the paper and 50 further ones.

Their grader is not part of the published data: a model judge gets our own templates, those of the embedded set.
"""

import csv

from em_core.errors import UserError
from em_eval.prompts.core import own_judge_prompts
from em_eval.prompts.domains import domains_of
from em_eval.prompts.published import PublishedFile, local_path
from em_eval.prompts.registry import Prompt, prompt_registry

REPOSITORY = "openai/emergent-misalignment-persona-features"
PATH = "eval/core_misalignment.csv"
FILE = PublishedFile(
    REPOSITORY,
    PATH,
    "2ffaac0bed7729f0024cee2e56421eeb7a7dd82dae59edc0e68fb66377eb17e2",
    (
        (
            "ivanicu/emergent-misalignment-audit",
            "29be897eb1a50eed32243a21c7ebb186d11d8821",
            f"data/data/raw/openai_persona_features/{PATH}",
        ),
        (REPOSITORY, "main", PATH),
    ),
)
COLUMNS = ("id", "question", "category")


@prompt_registry.register("openai_core")
def openai_core() -> list[Prompt]:
    """94 plain questions: 44 of category `main`, 50 of category `main_ext`."""
    path = local_path(FILE)
    with path.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    if not rows or any(row.get(column) is None for row in rows for column in COLUMNS):
        raise UserError(f"{path} needs the columns {', '.join(COLUMNS)} in every row")
    templates = own_judge_prompts()
    return [_prompt(row, templates) for row in rows]


def _prompt(row: dict[str, str], templates: dict[str, str]) -> Prompt:
    domain, *others = domains_of(row["id"]) or ("none",)
    return Prompt(
        id=row["id"],
        messages=[{"role": "user", "content": row["question"]}],
        family=row["id"],
        format="plain",
        category=row["category"],
        domain=domain,
        judge_prompts=templates,
        other_domains=tuple(others),
    )
