"""The logits store: what a model says about every picture and view of a split, in float16.

Synopsis:

    import numpy as np
    from ensemble import logits
    from pipeline.categories import Categories

    product_id, image_index, view, label = np.array([[5, 5, 8], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    values = np.array([[-1, 3], [0, 2], [4, 1]], np.float16)
    rows = logits.Rows(product_id, image_index, view, label, values)
    label_map = Categories(np.array([1000, 1010]), (('A', 'B', 'C'), ('A', 'B', 'D')))

    files = [logits.write_shard('store', 'val-00000-of-00001.tfrecord', rows, split='val')]
    digests = {'weights_digest': 'ab', 'dataset_digest': 'cd'}
    about = {'split': 'val', 'tta': 1, 'seed': 0, 'dataset_products': 2, 'order_seed': 0}
    logits.finish('store', files, categories=label_map, **about, **digests)
    for file in logits.read_manifest('store').files:
        for block in logits.read_shard('store', file):
            print(block.product_id, block.logits.shape)

A store is a folder of TFRecord files (logits_folder.py: how it is named). A record is a block: a tf.train.Example
with the int64 feature `rows` = n and little-endian bytes of `product_id`, `image_index`, `view`, `label` (int64 [n])
and `logits` (float16 [n, C]). A product never crosses a block or a shard, so each block is reduced by itself. Beside
them lie categories.csv (what the C classes are) and manifest.json, which is written last.

A store of only the K highest logits of each row has `logits` float16 [n, K] from the highest down, and besides
`classes` (int64 [1]: C), `labels` ([n, K], whose they are; uint16, or int32 if C > 65,536) and `rest` (float32 [n]: the
log of the sum of the exponentials of those left out). It is read as rows of all C, in which those left out share the
rest equally. Nothing else about a row is lost, so every rule works on it unchanged.

A store of a model that looks at whole products has one row a product and view, with image_index 0, and besides
`pictures` (int64 [n]: how many the product has). It may hold only some of the products (routing.py joins such stores).

A store of features (kind FEATURES, in the run's folder features/) is the same of what the network's dense layers take:
its `logits` are float16 [n, F], as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import google_crc32c
import numpy as np
import tensorflow as tf

from ensemble import logits_folder
from pipeline import manifest as manifest_lib
from pipeline import records, storage
from pipeline.categories import Categories
from pipeline.categories import write as write_categories
from pipeline.errors import InputError
from pipeline.manifest import FileInfo, Manifest

KIND, FEATURES = logits_folder.KINDS
# 256 rows of 5,270 classes in float16 are 2.7 MB: far above the cost of a call, and the few float32 copies that a rule
# makes of a block (5.4 MB each) stay in a core's share of the cache: rules are a tenth faster than on 1,024 rows.
BLOCK_ROWS = 256
HEAD_BYTES, TAIL_BYTES = 12, 4  # of a TFRecord: before its data the length and its checksum, after them theirs
INDEX_COLUMNS = ('product_id', 'image_index', 'view', 'label')


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Logits with the picture and view that each row belongs to; all rows of a product are adjacent.

    Attributes:
        product_id: int64 [n], Kaggle's _id.
        image_index: int64 [n], 0..3: the picture's place in its product.
        view: int64 [n], 0 for the picture as it is, 1.. for augmented views of it.
        label: int64 [n], 0..C-1, or -1 where it isn't known (test).
        logits: float16 [n, C], each row up to a constant, which changes no probability. model.predict writes them less
            the row's highest, because float16 is finest near 0: there the best classes are told apart.
        pictures: int64 [n], 1..4, where a row is a product: how many pictures it has. None where a row is a picture.
    """

    product_id: np.ndarray
    image_index: np.ndarray
    view: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    pictures: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, column in self.index().items():
            if column.dtype != np.int64 or column.shape != self.logits.shape[:1]:
                raise ValueError(f'{name} must be int64 [{len(self.logits)}], is {column.dtype} {list(column.shape)}')
        if self.logits.dtype != np.float16 or self.logits.ndim != 2:
            raise ValueError(f'logits must be float16 [n, C], are {self.logits.dtype} {list(self.logits.shape)}')

    def __len__(self) -> int:
        return len(self.product_id)

    def __getitem__(self, part: slice) -> Rows:
        """Some of the rows, as views of the same memory."""
        return self._each(lambda column: column[part])

    def take(self, places: np.ndarray) -> Rows:
        """The rows at these places (int64 [m]), copied."""
        return self._each(lambda column: column[places])

    def _each(self, change: Callable[[np.ndarray], np.ndarray]) -> Rows:
        return Rows(**{name: change(column) for name, column in vars(self).items() if column is not None})

    def index(self) -> dict[str, np.ndarray]:
        """The columns that say what each row is, by name: INDEX_COLUMNS, and `pictures` where a row is a product."""
        columns = {name: getattr(self, name) for name in INDEX_COLUMNS}
        return columns if self.pictures is None else {**columns, 'pictures': self.pictures}

    def starts(self) -> np.ndarray:
        """Where each product begins: int64 [products], ascending, the first 0."""
        new = np.ones(len(self), bool)
        new[1:] = self.product_id[1:] != self.product_id[:-1]
        return np.flatnonzero(new)

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """All rows of the parts, in their order; of each part a row is the same, a picture or a product."""
        columns = dict.fromkeys([name for part in parts for name in part.index()] + ['logits'])
        return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns})


