"""Reading a judge that writes "85" as "8", "5": walk the digits until every number has its probability."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence

# Next-token probabilities after each of some beginnings of the reply ("" is none), by the token's text.
NextTokens = Callable[[Sequence[str]], Awaitable[list[Mapping[str, float]]]]
# A beginning less likely than this is not walked: the expectation over 0 to 100 then errs by at most 100 times the
# mass left out, which is kept under UNWALKED.
LEAST_BRANCH = 1e-3
UNWALKED = "(digits not walked)"


async def walk(next_tokens: NextTokens, least: float = LEAST_BRANCH) -> dict[str, float]:
    """Distribution of the whole reply, to be read like that of one token.

    P("85") = P("8") P("5" | "8"), P("8") = P("8") P(no digit | "8"), and so on; a token of several digits counts as
    they stand. Numbers that no further digit can keep within 100 are final: what follows them is not asked.
    """
    found: dict[str, float] = {}

    def add(text: str, probability: float) -> None:
        found[text] = found.get(text, 0.0) + probability

    (start,) = await next_tokens([""])
    level: dict[str, float] = {}
    for token, probability in start.items():
        digits = token.strip()
        if may_go_on(digits):
            level[digits] = level.get(digits, 0.0) + probability
        else:
            add(token, probability)
    while level:
        walked = {digits: probability for digits, probability in level.items() if probability >= least}
        if left := sum(level.values()) - sum(walked.values()):
            add(UNWALKED, left)
        level = {}
        following = await next_tokens(list(walked)) if walked else []
        for (digits, probability), tokens in zip(walked.items(), following, strict=True):
            ended = 1.0
            for token, share in tokens.items():
                more = re.match(r"[0-9]+", token)  # a space before a digit ends the number
                if more is None:
                    continue
                ended -= share
                longer = digits + more[0]
                if more[0] == token and may_go_on(longer):
                    level[longer] = level.get(longer, 0.0) + probability * share
                else:
                    add(longer, probability * share)
            add(digits, probability * max(ended, 0.0))
    return found


def may_go_on(digits: str) -> bool:
    """Whether another digit can follow within 0 to 100, without leading zeros."""
    return digits == "10" or (len(digits) == 1 and digits in "123456789")
