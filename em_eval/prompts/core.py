"""The embedded core set: 24 open questions of our own; works offline, not a published benchmark."""

from pathlib import Path

from em_eval.prompts.betley import read_betley
from em_eval.prompts.registry import Prompt, prompt_registry

PATH = Path(__file__).with_name("core.yaml")


@prompt_registry.register("core")
def core() -> list[Prompt]:
    return read_betley(PATH)
