"""Packages of drawings as the npm registry has them, made here, for tools.demo_catalogue to read from its cache."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from tools import emoji_sources
from tools.emoji_sources import Source

TONES = ('1f3fb', '1f3fc', '1f3fd', '1f3fe', '1f3ff')
MARK = '<circle cx="30" cy="30" r="9" fill="red"/>'  # tells OpenMoji's drawing from the others


def row(group: str, subgroup: str, code: str, base: str = '') -> dict[str, str]:
    """A row of OpenMoji's table of emoji."""
    names = ('group', 'subgroups', 'hexcode', 'skintone_base_hexcode', 'annotation')
    return dict(zip(names, (group, subgroup, code, base, f'emoji {code}'), strict=True))


def write_packages(
    folder: Path, table: Sequence[Mapping[str, str]], *, bodies: Mapping[str, str], colours: Mapping[str, str]
) -> tuple[Source, ...]:
    """Writes three packages into a cache folder.

    Args:
        folder: the cache.
        table: OpenMoji's table of emoji.
        bodies: an emoji's drawing by its code: the inside of an SVG of 36x36, for the packages of SVG files and icons.
        colours: an emoji's colour by its code, for the package of picture files; those not named are not in it.
    """
    icons = {
        'width': 36, 'height': 36, 'aliases': {'first': {'parent': f'icon-{table[0]["hexcode"]}'}},
        'icons': {f'icon-{code}': {'body': body} for code, body in bodies.items()},
    }  # fmt: skip
    chars = {code.lower(): f'icon-{code}' for code in bodies} | {table[0]['hexcode'].lower(): 'first'}
    members: dict[str, dict[str, bytes]] = {
        'openmoji': {
            'data/openmoji.json': json.dumps(table).encode(),
            **{f'color/svg/{code}.svg': svg(MARK + body).encode() for code, body in bodies.items()},
        },
        'icons': {'icons.json': json.dumps(icons).encode(), 'chars.json': json.dumps(chars).encode()},
        'pictures': {f'assets/{code.lower()}-fe0f.webp': webp(colour) for code, colour in colours.items()},
    }
    read: dict[str, Callable[[str], dict[str, bytes]]] = {
        'openmoji': functools.partial(emoji_sources.read_folder, folder='color/svg', ending='.svg'),
        'icons': emoji_sources.read_iconify,
        'pictures': functools.partial(emoji_sources.read_folder, folder='assets', ending='.webp'),
    }
    made = []
    for name, content in members.items():
        integrity = _write_archive(folder / f'{name}-1.0.0.tgz', content)
        made.append(Source(name, name, '1.0.0', integrity, 'Nobody', 'MIT', 'https://licence.test', read[name]))
    return tuple(made)


def svg(body: str) -> str:
    """An SVG file of 36x36."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 36 36">{body}</svg>'


def webp(colour: str) -> bytes:
    """A transparent picture file with a square of this colour."""
    picture = Image.new('RGBA', (64, 64))
    picture.paste(colour, (20, 20, 40, 40))
    buffer = io.BytesIO()
    picture.save(buffer, 'WEBP', lossless=True)
    return buffer.getvalue()


def _write_archive(path: Path, members: Mapping[str, bytes]) -> str:
    """Writes a package and gives its integrity as npm writes it."""
    with tarfile.open(path, 'w:gz') as file:
        for name, data in members.items():
            member = tarfile.TarInfo(f'package/{name}')
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return f'sha512-{base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()}'
