"""With --on_error=skip what can't be used is left out and listed, and all else is as if it had never been there."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import bson
import pytest

from pipeline import convert, plan, worklog
from pipeline.errors import InputError
from tests import catalogue

PICTURES = [catalogue.jpeg(seed) for seed in range(10)]
CATEGORIES = range(1000, 1004)
TRAIN, TEST = 240, 60
EVERY = 12  # of so many products one is damaged


def document(number: int) -> bytes:
    """A product of train.bson, or of test.bson from number TRAIN on."""
    images = [PICTURES[(number + k) % 10] for k in range(1 + number % 4)]
    return catalogue.document(number, images, 1000 + number % 4 if number < TRAIN else None)


def with_fields(**changes: object) -> Callable[[bytes], bytes]:
    return lambda data: bson.encode({**bson.decode(data), **changes})


def with_pictures(*pictures: bytes) -> Callable[[bytes], bytes]:
    return with_fields(imgs=[{'picture': picture} for picture in pictures])


# What happens to a product, and what is said of it.
DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: struct.pack('<i', 0) + data[4:], 'its length reads 0'),
    (lambda data: struct.pack('<i', -5) + data[4:], 'its length reads -5'),
    (lambda data: struct.pack('<i', len(data) + 100) + data[4:], 'not a BSON document'),
    (lambda data: data[:-40], 'not a BSON document'),
    (lambda data: data[:1000] + data[1100:], 'not a BSON document'),
    (lambda data: data.replace(b'imgs', b'imgz'), 'has no pictures'),
    (lambda data: data[:-1] + b'\x01', 'bad eoo'),
    (lambda data: bytes(len(data)), 'its length reads 0'),
    (with_fields(_id=-7), '_id must be a whole number of 0 or more, is -7'),
    (with_fields(_id=2.5), '_id must be a whole number of 0 or more, is 2.5'),
    (with_pictures(), 'has no pictures'),
    (with_pictures(*PICTURES[:5]), 'has 5 pictures'),
    (with_pictures(PICTURES[0], b'GIF89a'), 'picture 1 is no JPEG'),
    (with_pictures(PICTURES[0][:-2]), 'is cut off'),
    (with_pictures(catalogue.jpeg(0, size=(180, 90))), 'is 180x90 pixels'),
]
IN_TRAIN: list[tuple[Callable[[bytes], bytes], str]] = [
    (with_fields(category_id=77), 'is of category 77, which is not in'),
    (with_fields(category_id=None), 'category_id must be a whole number, is None'),
    (with_fields(_id=0), 'product 0 stands at byte 0 already'),
    (with_fields(_id=0, category_id=1001), 'product 0 stands at byte '),
    (with_fields(_id=bson.Int64(1), category_id=1000.0), f'product 1 stands at byte {len(document(0))} already'),
]


Rejected = tuple[str, int, bytes, str]  # file, offset, bytes, part of the reason


def write_source(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name in plan.SOURCES:
        (folder / name).write_bytes(files.get(name, b''))
    catalogue.write_names(folder, CATEGORIES)
    return folder


def run(source: Path, output: Path, *words: str) -> None:
    convert.main(['convert', f'--input_dir={source}', f'--output_dir={output}', '--runner=FnApiRunner', *words])


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder without the worklog."""
    paths = folder.iterdir() if folder.exists() else ()
    return {path.name: path.read_bytes() for path in paths if path.name != worklog.NAME}


def lines(folder: Path) -> list[dict]:
    """What rejected.jsonl says."""
    return [json.loads(line) for line in (folder / 'rejected.jsonl').read_text().splitlines()]


def about(folder: Path, *leave_out: str) -> dict:
    values = json.loads((folder / 'manifest.json').read_bytes())
    return {**values, 'about': {name: value for name, value in values['about'].items() if name not in leave_out}}


