"""Makes a catalogue of any size, like Kaggle's: `python -m tools.synthetic_catalogue --products=250000`

For trying how a program scales: sizes of categories, pictures of a product, repeated pictures, gaps between ids and the
bytes of a picture are distributed as Kaggle's are. The same flags give the same bytes.

As many products as Kaggle has, of a ninth of the bytes:

    python -m tools.synthetic_catalogue --products=7069896 --blank --output_dir=data/synthetic

Files made: train.bson, test.bson and category_names.csv as Kaggle has them; solution.csv, the test products'
categories; synthetic_catalogue.json, written last. A product takes 8.3 kB, with --blank 1 kB.

Needs: pip install -c constraints.txt -e '.[demo]'
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from pipeline import categories, progress, storage, tables
from tools import kaggle, synthetic_draws

FLAGS = program.flag_values()
program.group(FLAGS, 'Folder and size')
OUTPUT_DIR = flags.DEFINE_string('output_dir', 'data/synthetic', 'Folder for the catalogue.', flag_values=FLAGS)
PRODUCTS = flags.DEFINE_integer(
    'products', 100_000, 'Products in train.bson; test.bson gets a quarter as many. Kaggle has 7_069_896.',
    lower_bound=1, upper_bound=500_000_000, flag_values=FLAGS,  # beyond it ids would leave int32
)  # fmt: skip
CATEGORIES = flags.DEFINE_integer(
    'categories', 5270, 'Categories; fewer if there are too few products.',
    lower_bound=1, upper_bound=100_000, flag_values=FLAGS,  # each takes 256 bytes of memory
)  # fmt: skip
program.group(FLAGS, 'Pictures and draws')
BLANK = flags.DEFINE_bool(
    'blank', False, 'Pictures of one colour only, a ninth of the bytes: for trying how metadata scales.',
    flag_values=FLAGS,
)  # fmt: skip
SEED = flags.DEFINE_integer(
    'seed', 0, 'Decides ids, categories and pictures of all products.', lower_bound=0, flag_values=FLAGS
)

MARKER = 'synthetic_catalogue.json'
# Raise this when the files made from the same flags change.
LAYOUT = 1

# Distinct drawings; every new picture is one of them with a number of its own. Drawing this many takes 1 s.
DRAWINGS = 2048
# Kaggle has 7,772,910 different pictures among the 12,371,293 of train.bson.
REPEAT_SHARE = 1 - 7_772_910 / 12_371_293
# So many of Kaggle's test products share a picture with train.bson.
SHARED_SHARE = 0.424
# Products handled at once: 16 MB of pictures, which stay in the processor's cache until they are written.
BLOCK = 2048

# What stands before a picture, from its place in `imgs` to the first bytes of the JPEG: SOI, APP0 as Pillow and Kaggle
# have it, then a comment (ITU T.81, B.2.4.5) with the picture's key, which makes its bytes unlike any other's.
JPEG_HEAD = bytes.fromhex('ffd8 ffe0 0010 4a46494600 0101 00 0001 0001 00 00')
COMMENT = bytes.fromhex('fffe 000a')
PICTURE_HEAD = np.dtype(
    [('type', 'S1'), ('index', 'u1'), ('index_end', 'u1'), ('length', '<i4'), ('name', 'S9'), ('size', '<i4'),
     ('subtype', 'u1'), ('jpeg', 'S20'), ('comment', 'S4'), ('key', '>i8')]
)  # fmt: skip
PRODUCT_HEAD = np.dtype(
    [('length', '<i4'), ('id_name', 'S5'), ('id', '<i4'), ('imgs_name', 'S6'), ('imgs_length', '<i4')]
)
TRAIN_TAIL = np.dtype([('imgs_end', 'u1'), ('name', 'S13'), ('category_id', '<i4'), ('end', 'u1')])
TEST_TAIL = np.dtype([('imgs_end', 'u1'), ('end', 'u1')])


def main(argv: list[str]) -> None:
    """Makes the catalogue, or says that it stands already."""
    start = time.monotonic()
    program.parse(FLAGS, argv, doc=__doc__)
    output_dir = OUTPUT_DIR.value
    wanted = {'layout': LAYOUT} | {flag.name: flag.value for flag in (PRODUCTS, CATEGORIES, BLANK, SEED)}
    test = max(1, round(PRODUCTS.value * kaggle.TEST_PRODUCTS / kaggle.TRAIN_PRODUCTS))
    number = min(CATEGORIES.value, max(1, (PRODUCTS.value + test) // synthetic_draws.SMALLEST_CATEGORY))
    made = f'found {output_dir}: this catalogue, so nothing was written'
    counts = kaggle.finished_counts(output_dir, wanted, marker_name=MARKER)
    if not counts:
        if number < CATEGORIES.value:
            print(f'{PRODUCTS.value:,} products are too few for {CATEGORIES.value:,} categories: making {number:,}')
        storage.make_folder(output_dir)
        _write_marker(output_dir, {'files': None})
        category_ids = write_names(output_dir, number, seed=SEED.value)
        counts = write_products(
            output_dir, category_ids, train=PRODUCTS.value, test=test, blank=BLANK.value, seed=SEED.value
        )
        sizes = {name: storage.size(storage.join(output_dir, name)) for name in (*kaggle.FILES[:3], 'solution.csv')}
        _write_marker(output_dir, {'wanted': wanted, 'counts': counts, 'files': sizes})
        seconds, megabytes = time.monotonic() - start, sum(sizes.values()) / 1e6
        files = ', '.join(f'{name} {size / 1e6:,.1f} MB' for name, size in sizes.items())
        made = f'wrote {output_dir}: {files}, in {seconds:.1f} s, {megabytes / seconds:,.0f} MB/s'
    print(kaggle.summary(counts))
    program.last_line(made, then=kaggle.convert_command(output_dir))


def write_names(output_dir: str, number: int, *, seed: int) -> np.ndarray:
    """Writes category_names.csv, ordered by names as Kaggle's is; gives the ids, ascending: int64 [number]."""
    category_ids = synthetic_draws.draw_category_ids(number, seed=seed)
    names = synthetic_draws.draw_names(number, seed=seed)
    rows = sorted((*name, category_id) for name, category_id in zip(names, category_ids.tolist(), strict=True))
    path = storage.join(output_dir, categories.SOURCE_NAME)
    tables.write(path, categories.SOURCE_COLUMNS, [(category_id, *name) for *name, category_id in rows])
    return category_ids


