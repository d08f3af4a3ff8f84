"""Downloads that are pinned by content: several addresses, one sha256, cached, resumed, never half a file."""

import logging
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from em_core.errors import NotHere, UserError
from em_core.files import sha256_file
from em_core.places import cache_dir, data_dir

ATTEMPTS = 4  # at one address, in a row and without progress
PROGRESS = 1 << 16  # bytes that an interrupted download must have gained to count as progress
FIRST_PAUSE = 0.5  # seconds before the second attempt; doubled before each further one
LONGEST_PAUSE = 30.0  # seconds; also the most that a server's Retry-After may ask of us
STALL = 10.0  # seconds without a connection or a byte after which an attempt has failed


@dataclass(frozen=True)
class Published:
    """A file that its authors published and we do not ship.

    Attributes:
        repository: "owner/name" of the origin; in `EM_DATA_DIR` its files lie below `owner__name/`.
        path: below the repository's root.
        sha256: of the bytes. It decides what is accepted, whatever the address.
        urls: where to get it, at pinned commits where the address can say so, tried in this order.
    """

    repository: str
    path: str
    sha256: str
    urls: tuple[str, ...] = ()

    @property
    def offline(self) -> str:
        """Where the file is looked for below `EM_DATA_DIR`."""
        return f"{self.repository.replace('/', '__')}/{self.path}"

    def locate(self) -> Path:
        """The file on this disk: from `EM_DATA_DIR`, else from the cache, else fetched.

        Raises:
            UserError: it has another hash, or (NotHere) is in none of these places.
        """
        folder = data_dir()
        local = folder / self.offline if folder else None
        if local is not None and local.is_file():
            found = sha256_file(local)
            if found != self.sha256:
                raise UserError(f"{local} has sha256 {found[:12]}..., expected {self.sha256[:12]}...: another version")
            return local
        try:
            return fetch(list(self.urls), self.sha256, Path(self.path).name)
        except NotHere as error:
            raise NotHere(f"{error} (below EM_DATA_DIR its place is {self.offline})") from error


def on_github(repository: str, commit: str, path: str) -> str:
    """The address of a file of a public repository at one commit (all 40 digits)."""
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"


def fetch(urls: Sequence[str], sha256: str, name: str) -> Path:
    """The file with that hash, from the cache or from the first address that gives it.

    An interrupted download goes on where it stopped, in the same call or a later one, at the same address or
    another; several processes that want one file fetch it once.

    Raises:
        NotHere: no address gave the file, or what came has another hash, or the cache cannot be written.
    """
    target = cache_dir() / "data" / f"{sha256[:12]}-{name}"
    if target.is_file() and sha256_file(target) == sha256:
        return target
    part = cache_dir() / "downloads" / f"{sha256}.part"
    reasons = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(part.with_suffix(".lock")), _Bar(name) as bar, _client() as client:
            if target.is_file() and sha256_file(target) == sha256:  # another process was faster
                return target
            for url in urls:
                try:
                    _download(client, url, sha256, part, bar)
                except (httpx.HTTPError, httpx.InvalidURL, _WrongContent) as error:
                    reasons.append(f"{url}: {type(error).__name__.lstrip('_')} {error}")
                    continue
                part.chmod(0o644)
                os.replace(part, target)
                return target
    except OSError as error:
        raise NotHere(
            f"could not store {name} in {target.parent}: {error.strerror or error}: free some space, or set "
            "EM_CACHE_DIR to a folder that can be written"
        ) from error
    raise NotHere(
        f"could not fetch {name} ({'; '.join(reasons) or 'no address is known'}): connect once, or set EM_DATA_DIR "
        "to a copy of the data"
    )


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """One process at a time, and no lock file afterwards. One that waits on a removed file locks it anew; should two
    get in nevertheless, the hash refuses what they wrote together, and it is fetched again."""
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


class _WrongContent(Exception):
    pass


def _client() -> httpx.Client:
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line a request otherwise
    # Compressed transfer would make byte ranges ambiguous.
    try:
        return httpx.Client(follow_redirects=True, timeout=STALL, headers={"Accept-Encoding": "identity"})
    except (ImportError, ValueError) as error:  # a proxy in the environment that httpx cannot use
        raise NotHere(f"the proxy that HTTPS_PROXY or ALL_PROXY names cannot be used: {error}") from error


def _download(client: httpx.Client, url: str, sha256: str, part: Path, bar: "_Bar") -> None:
    """Fill `part` from one address, with pauses between attempts as long as another one may help."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            _attempt(client, url, part, bar)
            found = sha256_file(part)
            if found == sha256:
                return
            part.unlink()
            raise _WrongContent(f"has sha256 {found[:12]}..., expected {sha256[:12]}...")
        except (httpx.HTTPError, _WrongContent) as error:
            reached = _size(part)
            failures = 1 if reached >= furthest + PROGRESS else failures + 1
            furthest = max(furthest, reached)
            if failures == ATTEMPTS or not _may_pass(error):
                raise
            time.sleep(_pause(error, failures))


def _attempt(client: httpx.Client, url: str, part: Path, bar: "_Bar") -> None:
    """One request: the rest of the file where the server can give that, else the whole."""
    have = _size(part)
    with client.stream("GET", url, headers={"Range": f"bytes={have}-"} if have else {}) as answer:
        if answer.status_code == 416:  # nothing lies behind what we have: it is whole, or of another file
            return
        answer.raise_for_status()
        goes_on = answer.status_code == 206
        if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            raise httpx.RemoteProtocolError("the server answered with another range than was asked for")
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length", "")
        bar.start(have, have + int(length) if length.isdigit() else None)
        with part.open("ab" if goes_on else "wb") as sink:
            for block in answer.iter_bytes():
                sink.write(block)
                bar.advance(len(block))


def _may_pass(error: Exception) -> bool:
    """Whether asking the same address again may help."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in (408, 425, 429) or error.response.status_code >= 500
    return isinstance(error, (httpx.TransportError, _WrongContent)) and not isinstance(error, httpx.UnsupportedProtocol)


def _pause(error: Exception, failures: int) -> float:
    """Seconds: what the server asks for, else doubling, with jitter so that many processes do not ask at once."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, httpx.HTTPStatusError) else ""
    if asked.isdigit():
        return min(float(asked), LONGEST_PAUSE)
    return min(FIRST_PAUSE * 2.0 ** (failures - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.25)


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


class _Bar:
    """A progress bar on a terminal's standard error, and nothing elsewhere."""

    def __init__(self, name: str) -> None:
        columns = (TextColumn("fetching {task.description}", markup=False), BarColumn(), DownloadColumn())
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty())
        self._name = name
        self._task: TaskID | None = None

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, have: int, total: int | None) -> None:
        if self._task is None:
            self._task = self._progress.add_task(self._name, total=total)
        self._progress.update(self._task, completed=have, total=total)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, count)