def write_shard(
    folder: str, name: str, rows: Rows | Iterable[Rows], *, split: str, top_k: int = 0, kind: str = KIND
) -> FileInfo:
    """Writes one file of a store, whole or not at all; its bytes don't depend on how the rows were batched.

    Args:
        folder: the store's folder; made if it isn't there.
        name: the file's name, such as val-00000-of-00004.tfrecord.
        rows: the rows in the dataset's order; a product may go on from one batch to the next.
        split: val or test.
        top_k: how many of each row's logits are kept, fewer than C; 0: all.
        kind: what they are, KIND or FEATURES.

    Returns:
        The manifest's entry, for finish().

    Raises:
        ValueError: a product comes back after another one, or top_k isn't below the number of classes.
        InputError: a logit isn't finite.
    """
    storage.make_folder(folder)
    checksum = google_crc32c.Checksum()
    seen: set[int] = set()
    row_count = size = 0
    with storage.atomic_writer(storage.join(folder, name)) as file:
        for block in _blocks([rows] if isinstance(rows, Rows) else rows):
            _check_block(block, seen, kind=kind)
            record = records.frame([_encode(block, top_k)])
            file.write(record)
            checksum.update(record)
            row_count += len(block)
            size += len(record)
    return FileInfo(name, split, len(seen), row_count, size, checksum.hexdigest().decode())


def finish(
    folder: str,
    files: Iterable[FileInfo],
    *,
    split: str,
    tta: int,
    weights_digest: str,
    dataset_digest: str,
    seed: int,
    categories: Categories,
    top_k: int = 0,
    pictures: int = 0,
    fewer_pictures: bool = False,
    dataset_products: int | None = None,
    order_seed: int | None = None,
    kind: str = KIND,
) -> Manifest:
    """Writes categories.csv, then manifest.json: the last step of making a store.

    Args:
        folder: the store's folder.
        files: what write_shard() returned for each file.
        split: val or test.
        tta: views of each picture: 1 for the picture as it is.
        weights_digest: identity of the model's weights.
        dataset_digest: Manifest.digest() of the shards that were predicted.
        seed: of the views beside the plain picture.
        categories: the label map; class c of the logits is label c.
        top_k: how many of each row's logits were kept; 0: all.
        pictures: how many of a product's pictures the model looks at, 1..4; 0: a row is a picture.
        fewer_pictures: whether it looks at all products, the first so many pictures of each; False: with `pictures`,
            only at those that have exactly so many, and the store is of these.
        dataset_products: how many products the dataset has in the split; None: it isn't known, as in stores made before
            there were any of a part.
        order_seed: the dataset's seed: products stand in order of split.order_hashes(product_id, seed=order_seed), then
            of product_id. None: it isn't known.
        kind: what was written, KIND or FEATURES.

    Raises:
        ValueError: the store is of a part of the products, and isn't told of which dataset's.
    """
    if pictures and None in (dataset_products, order_seed):
        raise ValueError('a store of products must be told dataset_products and order_seed')
    about = {
        'split': split,
        'tta': tta,
        'weights_digest': weights_digest,
        'label_map_digest': categories.digest(),
        'dataset_digest': dataset_digest,
        'seed': seed,
        'top_k': top_k,
        'categories': len(categories),
        'pictures': pictures,
        'fewer_pictures': fewer_pictures,
        'dataset_products': dataset_products,
        'order_seed': order_seed,
    }
    manifest = Manifest(kind, about, tuple(sorted(files, key=lambda file: file.name)))
    write_categories(categories, folder)
    manifest_lib.write(manifest, folder)
    return manifest


