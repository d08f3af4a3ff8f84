"""The authors' own files, unchanged: from a copy at hand or fetched, and known by their sha256."""

from dataclasses import dataclass
from pathlib import Path

from em_core.errors import NotHere, UserError
from em_core.fetch import fetch
from em_core.files import sha256_file
from em_core.places import data_dir


@dataclass(frozen=True)
class PublishedFile:
    """One file of a public repository.

    Attributes:
        repository: OWNER/NAME on GitHub.
        path: inside the repository; `EM_DATA_DIR` holds it at OWNER__NAME/path.
        sha256: of its bytes; it decides, not the address.
        addresses: (OWNER/NAME, commit or branch, path) of copies on GitHub, tried in this order: fixed
            commits first.
    """

    repository: str
    path: str
    sha256: str
    addresses: tuple[tuple[str, str, str], ...]

    @property
    def urls(self) -> list[str]:
        return [f"https://raw.githubusercontent.com/{owner}/{at}/{path}" for owner, at, path in self.addresses]


def local_path(file: PublishedFile) -> Path:
    """Where the file lies: in `EM_DATA_DIR`, else in the cache, fetched on first use.

    Raises:
        UserError: it cannot be had, or the copy in `EM_DATA_DIR` is another version.
    """
    folder = data_dir()
    path = folder / file.repository.replace("/", "__") / file.path if folder else None
    if path is None or not path.is_file():
        try:
            return fetch(file.urls, file.sha256, Path(file.path).name)
        except NotHere as error:
            raise NotHere(f"{error}; or use the embedded prompts with questions=core") from error
    found = sha256_file(path)
    if found != file.sha256:
        raise UserError(
            f"{path} has sha256 {found[:12]}..., expected {file.sha256[:12]}...: it is not the published file; "
            "to use it as a set of your own, give its path instead of a name"
        )
    return path
