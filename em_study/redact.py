"""Files without this machine's paths: what is published must not say where, and under whose name, it was made."""

import html
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from huggingface_hub import constants
from inspect_ai.log import read_eval_log, write_eval_log

import em_study
from em_core.errors import UserError
from em_core.files import write_json, write_text
from em_core.places import cache_dir, data_dir

Redact = Callable[[str], str]
TEXT = {".csv", ".html", ".jsonl", ".md", ".svg", ".txt", ".yaml", ".yml"}
HIDDEN = "$HIDDEN"


def machine_paths(named: Iterable[str] = (), hidden: Iterable[str] = ()) -> dict[str, str]:
    """Every path that says something of this machine, and what stands for it.

    Args:
        named: what a study calls by its path (a base model, rows, questions): its last part stands for it, unless it
            lies in a place that has a name.
        hidden: further paths or words, such as the folders of other machines.
    """
    found: dict[str, str] = {}
    for name, place in _places():
        for path in (place.absolute(), place.resolve()):
            if path != Path(path.anchor):
                found.setdefault(str(path), name)
    for path in map(Path, named):
        if path.is_absolute() and not any(path.is_relative_to(place) for place in found):
            found[str(path)] = path.name
    return found | {text: HIDDEN for text in hidden}


def _places() -> Iterator[tuple[str, Path]]:
    yield "$PWD", Path.cwd()
    if os.environ.get("PWD"):
        yield "$PWD", Path(os.environ["PWD"])  # as the user sees it, links and all
    yield "$HOME", Path.home()
    yield "$EM_CACHE_DIR", cache_dir()
    if (data := data_dir()) is not None:
        yield "$EM_DATA_DIR", data
    yield "$HF_HOME", Path(constants.HF_HOME)
    yield "$HF_HUB_CACHE", Path(constants.HF_HUB_CACHE)
    yield "$EM_EVAL", Path(em_study.__file__).parents[1]
    if sys.prefix != sys.base_prefix:
        yield "$VIRTUAL_ENV", Path(sys.prefix)
    for path in sys.path:  # named in tracebacks
        if Path(path).is_absolute():
            yield "$PYTHONPATH", Path(path)


def redaction(paths: dict[str, str]) -> Redact:
    """Text with every path replaced, also as HTML and URLs spell it; the longest that fits goes first."""
    spelt = {form: name for path, name in paths.items() for form in (quote(path), html.escape(path), path)}
    pattern = re.compile("|".join(map(_whole, sorted(spelt, key=len, reverse=True))))
    return partial(pattern.sub, lambda found: spelt[found.group()])


def _whole(path: str) -> str:
    """Not the beginning of a longer name; of a path like /root, only where something below it is named."""
    return re.escape(path) + (r"(?=/)" if re.fullmatch(r"/[^/]+", path) else r"(?!\w)")


def redact_file(path: Path, redact: Redact) -> None:
    """Rewrite a file in place. What is neither text, table nor log is left as it is, and must not hold a path.

    Raises:
        UserError: it does.
    """
    if path.suffix == ".eval":
        _log(path, redact)
    elif path.suffix == ".json":
        write_json(path, _value(json.loads(path.read_text(encoding="utf-8")), redact))
    elif path.suffix == ".parquet":
        pd.read_parquet(path).map(lambda cell: _value(cell, redact)).to_parquet(path, index=False)
    elif path.suffix in TEXT:
        write_text(path, redact(path.read_text(encoding="utf-8")))
    elif redact(content := path.read_bytes().decode("latin-1")) != content:
        raise UserError(f"{path.name} holds a path of this machine and is no text that could be rewritten: remove it")


def _log(path: Path, redact: Redact) -> None:
    """By way of Inspect's own JSON form, so that header, samples, events and summaries are rewritten alike."""
    log = read_eval_log(str(path.absolute()))
    if log.eval.revision is not None and Path(log.eval.revision.origin).is_absolute():
        log.eval.revision.origin = ""  # a repository on this machine
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "log.json"
        write_eval_log(log, str(plain), format="json")
        value = _value(json.loads(plain.read_bytes()), redact)
    path.unlink()
    write_eval_log(read_eval_log(BytesIO(json.dumps(value).encode()), format="json"), str(path.absolute()))


def _value(value: Any, redact: Redact) -> Any:
    """Plain data, every text in it redacted, keys too. Colours may cut a path in two: a plain traceback takes over."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_value(part, redact) for part in value]
    if isinstance(value, dict):
        plain = {"traceback_ansi": value.get("traceback", "")} if "traceback_ansi" in value else {}
        return {redact(name): _value(part, redact) for name, part in (value | plain).items()}
    return value