def read_manifest(folder: str, *, check_files: bool = True, kind: str = KIND) -> Manifest:
    """What a finished store holds.

    Args:
        folder: the store's folder.
        check_files: whether all listed files must be there in their lengths.
        kind: what it must hold, KIND or FEATURES.

    Raises:
        InputError: there is no finished store in the folder; names the command that makes it, or the stores in folders
            of the folder.
    """
    if not storage.exists(storage.join(folder, manifest_lib.NAME)):
        stores = storage.folders_with(folder, manifest_lib.NAME)
        if stores:
            raise InputError(f'{folder}: is no store of {kind}; name one of its stores: {", ".join(stores[:5])}')
    return manifest_lib.read(folder, kind=kind, remedy=logits_folder.command(folder), check_files=check_files)


def read_shard(folder: str, file: FileInfo, *, kind: str = KIND) -> Iterator[Rows]:
    """Yields the blocks of one file, in order, of logits or of features.

    Raises:
        InputError: a record is damaged or cut short, or the file isn't the one that the manifest lists.
    """
    path = storage.join(folder, file.name)
    checksum = google_crc32c.Checksum()
    row_count = number = place = 0
    with storage.open_ranges(path) as source:
        while True:
            try:
                data = _read_record(source, place, checksum)
                if data is None:
                    break
                rows = _decode(data)
            except (ValueError, KeyError, IndexError) as error:
                raise InputError(f'{path}: record {number} is damaged ({error}); make the {kind} again') from None
            place += HEAD_BYTES + len(data) + TAIL_BYTES
            row_count += len(rows)
            number += 1
            yield rows
    if row_count != file.images or checksum.hexdigest().decode() != file.crc32c:
        raise InputError(
            f'{path}: its {row_count} rows or their checksum are not what the manifest lists ({file.images} rows); '
            f'make the {kind} again'
        )


def index_shard(folder: str, file: FileInfo, *, kind: str = KIND) -> Iterator[tuple[Rows, int]]:
    """Yields the blocks of one file and where in it their logits begin, in bytes.

    Of a local file only the pages that are looked at are read: here those of the other columns. Checksums aren't
    looked at; journal.is_sound() does that.

    Raises:
        InputError: a record is damaged or cut short, or the rows aren't as many as the manifest lists.
    """
    path = storage.join(folder, file.name)
    row_count = place = 0
    with storage.open_ranges(path) as source:
        while place < source.size:
            length = int.from_bytes(source.window(place, 8).tobytes(), 'little')
            data = source.window(place + HEAD_BYTES, length)
            try:
                rows = _decode(data.data)
            except (ValueError, KeyError, IndexError) as error:
                raise InputError(f'{path}: byte {place}: damaged ({error}); make the {kind} again') from None
            yield rows, place + HEAD_BYTES + rows.logits.ctypes.data - data.ctypes.data
            place += HEAD_BYTES + length + TAIL_BYTES
            row_count += len(rows)
    if row_count != file.images:
        raise InputError(f'{path}: has {row_count} rows, the manifest lists {file.images}; make the {kind} again')


def _blocks(batches: Iterable[Rows]) -> Iterator[Rows]:
    """Cuts batches of any length into blocks of whole products, as many as fit into BLOCK_ROWS but at least one."""
    pending: Rows | None = None
    for batch in batches:
        pending = batch if pending is None else Rows.concatenate([pending, batch])
        while len(pending) > BLOCK_ROWS:
            ends = pending.starts()[1:]
            if not len(ends):  # one product, and more of it may come
                break
            end = max(ends[0], ends[ends <= BLOCK_ROWS].max(initial=0))
            yield pending[:end]
            pending = pending[end:]
    if pending is not None and len(pending):
        yield pending


def _check_block(block: Rows, seen: set[int], *, kind: str) -> None:
    """Adds the block's products to `seen`; refuses one that was there, and values that nothing can be made of."""
    for product in block.product_id[block.starts()].tolist():
        if product in seen:
            raise ValueError(f'all rows of a product must be adjacent: product {product} comes back')
        seen.add(product)
    finite = np.isfinite(block.logits).all(axis=1)
    if not finite.all():
        product = block.product_id[np.argmin(finite)]
        raise InputError(
            f'{kind} must be finite in float16 (up to 65,504), those of product {product} are not: the model has '
            'diverged; train it again with a lower learning rate'
        )


