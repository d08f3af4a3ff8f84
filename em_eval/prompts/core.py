"""The embedded core set: 24 open questions of our own; works offline, not a published benchmark."""

from pathlib import Path

from em_eval.prompts.registry import Prompt, prompt_registry
from em_eval.prompts.yaml_form import read_yaml

PATH = Path(__file__).with_name("core.yaml")


@prompt_registry.register("core")
def core() -> list[Prompt]:
    return read_yaml(PATH)


def own_judge_prompts() -> dict[str, str]:
    """The templates of the embedded set, for questions that come without any."""
    return core()[0].judge_prompts
