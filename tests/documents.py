"""The commands that the documents tell their readers to type."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = r'python -m ((?:pipeline|model|ensemble|tools)\.\w+(?:[^\S\n]+[^\s`|#);\']+)*)'


def commands(*names: str) -> list[str]:
    """What follows `python -m ` in these documents, each once, in the order in which they stand there."""
    text = ''.join((ROOT / name).read_text() for name in names)
    found = dict.fromkeys(re.findall(COMMAND, text))
    return [command for command in found if not command.startswith('pipeline.beam_worker ')]
