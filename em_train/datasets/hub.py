"""Datasets of the Hugging Face hub at one commit: `hub:owner/name@commit[:split]`."""

import re
from typing import Any

from em_core.errors import NotHere, UserError
from em_core.files import sha256_json
from em_core.places import cache_dir, data_dir
from em_train.datasets.registry import NarrowDataset
from em_train.datasets.rows import parse_rows

PREFIX = "hub:"
FORM = f"{PREFIX}owner/name@COMMIT[:SPLIT]"
COMMIT = re.compile(r"[0-9a-f]{40}")


def read_hub(reference: str) -> NarrowDataset:
    """Rows of `messages`, or of `prompt` and `completion`; the split is `train` unless named.

    From `$EM_DATA_DIR/hub/owner__name/COMMIT/` (a snapshot of the dataset's repository) where that is there, else from
    the hub or its own cache. The hash is of the rows, since a hub dataset is several files.

    Raises:
        UserError: no commit is named, or the dataset or its split cannot be had.
    """
    name, commit, split = parse(reference)
    folder = data_dir()
    local = folder / "hub" / name.replace("/", "__") / commit if folder else None
    source = str(local) if local is not None and local.is_dir() else name
    table = _load(source, commit if source == name else None, split, reference)
    rows, refused = parse_rows((f"{name}:{split}[{i}]", row) for i, row in enumerate(table))
    if not rows and not refused:
        raise UserError(f"{reference} holds no rows")
    return NarrowDataset(
        hub_label(reference),
        rows,
        sha256_json([row.messages for row in rows]),
        "unknown",
        source=source if source != name else f"https://huggingface.co/datasets/{name}/tree/{commit}",
        refused=tuple(refused),
    )


def hub_label(reference: str) -> str:
    """owner__name@12345678, and the split where it is not `train`: fit for file names."""
    name, commit, split = parse(reference)
    label = f"{name.replace('/', '__')}@{commit[:8]}"
    return label if split == "train" else f"{label}-{re.sub(r'[^A-Za-z0-9]+', '-', split)}"


def parse(reference: str) -> tuple[str, str, str]:
    """(owner/name, commit, split) of a reference.

    Raises:
        UserError: not of that form, or not pinned: a branch or tag can move, and the data with it.
    """
    place, _, split = reference.removeprefix(PREFIX).partition(":")
    name, at, revision = place.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or ".." in name:
        raise UserError(f"'{reference}' names no hub dataset: write {FORM}")
    if not at or not revision:
        raise UserError(f"'{reference}' names no revision, and the data could change under it: write {FORM}")
    if not COMMIT.fullmatch(revision):
        raise UserError(
            f"'{reference}': revision '{revision}' is not a commit of 40 hexadecimal digits; branches and tags can "
            f"move: write {FORM}"
        )
    return name, revision, split or "train"


def _load(source: str, revision: str | None, split: str, reference: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # A snapshot of the user's is none of the hub's business, its cache included.
    where = {"revision": revision} if revision else {"cache_dir": str(cache_dir() / "datasets")}
    try:
        return load_dataset(source, split=split, **where)
    except (OSError, ValueError, DatasetsError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise NotHere(
            f"could not load {reference} ({type(error).__name__}: {reason}): check name, commit and split, the network "
            "and, for gated data, HF_TOKEN; or set EM_DATA_DIR to a folder that holds a snapshot under "
            "hub/owner__name/COMMIT"
        ) from error
