"""Errors that are meant for the user's eyes."""

import re


class UserError(ValueError):
    """Something that the user can put right: a sentence that names the file, key or value, and what would be right.

    The command line prints it without a traceback and exits with 2.

    Args:
        message: The sentence. What a loader's worker puts before it, its traceback, is taken off.
    """

    def __init__(self, message: str) -> None:
        # A DataLoader raises a worker's error anew, with the worker's traceback before the message.
        super().__init__(re.sub(r"(?s)\ACaught .*Original Traceback.*\n[\w.]+Error: ", "", message).strip())


class Interrupted(Exception):  # noqa: N818  (it is no error)
    """A training run was stopped by Ctrl-C or SIGTERM, and can be resumed."""
