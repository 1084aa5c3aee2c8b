"""Benchmarks time whole processes in turn, count memory that is theirs alone, and say what misses its limit."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from absl import flags

from pipeline.errors import InputError
from tests import catalogue
from tools import bench
from tools.benchmarks import measure, plain_convert
from tools.benchmarks.measure import Row, Run

FAST, SLOW = Row('fast', 4, 10, 's', 0.5), Row('slow', 6, 10, 's', 0.5)


@pytest.mark.parametrize(
    ('ours', 'at_most', 'met'),
    [(4.9, True, True), (5, True, True), (5.1, True, False), (4.9, False, False), (5, False, True), (5.1, False, True)],
)
def test_a_figure_keeps_to_its_limit_or_not(ours, at_most, met):
    assert Row('x', ours, 10, 's', 0.5, at_most=at_most).met == met


def test_commands_are_timed_in_turn_and_each_goes_first_as_often():
    order: list[str] = []

    def command(name: str) -> Run:
        order.append(name)
        return Run(len(order), 0, '')

    done = measure.interleaved({'a': lambda: command('a'), 'b': lambda: command('b')}, runs=4)
    assert order == ['b', 'a', 'a', 'b', 'b', 'a', 'a', 'b']
    assert measure.median_seconds(done['a']) == 4.5


def test_the_time_of_a_run_is_that_of_the_whole_process():
    done = measure.run(['-c', 'import time; time.sleep(0.5); print("said")'])
    assert done.seconds > 0.5
    assert done.output == 'said\n'


def test_memory_is_that_of_all_processes_but_not_of_mapped_files(tmp_path: Path):
    """The child holds 80 MB more than the parent; both map 200 MB of a file and look at all of it."""
    (tmp_path / 'file').write_bytes(bytes(200 * 2**20))
    program = (
        'import mmap, subprocess, sys, time\n'
        f'file = open("{tmp_path}/file", "rb")\n'
        'mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n'
        'seen = sum(mapped[::4096])\n'
        'held = bytearray(b"x") * (80 * 2**20 if len(sys.argv) > 1 else 1)\n'
        'len(sys.argv) > 1 or subprocess.run([sys.executable, __file__, "child"])\n'
        'time.sleep(0.5)\n'
    )
    (tmp_path / 'program.py').write_text(program)
    done = measure.run([str(tmp_path / 'program.py')], watch_memory=True)
    assert 80e6 < done.peak_bytes < 150e6


def test_a_command_that_fails_ends_the_benchmark_with_what_it_said():
    with pytest.raises(InputError, match='failed: .*ZeroDivisionError'):
        measure.run(['-c', '1 / 0'])


def test_the_plain_loop_writes_every_picture_once(tmp_path: Path):
    catalogue.write_catalogue(tmp_path / 'data', products=40)
    plain_convert.main(str(tmp_path / 'data'), str(tmp_path / 'out'))
    files = sorted(str(path) for path in (tmp_path / 'out').iterdir())
    assert len(files) == 16
    examples = [tf.train.Example.FromString(one.numpy()) for one in tf.data.TFRecordDataset(files)]
    found = [one.features.feature['image'].bytes_list.value[0] for one in examples]
    data = (tmp_path / 'data' / 'train.bson').read_bytes() + (tmp_path / 'data' / 'test.bson').read_bytes()
    assert len(found) == data.count(b'\x05picture\0')
    assert len(set(found)) == len(found)
    assert all(image in data for image in found)


@pytest.mark.parametrize(('rows', 'missed'), [([FAST], 0), ([FAST, SLOW], 1)])
def test_the_table_and_the_file_hold_every_figure_and_one_that_misses_its_limit_is_an_error(
    tmp_path, monkeypatch, capsys, rows, missed
):
    monkeypatch.setattr(bench, 'PARTS', {'part': lambda folder, runs: (rows, {'runs': runs})})
    argv = ['bench', 'part', '--runs=3', f'--json={tmp_path}/bench.json']
    if missed:
        with pytest.raises(InputError, match='^1 of 2 figures miss their limit: slow$'):
            bench.main(argv)
    else:
        bench.main(argv)
    told = json.loads((tmp_path / 'bench.json').read_text())
    assert [(row['name'], row['ratio'], row['met']) for row in told['figures']] == [
        (row.name, row.ours / 10, row is FAST) for row in rows
    ]
    assert told['part'] == {'runs': 3}
    said = capsys.readouterr().out
    assert re.search(r'^fast +4\.0 s +10\.0 s +0\.40  <= 0\.5 *$', said, re.MULTILINE)
    assert bool(re.search(r'^slow .* MISSED$', said, re.MULTILINE)) == bool(missed)


@pytest.mark.parametrize('words', [[], ['nothing'], ['convert', '--rums=3']])
def test_a_part_that_is_not_known_is_bad_usage(words):
    with pytest.raises(flags.Error, match='name one or more parts of convert'):
        bench.main(['bench', *words])


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit):
        bench.main([sys.argv[0], '--help'])
    assert 'convert' in capsys.readouterr().out
