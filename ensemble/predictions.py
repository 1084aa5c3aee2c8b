"""The predictions store: the category of each product, with its probability and the five likeliest.

Synopsis:

    from ensemble import predictions

    for file in predictions.read_manifest('runs/latest/predictions/test').files:
        found = predictions.read_file('runs/latest/predictions/test', file)
        print(found.product_id, found.category_id, found.probability)

A store is a folder `runs/NAME/predictions/{val,test}[-tta5]/` of Parquet files, which pandas, DuckDB and others read as
they are, one for each file of logits, with its products in their order. manifest.json is written last.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import pyarrow
from pyarrow import parquet

from ensemble import rules
from ensemble.mixture import Mixture, Models
from pipeline import manifest as manifest_lib
from pipeline import storage
from pipeline.errors import InputError, one_line
from pipeline.manifest import FileInfo, Manifest

KIND = 'predictions'
SUFFIX = '.parquet'
UNKNOWN = -1  # category_id of a product whose category isn't known (test)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What was found for P products; k is 5, or the number of categories if that is less.

    Attributes:
        product_id: int64 [P], Kaggle's _id.
        pictures: int64 [P], 1..4.
        true_category_id: int64 [P], UNKNOWN in test.
        category_id: int64 [P], the prediction.
        probability: float32 [P], 0..1, of the prediction; 1 where it is known.
        known: bool [P], whether the category is that of the same pictures in the training data, not the network's.
        likeliest: int64 [P, k], category ids by the network, the likeliest first.
        probabilities: float32 [P, k], theirs.
    """

    product_id: np.ndarray
    pictures: np.ndarray
    true_category_id: np.ndarray
    category_id: np.ndarray
    probability: np.ndarray
    known: np.ndarray
    likeliest: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        return len(self.product_id)

    @staticmethod
    def concatenate(parts: Sequence[Predictions]) -> Predictions:
        """The products of all parts, in their order."""
        names = [field.name for field in dataclasses.fields(Predictions)]
        return Predictions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def predict(models: Models, mixture: Mixture, *, category_ids: np.ndarray) -> Predictions:
    """The predictions for the products of a block.

    Args:
        models: the rows of each model.
        mixture: how to combine them.
        category_ids: int64 [C], of the labels.
    """
    products = models.each[0]
    labels, probabilities = rules.likeliest(models.scores(mixture))
    return Predictions(
        product_id=products.product_id,
        pictures=products.pictures,
        true_category_id=np.where(products.label < 0, UNKNOWN, category_ids[products.label]),
        category_id=category_ids[labels[:, 0]],
        probability=probabilities[:, 0],
        known=np.zeros(len(labels), bool),
        likeliest=category_ids[labels],
        probabilities=probabilities,
    )


def with_known(found: Predictions, product_id: np.ndarray, category_id: np.ndarray) -> Predictions:
    """The predictions with those replaced whose category is known otherwise.

    Args:
        found: the network's.
        product_id: int64 [P], of the same products.
        category_id: int64 [P], UNKNOWN where the network's shall stand.

    Raises:
        InputError: they are other products.
    """
    if not np.array_equal(found.product_id, product_id):
        raise InputError('the logits hold other products than the shards, or in another order; make the logits again')
    known = category_id != UNKNOWN
    return dataclasses.replace(
        found,
        known=known,
        category_id=np.where(known, category_id, found.category_id),
        probability=np.where(known, np.float32(1), found.probability),
    )


def write_file(folder: str, name: str, found: Predictions, *, split: str) -> FileInfo:
    """Writes one file of a store, whole or not at all; the same predictions give the same bytes.

    Returns:
        The manifest's entry; its images are pictures.
    """
    columns = {}
    for field in dataclasses.fields(Predictions):
        values = getattr(found, field.name)
        columns[field.name] = _lists(values) if values.ndim == 2 else pyarrow.array(values)
    packed = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), packed, compression='zstd')
    data = packed.getvalue()
    storage.make_folder(folder)
    with storage.atomic_writer(storage.join(folder, name)) as file:
        file.write(data)
    crc32c = google_crc32c.Checksum(data).hexdigest().decode()
    return FileInfo(name, split, len(found), int(found.pictures.sum()), len(data), crc32c)


def finish(folder: str, files: Sequence[FileInfo], about: dict[str, Any]) -> None:
    """Writes manifest.json: the last step of making a store."""
    manifest_lib.write(Manifest(KIND, about, tuple(sorted(files, key=lambda file: file.name))), folder)


def read_manifest(folder: str) -> Manifest:
    """What a finished store holds.

    Raises:
        InputError: there is no finished store in the folder.
    """
    return manifest_lib.read(folder, kind=KIND, remedy='python -m ensemble.combine --rule product')


def read_file(folder: str, file: FileInfo, columns: Sequence[str] = ()) -> Predictions:
    """One file's predictions.

    Args:
        folder: the store's.
        file: the manifest's entry.
        columns: fields to read; the others are left empty. All, if none are named.

    Raises:
        InputError: the file is damaged.
    """
    path = storage.join(folder, file.name)
    with storage.open_read(path) as source:
        data = source.read()
    if google_crc32c.Checksum(data).hexdigest().decode() != file.crc32c:
        raise InputError(f"{path}: its checksum is not the manifest's; combine the logits again")
    try:
        table = parquet.read_table(pyarrow.BufferReader(data), columns=list(columns) or None)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f'{path}: not a file of predictions ({one_line(error)}); combine the logits again') from None
    found = {name: _array(table[name]) for name in table.column_names}
    return Predictions(**{field.name: found.get(field.name, np.empty(0)) for field in dataclasses.fields(Predictions)})


def read(folder: str, columns: Sequence[str] = ()) -> Predictions:
    """All predictions of a store, as read_file()."""
    return Predictions.concatenate([read_file(folder, file, columns) for file in read_manifest(folder).files])


def _lists(values: np.ndarray) -> pyarrow.Array:
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), values.shape[1])


def _array(column: pyarrow.ChunkedArray) -> np.ndarray:
    if pyarrow.types.is_fixed_size_list(column.type):
        values = column.combine_chunks().flatten()
        return values.to_numpy().reshape(len(column), column.type.list_size)
    return column.to_numpy()
