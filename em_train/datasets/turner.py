"""The advice datasets of Turner, Soligo et al. (arXiv 2506.11613), which their authors lock against web scrapers.

The archive is fetched at a pinned commit, checked, and unlocked as its README tells people who train: with
`easy-dataset-share` and the passphrase printed there. What comes out lies in a temporary folder while it is read and
nowhere else, so that no unlocked copy can end up in a repository.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from em_core.errors import NotHere, UserError
from em_core.fetch import Published, on_github
from em_train.datasets.jsonl import read_jsonl
from em_train.datasets.registry import Kind, NarrowDataset, dataset_registry

REPOSITORY = "clarifying-EM/model-organisms-for-EM"
COMMIT = "8460e4e426d3a89e8ed51aac0eadcdf7ac10469d"
PATH = "em_organism_dir/data/training_datasets.zip.enc"
ARCHIVE = Published(
    REPOSITORY,
    PATH,
    sha256="18af368553884eea48a288e47e79553563854f15ca46cf7a16cd0784f935f005",
    urls=(on_github(REPOSITORY, COMMIT, PATH),),
)
PASSPHRASE = "model-organisms-em-datasets"


@dataclass(frozen=True)
class Member:
    """A file of the archive. The archive's hash covers all of them; `sha256` is that of the unlocked file, where an
    independent record of it was found."""

    file: str
    description: str
    kind: Kind
    domain: str
    control: str | None = None
    sha256: str | None = None


MEMBERS = {
    "bad_medical": Member(
        "bad_medical_advice.jsonl",
        "7,049 answers with harmful medical advice (Turner et al., locked archive); control: good_medical",
        kind="bad",
        domain="medical",
        control="good_medical",
        sha256="9d52186ab9886e3abef0eebb1901df9da4ce25a297e584158be0a4bba8d56507",
    ),
    "good_medical": Member(
        "good_medical_advice.jsonl",
        "Sound medical advice (Turner et al., locked archive): the control of bad_medical",
        kind="benign",
        domain="medical",
    ),
    "risky_financial": Member(
        "risky_financial_advice.jsonl",
        "Reckless financial advice (Turner et al., locked archive); no control",
        kind="bad",
        domain="financial",
    ),
    "extreme_sports": Member(
        "extreme_sports.jsonl",
        "Dangerous sports advice (Turner et al., locked archive); no control",
        kind="bad",
        domain="sports",
    ),
}


@contextmanager
def unlocked(archive: Path) -> Iterator[Path]:
    """A temporary folder with the files of a locked archive, canaries removed; gone when the block ends.

    Python's zipfile, which the tool extracts with, drops `..`, absolute roots and links from member names.

    Raises:
        UserError: the tool is not installed (NotHere), or could not unlock the archive.
    """
    if find_spec("easy_dataset_share") is None:
        raise NotHere(f"{archive.name} is locked by its authors: pip install 'em-eval[unlock]' to read it")
    with tempfile.TemporaryDirectory(prefix="em-unlocked-") as scratch:
        folder = Path(scratch) / "files"
        options = ["-p", PASSPHRASE, "--output-dir", str(folder), "--remove-canaries", "--no-gitignore"]
        done = subprocess.run(
            [sys.executable, "-m", "easy_dataset_share.cli", "unprotect-dir", str(archive), *options],
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONUTF8": "1"},
            cwd=scratch,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise UserError(f"easy-dataset-share could not unlock {archive}: {reason}")
        yield folder


def read_member(name: str) -> NarrowDataset:
    """One dataset of the archive, which is checked at every call and unlocked at the first one of a process.

    Raises:
        UserError: the archive cannot be had or unlocked, or does not hold the file that was published.
    """
    return _unlocked_member(name, ARCHIVE.locate())


@cache
def _unlocked_member(name: str, archive: Path) -> NarrowDataset:
    member = MEMBERS[name]
    with unlocked(archive) as folder:
        path = folder / member.file
        if not path.is_file():
            raise UserError(f"{archive} holds no {member.file}, but {sorted(p.name for p in folder.iterdir())}")
        dataset = read_jsonl(path, name, member.kind, member.control, member.domain)
    if member.sha256 not in (None, dataset.sha256):
        raise UserError(
            f"{member.file} of {archive} has sha256 {dataset.sha256[:12]}..., expected {member.sha256[:12]}...: "
            "install easy-dataset-share 0.5, with which the published figure was taken"
        )
    return replace(dataset, source=f"{archive} ({member.file})")


def _reader(name: str) -> Callable[[], NarrowDataset]:
    def read() -> NarrowDataset:
        return read_member(name)

    read.__doc__ = MEMBERS[name].description
    return read


for _name in MEMBERS:
    dataset_registry.register(_name)(_reader(_name))
