"""Names of models under test: `PROVIDER/SOURCE`, with a hash of the weights behind an @ where we wrote it.

A source is a folder, a hub id or a base model's name, or BASE:ADAPTER as vLLM has it.
"""

from pathlib import Path


def split_hash(name: str) -> tuple[str, str]:
    """(source, claimed hash or "") of a model name; a folder's own @ belongs to the folder."""
    source, _, claimed = name.rpartition("@")
    if source and len(claimed) == 8 and all(digit in "0123456789abcdef" for digit in claimed):
        return source, claimed
    return name, ""


def split_base(source: str) -> tuple[str, str]:
    """(base or "", adapter or model) of a source; a folder's own colon belongs to the folder."""
    base, _, adapter = source.rpartition(":")
    return (base, adapter) if base and not Path(source).is_dir() else ("", source)
