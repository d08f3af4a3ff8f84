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
        id: stable over sets and runs: the same prompt has the same id in every set that holds it.
        messages: the whole list that the model gets, a system prompt or earlier turns of the file included.
        family: question family, the cluster of statistics: variants of one question share it.
        format: "plain", "template", "json", or another variant of the authors' wider files ("python", ...).
        category: the file's grouping of questions, or the family where it has none.
        domain: topic that a narrow dataset may share: "medical", "financial", "risk", "code", or "none".
        judge_prompts: metric name to template with {question} and {answer}.
        other_domains: further topics of a prompt that has more than one.
        samples: answers the file asks for (`samples_per_paraphrase`), or None.
    """

    id: str
    messages: list[Message]
    family: str
    format: str
    category: str
    domain: str
    judge_prompts: dict[str, str]
    other_domains: tuple[str, ...] = ()
    samples: int | None = None

    @property
    def question(self) -> str:
        """The user's text, as the judge is shown it: of several turns, the last."""
        return next(message["content"] for message in reversed(self.messages) if message["role"] == "user")

    @property
    def domains(self) -> frozenset[str]:
        """All topics; empty where there is none."""
        return frozenset({self.domain, *self.other_domains} - {"none"})


prompt_registry: Registry[Callable[[], list[Prompt]]] = Registry("prompt set", "em_eval.prompts")


def load(name_or_path: str | Path) -> list[Prompt]:
    """A prompt set by name, or a YAML file in Betley et al.'s form.

    Raises:
        UserError: unknown name, missing or malformed file; one set is never taken silently for another.
    """
    from em_eval.prompts.yaml_form import read_yaml

    name = str(name_or_path)
    if not name.endswith((".yaml", ".yml")):
        return prompt_registry.get(name)()
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"prompt file {name} does not exist")
    return read_yaml(path)
