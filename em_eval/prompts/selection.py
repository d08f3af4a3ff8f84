"""Which prompts of a set to ask: by format, by category, without the domains that training shared."""

import difflib
from collections.abc import Sequence

from em_core.errors import UserError
from em_eval.prompts.domains import DOMAINS
from em_eval.prompts.registry import Prompt

Names = str | Sequence[str] | None


def select(
    prompts: Sequence[Prompt], *, format: Names = None, category: Names = None, exclude_domain: Names = None
) -> list[Prompt]:
    """The prompts of these formats and categories, without those that touch an excluded domain.

    Args:
        format: "plain", "template", "json", ...; several as a list or with commas; None keeps all.
        category: as `format`.
        exclude_domain: a prompt of two domains goes with either.

    Raises:
        UserError: a name that no prompt of the set bears (a typing error would silently keep or drop prompts), or
            nothing is left.
    """
    kinds = _known(format, {prompt.format for prompt in prompts}, "format")
    groups = _known(category, {prompt.category for prompt in prompts}, "category")
    without = _known(exclude_domain, {*DOMAINS, *(d for prompt in prompts for d in prompt.domains)}, "domain")
    left = [
        prompt
        for prompt in prompts
        if (not kinds or prompt.format in kinds)
        and (not groups or prompt.category in groups)
        and not prompt.domains & without
    ]
    if not left:
        raise UserError(
            f"no prompt is left with format={format}, category={category}, exclude_domain={exclude_domain}: "
            "leave one of them out"
        )
    return left


def _known(given: Names, known: set[str], kind: str) -> set[str]:
    if given is None:
        return set()
    names = {part.strip() for part in (given.split(",") if isinstance(given, str) else given) if part.strip()}
    for name in sorted(names - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
        raise UserError(f"no {kind} '{name}' in this prompt set: {hint}")
    return names
