"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. The message is one line: what was wrong, where, and how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
