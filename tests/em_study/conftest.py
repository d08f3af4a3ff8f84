"""Study tests run Inspect tasks by name: see `tests.em_eval.conftest.register_as_installed`."""

from tests.em_eval.conftest import register_as_installed

register_as_installed()
