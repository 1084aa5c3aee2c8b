"""Benchmarks run processes in turn, count memory that is theirs alone, and say what misses its limit."""

from __future__ import annotations

import collections
import itertools
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tensorflow as tf
from absl import flags

from ensemble import logits, rules
from pipeline import convert, dataset
from pipeline.errors import InputError
from tests import catalogue
from tools import bench, kaggle
from tools.benchmarks import (
    combine,
    combine_contenders,
    feed,
    feed_contenders,
    logits_store,
    measure,
    plain_convert,
    serve,
    serve_contenders,
    train,
    train_contenders,
)
from tools.benchmarks.measure import Row, Run

FAST, SLOW, TOLD = Row('fast', 4, 10, 's', 0.5), Row('slow', 6, 10, 's', 0.5), Row('told', 6, 10, 's', None)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """shards/ and tars/ of a tiny catalogue, as the feed's contenders want them."""
    made = tmp_path_factory.mktemp('feed')
    catalogue.write_catalogue(made / 'data', products=200)
    convert.main(['convert', f'--input_dir={made}/data', f'--output_dir={made}/shards', '--runner=FnApiRunner'])
    feed.write_tars(feed_contenders.training_pictures(made / 'shards'), made / 'tars')
    return made


@pytest.fixture(scope='module')
def stored(tmp_path_factory) -> Path:
    """logits/val and arrays/ of tiny logits, several batches a file, as the contenders of combining want them."""
    made = tmp_path_factory.mktemp('logits')
    logits_store.make(made / 'logits' / 'val', images=16_000, categories=100, arrays=made / 'arrays')
    return made


def rows_of(stored: Path) -> logits.Rows:
    """All rows of the store."""
    folder = str(stored / 'logits' / 'val')
    files = logits.read_manifest(folder).files
    return logits.Rows.concatenate([block for file in files for block in logits.read_shard(folder, file)])


@pytest.mark.parametrize(
    ('ours', 'limit', 'at_most', 'met'),
    [(4.9, 0.5, True, True), (5, 0.5, True, True), (5.1, 0.5, True, False), (9, None, True, True)]
    + [(4.9, 0.5, False, False), (5, 0.5, False, True), (5.1, 0.5, False, True), (1, None, False, True)],
)
def test_a_figure_keeps_to_its_limit_or_not(ours, limit, at_most, met):
    assert Row('x', ours, 10, 's', limit, at_most=at_most).met == met


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


def test_a_rate_is_what_the_process_says_last():
    done = measure.run(['-c', """print('{"x": 1}'); print('{"img/s": 12.5}')"""])
    assert done.rate == 12.5
    assert done.figure == '12 img/s'
    assert measure.median_rate([done, Run(1, 0, '{"MB/s": 20.5}')]) == 16.5
    for output in ('wrote 6 shards\n', ''):
        assert Run(1, 0, output).rate is None
        assert Run(1, 0, output).figure == '1.0 s'


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


def test_the_tars_hold_each_training_picture_once_with_its_label(folder):
    found: list[tuple[bytes, int]] = []
    for path in (folder / 'tars').iterdir():
        with tarfile.open(path) as tar:
            files = [(member.name, tar.extractfile(member)) for member in tar]
            data = [(name, file.read()) for name, file in files if file]
        for (image_name, image), (label_name, label) in zip(data[::2], data[1::2], strict=True):
            assert (image_name, label_name) == (f'{image_name[:8]}.jpg', f'{image_name[:8]}.cls')
            found.append((image, int.from_bytes(label, 'little', signed=True)))
    pictures = list(feed_contenders.training_pictures(folder / 'shards'))
    assert sorted(found) == sorted(pictures)
    assert len(pictures) == dataset.open_shards(str(folder / 'shards')).manifest.images('train')
    assert len({image for image, _ in pictures}) == len(pictures)
    source = (folder / 'data' / 'train.bson').read_bytes()
    assert all(image in source for image, _ in pictures)


