"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. The message is one line: what was wrong, where, and how to mend it.

    Attributes:
        message: that line; Inspect's logs show it where an exception has it, and else the exception's repr.
    """

    def __init__(self, message: str) -> None:
        self.message = " ".join(message.split())
        super().__init__(self.message)


class NotHere(UserError):
    """Something rightly named that would have to be fetched or unlocked first, and could not be."""
