"""A conversion may be killed at any moment: given again it ends with the same files and keeps the shards it has."""

from __future__ import annotations

import functools
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import convert, journal, shards, worklog
from pipeline.errors import InputError
from tests import catalogue

pytestmark = pytest.mark.slow

REPOSITORY = Path(convert.__file__).parents[1]
JPEG = catalogue.jpeg(0)
MOMENTS = 14  # spread over the whole life of a conversion, besides those that are aimed at
WORKERS_LIVE_ON = 5  # seconds, at most; they look for their program every 0.2 s


def run(source: Path, output: Path, *words: str) -> None:
    words = (*words, '--shard_mb=1') if not any(word.startswith('--shard_mb') for word in words) else words
    convert.main(['convert', f'--input_dir={source}', f'--output_dir={output}', '--runner=FnApiRunner', *words])


def start(source: Path, output: Path, *, file_limit: int | None = None) -> subprocess.Popen[str]:
    """The program as typed, with two processes, in a session of its own."""
    words = [f'--input_dir={source}', f'--output_dir={output}', '--shard_mb=1', '--direct_num_workers=2']
    before = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (file_limit,) * 2) if file_limit else None
    return subprocess.Popen(
        [sys.executable, '-m', 'pipeline.convert', *words],
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=before,
    )


def kill(program: subprocess.Popen[str]) -> None:
    """Kills the program, and it alone; its workers must end by themselves."""
    program.kill()
    program.wait()
    deadline = time.monotonic() + WORKERS_LIVE_ON
    while running := processes(program.pid):
        assert time.monotonic() < deadline, f'these workers live on: {running}'
        time.sleep(0.05)
    program.communicate()


