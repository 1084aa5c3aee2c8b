"""The errors that are the input's fault: every program prints them in one line and exits with 1."""

import errno
import re


class InputError(Exception):
    """Something the user gave can't be used.

    The message is one line: the rule, the value received with its file and place, and the remedy.
    """


class UsageError(InputError):
    """A flag whose value can not be used whatever the data are, or two that exclude each other: exit code 2."""


class TemporaryError(InputError):
    """What the same command may not meet again, such as a machine that was lost: exit code 75, EX_TEMPFAIL."""


REMEDIES = {
    errno.ENOSPC: 'free some space and give the same command again',
    errno.EDQUOT: 'free some space and give the same command again',
    errno.EACCES: 'name another place, or let this user in',
    errno.EPERM: 'name another place, or let this user in',
    errno.EROFS: 'name another place; this one is only for reading',
    errno.ENOENT: 'name a place that is there',
    errno.ENOTDIR: 'a file stands where a folder must be; name another place',
    errno.EEXIST: 'a file stands where a folder must be; name another place',
    errno.EISDIR: 'a folder stands where a file must be; name another place',
}


def with_remedy(message: str) -> str:
    """The text of an OSError, with what to do if that is known."""
    number = re.match(r'\[Errno (\d+)\]', message)
    remedy = REMEDIES.get(int(number[1])) if number else None
    return f'{message}; {remedy}' if remedy else message


def one_line(error: Exception) -> str:
    """What another package's error says, as part of a one-line message."""
    return ' '.join(str(error).split())[:300]


class CatalogueError(InputError):
    """A catalogue file (.bson or .csv) breaks a rule of its format; names the file and the byte offset or row."""
