"""Downloads that are pinned by content: several addresses, one sha256, cached, never half a file."""

import os
import tempfile
import time
from pathlib import Path

import httpx

from em_core.errors import UserError
from em_core.files import sha256_file
from em_core.places import cache_dir

PAUSES = (0.3, 1.0, 0.0)  # seconds after each attempt at an address


def fetch(urls: list[str], sha256: str, name: str) -> Path:
    """The file with that hash, from the cache or from the first address that gives it.

    Raises:
        UserError: no address answered, or what came has another hash.
    """
    target = cache_dir() / "data" / f"{sha256[:12]}-{name}"
    if target.is_file() and sha256_file(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    with httpx.Client(follow_redirects=True, timeout=20) as client:
        for url in urls:
            for pause in PAUSES:
                reason, passing = _try(client, url, sha256, target)
                if reason is None:
                    return target
                if not passing:
                    break
                time.sleep(pause)
            reasons.append(f"{url}: {reason}")
    raise UserError(
        f"could not fetch {name} ({'; '.join(reasons)}): connect once, or set EM_DATA_DIR to a copy of the data"
    )


def _try(client: httpx.Client, url: str, sha256: str, target: Path) -> tuple[str | None, bool]:
    """(why it failed or None, whether trying again may help)."""
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as sink, client.stream("GET", url) as answer:
            answer.raise_for_status()
            for block in answer.iter_bytes():
                sink.write(block)
        found = sha256_file(Path(draft))
        if found != sha256:
            return f"sha256 {found[:12]}..., expected {sha256[:12]}...", False
        os.chmod(draft, 0o644)
        os.replace(draft, target)
        return None, False
    except httpx.HTTPStatusError as error:
        return f"{type(error).__name__} {error}", error.response.status_code >= 500
    except httpx.TransportError as error:
        return f"{type(error).__name__} {error}", True
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return f"{type(error).__name__} {error}", False
    finally:
        Path(draft).unlink(missing_ok=True)
