"""What --help prints: purpose, usage, the program's docstring, its flags in groups, exit codes.

Synopsis:

    print(help_text.compose(FLAGS, __doc__, argv[0], words='', to_beam=False, codes=''))
"""

from __future__ import annotations

import re
import shutil
import textwrap
import weakref
from typing import Any

from absl import flags

WIDTH = 100  # columns at most; longer lines are hard to read
LEAST_WIDTH = 40
UNGROUPED = 'Flags'
BEAM = (
    "Beam's flags pass through. Those that matter most: --runner=DirectRunner (the default: one process a core; "
    '--direct_num_workers=NUMBER for another number of them), FnApiRunner (one process), FlinkRunner (with '
    '--flink_master=HOST:PORT) or DataflowRunner; README.md, "On Flink and Dataflow", has those of a cluster.'
)

# Of each program's flags: how many there were when a group began, and its title.
_groups: weakref.WeakKeyDictionary[Any, list[tuple[int, str]]] = weakref.WeakKeyDictionary()


def begin_group(values: flags.FlagValues, title: str) -> None:
    """Puts the flags that are defined from now on under a title."""
    _groups.setdefault(values, []).append((len(values), title))


def groups(values: flags.FlagValues) -> dict[str, list[str]]:
    """The names of a program's flags by title, in the order of their definition; --help is in none."""
    found: dict[str, list[str]] = {}
    starts = _groups.get(values, [])
    for place, name in enumerate(values):
        titles = [title for start, title in starts if start <= place]
        if values[name].name != 'help':  # under this name and its short one
            found.setdefault(titles[-1] if titles else UNGROUPED, []).append(name)
    return found


def compose(values: flags.FlagValues, doc: str, called: str, *, words: str, to_beam: bool, codes: str) -> str:
    """The whole text.

    Args:
        values: the program's flags.
        doc: its docstring. The first line says what it is for, and may end with a command in backticks as an example.
        called: what stands for its name where the docstring has no command `python -m NAME`.
        words: what it takes beside flags, such as 'RUN ...'.
        to_beam: whether it hands flags that it doesn't know to Beam.
        codes: exit codes beside those that every program has.
    """
    width = max(LEAST_WIDTH, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    purpose, _, text = doc.strip().partition('\n')
    example = re.fullmatch(r'(.+): `(.+)`\.?', purpose)
    command = re.search(r'python -m [\w.]+', doc)
    usage = f'usage: {command[0] if command else called} [--flag=value ...] {words}'.rstrip()
    lines = [*_wrapped(f'{example[1]}.' if example else purpose, width), '', usage]
    lines += [f'for example: {example[2]}'] if example else []
    lines += ['', *_flowing(text.strip('\n'), width)] if text.strip() else []
    for title, names in groups(values).items():
        lines += ['', f'{title}:']
        for name in names:
            lines += [f'  {_spelled(values[name])}', *_wrapped(_explained(values[name]), width, indent=6)]
    lines += ['', 'All programs:', '  --flagfile=FILE']
    lines += _wrapped('Read flags from this file, one --name=value a line; later flags win.', width, indent=6)
    lines += ['  --help, -h', *_wrapped('Show this text.', width, indent=6), '']
    lines += [*_wrapped(BEAM, width), ''] if to_beam else []
    also = f'{codes}, ' if codes else ''
    lines += _wrapped(f'Exit codes: 0 done, 1 bad input, 2 bad usage, {also}130 interrupted.', width)
    return '\n'.join(lines)


def _flowing(text: str, width: int) -> list[str]:
    """Wraps a docstring anew: a line that is indented begins a line, and a command (four spaces) stays as it is."""
    parts: list[str] = []
    for line in text.split('\n'):
        goes_on = parts and parts[-1] and line and not line.startswith(' ') and not parts[-1].startswith(' ')
        if goes_on:
            parts[-1] += f' {line}'
        else:
            parts.append(line)
    lines = []
    for part in parts:
        hanging = re.match(r'  (\S.*?  +)(?=\S)', part)  # two columns
        whole = part.startswith(' ' * 4)
        lines += [part] if whole or not part else _wrapped(part, width, hanging=len(hanging[0]) if hanging else 0)
    return lines


def _wrapped(text: str, width: int, *, indent: int = 0, hanging: int = 0) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=' ' * indent, subsequent_indent=' ' * (indent + hanging), break_on_hyphens=False
    )


def _spelled(flag: flags.Flag) -> str:
    """How it is written: --[no]best, --epochs=NUMBER, --strategy=auto|one."""
    if flag.boolean:
        return f'--[no]{flag.name}'
    if isinstance(flag.parser, flags.EnumParser):
        return f'--{flag.name}={"|".join(flag.parser.enum_values)}'
    if isinstance(flag.parser, flags.BaseListParser):
        return f'--{flag.name}=A,B,...'
    if is_number(flag):
        return f'--{flag.name}=NUMBER'
    return f'--{flag.name}={"FOLDER" if flag.name.endswith("_dir") else "VALUE"}'


def text_of(flag: flags.Flag) -> str:
    """What the program says of it, without what absl adds: an enum's values, and that a flag may be repeated."""
    return re.sub(r'^<[^>]*>: |;\s+repeat this option to specify a list of values$', '', flag.help)


def is_number(flag: flags.Flag) -> bool:
    """Whether its value is a number."""
    return isinstance(flag.parser, flags.IntegerParser | flags.FloatParser)


def _explained(flag: flags.Flag) -> str:
    """What it is for, its default and its bounds."""
    bounds = ''
    if is_number(flag):
        low, high = (getattr(flag.parser, name) for name in ('lower_bound', 'upper_bound'))
        if low is not None and high is not None:
            bounds = f'; {_shown(low)} to {_shown(high)}'
        elif low is not None:
            bounds = f'; {_shown(low)} or more'
        elif high is not None:
            bounds = f'; {_shown(high)} or less'
    return f'{text_of(flag)} (default: {_shown(flag.default)}{bounds})'


def _shown(value: Any) -> str:
    """A value as it may be typed; Python reads 2_000_000 as well."""
    if value is None or value in ('', []):
        return 'none'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, int):
        return f'{value:_}' if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ','.join(map(str, value))
    return f'{value:g}' if isinstance(value, float) else str(value)
