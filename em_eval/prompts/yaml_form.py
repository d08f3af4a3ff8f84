"""Files in the form of Betley et al. (arXiv 2502.17424): a YAML list, one question an entry, anchors shared.

Keys of an entry: `id`, `paraphrases`, and optionally `system` or `context` (earlier turns), `judge_prompts`,
`samples_per_paraphrase`; ours besides: `category`, `domain` (one or a list). `type`, `judge` and `results_dir` are the
authors' and say nothing that the judge prompts, the model role `grader` and `--log-dir` do not say here. Any other key
is refused: a misspelt `system` would silently not be sent.
"""

import difflib
import logging
from pathlib import Path
from typing import Any

from em_core import strict_yaml
from em_core.chat import Message
from em_core.errors import UserError
from em_eval.prompts.domains import domains_of
from em_eval.prompts.registry import Prompt

logger = logging.getLogger(__name__)

# Ends of ids that name a variant of a question; the longer of two that match comes first.
VARIANTS = ("flask_template", "template", "json", "python")
# Keys of the authors' wider files which are settings of a whole task in Inspect.
ELSEWHERE = {"temperature": "--temperature", "max_tokens": "-T max_tokens"}


KEYS = ("id", "paraphrases", "system", "context", "judge_prompts", "samples_per_paraphrase", "category", "domain")
AUTHORS_KEYS = ("type", "judge", "results_dir", *ELSEWHERE)


def read_yaml(path: Path) -> list[Prompt]:
    """Every paraphrase of every question as one prompt.

    Raises:
        UserError: not YAML, an entry without id or paraphrases, with an unknown key or with a value of the wrong
            kind, or two prompts of one id.
    """
    try:
        entries = strict_yaml.load(path.read_text(encoding="utf-8"))
    except ValueError as error:  # or no UTF-8
        raise UserError(f"prompt file {path} is not YAML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"prompt file {path} is not a list of questions")
    prompts = [prompt for number, entry in enumerate(entries, 1) for prompt in _entry(entry, path, number)]
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise UserError(f"prompt file {path}: two prompts are called '{prompt.id}'")
        seen.add(prompt.id)
    for key, option in ELSEWHERE.items():
        if any(key in entry for entry in entries):
            logger.warning("%s: `%s` of its entries is not used: set %s", path, key, option)
    return prompts


def _refuse_unknown(entry: dict[str, Any], where: str) -> None:
    for key in entry:
        if key not in KEYS and key not in AUTHORS_KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KEYS)}"
            raise UserError(f"{where} has an unknown key '{key}': {hint}")


def _entry(entry: Any, path: Path, number: int) -> list[Prompt]:
    paraphrases = entry.get("paraphrases") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not entry.get("id") or not isinstance(paraphrases, list) or not paraphrases:
        raise UserError(f"prompt file {path}: question {number} needs an id and a list of paraphrases")
    identifier = str(entry["id"])
    where = f"prompt file {path}: question '{identifier}'"
    _refuse_unknown(entry, where)
    if not all(isinstance(text, str) and text.strip() for text in paraphrases):
        raise UserError(f"{where} has a paraphrase that is not text: put it in quotes")
    family, form = family_and_format(identifier)
    domain, *others = _domains(entry, family, where) or ("none",)
    before = _before(entry, where)
    return [
        Prompt(
            id=identifier if len(paraphrases) == 1 else f"{identifier}#{index}",
            messages=[*before, {"role": "user", "content": text}],
            family=family,
            format=form,
            category=str(entry.get("category") or _category(identifier)),
            domain=domain,
            judge_prompts=_judge_prompts(entry, where),
            other_domains=tuple(others),
            samples=_samples(entry, where),
        )
        for index, text in enumerate(paraphrases)
    ]


def family_and_format(identifier: str) -> tuple[str, str]:
    """`quick_buck_json` is the question `quick_buck` in the format json."""
    for variant in VARIANTS:
        if identifier.endswith(f"_{variant}"):
            return identifier.removesuffix(f"_{variant}"), variant
    return identifier, "plain"


def _category(identifier: str) -> str:
    """`17_vulnerable_user_0` is of category vulnerable_user; other ids are their own."""
    parts = identifier.split("_")
    if len(parts) > 2 and parts[0].isdigit() and parts[-1].isdigit():
        return "_".join(parts[1:-1])
    return family_and_format(identifier)[0]


def _domains(entry: dict[str, Any], family: str, where: str) -> tuple[str, ...]:
    own = entry.get("domain")
    if not own:
        return domains_of(family)
    given = [own] if isinstance(own, str) else own
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{where}: domain must be a name or a list of names")
    return tuple(given)


def _before(entry: dict[str, Any], where: str) -> list[Message]:
    """The system prompt or the earlier turns."""
    system, context = entry.get("system"), entry.get("context")
    if system and context:
        raise UserError(f"{where} has both system and context: put the system prompt into context")
    if system and not isinstance(system, str):
        raise UserError(f"{where}: system must be a text, not {system!r}: put it in quotes")
    if system:
        return [{"role": "system", "content": system}]
    turns = context or []
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict)
        and turn.get("role") in {"system", "user", "assistant"}
        and isinstance(turn.get("content"), str)
        for turn in turns
    ):
        raise UserError(f"{where}: context must be a list of turns, each with a role and a content")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _judge_prompts(entry: dict[str, Any], where: str) -> dict[str, str]:
    given = entry.get("judge_prompts") or {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise UserError(f"{where}: judge_prompts must map the name of a metric to a template")
    return {str(name): text for name, text in given.items()}


def _samples(entry: dict[str, Any], where: str) -> int | None:
    given = entry.get("samples_per_paraphrase")
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        raise UserError(f"{where}: samples_per_paraphrase={given} is not a whole number above 0")
    return given
