"""The command, as a user calls it."""

import sys
from collections.abc import Callable

import pytest

from em_study import cli


@pytest.fixture
def em(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`em("run", "study.yaml")`: the command, in this process; returns its exit code."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["em", *arguments])
        try:
            cli.main()
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    return call
