"""Small .csv files are read and written whole."""

import pytest

from pipeline import tables
from pipeline.errors import CatalogueError

COLUMNS = ('_id', 'name')


@pytest.mark.parametrize('rows', [[], [['1', 'a']], [['1', 'with, comma'], ['2', 'with "quotes"'], ['3', 'line\nend']]])
def test_what_is_written_is_read(tmp_path, rows):
    path = str(tmp_path / 'a.csv')
    tables.write(path, COLUMNS, rows)
    assert tables.read(path, COLUMNS) == rows


def test_a_file_is_utf_8_with_plain_line_ends(tmp_path):
    tables.write(str(tmp_path / 'a.csv'), COLUMNS, [[1, 'é']])
    assert (tmp_path / 'a.csv').read_bytes() == '_id,name\n1,é\n'.encode()


@pytest.mark.parametrize(
    ('data', 'error'),
    [
        (b'', 'row 1 must be _id,name, is empty'),
        (b'id,name\n', 'row 1 must be _id,name, is id,name'),
        (b'_id,name\n1\n', 'row 2 must be _id,name, is 1'),
        (b'_id,name\n1,a\n1,a,b\n', 'row 3 must be _id,name, is 1,a,b'),
        (b'_id,name\n\n', 'row 2 must be _id,name, is empty'),
        (b'_id,name\n1,\xff\n', 'must be UTF-8 text with commas'),
        (b'_id,name\n1,"a\n', 'must be UTF-8 text with commas'),
    ],
)
def test_a_file_that_is_not_as_its_header_says_is_refused_by_row(tmp_path, data, error):
    (tmp_path / 'a.csv').write_bytes(data)
    with pytest.raises(CatalogueError, match=f'a.csv: {error}'):
        tables.read(str(tmp_path / 'a.csv'), COLUMNS)
