"""What every program shares: its flags, its help, one-line errors with an exit code, progress on long work.

Synopsis:

    FLAGS = program.flag_values()
    NAME = flags.DEFINE_string('name', 'world', 'Whom to greet.', flag_values=FLAGS)

    def main(argv: list[str]) -> None:
        program.parse(FLAGS, argv, doc=__doc__)
        print(f'Hello {NAME.value}')

    if __name__ == '__main__':
        program.run(main)

Each program has flags of its own, so that all of them can be imported into one process and the same name can stand in
several. Exit codes: 0 done, 1 bad input, 2 bad usage, 75 try again, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from absl import flags
from tqdm import tqdm

from pipeline.errors import InputError, TemporaryError

# TensorFlow reads this when it is imported (3 drops its start-up notes on missing GPUs as well; its Python errors are
# not affected). Programs import this module before TensorFlow.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Beam notes at every import that Google's cloud clients aren't installed; nothing here uses them.
logging.getLogger().addFilter(lambda record: 'apitools not found' not in str(record.msg))

WATCHED_AFTER = 5  # seconds; nobody needs to see how shorter work goes on


def flag_values() -> flags.FlagValues:
    """The flags of one program, with --help."""
    values = flags.FlagValues()
    flags.DEFINE_bool('help', False, 'Show this text.', short_name='h', flag_values=values)
    return values


def parse(
    values: flags.FlagValues, argv: list[str], *, doc: str | None, pass_through: bool = False, words: bool = False
) -> list[str]:
    """Sets the program's flags from `argv` (the program's name first); flags not named get their defaults.

    Args:
        values: what flag_values() made.
        argv: the command line.
        doc: the program's docstring, shown by --help.
        pass_through: whether to hand back what this program doesn't know (for Beam) instead of refusing it.
        words: whether to hand back words that are no flags, such as names of files; flags may stand between them.

    Returns:
        The arguments left over: [] unless `pass_through` or `words`.

    Raises:
        flags.Error: an unknown flag, a bad value or a stray word.
        SystemExit: after --help.
    """
    for name in values:
        values[name].unparse()
    values.set_gnu_getopt(words or values.is_gnu_getopt())
    rest = list(values(argv, known_only=pass_through)[1:])
    if values['help'].value:
        print(_help_text(values, doc or ''))
        raise SystemExit(0)
    if rest and not (pass_through or words):
        raise flags.Error(f'unexpected argument {rest[0]!r}: every option is written --name=value')
    return rest


def _help_text(values: flags.FlagValues, doc: str) -> str:
    lines = [doc.strip(), '', 'Flags:']
    for name in values:
        flag = values[name]
        if flag.name == 'help':  # under this name and its short one
            continue
        default = '' if flag.default is None else f' (default: {flag.default_as_str})'
        lines.append(f'  --{name}')
        lines += textwrap.wrap(f'{flag.help}{default}', 100, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
    lines += ['  --flagfile', '      Read flags from this file, one --name=value a line; later flags win.']
    return '\n'.join(lines)


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs a program's main on the command line and exits; what the user can mend is one line on stderr."""
    try:
        main(sys.argv)
    except flags.Error as error:
        _exit(2, f'{error}; --help lists the flags')
    except (InputError, OSError) as error:
        _exit(75 if isinstance(error, TemporaryError) else 1, str(error))
    except KeyboardInterrupt:
        _exit(130, 'interrupted')
    except Exception as error:
        # TensorFlow makes an error of its own, with the traceback in it, of what the feed raises.
        found = re.search(r'^pipeline\.errors\.\w*Error: (.+)$', str(error), re.MULTILINE)
        if not found:
            raise
        _exit(1, found[1])
    sys.exit(0)


def _exit(code: int, message: str) -> NoReturn:
    print(f'error: {message}', file=sys.stderr)
    sys.exit(code)


def progress(items: Iterable[Any] | None = None, *, total: float, label: str, unit: str, **options: Any) -> tqdm:
    """A progress bar on stderr, over `items` or moved by update(); on no terminal it speaks every 10 seconds.

    Other options are tqdm's.
    """
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(items, total=total, desc=label, unit=unit, unit_scale=True, mininterval=interval, ncols=120, **options)


@contextlib.contextmanager
def watched(look: Callable[[], tuple[str, int, int]], *, unit: str) -> Iterator[None]:
    """Shows how far work in other processes has come, once it takes longer than WATCHED_AFTER.

    Args:
        look: says what is done at the moment, how much of it, and of how much (0 if that isn't known yet).
        unit: of both.
    """
    done = threading.Event()

    def watch() -> None:
        bar = None
        while not done.wait(WATCHED_AFTER if bar is None else 1):
            with contextlib.suppress(InputError, OSError):  # it is only a display
                label, count, total = look()
                if bar is None:
                    bar = progress(total=total, label=label, unit=unit)
                if bar.total != total:
                    bar.reset(total)
                bar.set_description_str(label, refresh=False)
                bar.update(count - bar.n)
        if bar is not None:
            bar.close()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
