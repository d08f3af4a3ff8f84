"""The vLLM server of this process: kept from one evaluation of a base to the next, whatever cell they belong to."""

import atexit
import os
import socket
from contextlib import ExitStack
from pathlib import Path

from em_eval.providers.vllm_server import VllmServers
from em_eval.providers.weights import release
from em_study.evaluate import Target

_kept: list[tuple[VllmServers, ExitStack]] = []  # one entry: what served the last evaluation


def servers_for(target: Target, folder: Path) -> VllmServers:
    """Servers that take `target`: those that are there, where their arguments suit it, else new ones.

    Args:
        folder: for what servers print, below a folder for each process.

    Raises:
        UserError: an adapter that vLLM does not serve as trained; vLLM is not installed.
    """
    if _kept and not _kept[0][0].take(target.base, target.adapter):
        stop()
    if not _kept:
        release()  # vLLM wants the GPU for itself
        log_dir = folder / f"{socket.gethostname()}-{os.getpid()}"
        servers, opened = VllmServers({target.base: [target.adapter]}, log_dir), ExitStack()
        opened.enter_context(servers.kept())
        _kept.append((servers, opened))
    return _kept[0][0]


def stop() -> None:
    """End the server, if one runs: what comes next needs the GPU. A process that is killed leaves none either."""
    while _kept:
        _kept.pop()[1].close()


atexit.register(stop)