def write_products(
    output_dir: str, category_ids: np.ndarray, *, train: int, test: int, blank: bool, seed: int
) -> dict[str, Any]:
    """Writes train.bson, test.bson and solution.csv block by block; gives their counts."""
    drawings = synthetic_draws.draw_pictures(min(DRAWINGS, train), blank=blank, seed=seed)
    rests = picture_rests(drawings)
    blocks = draw_blocks(len(category_ids), train=train, test=test, drawings=len(drawings), seed=seed)
    sizes = np.zeros(len(kaggle.PICTURE_COUNTS) + 1, np.int64)
    with contextlib.ExitStack() as stack:
        train_file, test_file, solution = (
            stack.enter_context(storage.atomic_writer(storage.join(output_dir, name)))
            for name in ('train.bson', 'test.bson', 'solution.csv')
        )
        bar = stack.enter_context(progress.Progress(total=train + test, label='write', unit='products'))
        solution.write(b'_id,category_id\n')
        for product_id, code, pictures, keys in blocks:
            category_id, is_test = category_ids[code // 2], code % 2 == 1
            of_test = np.repeat(is_test, pictures)
            train_file.write(
                documents(product_id[~is_test], pictures[~is_test], keys[~of_test], category_id[~is_test], rests=rests)
            )
            test_file.write(documents(product_id[is_test], pictures[is_test], keys[of_test], None, rests=rests))
            rows = zip(product_id[is_test].tolist(), category_id[is_test].tolist(), strict=True)
            solution.write(''.join(f'{product},{category}\n' for product, category in rows).encode())
            sizes += np.bincount(pictures, minlength=len(sizes))
            bar.update(len(code))
    return {
        'train_products': train,
        'test_products': test,
        'pictures': int(sizes @ np.arange(len(sizes))),
        'products_with_pictures': {str(size): number for size, number in enumerate(sizes.tolist()) if size},
        'categories': len(category_ids),
    }


def draw_blocks(
    categories: int, *, train: int, test: int, drawings: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """All products in the order of their ids, BLOCK at a time.

    Yields:
        The ids; the codes (see synthetic_draws.order_products); how many pictures each has; the key of each picture.
    """
    draw = kaggle.generator(seed, 'products')
    sizes = synthetic_draws.draw_sizes(train + test, categories=categories, seed=seed)
    codes = synthetic_draws.order_products(sizes, test=test, seed=seed)
    repeats = synthetic_draws.Repeats(categories=categories, drawings=drawings, seed=seed)
    shares = np.array(kaggle.PICTURE_COUNTS) / sum(kaggle.PICTURE_COUNTS)
    last_id = -1
    for start in range(0, len(codes), BLOCK):
        code = codes[start : start + BLOCK]
        product_id = last_id + np.cumsum(draw.geometric(1 / kaggle.ID_SPACING, len(code)))
        last_id = product_id[-1]
        pictures = 1 + draw.choice(len(shares), len(code), p=shares)
        # A test product that shares pictures shares a drawn one, and of the others as many as train pictures repeat.
        is_test = code % 2 == 1
        of_test = np.repeat(is_test, pictures)
        is_repeat = draw.random(len(of_test)) < REPEAT_SHARE
        is_repeat[np.cumsum(pictures) - 1 - (draw.random(len(code)) * pictures).astype(np.int64)] |= is_test
        is_repeat &= ~of_test | np.repeat(draw.random(len(code)) < SHARED_SHARE, pictures)
        keys = repeats.draw(np.repeat(code // 2, pictures), is_repeat=is_repeat, is_train=~of_test)
        yield product_id, code, pictures, keys


def picture_rests(drawings: Sequence[bytes]) -> np.ndarray:
    """What follows the comment of each drawing, and the end of its document: object [n] of bytes."""
    rests = np.empty(len(drawings), object)
    rests[:] = [drawing.removeprefix(JPEG_HEAD) + b'\0' for drawing in drawings]
    return rests


def documents(
    product_id: np.ndarray, pictures: np.ndarray, keys: np.ndarray, category_id: np.ndarray | None, *, rests: np.ndarray
) -> bytes:
    """Products as BSON documents one after the other, put together by hand: fifty times as fast as bson.encode.

    Args:
        product_id: int [n].
        pictures: how many each product has, 1 to 9, int [n].
        keys: of all pictures, int64 [sum of `pictures`].
        category_id: int [n]; None for test products, which have none.
        rests: what picture_rests made of the drawings.
    """
    place = np.arange(len(keys)) - np.repeat(np.cumsum(pictures) - pictures, pictures)  # of a picture in its product
    rest = rests[keys % len(rests)]
    picture = np.zeros(len(keys), PICTURE_HEAD)
    rest_size = np.fromiter(map(len, rest), np.int64, len(rest))
    picture['type'], picture['name'], picture['jpeg'], picture['comment'] = b'\3', b'\5picture\0', JPEG_HEAD, COMMENT
    picture['index'], picture['key'] = ord('0') + place, keys
    picture['size'] = len(JPEG_HEAD) + len(COMMENT) + 8 + rest_size - 1
    picture['length'] = picture['size'] + 4 + 9 + 5 + 1  # of {picture: binary}: its length, name, binary's head, end

    tail = np.zeros(len(pictures), TEST_TAIL if category_id is None else TRAIN_TAIL)
    if category_id is not None:
        tail['name'], tail['category_id'] = b'\x10category_id\0', category_id
    product = np.zeros(len(pictures), PRODUCT_HEAD)
    ends = np.concatenate([[0], np.cumsum(3 + picture['length'], dtype=np.int64)])[np.cumsum(pictures)]
    product['imgs_length'] = 5 + np.diff(ends, prepend=0)
    product['length'] = PRODUCT_HEAD.itemsize - 4 + product['imgs_length'] + tail.itemsize - 1
    product['id_name'], product['id'], product['imgs_name'] = b'\x10_id\0', product_id, b'\4imgs\0'

    parts = np.empty(2 * len(pictures) + 2 * len(keys), object)
    first = np.cumsum(2 + 2 * pictures) - 2 * pictures - 2
    of_picture = np.repeat(first, pictures) + 1 + 2 * place
    parts[first], parts[first + 1 + 2 * pictures] = _rows(product), _rows(tail)
    parts[of_picture], parts[of_picture + 1] = _rows(picture), rest
    return b''.join(parts.tolist())


def _rows(table: np.ndarray) -> list[bytes]:
    """The bytes of each row."""
    return table.view(f'V{table.itemsize}').tolist()


def _write_marker(output_dir: str, marker: Mapping[str, Any]) -> None:
    with storage.atomic_writer(storage.join(output_dir, MARKER)) as file:
        file.write(f'{json.dumps(marker, indent=2)}\n'.encode())


if __name__ == '__main__':
    program.run(main)