@pytest.mark.parametrize('name', ['ours', 'plain tf.data'])
def test_a_pass_of_a_feed_has_each_picture_once_in_batches_with_labels(folder, name):
    pictures = list(feed_contenders.training_pictures(folder / 'shards'))
    batches = -(-len(pictures) // feed_contenders.BATCH)
    made = list(itertools.islice(feed_contenders.CONTENDERS[name](folder), batches))
    images, labels = (np.concatenate([batch[place] for batch in made])[: len(pictures)] for place in (0, -1))
    assert images.shape[1:] == (180, 180, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == len(pictures)
    assert collections.Counter(labels.tolist()) == collections.Counter(label for _, label in pictures)


@pytest.mark.parametrize('threads', [1, 2])
def test_decoding_alone_takes_the_pictures_in_turn(folder, monkeypatch, threads):
    seen: list[bytes] = []
    monkeypatch.setattr(simplejpeg, 'decode_jpeg', seen.append)
    pictures = [image for image, _ in feed_contenders.training_pictures(folder / 'shards')]
    batches = -(-len(pictures) // feed_contenders.BATCH)
    collections.deque(itertools.islice(feed_contenders.simplejpeg(folder, threads=threads), batches), maxlen=0)
    assert len(seen) >= batches * feed_contenders.BATCH
    assert set(seen) == set(pictures)


@pytest.mark.parametrize('name', ['ours', 'simplejpeg'])
def test_a_contender_is_a_process_that_says_its_rate(folder, name):
    done = feed.contender(name, folder=folder, peers_python='none', warm_up=1, batches=2)
    assert done.rate is not None
    assert done.rate > 0


def test_a_stage_costs_what_it_adds(monkeypatch):
    monkeypatch.setattr(feed, 'STAGES', {'first': ('one', None), 'rest': ('all', 'one')})
    assert feed.stages({'all': 100_000, 'one': 500_000}) == {'first': 2, 'rest': 8}


def test_missing_peers_are_an_error_with_the_remedy_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(bench.PARTS, 'convert', lambda folder, runs: pytest.fail('measured'))
    with pytest.raises(InputError, match=r'no such program; make it with: make \.venv-peers/installed$') as error:
        bench.main(['bench', 'convert', 'feed', f'--peers_python={tmp_path}/python'])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('rows', 'missed'), [([FAST], 0), ([FAST, SLOW], 1), ([FAST, TOLD], 0)])
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
        (row.name, row.ours / 10, row is not SLOW) for row in rows
    ]
    assert told['part'] == {'runs': 3}
    said = capsys.readouterr().out
    assert re.search(r'^fast +4\.0 s +10\.0 s +0\.40  <= 0\.5 *$', said, re.MULTILINE)
    assert bool(re.search(r'^slow .* MISSED$', said, re.MULTILINE)) == bool(missed)
    assert bool(re.search(r'^told .* 0\.60  none *$', said, re.MULTILINE)) == (TOLD in rows)


@pytest.mark.parametrize('words', [[], ['nothing'], ['convert', 'rums']])
def test_a_part_that_is_not_known_is_bad_usage(words):
    with pytest.raises(flags.Error, match='name one or more parts of convert'):
        bench.main(['bench', *words])


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit):
        bench.main([sys.argv[0], '--help'])
    assert 'convert' in capsys.readouterr().out


def test_the_train_part_measures_the_contenders_that_there_are():
    assert list(train_contenders.CONTENDERS) == list(train.CONTENDERS)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['step', "fit, Keras' accumulation"])
def test_a_contender_of_the_train_part_says_its_rate(folder, name):
    assert (train.contender(name, folder=folder).rate or 0) > 0


def test_a_store_to_measure_with_has_kaggles_pictures_and_logits_that_mostly_know_the_label(stored, tmp_path):
    rows = rows_of(stored)
    assert 16_000 <= len(rows) <= 16_003
    pictures = np.diff(rows.starts(), append=len(rows))
    shares = np.bincount(pictures, minlength=5)[1:] / len(pictures)
    np.testing.assert_allclose(shares, np.array(kaggle.PICTURE_COUNTS) / kaggle.TRAIN_PRODUCTS, atol=0.02)
    assert (rows.image_index == np.concatenate([np.arange(count) for count in pictures])).all()
    assert 0.5 < (rows.logits.argmax(axis=1) == rows.label).mean() < 0.95
    logits_store.make(tmp_path / 'again', images=16_000, categories=100)
    for path in (stored / 'logits' / 'val').iterdir():
        assert path.read_bytes() == (tmp_path / 'again' / path.name).read_bytes()


def test_the_arrays_hold_what_the_store_holds(stored):
    rows = rows_of(stored)
    for name in ('logits', 'product_id'):
        arrays = [np.load(path) for path in sorted((stored / 'arrays').glob(f'*-{name}.npy'))]
        np.testing.assert_array_equal(np.concatenate(arrays), getattr(rows, name))


