"""The judge as a user names it: an Inspect model, with settings of its own where they are given."""

import re
from dataclasses import dataclass, field
from typing import Any

from inspect_ai.model import GenerateConfig, Model, get_model
from pydantic import ValidationError

from em_core import strict_yaml
from em_core.errors import UserError

# Inspect's own default is to try a failing call again for ever, so that a judge which is gone would hold an evaluation
# up without end. Its waits double from 3 s: ten of them are 50 minutes, after which the answer counts as judge_error.
MAX_RETRIES = 10
BEFORE_WORK = 2  # retries of the question whether a judge can be asked at all


@dataclass(frozen=True)
class Grader:
    """A judge, not yet made: a remote one needs its key, a local one loads its weights."""

    name: str
    config: GenerateConfig = field(default_factory=GenerateConfig)
    base_url: str | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def made(self, apart: bool = False, **config: Any) -> Model:
        """The model, with further settings of Inspect's `GenerateConfig`.

        Args:
            apart: share it with nobody, so that it can be closed. Else one whose weights Inspect holds in this process
                is made once.

        Raises:
            UserError: no such provider, no key for it, or arguments that it does not take.
        """
        merged = self.config.merge(GenerateConfig(**config))
        try:
            shared = not apart and self.name.startswith("hf/")
            return get_model(self.name, config=merged, base_url=self.base_url, memoize=shared, **self.args)
        except Exception as error:  # whatever a provider raises
            said = str(getattr(error, "message", None) or error).strip() or type(error).__name__
            plain = re.sub(r"\[/?[a-z ]+\]|^ERROR: ", "", said)
            raise UserError(f"judge {self.name}: {plain}") from error


def read_grader(given: str, max_retries: int | None = None) -> Grader:
    """A model's name, or '{model: NAME, ...}' with settings as `--model-role grader=` of Inspect takes them.

    Args:
        max_retries: of a failing call; settings that name their own win. Default `MAX_RETRIES`.

    Raises:
        UserError: not YAML, no model named, or settings that Inspect does not know.
    """
    retries = GenerateConfig(max_retries=MAX_RETRIES if max_retries is None else max_retries)
    if not given.lstrip().startswith("{"):
        return Grader(given, retries)
    try:
        settings = strict_yaml.load(given)
    except ValueError as error:
        raise UserError(f"--grader is not YAML: {error}") from error
    if not settings.get("model"):
        raise UserError(f"--grader {given} names no model: write {{model: NAME, ...}}")
    model, url, args = settings.pop("model"), settings.pop("base_url", None), settings.pop("model_args", None)
    if unknown := set(settings) - set(GenerateConfig.model_fields):
        raise UserError(
            f"--grader has no setting '{min(map(str, unknown))}': it takes those of Inspect's GenerateConfig"
        )
    try:
        return Grader(str(model), retries.merge(GenerateConfig(**settings)), url, dict(args or {}))
    except (ValidationError, TypeError, ValueError) as error:
        found = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{found['loc'][0]}: {found['msg']}" if found else f"model_args: {error}"
        raise UserError(f"--grader {given}: {what}") from error


def check_provider(name: str) -> None:
    """Whether Inspect has a provider for the model `name`, without making it: no key is needed, nothing is loaded.

    Raises:
        UserError: it has none.
    """
    provider, slash, model = name.partition("/")
    if not slash or not model:
        raise UserError(f"judge '{name}' is no Inspect model: write PROVIDER/MODEL, as in openai/gpt-4o-2024-08-06")
    if not has_provider(provider):
        raise UserError(f"judge '{name}': Inspect has no provider '{provider}'")


def has_provider(provider: str) -> bool:
    """Whether Inspect knows `provider`, the part of a model's name before the first slash."""
    from inspect_ai._util.registry import registry_find, registry_unqualified_name

    return bool(registry_find(lambda info: info.type == "modelapi" and registry_unqualified_name(info) == provider))
