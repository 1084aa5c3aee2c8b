"""Labels follow the ids alone, and every row of the file counts."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline import categories
from pipeline.errors import CatalogueError, InputError

HEADER = 'category_id,category_level1,category_level2,category_level3'
LARGEST = 10**18 - 1  # of 18 digits


def read_source(folder: Path, text: str | bytes) -> categories.Categories:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / 'category_names.csv').write_bytes(data)
    return categories.read_source(str(folder))


def test_labels_number_the_ids_in_ascending_order_whatever_the_files_order(tmp_path):
    rows = ['30,C,C,C', '10,A,A,A', '20,B,B,B']
    first = read_source(tmp_path, '\n'.join([HEADER, *rows]))
    other = read_source(tmp_path, '\n'.join([HEADER, *reversed(rows)]))
    for label_map in (first, other):
        assert label_map.ids.tolist() == [10, 20, 30]
        assert label_map.ids.dtype == np.int64
        assert label_map.names == (('A', 'A', 'A'), ('B', 'B', 'B'), ('C', 'C', 'C'))
        assert len(label_map) == 3
    assert first.digest() == other.digest()


def test_categories_are_the_same_at_a_level_only_under_the_same_parents():
    names = (('A', 'X', 'RUG'), ('A', 'X', 'LAMP'), ('A', 'Y', 'RUG'), ('B', 'X', 'RUG'), ('B', 'X', 'RUG'))
    levels = categories.Categories(np.arange(5), names).levels()
    assert levels.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 2, 2], [0, 1, 2, 3, 3]]
    assert levels.dtype == np.int64


@pytest.mark.parametrize(
    ('category_id', 'label'),
    [(9, -1), (10, 0), (11, -1), (19, -1), (20, 1), (21, -1), (29, -1), (30, 2), (31, -1), (-1, -1), (2**63 - 1, -1)],
)
def test_only_an_id_that_is_there_has_a_label(tmp_path, category_id, label):
    label_map = read_source(tmp_path, f'{HEADER}\n10,A,A,A\n20,B,B,B\n30,C,C,C\n')
    labels = label_map.labels(np.array([category_id]))
    assert labels.tolist() == [label]
    assert labels.dtype == np.int64


def test_the_digest_is_of_the_ids_in_order(tmp_path):
    label_map = read_source(tmp_path, f'{HEADER}\n20,B,B,B\n10,A,A,A\n')
    assert label_map.digest() == hashlib.sha256(struct.pack('<2q', 10, 20)).hexdigest()
    assert label_map.digest() == read_source(tmp_path, f'{HEADER}\n10,x,y,z\n20,x,y,z\n').digest(), 'names do not count'
    assert label_map.digest() != read_source(tmp_path, f'{HEADER}\n10,A,A,A\n21,B,B,B\n').digest()


@pytest.mark.parametrize(
    'text',
    [
        f'{HEADER}\n7,"ÉPICERIE, BIO","dit ""le bon""",Thé\n',
        f'{HEADER}\r\n7,"ÉPICERIE, BIO","dit ""le bon""",Thé\r\n',
        f'\ufeff{HEADER}\n7,"ÉPICERIE, BIO","dit ""le bon""",Thé',
    ],
    ids=['unix', 'windows', 'byte order mark'],
)
def test_names_may_hold_commas_quotes_and_accents(tmp_path, text):
    assert read_source(tmp_path, text).names == (('ÉPICERIE, BIO', 'dit "le bon"', 'Thé'),)


def test_a_path_has_all_three_names(tmp_path):
    label_map = read_source(tmp_path, f'{HEADER}\n20,TV / SON,TV / SON,ÉCRAN\n10,A,B,C\n')
    assert [label_map.path(label) for label in (0, 1)] == ['A > B > C', 'TV / SON > TV / SON > ÉCRAN']


def test_what_is_written_is_read(tmp_path):
    label_map = read_source(tmp_path, f'{HEADER}\n{LARGEST},"a, b",é,"c\nd"\n0,A,A,A\n')
    categories.write(label_map, str(tmp_path))
    again = categories.read(str(tmp_path))
    assert again.ids.tolist() == [0, LARGEST]
    assert again.names == label_map.names == (('A', 'A', 'A'), ('a, b', 'é', 'c\nd'))
    text = (tmp_path / 'categories.csv').read_text()
    assert text.splitlines()[:2] == [f'label,{HEADER}', '0,0,A,A,A']


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('', f'row 1 must be {HEADER}, is empty'),
        ('\n', f'row 1 must be {HEADER}, is empty'),
        ('10,A,A,A\n', f'row 1 must be {HEADER}, is 10,A,A,A'),
        (f'label,{HEADER}\n', f'row 1 must be {HEADER}, is label,{HEADER}'),
        (f'{HEADER}\n', 'holds no category; get the file again'),
        (f'{HEADER}\n10,A,A,A\n20,B,B\n', f'row 3 must be {HEADER}, is 20,B,B'),
        (f'{HEADER}\n10,A,A,A,A\n', f'row 2 must be {HEADER}, is 10,A,A,A,A'),
        (f'{HEADER}\n\n10,A,A,A\n', f'row 2 must be {HEADER}, is empty'),
        (f'{HEADER}\nten,A,A,A\n', f'row 2 must be {HEADER}, is ten,A,A,A'),
        (f'{HEADER}\n-1,A,A,A\n', f'row 2 must be {HEADER}, is -1,A,A,A'),
        (f'{HEADER}\n1.0,A,A,A\n', f'row 2 must be {HEADER}, is 1.0,A,A,A'),
        (f'{HEADER}\n{LARGEST + 1},A,A,A\n', f'row 2 must be {HEADER}, is {LARGEST + 1},A,A,A'),
        (f'{HEADER}\n١٠,A,A,A\n', f'row 2 must be {HEADER}, is ١٠,A,A,A'),
        (f'{HEADER}\n10,A,A,A\n20,B,B,B\n10,C,C,C\n', 'row 4 repeats category 10; each must stand once'),
        (f'{HEADER}\n10,A,A,A\n010,C,C,C\n', 'row 3 repeats category 010; each must stand once'),
        (f'{HEADER}\n10,caf\xe9,A,A\n'.encode('latin-1'),
         "must be UTF-8 text with commas ('utf-8' codec can't decode byte 0xe9 in position 66: "
         'invalid continuation byte)'),
        (f'{HEADER}\n10,"A,A,A\n', 'must be UTF-8 text with commas (unexpected end of data)'),
    ],
)  # fmt: skip
def test_a_file_that_breaks_a_rule_is_refused_by_row(tmp_path, text, error):
    with pytest.raises(CatalogueError, match=f'^{re.escape(f"{tmp_path}/category_names.csv: {error}")}$'):
        read_source(tmp_path, text)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match=f'^{re.escape(f"{tmp_path}/categories.csv: no such file")}$'):
        categories.read(str(tmp_path))