def processes(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, its_session = path.read_text().rpartition(') ')[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != 'Z':
            found.append(int(path.parent.name))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder, with those of the journal, without the worklog."""
    paths = (path for path in folder.rglob('*') if path.is_file() and path.name != worklog.NAME)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def notes(output: Path) -> list[Path]:
    return sorted((output / journal.FOLDER).glob('[!.]*.tfrecord.json'))


def finished(output: Path) -> dict[str, tuple[int, int]]:
    """The shards that are done, with what tells a file from one written later."""
    found = [output / note.name.removesuffix('.json') for note in notes(output)]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def kept(said: str) -> int:
    match = re.search(r'; kept (\d+) shards of an earlier run\)$', said, re.MULTILINE)
    return int(match[1]) if match else 0


@dataclass(frozen=True)
class Undisturbed:
    source: Path
    files: dict[str, bytes]
    seconds: float


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A catalogue of 40 MB: products of four pictures that go on for 25 kB after the end of the JPEG."""
    folder = tmp_path_factory.mktemp('source')
    pictures = [JPEG + bytes([index]) * 25_000 for index in range(256)]
    train = [
        catalogue.document(product, [pictures[(product + k) % 256] for k in range(4)], 1000 + product % 3)
        for product in range(300)
    ]
    test = [catalogue.document(product, [pictures[product % 256]] * 4) for product in range(300, 380)]
    (folder / 'train.bson').write_bytes(b''.join(train))
    (folder / 'test.bson').write_bytes(b''.join(test))
    catalogue.write_names(folder, range(1000, 1003))
    return folder


@pytest.fixture(scope='module')
def undisturbed(source, tmp_path_factory) -> Undisturbed:
    folder = tmp_path_factory.mktemp('undisturbed')
    began = time.monotonic()
    program = start(source, folder)
    _, said = program.communicate()
    assert program.returncode == 0, said
    seconds = time.monotonic() - began
    assert journal.FOLDER not in {path.name for path in folder.iterdir()}
    return Undisturbed(source, tree(folder), seconds)


def shards_of(output: Path) -> list[str]:
    return [path.name for path in output.glob('*.tfrecord') if not path.name.startswith('.')]


AIMS: dict[str, Callable[[Path], bool]] = {
    'planned': lambda output: (output / journal.FOLDER / shards.PLAN).exists(),
    'the first shard': lambda output: len(shards_of(output)) >= 1,
    'the tenth shard': lambda output: len(shards_of(output)) >= 10,
    'a shard half written': lambda output: len(notes(output)) >= 3 and any(output.glob('.tmp-*')),
    'the manifest': lambda output: (output / 'manifest.json').exists(),
    'the clean-up': lambda output: (
        (output / 'manifest.json').exists() and not (output / journal.FOLDER / shards.PLAN).exists()
    ),
}


def run_until(program: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Kills the program at a moment, or lets it end if it does so before."""
    while program.poll() is None and not reached():
        time.sleep(0.001)
    kill(program)


@pytest.mark.parametrize('moment', [*AIMS, *range(MOMENTS)])
def test_a_conversion_killed_at_any_moment_goes_on(undisturbed, tmp_path, capsys, moment):
    program = start(undisturbed.source, tmp_path)
    began = time.monotonic()
    if moment in AIMS:
        run_until(program, functools.partial(AIMS[moment], tmp_path))
    else:
        after = (moment + random.Random(moment).random()) / MOMENTS * undisturbed.seconds
        run_until(program, lambda: time.monotonic() > began + after)
    done = finished(tmp_path)
    if moment == 'the tenth shard':  # once with the same runner, too; it makes no difference
        again = start(undisturbed.source, tmp_path)
        said, errors = again.communicate()
        assert again.returncode == 0, errors
    else:
        run(undisturbed.source, tmp_path)
        said = capsys.readouterr().out
    assert tree(tmp_path) == undisturbed.files
    assert kept(said) == len(done)
    assert worklog.read(str(tmp_path))[-1].counts['kept_shards'] == len(done)
    assert {name: one for name, one in files_now(tmp_path).items() if name in done} == done


def files_now(output: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in output.iterdir()}


@pytest.fixture(scope='module')
def interrupted(undisturbed, tmp_path_factory) -> Path:
    """What a conversion left that was killed when it had about half of its shards."""
    folder = tmp_path_factory.mktemp('interrupted')
    run_until(start(undisturbed.source, folder), lambda: len(notes(folder)) >= 12)
    assert 12 <= len(notes(folder)) < len(undisturbed.files) - 2
    return folder


@pytest.fixture
def output(interrupted, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(interrupted, tmp_path / 'shards')


@pytest.mark.parametrize('words', [['--shard_mb=2'], ['--seed=1'], ['--val_fraction=0.2']])
def test_a_run_with_other_settings_keeps_nothing_of_the_interrupted_one(source, output, tmp_path, capsys, words):
    run(source, output, *words)
    same = kept(capsys.readouterr().out)
    assert same == 0
    run(source, tmp_path / 'alone', *words)
    assert tree(output) == tree(tmp_path / 'alone')


def test_a_source_that_was_changed_in_between_is_not_mixed_with_old_shards(source, output, tmp_path, capsys):
    changed = shutil.copytree(source, tmp_path / 'data')
    data = bytearray((changed / 'train.bson').read_bytes())
    data[data.index(bytes([100]) * 20_000) + 10_000] = 0  # in the middle of a picture
    (changed / 'train.bson').write_bytes(data)
    run(changed, output)
    assert kept(capsys.readouterr().out) == 0
    run(changed, tmp_path / 'alone')
    assert tree(output) == tree(tmp_path / 'alone')


def test_a_finished_shard_that_was_damaged_is_written_again(undisturbed, output, capsys):
    done = finished(output)
    first, second, *_ = done
    data = bytearray((output / first).read_bytes())
    data[len(data) // 2] ^= 1
    (output / first).write_bytes(data)
    (output / second).unlink()
    run(undisturbed.source, output)
    assert kept(capsys.readouterr().out) == len(done) - 2
    assert tree(output) == undisturbed.files


GARBAGE = [
    b'',
    b'{"identity": "',
    b'\xff\xfe\0',
    b'[]',
    b'3',
    b'null',
    b'{}',
    b'{"identity": 1, "chunks": 2}',
    bytes(99),
]


def test_a_note_that_was_damaged_counts_as_none(undisturbed, output, capsys):
    for note, garbage in zip(notes(output), GARBAGE, strict=False):
        note.write_bytes(garbage)
    (output / journal.FOLDER / shards.PLAN).write_bytes(b'{"totals"')
    count = len(notes(output))
    run(undisturbed.source, output)
    assert kept(capsys.readouterr().out) == count - len(GARBAGE)
    assert tree(output) == undisturbed.files


def test_a_plan_alone_does_not_forget_what_is_finished(undisturbed, output, capsys):
    before, done = tree(output), {str(note.relative_to(output)) for note in notes(output)}
    run(undisturbed.source, output, '--plan_only')
    left = {name: data for name, data in before.items() if name in done or not name.startswith(journal.FOLDER)}
    assert tree(output) == left
    capsys.readouterr()
    run(undisturbed.source, output)
    assert kept(capsys.readouterr().out) == len(done)
    assert tree(output) == undisturbed.files


def test_bad_input_in_between_does_not_forget_what_is_finished(undisturbed, output, tmp_path, capsys):
    broken = shutil.copytree(undisturbed.source, tmp_path / 'data')
    with open(broken / 'train.bson', 'ab') as file:
        file.write(b'x')
    count = len(notes(output))
    with pytest.raises(InputError, match='not a BSON document'):
        run(broken, output)
    capsys.readouterr()
    run(undisturbed.source, output)
    assert kept(capsys.readouterr().out) == count
    assert tree(output) == undisturbed.files


# A full disk.


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 20 MB, half of what the shards need."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if os.geteuid() or not mount('-t', 'tmpfs', '-o', 'size=20m', 'tmpfs', str(folder)):
        pytest.skip('only an administrator may mount a disk')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def mount(*words: str) -> bool:
    return shutil.which('mount') is not None and subprocess.run(['mount', *words], capture_output=True).returncode == 0


def test_a_full_disk_is_one_line_and_once_there_is_room_the_run_goes_on(undisturbed, small_disk, capsys):
    output = small_disk / 'shards'
    program = start(undisturbed.source, output)
    _, errors = program.communicate()
    assert program.returncode == 1
    (line,) = [line for line in errors.splitlines() if line and not re.match('(read and plan|write): ', line)]
    full = rf"\[Errno 28\] No space left on device: '{output}/.*\.tfrecord(\.json)?'"
    assert re.fullmatch(f'error: {full}; free some space and give the same command again', line)
    assert not (output / 'manifest.json').exists()
    assert not list(output.glob('.tmp-*'))
    done = finished(output)
    assert len(done) >= 10
    assert mount('-o', 'remount,size=100m', str(small_disk))
    run(undisturbed.source, output)
    assert kept(capsys.readouterr().out) == len(done)
    assert tree(output) == undisturbed.files


def test_where_large_files_do_not_fit_the_small_ones_are_kept(undisturbed, tmp_path, capsys):
    """As on a full disk, but for those who may not mount one."""
    output = tmp_path / 'shards'
    sizes = sorted(len(data) for name, data in undisturbed.files.items() if name.endswith('.tfrecord'))
    program = start(undisturbed.source, output, file_limit=sizes[-2])
    _, errors = program.communicate()
    assert program.returncode == 1
    assert 'error: [Errno 27] File too large: ' in errors
    assert not (output / 'manifest.json').exists()
    assert not list(output.glob('.tmp-*'))
    done = finished(output)
    assert done
    run(undisturbed.source, output)
    assert kept(capsys.readouterr().out) == len(done)
    assert tree(output) == undisturbed.files
