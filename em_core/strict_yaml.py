"""YAML in which a key given twice is a mistake: PyYAML keeps the last one and says nothing."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As written: what `<<` merges in comes later, and may be said otherwise."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key '{key.value}' is given twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


def load(text: str) -> Any:
    """Plain values from a YAML document, as `yaml.safe_load`.

    Raises:
        ValueError: not YAML, a key given twice, a date that no calendar has, or nested too deep; with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(_in_one_line(error)) from error


def _in_one_line(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return (str(error).splitlines() or [type(error).__name__])[0]
