"""A line of progress on standard error: rewritten on a terminal, one in so many elsewhere."""

import sys

from em_train import processes


def show(text: str, done: int, of: int, every: int) -> None:
    """Print `text` where there is a terminal, at every `every`-th of the `of` parts, and at the last one."""
    terminal = sys.stderr.isatty()
    if processes.is_main() and (terminal or done % every == 0 or done == of):
        print(f"{text:<60}", end="\r" if terminal and done < of else "\n", file=sys.stderr, flush=True)