def _encode(block: Rows, top_k: int) -> bytes:
    columns = {name: column.astype('<i8').tobytes() for name, column in block.index().items()}
    columns |= _encode_highest(block.logits, top_k) if top_k else {'logits': block.logits.astype('<f2').tobytes()}
    features = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])) for name, data in columns.items()}
    features['rows'] = tf.train.Feature(int64_list=tf.train.Int64List(value=[len(block)]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _encode_highest(values: np.ndarray, top_k: int) -> dict[str, bytes]:
    """The K highest of each row of float16 [n, C], the lowest label first among equals, and the sum of the others."""
    classes = values.shape[1]
    if top_k >= classes:
        raise ValueError(f'top_k must be less than the {classes} classes, is {top_k}')
    others = values.astype(np.float32)
    # TensorFlow's takes two thirds of the time of numpy's argpartition, which has no order among equals.
    highest, labels = (tensor.numpy() for tensor in tf.math.top_k(others, top_k))
    np.put_along_axis(others, labels, -np.inf, axis=1)
    return {
        'classes': np.array([classes], '<i8').tobytes(),
        'labels': labels.astype(_label_type(classes)).tobytes(),
        'logits': highest.astype('<f2').tobytes(),
        'rest': tf.reduce_logsumexp(others, axis=1).numpy().astype('<f4').tobytes(),
    }


def _label_type(classes: int) -> str:
    return '<u2' if classes <= 2**16 else '<i4'


def _decode(data: memoryview) -> Rows:
    """The block of a serialised Example, as views of its bytes: tf.train.Example would copy the logits twice."""
    ((_, features),) = _fields(data)
    entries = (dict(_fields(entry)) for _, entry in _fields(features))
    values = {bytes(entry[1]).decode(): _only(_only(entry[2])) for entry in entries}
    names = (*INDEX_COLUMNS, 'pictures') if 'pictures' in values else INDEX_COLUMNS
    columns = {name: np.frombuffer(values[name], '<i8') for name in names}
    logits = np.frombuffer(values['logits'], '<f2').reshape(len(columns['product_id']), -1)
    return Rows(**columns, logits=_dense(logits, values) if 'rest' in values else logits)


def _dense(highest: np.ndarray, values: dict[str, memoryview]) -> np.ndarray:
    """float16 [n, C] of the K highest [n, K]; the classes left out share the rest equally."""
    (classes,) = np.frombuffer(values['classes'], '<i8').tolist()
    labels = np.frombuffer(values['labels'], _label_type(classes)).reshape(highest.shape)
    share = np.frombuffer(values['rest'], '<f4') - np.log(np.float32(classes - highest.shape[1]))
    share = np.clip(share, -np.finfo(np.float16).max, highest[:, -1])  # float32 may round it above those kept
    dense = np.repeat(share.astype(np.float16)[:, np.newaxis], classes, axis=1)
    np.put_along_axis(dense, labels.astype(np.int64), highest, axis=1)
    return dense


def _only(message: memoryview) -> memoryview:
    """The payload of a protobuf message's only field."""
    ((_, payload),) = _fields(message)
    return payload


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and payload of each field of a protobuf message; in an Example every field has its length before it."""
    place = 0
    while place < len(message):
        tag, place = message[place], place + 1
        length = shift = 0
        while message[place] > 0x7F:  # seven bits a byte, lowest first; the top bit says that more follow
            length |= (message[place] & 0x7F) << shift
            place, shift = place + 1, shift + 7
        length |= message[place] << shift
        yield tag >> 3, message[place + 1 : place + 1 + length]
        place += 1 + length


def _read_record(source: storage.Ranges, place: int, checksum: google_crc32c.Checksum) -> memoryview | None:
    """The data of the TFRecord at `place`, None at the file's end; adds the whole record to the file's checksum.

    A local file is mapped, not copied: that takes a third of the time of reading it.
    """
    head = source.window(place, HEAD_BYTES).tobytes()  # the length, uint64, and its checksum
    if not head:
        return None
    length = int.from_bytes(head[:8], 'little')
    if head[8:] != records.masked_crc(head[:8]) or length > source.size:
        raise ValueError('a wrong length')
    data = source.window(place + HEAD_BYTES, length)
    tail = source.window(place + HEAD_BYTES + length, TAIL_BYTES).tobytes()
    if tail != records.masked_crc(data):
        raise ValueError('a wrong checksum' if len(data) == length else f'{len(data)} of {length} bytes')
    for part in (head, data, tail):
        checksum.update(part)
    return data.data