@pytest.mark.parametrize(
    ('scores', 'rule'),
    [(combine_contenders.mean, 'mean'), (combine_contenders.product, 'product')]
    + [(combine_contenders.product_of_one_softmax, 'product')],
)
def test_the_reference_of_combining_predicts_what_the_rule_does(stored, scores, rule):
    rows = rows_of(stored)
    labels, probabilities = combine_contenders.predict(rows.logits, rows.product_id, scores)
    ours, shares = rules.likeliest(rules.combine(rules.Products(rows), rules.find(rule)))
    clear = probabilities[:, 0] > 1.00001 * probabilities[:, 1]  # else the order may be that of the rounding
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear, 0], ours[clear, 0])
    np.testing.assert_allclose(probabilities[:, 0], shares[:, 0], rtol=1e-3)
    for place, start in enumerate(rows.starts()[:50]):
        expected = scores(rows.logits[rows.product_id == rows.product_id[start]])
        np.testing.assert_array_equal(expected[labels[place]], np.sort(expected)[:-6:-1])
        np.testing.assert_allclose(probabilities[place], np.sort(expected)[:-6:-1] / expected.sum(), rtol=1e-5)


def test_the_combine_part_measures_the_contenders_that_there_are():
    assert set(combine_contenders.CONTENDERS) == set(combine.CONTENDERS)


@pytest.mark.parametrize(
    'name', ['numpy, mean', *(pytest.param(name, marks=pytest.mark.slow) for name in combine.CONTENDERS[0:4:3])]
)
def test_a_contender_of_the_combine_part_says_its_rate(stored, name):
    done = combine.contender(name, folder=stored)
    assert (done.rate or 0) > 0
    assert done.figure.endswith(' MB/s')
    assert sorted(path.name for path in stored.iterdir()) == ['arrays', 'logits']


@pytest.mark.slow
def test_the_command_that_combines_is_measured_in_a_folder_of_its_own(stored):
    done = combine.combine('product', folder=stored, watch_memory=True)
    assert 'product: accuracy' in done.output
    assert done.peak_bytes > 100e6
    assert sorted(path.name for path in stored.iterdir()) == ['arrays', 'logits']


def test_the_figures_of_combining_are_ratios_to_the_reference_of_the_same_rule():
    speeds = {'ours, mean': 1500, 'ours, product': 1400, 'ours on one core, mean': 800}
    speeds |= {'ours on one core, product': 400, 'numpy, mean': 100, 'numpy, product': 200}
    speeds |= {'numpy, product of one softmax': 350}
    seconds = dict.fromkeys(speeds, 10.0) | {'numpy, product': 8.0}
    measured = {name: [Run(seconds[name], 0, json.dumps({'MB/s': speed}))] for name, speed in speeds.items()}
    measured |= {'ensemble.combine, mean': [Run(5, 0, '')], 'ensemble.combine, product': [Run(6, 0, '')]}
    assert [(row.ratio, row.limit, row.met) for row in combine.rows(measured)] == [
        (15, 10, True), (1.6, 1, True), (8, None, True), (0.5, None, True),
        (7, 10, False), (0.8, 1, False), (2, None, True), (0.75, None, True),
        (4, None, True),
    ]  # fmt: skip


def test_the_figures_of_serving_are_ratios_to_the_network_alone_and_to_the_large_batch():
    def said(many: float, few: float, one: float, alone: float) -> Run:
        names = ('32 at a time', '8 at a time', '1 at a time', 'network alone')
        rates = zip(names, (many, few, one, alone), strict=True)
        return Run(1, 0, 'a line\n' + json.dumps({f'products/s, {name}': rate for name, rate in rates}) + '\n')

    measured = {'small': [said(300, 150, 60, 400), said(310, 150, 60, 400), said(100, 150, 60, 400)]}
    measured |= {'xception': [said(9, 9, 4.5, 10)]}
    assert [(row.ratio, row.met) for row in serve.rows(measured)] == [
        (0.75, False), (0.5, True), (0.2, True),
        (0.9, True), (1, True), (0.5, True),
    ]  # fmt: skip


def test_the_serve_part_measures_the_networks_that_there_are():
    assert set(serve.NETWORKS) == set(serve_contenders.NETWORKS) == set(serve.LEAST)


@pytest.mark.slow
def test_the_served_model_and_its_network_are_timed_in_turn(folder):
    done = serve.contender('small', folder=folder)
    assert all(rate > 0 for rate in serve._rates(done).values())
    assert len(serve.rows({'small': [done]})) == 3
    assert done.figure.endswith(' products/s, 32 at a time')