@pytest.fixture(scope='module')
def sources(tmp_path_factory) -> tuple[Path, Path, list[Rejected]]:
    """A damaged catalogue; the same without what is damaged; and what is damaged."""
    folder = tmp_path_factory.mktemp('sources')
    damages = [*IN_TRAIN, *DAMAGES, *DAMAGES[:5]]
    damaged, whole = dict.fromkeys(plan.SOURCES, b''), dict.fromkeys(plan.SOURCES, b'')
    rejected = []
    for number in range(TRAIN + TEST):
        name, data = plan.SOURCES[number >= TRAIN], document(number)
        if number % EVERY == EVERY // 2:
            change, reason = damages[number // EVERY]
            data = change(data)
            rejected.append((name, len(damaged[name]), data, reason))
        else:
            whole[name] += data
        damaged[name] += data
    assert len(rejected) == len(damages)
    return write_source(folder / 'damaged', damaged), write_source(folder / 'whole', whole), rejected


@pytest.fixture(scope='module')
def skipped(sources, tmp_path_factory) -> Path:
    """What the damaged catalogue is converted into."""
    folder = tmp_path_factory.mktemp('skipped')
    run(sources[0], folder, '--on_error=skip', '--max_rejected=0.5')
    return folder


@pytest.fixture(scope='module')
def clean(sources, tmp_path_factory) -> Path:
    """What the catalogue without the damaged products is converted into."""
    folder = tmp_path_factory.mktemp('clean')
    run(sources[1], folder)
    return folder


def test_the_shards_are_those_of_a_catalogue_without_what_is_damaged(sources, skipped, clean):
    left_out, expected = contents(skipped), contents(clean)
    assert set(left_out) == {*expected, 'rejected.jsonl'}
    assert [name for name in expected if left_out[name] != expected[name]] == ['manifest.json']
    assert about(skipped, 'source', 'rejected') == about(clean, 'source', 'rejected')
    numbers = about(skipped)['about']
    assert numbers['rejected'] == len(sources[2])
    assert sum(part['products'] for part in numbers['splits'].values()) + len(sources[2]) == TRAIN + TEST


def test_every_document_left_out_is_listed_with_its_place_and_what_to_do(sources, skipped):
    source, _, rejected = sources
    listed = lines(skipped)
    assert [(row['file'], row['offset'], row['length']) for row in listed] == [
        (name, offset, len(data)) for name, offset, data, _ in rejected
    ]
    for row, (name, offset, data, reason) in zip(listed, rejected, strict=True):
        assert list(row) == ['file', 'offset', 'length', 'reason', 'remedy']
        assert (source / name).read_bytes()[offset : offset + row['length']] == data
        assert reason in row['reason']
        assert row['remedy']


def test_a_later_run_on_a_mended_catalogue_removes_the_list(sources, clean, tmp_path):
    run(sources[0], tmp_path, '--on_error=skip', '--max_rejected=0.5')
    run(sources[1], tmp_path)
    assert contents(tmp_path) == contents(clean)


def test_a_region_that_may_have_been_many_documents_is_held_to_the_bytes(tmp_path):
    """A tenth of the documents, overwritten with zeros, are one region."""
    documents = [document(number) for number in range(100)]
    documents[40:50] = [bytes(len(b''.join(documents[40:50])))]
    source = write_source(tmp_path / 'data', {'train.bson': b''.join(documents)})
    rule = '^[0-9,]+ of [0-9,]+ bytes can not be used, more than --max_rejected=0.05: '
    with pytest.raises(InputError, match=rule):
        run(source, tmp_path / 'shards', '--on_error=skip', '--max_rejected=0.05')
    run(source, tmp_path / 'shards', '--on_error=skip', '--max_rejected=0.2')
    assert len(lines(tmp_path / 'shards')) == 1


@pytest.mark.parametrize('left', [-1, 1000, 4, 3, 0])
def test_a_file_that_ends_in_the_middle_of_a_document_is_told_of_in_a_line_of_its_own(tmp_path, capsys, left):
    """What followed isn't there to be counted; -1: all but the last byte, 0: nothing is missing."""
    whole = b''.join(document(number) for number in range(20))
    source = write_source(tmp_path / 'data', {'train.bson': whole + document(20)[:left]})
    for words in (['--plan_only'], []):
        run(source, tmp_path / 'shards', '--on_error=skip', '--max_rejected=0.5', *words)
        said = capsys.readouterr().out
        told = [
            f'left out 1 document that can not be used, listed in {tmp_path}/shards/rejected.jsonl',
            f'warning: {source}/train.bson ends in the middle of a document: whatever followed is missing and can not '
            'be counted; get the file again',
        ]
        assert [line for line in said.splitlines() if line.startswith(('left out', 'warning'))] == (
            told if left else []
        )


def test_a_document_that_is_damaged_elsewhere_is_no_end_of_its_file(tmp_path, capsys):
    """Its length reaches beyond the file's end, but another document follows; the last one holds no pictures."""
    files = [document(0), struct.pack('<i', 10**6) + document(1)[4:], document(2), with_pictures()(document(3))]
    source = write_source(tmp_path / 'data', {'train.bson': b''.join(files)})
    run(source, tmp_path / 'shards', '--on_error=skip', '--max_rejected=0.9')
    said = capsys.readouterr().out
    assert [row['reason'][:15] for row in lines(tmp_path / 'shards')] == ['the file is cut', 'product 3 has n']
    assert 'left out 2 documents' in said and 'warning' not in said


@pytest.mark.parametrize(('share', 'fits'), [('0.1', True), ('0.0999', False), ('0', False), ('1', True)])
def test_as_many_are_left_out_as_are_allowed(clean, tmp_path, monkeypatch, capsys, share, fits):
    """10 of 100."""
    documents = [document(number) for number in range(100)]
    documents[::10] = [bson.encode({'_id': 1})] * 10
    source, output = write_source(tmp_path / 'data', {'train.bson': b''.join(documents)}), tmp_path / 'shards'
    output.mkdir()
    for name, data in contents(clean).items():
        (output / name).write_bytes(data)
    words = ['--runner=FnApiRunner', '--on_error=skip', f'--max_rejected={share}']
    monkeypatch.setattr(sys, 'argv', ['convert', f'--input_dir={source}', f'--output_dir={output}', *words])
    with pytest.raises(SystemExit) as end:
        convert.program.run(convert.main)
    said = capsys.readouterr()
    assert len(lines(output)) == 10
    if fits:
        assert (end.value.code, said.err) == (0, '')
        assert f'left out 10 documents that can not be used, listed in {output}/rejected.jsonl\n' in said.out
        assert json.loads((output / 'manifest.json').read_bytes())['about']['rejected'] == 10
        return
    assert end.value.code == 1
    assert said.err == (
        f'error: 10 of 100 documents can not be used, more than --max_rejected={float(share)}: '
        f'{output}/rejected.jsonl lists them; mend the catalogue or allow more\n'
    )
    (output / 'rejected.jsonl').unlink()
    assert contents(output) == contents(clean), 'the earlier dataset stays'


def test_nothing_is_left_out_unless_it_is_asked_for(sources, tmp_path):
    source, _, rejected = sources
    with pytest.raises(InputError) as raised:
        run(source, tmp_path, '--max_rejected=1')
    said = str(raised.value)
    assert any(f'{source}/{name}: byte {offset}: ' in said and reason in said for name, offset, _, reason in rejected)
    assert contents(tmp_path) == {}


def test_the_first_of_a_repeated_product_is_the_one_that_stays(tmp_path):
    """In another category, in another way of writing, three times, and across a damaged one."""
    documents = [document(number) for number in range(20)]
    sizes = [len(data) for data in documents]
    repeats = [
        document(3),
        with_fields(category_id=1000)(document(7)),
        bson.encode(bson.decode(document(3)) | {'a': 1}),
    ]
    files = {'train.bson': b''.join([*documents, repeats[0], DAMAGES[0][0](document(90)), *repeats[1:]])}
    run(write_source(tmp_path / 'data', files), tmp_path / 'a', '--on_error=skip', '--max_rejected=0.5')
    run(write_source(tmp_path / 'once', {'train.bson': b''.join(documents)}), tmp_path / 'b')
    assert {name: data for name, data in contents(tmp_path / 'a').items() if name.endswith('.tfrecord')} == {
        name: data for name, data in contents(tmp_path / 'b').items() if name.endswith('.tfrecord')
    }
    assert [row['reason'] for row in lines(tmp_path / 'a')] == [
        f'product 3 stands at byte {sum(sizes[:3])} already',
        'not a BSON document (its length reads 0)',
        f'product 7 stands at byte {sum(sizes[:7])} already',
        f'product 3 stands at byte {sum(sizes[:3])} already',
    ]


NOTHING = 'holds no product that can be used; get the file again'


@pytest.mark.parametrize(
    ('train', 'share', 'error'),
    [
        (bytes(100_000), '1', f'train.bson: {NOTHING}'),
        (bytes(100_000), '0.1', '1 of 6 documents can not be used, more than --max_rejected=0.1: '),
        (b''.join(document(TRAIN + k) for k in range(9)), '1', f'train.bson: {NOTHING}'),
        (b''.join(document(TRAIN + k) for k in range(9)), '0.5', '9 of 14 documents can not be used, more than '),
    ],
    ids=['zeros, all allowed', 'zeros', 'the test file, all allowed', 'the test file'],
)
def test_a_catalogue_of_which_nothing_is_left_is_an_error(tmp_path, train, share, error):
    tested = b''.join(document(TRAIN + k) for k in range(5))
    source = write_source(tmp_path / 'data', {'train.bson': train, 'test.bson': tested})
    with pytest.raises(InputError, match=re.escape(error)) as raised:
        run(source, tmp_path / 'shards', '--on_error=skip', f'--max_rejected={share}')
    assert '\n' not in str(raised.value)
    assert set(contents(tmp_path / 'shards')) == {'rejected.jsonl'}


@pytest.mark.parametrize(('limit', 'share', 'stops'), [(10, '0.001', True), (10, '1', False), (30, '0.001', False)])
def test_a_file_that_is_unusable_all_through_ends_before_it_is_read_to_its_end(
    tmp_path, monkeypatch, limit, share, stops
):
    """A list of millions of documents would fill the memory; but a short one is of more use than the first error."""
    monkeypatch.setattr(plan, 'MAX_LISTED', limit)
    unusable = bson.encode({'_id': 1, 'imgs': []})
    files = {'train.bson': b''.join(document(number) for number in range(20)) + unusable * 30}
    source, output = write_source(tmp_path / 'data', files), tmp_path / 'shards'
    before = sum(len(document(number)) for number in range(20))
    if share == '1':
        run(source, output, '--on_error=skip', '--max_rejected=1')
        assert len(lines(output)) == 30
        return
    error = (
        f'{source}/train.bson: byte {before + 10 * len(unusable)}: product 1: category_id must be a whole number, is '
        'None; get the file again, or mend this document (more than 10 documents can not be used, too many for '
        '--max_rejected=0.001)'
    )
    if not stops:
        error = f'30 of 50 documents can not be used, more than --max_rejected=0.001: {output}/rejected.jsonl'
    with pytest.raises(InputError, match=f'^{re.escape(error)}'):
        run(source, output, '--on_error=skip', f'--max_rejected={share}')
    assert set(contents(output)) == (set() if stops else {'rejected.jsonl'})


# --plan_only.


def table(said: str) -> list[str]:
    """What the plan says: from its heading to what was left out."""
    found = said.splitlines()
    start = next(number for number, line in enumerate(found) if line.startswith('split '))
    return [line.rsplit(',', 1)[0] for line in found[start : start + 5]]


def test_a_plan_alone_says_what_the_real_run_does_and_leaves_an_earlier_dataset_alone(
    sources, skipped, clean, tmp_path, capsys
):
    for name, data in contents(clean).items():
        (tmp_path / name).write_bytes(data)
    capsys.readouterr()
    run(sources[0], tmp_path, '--on_error=skip', '--max_rejected=0.5', '--plan_only')
    planned = capsys.readouterr().out
    last = planned.splitlines()[-1]
    assert last.startswith('wrote no shards into ') and last.endswith(' --noplan_only')
    assert ' --plan_only' not in last
    assert contents(tmp_path) == contents(clean) | {'rejected.jsonl': (skipped / 'rejected.jsonl').read_bytes()}
    run(sources[0], tmp_path, '--on_error=skip', '--max_rejected=0.5')
    assert table(planned) == table(capsys.readouterr().out)
    assert table(planned)[-1].startswith('left out 25 documents')
    assert contents(tmp_path) == contents(skipped)


def test_a_plan_alone_checks_the_catalogue(sources, tmp_path):
    with pytest.raises(InputError, match='train.bson: byte '):
        run(sources[0], tmp_path, '--plan_only')
    with pytest.raises(InputError, match='25 of 300 documents can not be used'):
        run(sources[0], tmp_path, '--plan_only', '--on_error=skip')
    assert set(contents(tmp_path)) == {'rejected.jsonl'}
