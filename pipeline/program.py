"""What every program shares: its flags, its help, one-line errors with an exit code, its last line.

Synopsis:

    FLAGS = program.flag_values()
    program.group(FLAGS, 'Greeting')
    NAME = flags.DEFINE_string('name', 'world', 'Whom to greet.', flag_values=FLAGS)

    def main(argv: list[str]) -> None:
        program.parse(FLAGS, argv, doc=__doc__)
        program.last_line(f'Hello {NAME.value}', then=program.command('tools.greet'))

    if __name__ == '__main__':
        program.run(main)

Each program has flags of its own, so that all of them can be imported into one process and the same name can stand in
several. Exit codes: 0 done, 1 bad input, 2 bad usage, 75 try again, 130 interrupted, 141 whoever read the output has
gone.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

try:
    from absl import flags
except ModuleNotFoundError as error:
    sys.exit(
        f'error: the packages are not installed in this Python (no module {error.name}); make setup, then '
        'source .venv/bin/activate'
    )

from pipeline import help_text
from pipeline.errors import InputError, TemporaryError, UsageError, with_remedy

# TensorFlow reads this when it is imported (3 drops its start-up notes on missing GPUs as well; its Python errors are
# not affected). Programs import this module before TensorFlow.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Beam notes at every import that Google's cloud clients aren't installed; nothing here uses them.
logging.getLogger().addFilter(lambda record: 'apitools not found' not in str(record.msg))


def flag_values() -> flags.FlagValues:
    """The flags of one program, with --help."""
    values = flags.FlagValues()
    flags.DEFINE_bool('help', False, 'Show this text.', short_name='h', flag_values=values)
    return values


def group(values: flags.FlagValues, title: str) -> None:
    """Puts the flags that are defined from now on under a title in --help."""
    help_text.begin_group(values, title)


def parse(
    values: flags.FlagValues,
    argv: list[str],
    *,
    doc: str | None,
    pass_through: bool = False,
    words: str = '',
    codes: str = '',
) -> list[str]:
    """Sets the program's flags from `argv` (the program's name first); flags not named get their defaults.

    Args:
        values: what flag_values() made.
        argv: the command line.
        doc: the program's docstring, shown by --help.
        pass_through: whether to hand back what this program doesn't know (for Beam) instead of refusing it.
        words: what the program takes beside flags, for --help, such as 'RUN ...'; they are handed back, and flags may
            stand between them.
        codes: exit codes beside those of every program, for --help, such as '75 try again'.

    Returns:
        The arguments left over: [] unless `pass_through` or `words`.

    Raises:
        flags.Error: an unknown flag, a bad value or a stray word.
        InputError: a flagfile can't be read.
        SystemExit: after --help.
    """
    for name in values:
        values[name].unparse()
    values.set_gnu_getopt(bool(words) or values.is_gnu_getopt())
    try:
        rest = list(values(argv, known_only=pass_through)[1:])
    except flags.UnrecognizedFlagError as error:
        raise unknown_flag(error.flagname, values) from None
    except flags.CantOpenFlagFileError as error:
        opening = error.__context__
        if isinstance(opening, FileNotFoundError) and not os.path.isabs(opening.filename):
            rule = f'{opening.filename!r}: no such file in {os.getcwd()}'
            raise InputError(f"--flagfile: {rule}; run it in the project's folder") from None
        reason = str(error).rpartition('flagfile: ')[2]
        raise InputError(f'--flagfile: {reason}; name a file that can be read') from None
    if values['help'].value:
        print(help_text.compose(values, doc or '', argv[0], words=words, to_beam=pass_through, codes=codes))
        raise SystemExit(0)
    if rest and not (pass_through or words):
        raise flags.Error(f'unexpected argument {rest[0]!r}: every option is written --name=value')
    return rest


def command(module: str, *words: str) -> str:
    """A command as one may type it, for last_line()."""
    return shlex.join(['python', '-m', module, *words])


def last_line(done: str, *, then: str) -> None:
    """Prints what every program ends with.

    Args:
        done: what was written, and where: `wrote PATH: WHAT`.
        then: the command to run next.
    """
    print(f'{done}; next: {then}', flush=True)


def unknown_flag(name: str, known: Iterable[str]) -> flags.Error:
    """The error of a flag that isn't among those known; names the one most like it."""
    near = difflib.get_close_matches(name, known, n=1)
    return flags.Error(f'unknown flag --{name}{f", perhaps --{near[0]} is meant" if near else ""}')


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs a program's main on the command line and exits; what the user can mend is one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # in a file, too, what is printed stands before the error after it
        sys.stdout.reconfigure(line_buffering=True)
    try:
        code = _run(main)
        sys.stdout.flush()
    except OSError as error:
        # Who reads the output has seen enough (`| head`): the end is as quiet as one by SIGPIPE.
        code = 141 if isinstance(error, BrokenPipeError) else _fail(1, with_remedy(str(error)))
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _run(main: Callable[[list[str]], None]) -> int:
    """The exit code."""
    try:
        main(sys.argv)
    except SystemExit as end:  # after --help
        return end.code if isinstance(end.code, int) else _fail(1, str(end.code))
    except flags.Error as error:
        return _fail(2, f'{error}; --help lists the flags')
    except OSError:
        raise
    except InputError as error:
        codes = {TemporaryError: 75, UsageError: 2}
        return _fail(codes.get(type(error), 1), str(error))
    except KeyboardInterrupt:
        return _fail(130, 'interrupted')
    except Exception as error:
        # TensorFlow makes an error of its own, with the traceback in it, of what the feed raises.
        found = re.search(r'^pipeline\.errors\.\w*Error: (.+)$', str(error), re.MULTILINE)
        if not found:
            raise
        return _fail(1, found[1])
    return 0


def _fail(code: int, message: str) -> int:
    with contextlib.suppress(OSError):
        print(f'error: {message}', file=sys.stderr)
    return code
