"""Small .csv files with a known header, read and written whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from pipeline import storage
from pipeline.errors import CatalogueError


def read(path: str, columns: Sequence[str]) -> list[list[str]]:
    """The rows after the header, each with as many cells as there are columns.

    Raises:
        CatalogueError: not UTF-8 text with commas, another header, or a row with too few or too many cells.
    """
    with storage.open_read(path) as file:
        data = file.read()
    try:
        rows = list(csv.reader(io.StringIO(data.decode('utf-8-sig')), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CatalogueError(f'{path}: must be UTF-8 text with commas ({error})') from None
    if not rows or rows[0] != list(columns):
        raise bad_row(path, 1, rows[0] if rows else [], columns)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(columns):
            raise bad_row(path, number, row, columns)
    return rows[1:]


def bad_row(path: str, number: int, row: Sequence[str], columns: Sequence[str]) -> CatalogueError:
    """The error of a row, numbered from the header's 1, whose cells are not what the header says."""
    return CatalogueError(f'{path}: row {number} must be {",".join(columns)}, is {",".join(row) or "empty"}')


def write(path: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a file, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([columns, *rows])
    with storage.atomic_writer(path) as file:
        file.write(text.getvalue().encode())
