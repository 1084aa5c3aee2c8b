"""The errors that are the input's fault: every program prints them in one line and exits with 1."""


class InputError(Exception):
    """Something the user gave can't be used.

    The message is one line: the rule, the value received with its file and place, and the remedy.
    """


class TemporaryError(InputError):
    """What the same command may not meet again, such as a machine that was lost: exit code 75, EX_TEMPFAIL."""


def one_line(error: Exception) -> str:
    """What another package's error says, as part of a one-line message."""
    return ' '.join(str(error).split())[:300]


class CatalogueError(InputError):
    """A catalogue file (.bson or .csv) breaks a rule of its format; names the file and the byte offset or row."""
