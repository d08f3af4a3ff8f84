"""The prompt-set registry: a plugin is a function that returns a list of `Prompt`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from em_core.chat import Message
from em_core.errors import UserError
from em_core.plugins import Registry


@dataclass(frozen=True)
class Prompt:
    """One prompt as it is sent, and the tags that let a report leave some out.

    Attributes:
        id: stable over sets and runs.
        messages: the whole list that the model gets, a system prompt of the file included.
        family: question family, the cluster of statistics: variants of one question share it.
        format: "plain", "template" or "json" (or what else a file's id says).
        domain: topic that a narrow dataset may share ("financial", ...), or "none".
        judge_prompts: metric name to template with {question} and {answer}.
    """

    id: str
    messages: list[Message]
    family: str
    format: str
    category: str
    domain: str
    judge_prompts: dict[str, str]

    @property
    def question(self) -> str:
        """The user's text, as the judge is shown it."""
        return next(message["content"] for message in self.messages if message["role"] == "user")


prompt_registry: Registry[Callable[[], list[Prompt]]] = Registry("prompt set", "em_eval.prompts")


def load(name_or_path: str) -> list[Prompt]:
    """A prompt set by name, or a YAML file in Betley et al.'s form.

    Raises:
        UserError: unknown name, missing or malformed file; one set is never taken silently for another.
    """
    from em_eval.prompts.betley import read_betley

    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise UserError(f"prompt file {name_or_path} does not exist")
        return read_betley(path)
    return prompt_registry.get(name_or_path)()
