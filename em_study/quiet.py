"""Other libraries' warnings about each other are not for our users."""

import os
import warnings


def quiet_environment() -> None:
    """Warnings of libraries about each other are not for our users; ours are errors or log lines."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
