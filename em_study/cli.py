"""The `em` command: its topics are the files of `em_study.commands`."""

import importlib
import pkgutil
import sys
import traceback

import typer

from em_core.errors import UserError
from em_study import commands

app = typer.Typer(
    help="Measure how the optimiser shapes emergent misalignment: train, evaluate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for topic in pkgutil.iter_modules(commands.__path__):
    importlib.import_module(f"{commands.__name__}.{topic.name}").add(app)


def main() -> None:
    """Entry point: a `UserError` is one line and exit code 2; anything else is a bug of ours and says so."""
    from em_study.quiet import quiet_environment

    quiet_environment()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception as error:
        message = getattr(error, "message", None)  # Inspect's own one-line errors
        if type(error).__name__ == "PrerequisiteError" and message is not None:
            print(str(message).strip(), file=sys.stderr)
            raise SystemExit(2) from None
        traceback.print_exc()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
