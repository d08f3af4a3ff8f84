"""Jinja as everything here that is written from a template uses it."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def templates(folder: Path, html: bool = False) -> Environment:
    """The templates in `folder`; a name that a template asks for and nobody gave is an error.

    Args:
        html: escape what is filled in.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
