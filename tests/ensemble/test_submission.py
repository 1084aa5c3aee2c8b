"""Kaggle's file, and the solution."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from ensemble import submission
from pipeline.categories import Categories
from pipeline.errors import InputError


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def solution_file(folder: Path, text: str) -> str:
    (folder / 'solution.csv').write_text(text)
    return str(folder / 'solution.csv')


def test_a_submission_has_one_row_a_product_in_ascending_order(tmp_path: Path) -> None:
    path = tmp_path / submission.NAME
    submission.write(str(path), ids(30, 4, 2**40), ids(1000, 1010, 1000), expected=3)
    assert gzip.decompress(path.read_bytes()) == b'_id,category_id\n4,1010\n30,1000\n1099511627776,1000\n'


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / 'a.csv.gz', tmp_path / 'b.csv.gz'
    submission.write(str(first), ids(2, 1), ids(7, 8), expected=2)
    submission.write(str(second), ids(1, 2), ids(8, 7), expected=2)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[3:8] == bytes(5)  # gzip's flags (no file name) and time


@pytest.mark.parametrize(
    ('products', 'expected', 'message'),
    [
        (ids(1, 5, 9, 5), 4, 'product 5 is predicted more than once; make the logits again'),
        (ids(1, 5), 3, '2 products are predicted, the manifest has 3; make the logits again'),
        (ids(1, 5), 1, '2 products are predicted, the manifest has 1; make the logits again'),
        (ids(), 1, '0 products are predicted, the manifest has 1; make the logits again'),
    ],
)
def test_products_lost_or_doubled_are_refused_and_nothing_is_written(
    tmp_path: Path, products: np.ndarray, expected: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        submission.write(str(tmp_path / 'x.csv.gz'), products, products, expected=expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_a_solution_in_any_order_is_found_by_product(tmp_path: Path, label_map: Categories, end: str) -> None:
    path = solution_file(tmp_path, end.join(['_id,category_id', '30,1020', '4,1000', '10,1010', '']))
    solution = submission.read_solution(path, label_map)
    assert solution.product_id.tolist() == [4, 10, 30]
    assert solution.of(ids(10, 30, 4)).tolist() == [1010, 1020, 1000]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'row 1 must be _id,category_id, is empty'),
        ('id,category\n1,1000\n', 'row 1 must be _id,category_id, is id,category'),
        ('_id,category_id\n1,1000\n2\n', 'row 3 must be _id,category_id, is 2'),
        ('_id,category_id\n1,1000,3\n', 'row 2 must be _id,category_id, is 1,1000,3'),
        ('_id,category_id\n1,Shoes\n', 'row 2 must be _id,category_id, is 1,Shoes'),
        ('_id,category_id\n-1,1000\n', 'row 2 must be _id,category_id, is -1,1000'),
        ('_id,category_id\n1,99999999999999999999\n', 'row 2 must be _id,category_id, is 1,99999999999999999999'),
        ('_id,category_id\n99999999999999999999,1\n', 'row 2 must be _id,category_id, is 99999999999999999999,1'),
        ('_id,category_id\n1,1000\n\n2,1000\n', 'row 3 must be _id,category_id, is empty'),
        ('_id,category_id\n1,1000\n2,1000\n1,1010\n', 'row 4 repeats product 1; each must stand once'),
        ('_id,category_id\n1,1000\n2,999\n', 'row 3: category 999 is none of the model'),
        ('_id,category_id\n"1,1000\n', 'must be UTF-8 text with commas'),
    ],
)
def test_a_solution_that_can_not_be_used_is_refused_by_row(
    tmp_path: Path, label_map: Categories, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=f'solution.csv: {message}'):
        submission.read_solution(solution_file(tmp_path, text), label_map)


def test_a_solution_that_is_not_there_is_an_input_error(tmp_path: Path, label_map: Categories) -> None:
    with pytest.raises(InputError, match='none.csv: no such file'):
        submission.read_solution(str(tmp_path / 'none.csv'), label_map)


@pytest.mark.parametrize(
    ('predicted', 'message'),
    [
        (ids(4, 10, 30, 31, 29), r'must hold the 5 products predicted, lacks 2 \(the first is 29\)'),
        (ids(30), r'must hold the 1 products predicted, has besides 2 \(the first is 4\)'),
        (ids(4, 5, 30), r'3 products predicted, lacks 1 \(the first is 5\) and has besides 1 \(the first is 10\)'),
    ],
)
def test_a_solution_of_other_products_is_refused(
    tmp_path: Path, label_map: Categories, predicted: np.ndarray, message: str
) -> None:
    solution = submission.read_solution(
        solution_file(tmp_path, '_id,category_id\n30,1020\n4,1000\n10,1010\n'), label_map
    )
    with pytest.raises(InputError, match=message):
        solution.of(predicted)


@pytest.mark.parametrize('count', [submission.LINES - 1, submission.LINES, submission.LINES + 1])
def test_a_submission_of_many_lines_is_written_in_pieces(tmp_path: Path, count: int) -> None:
    path = tmp_path / submission.NAME
    submission.write(str(path), np.arange(count)[::-1], np.arange(count)[::-1] + 5, expected=count)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert lines[1:] == [f'{number},{number + 5}' for number in range(count)]
