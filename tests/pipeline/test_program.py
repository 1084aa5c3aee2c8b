"""What every program has: its flags anew at each call, help, one-line errors with an exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import tensorflow as tf
from absl import flags

from pipeline import program
from pipeline.errors import CatalogueError, InputError, TemporaryError, UsageError


@pytest.fixture
def values() -> flags.FlagValues:
    """The flags of a program: --name and --count."""
    made = program.flag_values()
    flags.DEFINE_string('name', 'world', 'Whom to greet.', flag_values=made)
    flags.DEFINE_integer('count', None, 'How often.', lower_bound=1, flag_values=made)
    return made


def parse(values: flags.FlagValues, *argv: str, pass_through: bool = False, words: str = '') -> list[str]:
    return program.parse(values, ['greet', *argv], doc='Greets.', pass_through=pass_through, words=words)


def test_the_synopsis_runs_as_it_stands(tmp_path):
    assert program.__doc__
    synopsis = re.search(r'Synopsis:\n\n((?:    .*\n|\n)+)', program.__doc__)
    assert synopsis
    lines = [line.removeprefix('    ') for line in synopsis[1].splitlines()]
    (tmp_path / 'greet.py').write_text('\n'.join(['from absl import flags', 'from pipeline import program', *lines]))
    for words, name in (([], 'world'), (['--name=you'], 'you'), (['--name', 'you'], 'you')):
        done = subprocess.run([sys.executable, str(tmp_path / 'greet.py'), *words], capture_output=True, text=True,
                              env={'PYTHONPATH': str(Path(program.__file__).parents[1])})  # fmt: skip
        said = f'Hello {name}; next: python -m tools.greet\n'
        assert (done.returncode, done.stdout, done.stderr) == (0, said, '')


def test_each_call_begins_with_the_defaults(values):
    assert parse(values, '--name=you', '--count=3') == []
    assert (values['name'].value, values['count'].value) == ('you', 3)
    assert parse(values) == []
    assert (values['name'].value, values['count'].value) == ('world', None)


def test_flags_may_stand_in_a_file_and_later_ones_win(values, tmp_path):
    (tmp_path / 'some.flags').write_text('# comment\n--name=file\n\n--count=2\n')
    flagfile = f'--flagfile={tmp_path}/some.flags'
    parse(values, flagfile, '--name=line')
    assert (values['name'].value, values['count'].value) == ('line', 2)
    parse(values, '--name=line', flagfile)
    assert (values['name'].value, values['count'].value) == ('file', 2)


def test_what_a_program_does_not_know_is_handed_back_in_order(values):
    rest = parse(values, '--runner=DirectRunner', '--name=you', 'word', '--other', '3', pass_through=True)
    assert rest == ['--runner=DirectRunner', 'word', '--other', '3']
    assert values['name'].value == 'you'


@pytest.mark.parametrize(
    ('words', 'error'),
    [
        (['--nme=you'], 'unknown flag --nme, perhaps --name is meant'),
        (['--xyz=you'], 'unknown flag --xyz'),
        (['you'], "unexpected argument 'you': every option is written --name=value"),
        (['--name=a', 'b', 'c'], "unexpected argument 'b': every option is written --name=value"),
        (['--name'], 'Missing value for flag --name'),
        (['--count=0'], 'flag --count=0: 0 is not a positive integer'),
        (['--count=x'], "flag --count=x: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_bad_usage_is_refused(values, words, error):
    with pytest.raises(flags.Error, match=f'^{re.escape(error)}$'):
        parse(values, *words)


def test_words_are_handed_back_where_they_are_wanted_and_flags_may_stand_between(values):
    assert parse(values, 'one', '--name=you', 'two', '--count', '3', words='WORD ...') == ['one', 'two']
    assert (values['name'].value, values['count'].value) == ('you', 3)
    assert parse(values, '--name=you', '--', '--two', words='WORD ...') == ['--two']
    for argv in (['one', '--other'], ['--other', 'one']):
        with pytest.raises(flags.Error, match='other'):
            parse(values, *argv, words='WORD ...')


def raise_(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ('error', 'code', 'said'),
    [
        (None, 0, ''),
        (InputError('data/x: no such file'), 1, 'error: data/x: no such file\n'),
        (CatalogueError('data/x: byte 7: cut off'), 1, 'error: data/x: byte 7: cut off\n'),
        (UsageError('--rule=x: none'), 2, 'error: --rule=x: none\n'),
        (TemporaryError('another machine is lost'), 75, 'error: another machine is lost\n'),
        (OSError(5, 'Input/output error', 'data'), 1, "error: [Errno 5] Input/output error: 'data'\n"),
        (
            PermissionError(13, 'Permission denied', 'data'),
            1,
            "error: [Errno 13] Permission denied: 'data'; name another place, or let this user in\n",
        ),
        (SystemExit(3), 3, ''),
        (flags.Error('no flag --x'), 2, 'error: no flag --x; --help lists the flags\n'),
        (KeyboardInterrupt(), 130, 'error: interrupted\n'),
    ],
    ids=[
        'done',
        'bad input',
        'bad catalogue',
        'flags that exclude each other',
        'try again',
        'file system',
        'with a remedy',
        'bad usage',
        'interrupted',
        'a code of its own',
    ],
)
def test_the_exit_code_tells_what_happened(monkeypatch, capsys, error, code, said):
    monkeypatch.setattr(sys, 'argv', ['greet', '--name=you'])
    seen = []
    with pytest.raises(SystemExit) as end:
        program.run(lambda argv: raise_(error) if error else seen.append(argv))
    assert (end.value.code, capsys.readouterr().err) == (code, said)
    assert seen == ([] if error else [['greet', '--name=you']])


def test_what_the_feed_raises_inside_tensorflow_is_one_line_too(monkeypatch, capsys):
    def generate() -> NoReturn:
        raise InputError('shard 1: is cut off; make it again')

    stream = tf.data.Dataset.from_generator(generate, output_signature=tf.TensorSpec([]))
    with pytest.raises(SystemExit) as exit_:
        program.run(lambda argv: next(iter(stream)))
    assert exit_.value.code == 1
    assert capsys.readouterr().err == 'error: shard 1: is cut off; make it again\n'


def test_an_error_of_the_program_itself_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        program.run(lambda _: raise_(ZeroDivisionError()))


def test_a_flagfile_that_is_missing_is_bad_input(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rule = f"--flagfile: 'none.flags': no such file in {tmp_path}; run it in the project's folder"
    with pytest.raises(InputError, match=f'^{re.escape(rule)}$'):
        parse(values, '--flagfile=none.flags')
    with pytest.raises(InputError, match=r"^--flagfile: \[Errno 2\] .*: '/none.flags'; name a file that can be read$"):
        parse(values, '--flagfile=/none.flags')


def start(code: str, tmp_path: Path, *, output: str, unbuffered: str = '') -> subprocess.CompletedProcess[str]:
    """Runs a program whose main is `code`, with its output sent somewhere by the shell."""
    (tmp_path / 'some.py').write_text(f'from pipeline import program\ndef main(argv):\n {code}\nprogram.run(main)\n')
    command = f'"{sys.executable}" "{tmp_path / "some.py"}" {output}'
    return subprocess.run(
        ['bash', '-o', 'pipefail', '-c', command], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': '.', 'PYTHONUNBUFFERED': unbuffered},
    )  # fmt: skip


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('code', ['print("much\\n" * 10**6)', '[print("much", flush=True) for _ in range(10**6)]'])
def test_a_reader_that_has_seen_enough_ends_the_program_quietly(tmp_path, code, unbuffered):
    done = start(code, tmp_path, output='| head -n 1', unbuffered=unbuffered)
    assert (done.returncode, done.stdout, done.stderr) == (141, 'much\n', ''), 'as SIGPIPE would'


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('code', ['print("little")', 'print("much\\n" * 10**6)'])
def test_output_that_can_not_be_written_is_one_line(tmp_path, code, unbuffered):
    done = start(code, tmp_path, output='> /dev/full', unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (
        1,
        'error: [Errno 28] No space left on device; free some space and give the same command again\n',
    )


def test_without_the_packages_it_is_one_line_in_every_program(tmp_path):
    """As in a Python outside of the virtual environment."""
    (tmp_path / 'absl').mkdir()
    (tmp_path / 'absl' / '__init__.py').write_text("raise ModuleNotFoundError('No module named absl', name='absl')")
    root = Path(__file__).parents[2]
    for path in root.glob('*/*.py'):
        if 'program.run(main)' not in path.read_text() or path.name == 'program.py':
            continue
        module = '.'.join(path.relative_to(root).with_suffix('').parts)
        done = subprocess.run(
            [sys.executable, '-m', module], cwd=root, env={'PYTHONPATH': str(tmp_path)}, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (
            1,
            '',
            'error: the packages are not installed in this Python (no module absl); make setup, then source '
            '.venv/bin/activate\n',
        ), module


def test_in_a_file_what_is_printed_stands_before_the_error(tmp_path):
    start('raise program.InputError(print("found this") or "named above")', tmp_path, output=f'> {tmp_path}/log 2>&1')
    assert (tmp_path / 'log').read_text() == 'found this\nerror: named above\n'
    start(
        'import sys; print("one"); print("two", file=sys.stderr); print("three")',
        tmp_path,
        output=f'> {tmp_path}/log 2>&1',
    )
    assert (tmp_path / 'log').read_text() == 'one\ntwo\nthree\n'
