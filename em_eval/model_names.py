"""Names of models under test: `PROVIDER/SOURCE`, with a hash of the weights behind an @ where we wrote it."""


def split_hash(name: str) -> tuple[str, str]:
    """(source, claimed hash or "") of a model name; a folder's own @ belongs to the folder."""
    source, _, claimed = name.rpartition("@")
    if source and len(claimed) == 8 and all(digit in "0123456789abcdef" for digit in claimed):
        return source, claimed
    return name, ""
