"""Ends servers whose owner is gone: a small process of its own, so that even a killed owner leaves none behind.

Run as a script: `guard.py MARK`. It waits until its standard input closes, which the owner's end does whatever ended
it, and then ends every process that has `MARK` in its environment: servers and whatever they have started, since
children inherit it. Reads /proc, so Linux only; elsewhere it ends nothing.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

GRACE_S = 10.0  # for a server to end by itself; then it is killed


def marked(mark: str) -> list[int]:
    """The processes of this user whose environment holds `MARK` (a "NAME=value")."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile, or another user's
            continue
        if mark.encode() in environment:
            found.append(int(folder.name))
    return found


def end(mark: str, grace_s: float = GRACE_S) -> None:
    """Ask the marked processes to end, and kill what is left after `grace_s` seconds."""
    asked: set[int] = set()
    until = time.monotonic() + grace_s
    while left := marked(mark):
        late = time.monotonic() > until
        for process in left:
            if late or process not in asked:
                asked.add(process)
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.1)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end(sys.argv[1])
