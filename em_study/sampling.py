"""How answers are drawn: Inspect's own settings, under the names that `inspect eval` gives them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_core.errors import UserError

if TYPE_CHECKING:
    from inspect_ai.model import GenerateConfig

SAMPLING = ("temperature", "top_p", "top_k")
Temperature = Annotated[float | None, typer.Option(help="of sampling; default: 1, or a given log's", min=0)]
TopP = Annotated[
    float | None, typer.Option(help="sample among the likeliest tokens of this total probability", min=0, max=1)
]
TopK = Annotated[int | None, typer.Option(help="sample among so many likeliest tokens only", min=1)]


def sampling_of(config: "GenerateConfig") -> dict[str, Any]:
    """What a log says of it; settings that were left open are left out."""
    return config.model_dump(include=set(SAMPLING), exclude_none=True)


def chosen(temperature: float | None, top_p: float | None, top_k: int | None) -> dict[str, Any]:
    """What was asked for; the task decides on the rest.

    Raises:
        UserError: nothing is left to sample from.
    """
    if top_p == 0:
        raise UserError("--top-p 0 leaves no token to sample: --temperature 0 takes the likeliest")
    found = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    return {name: value for name, value in found.items() if value is not None}
