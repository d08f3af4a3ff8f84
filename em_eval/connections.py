"""How many requests are under way at once.

Inspect begins with 20 and adds more as answers come back. That spares a server with rate limits; a model in this
process has none, and what it was not sent yet is missing from its batch. Inspect asks a provider for its own number
only where adaptive connections are off, so it is given here, as their start: `--max-connections` still wins, and a
grader, which inherits the setting, still slows down where its provider says so.
"""

from inspect_ai.model._model import (
    active_model,
)  # inspect-evals-lint: ignore[private_api_imports] -- the public get_model() would make one up where none is active
from inspect_ai.util import AdaptiveConcurrency

IN_PROCESS = "peft/"


def beginning_with(connections: int) -> AdaptiveConcurrency:
    """Adaptive connections that begin with all of `connections`."""
    return AdaptiveConcurrency(start=connections, max=connections)


def connections_of_model_under_test() -> AdaptiveConcurrency | None:
    """As many as a `peft/` model takes; None for every other provider, and where a task is made before its model."""
    model = active_model()
    if model is None or not str(model).startswith(IN_PROCESS):
        return None
    return beginning_with(model.api.max_connections())
