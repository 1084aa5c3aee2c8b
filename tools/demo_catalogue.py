"""Makes a small catalogue out of freely licensed emoji: `python -m tools.demo_catalogue --output_dir=data`

Real pictures in the layout of Kaggle's Cdiscount files, to try everything on. One emoji is one product; the drawings of
it by different vendors are its 1-4 pictures; its subgroup is its category. All skin tones of an emoji fall on the same
side of the train/test line. The same seed gives the same bytes.

Files made: train.bson, test.bson, category_names.csv, sample_submission.csv as Kaggle has them; solution.csv, the test
products' categories; pictures.csv, what each picture shows and whose it is; ATTRIBUTION.md, the licences;
demo_catalogue.json, written last. About 25 MB are downloaded once.

Needs: pip install -c constraints.txt -e '.[demo]'
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import csv
import io
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import bson
import numpy as np
from absl import flags

from pipeline import storage
from pipeline.errors import UsageError
from tools import emoji_sources, kaggle
from tools.emoji_sources import Drawing, Emoji

FLAGS = program.flag_values()
program.group(FLAGS, 'Folders')
OUTPUT_DIR = flags.DEFINE_string('output_dir', 'data', 'Folder for the catalogue.', flag_values=FLAGS)
CACHE_DIR = flags.DEFINE_string(
    'cache_dir', '~/.cache/demo_catalogue', 'Folder that keeps what is downloaded, 25 MB.', flag_values=FLAGS
)
program.group(FLAGS, 'What is drawn')
SEED = flags.DEFINE_integer(
    'seed', 0, 'Decides ids, drawings and which products are test.', lower_bound=0, flag_values=FLAGS
)
PRODUCTS = flags.DEFINE_integer(
    'products', 0, 'For quick trials: at most this many, in whole categories; 0: all.', lower_bound=0, flag_values=FLAGS
)
GROUPS = flags.DEFINE_list(
    'groups', [], 'Only categories of these level-1 names, such as food-drink,symbols; none: all.', flag_values=FLAGS
)

# Kaggle's test share, 0.20006.
TEST_SHARE = kaggle.TEST_PRODUCTS / (kaggle.TRAIN_PRODUCTS + kaggle.TEST_PRODUCTS)
# Kaggle's smallest category has 12 pictures, which at 1.75 pictures a product are 7 products.
SMALLEST_CATEGORY = 7
# Share of the whole id range over which a category's products scatter: a file begins with runs of few categories, as
# Kaggle's does (36 of its first 82 products are of one category), yet no range of ids is free of the others.
CATEGORY_SCATTER = 0.02

MARKER = 'demo_catalogue.json'
# Raise this when the files made from the same flags change.
LAYOUT = 1


class Category(NamedTuple):
    """A row of category_names.csv; the three levels come first, so that rows sort by name."""

    level1: str
    level2: str
    level3: str
    category_id: int


class Product(NamedTuple):
    """One document of the catalogue; products sort by id."""

    product_id: int
    category_id: int
    is_test: bool
    emoji: Emoji
    drawings: tuple[Drawing, ...]


def main(argv: list[str]) -> None:
    """Makes the catalogue, or says that it stands already."""
    start = time.monotonic()
    program.parse(FLAGS, argv, doc=__doc__)
    output_dir, sources = OUTPUT_DIR.value, emoji_sources.SOURCES
    wanted = {
        'layout': LAYOUT,
        'seed': SEED.value,
        'products': PRODUCTS.value,
        'groups': GROUPS.value,
        'sources': {source.package: source.version for source in sources},
    }
    counts = kaggle.finished_counts(output_dir, wanted, marker_name=MARKER)
    if counts:
        made = f'found {output_dir}: this catalogue, so nothing was written'
    else:
        archives = emoji_sources.fetch(sources, os.path.expanduser(CACHE_DIR.value))
        emoji = of_groups(emoji_sources.read_emoji(sources, archives), GROUPS.value)
        emoji = choose_emoji(emoji, products=PRODUCTS.value, seed=SEED.value)
        categories = name_categories(emoji, seed=SEED.value)
        products = plan_products(emoji, categories, seed=SEED.value)
        pictures = render_pictures(products)
        files = catalogue_files(products, categories=categories, pictures=pictures)
        counts = count(products, categories)
        write_catalogue(output_dir, files, marker={'wanted': wanted, 'counts': counts})
        megabytes = sum(map(len, files.values())) / 1e6
        made = f'wrote {output_dir}: {len(files)} files, {megabytes:.0f} MB, in {time.monotonic() - start:.0f} s'
    print(kaggle.summary(counts))
    program.last_line(made, then=kaggle.convert_command(output_dir))


def of_groups(emoji: Sequence[Emoji], groups: Sequence[str]) -> list[Emoji]:
    """The emoji of some groups; all of them if none is named.

    Raises:
        InputError: there is no such group.
    """
    known = sorted({one.group for one in emoji})
    for group in groups:
        if group not in known:
            raise UsageError(f'--groups={",".join(groups)}: no group {group!r}; known are {", ".join(known)}')
    return [one for one in emoji if not groups or one.group in groups]


def choose_emoji(emoji: Sequence[Emoji], *, products: int, seed: int) -> list[Emoji]:
    """The emoji of all categories large enough; of a seeded selection of whole categories if `products` isn't 0.

    Raises:
        InputError: `products` is too few for two categories.
    """
    sizes = Counter((one.group, one.subgroup) for one in emoji)
    names = sorted(name for name, size in sizes.items() if size >= SMALLEST_CATEGORY)
    if products:
        room, fitting = products, []
        for index in kaggle.generator(seed, 'categories').permutation(len(names)):
            if sizes[names[index]] <= room:
                fitting.append(names[index])
                room -= sizes[names[index]]
        names = fitting
    if len(names) < 2:
        raise UsageError(f'--products={products}: too few for two categories: give 100 or more, or 0 for all')
    chosen = set(names)
    return [one for one in emoji if (one.group, one.subgroup) in chosen]


def name_categories(emoji: Sequence[Emoji], *, seed: int) -> dict[tuple[str, str], Category]:
    """The category of each (group, subgroup), with seeded ids, ordered by level names as Kaggle's file is.

    Level 2 is the first word that several subgroups of a group share (face, animal, food), else the subgroup.
    """
    names = sorted({(one.group, one.subgroup) for one in emoji})
    shared = Counter((group, subgroup.split('-')[0]) for group, subgroup in names)
    ids = kaggle.generator(seed, 'category ids').choice(kaggle.CATEGORY_IDS, len(names), replace=False)
    categories = {}
    for (group, subgroup), category_id in zip(names, ids.tolist(), strict=True):
        word = subgroup.split('-')[0]
        level2 = word if shared[group, word] > 1 else subgroup
        categories[group, subgroup] = Category(group, level2, subgroup, category_id)
    return dict(sorted(categories.items(), key=lambda item: item[1]))


def plan_products(
    emoji: Sequence[Emoji], categories: Mapping[tuple[str, str], Category], *, seed: int
) -> list[Product]:
    """Makes every draw: which emoji are test, how many and which drawings each has, and all ids; ascending by id."""
    category_ids = [categories[one.group, one.subgroup].category_id for one in emoji]
    test_bases = draw_test_bases(list(zip(category_ids, (one.base for one in emoji), strict=True)), seed=seed)
    picture_counts = deal_picture_counts([len(one.drawings) for one in emoji], seed=seed)
    product_ids = draw_product_ids(category_ids, seed=seed)
    choice = kaggle.generator(seed, 'drawings')
    products = []
    for index, one in enumerate(emoji):
        chosen = choice.permutation(len(one.drawings))[: picture_counts[index]]
        drawings = tuple(one.drawings[drawing] for drawing in chosen)
        products.append(Product(product_ids[index], category_ids[index], one.base in test_bases, one, drawings))
    return sorted(products)


def draw_test_bases(emoji: Sequence[tuple[int, str]], *, seed: int) -> set[str]:
    """The base emoji that are test: TEST_SHARE of those of each category, never all of them.

    Args:
        emoji: each emoji's category and base.
        seed: decides the draw.
    """
    bases_of_category: dict[int, set[str]] = defaultdict(set)
    for category, base in emoji:
        bases_of_category[category].add(base)
    draw = kaggle.generator(seed, 'test')
    test: set[str] = set()
    for _, bases in sorted(bases_of_category.items()):
        number = min(round(TEST_SHARE * len(bases)), len(bases) - 1)
        test.update(draw.permutation(sorted(bases))[:number].tolist())
    return test


def deal_picture_counts(available: Sequence[int], *, seed: int) -> list[int]:
    """How many pictures each product gets: in Cdiscount's proportions, as far as there are that many drawings.

    The large numbers are dealt first, to products drawn from those with enough drawings.

    Args:
        available: the number of drawings of each product, 1 or more.
        seed: decides the draw.
    """
    cumulative = np.cumsum(kaggle.PICTURE_COUNTS) / sum(kaggle.PICTURE_COUNTS)
    left = np.diff(np.rint(cumulative * len(available)).astype(int), prepend=0)
    counts = [1] * len(available)
    order = kaggle.generator(seed, 'picture counts').permutation(len(available)).tolist()
    for number in range(len(kaggle.PICTURE_COUNTS), 1, -1):
        able = [index for index in order if counts[index] == 1 and available[index] >= number]
        for index in able[: left[number - 1]]:
            counts[index] = number
    return counts


def draw_product_ids(category_ids: Sequence[int], *, seed: int) -> list[int]:
    """Ids in one range with gaps, near to each other for products of one category, as Kaggle's are."""
    draw = kaggle.generator(seed, 'product ids')
    places = {category: draw.random() for category in sorted(set(category_ids))}
    position = np.array([places[category] for category in category_ids])
    position += draw.normal(scale=CATEGORY_SCATTER, size=len(position))
    ids = np.empty(len(position), int)
    ids[np.argsort(position, kind='stable')] = np.cumsum(draw.geometric(1 / kaggle.ID_SPACING, size=len(position))) - 1
    return ids.tolist()


def render_pictures(products: Sequence[Product]) -> list[list[bytes]]:
    """Each product's pictures as JPEG files."""
    rendered = emoji_sources.render_all([drawing.data for product in products for drawing in product.drawings])
    pictures = iter(rendered)
    return [[next(pictures) for _ in product.drawings] for product in products]


def document(product: Product, pictures: Sequence[bytes]) -> bytes:
    """A product as BSON, fields in Kaggle's order; a test product has no category."""
    fields: dict[str, Any] = {'_id': product.product_id, 'imgs': [{'picture': picture} for picture in pictures]}
    if not product.is_test:
        fields['category_id'] = product.category_id
    return bson.encode(fields)


def catalogue_files(
    products: Sequence[Product],
    *,
    categories: Mapping[tuple[str, str], Category],
    pictures: Sequence[Sequence[bytes]],
) -> dict[str, bytes]:
    """All files but the marker: their content by name."""
    test = [product for product in products if product.is_test]
    bson_parts: dict[bool, list[bytes]] = {True: [], False: []}
    for product, own in zip(products, pictures, strict=True):
        bson_parts[product.is_test].append(document(product, own))
    constant = min(category.category_id for category in categories.values())
    shown = (
        (product.product_id, number, drawing.source, product.emoji.code, product.emoji.title)
        for product in products
        for number, drawing in enumerate(product.drawings)
    )
    return {
        'ATTRIBUTION.md': emoji_sources.attribution(emoji_sources.SOURCES).encode(),
        'pictures.csv': _csv('_id,picture,source,code,title', shown),
        'category_names.csv': _csv(
            'category_id,category_level1,category_level2,category_level3',
            ((row.category_id, row.level1, row.level2, row.level3) for row in categories.values()),
        ),
        'sample_submission.csv': _csv('_id,category_id', ((product.product_id, constant) for product in test)),
        'solution.csv': _csv('_id,category_id', ((product.product_id, product.category_id) for product in test)),
        'test.bson': b''.join(bson_parts[True]),
        'train.bson': b''.join(bson_parts[False]),
    }


def _csv(header: str, rows: Iterator[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    text.write(f'{header}\n')
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue().encode()


def count(products: Sequence[Product], categories: Mapping[tuple[str, str], Category]) -> dict[str, Any]:
    """What the catalogue holds, for the last lines and the marker."""
    sizes = Counter(len(product.drawings) for product in products)
    test = sum(product.is_test for product in products)
    return {
        'train_products': len(products) - test,
        'test_products': test,
        'pictures': sum(len(product.drawings) for product in products),
        'products_with_pictures': {str(number): sizes[number] for number in range(1, len(kaggle.PICTURE_COUNTS) + 1)},
        'categories': len(categories),
    }


def write_catalogue(output_dir: str, files: Mapping[str, bytes], *, marker: Mapping[str, Any]) -> None:
    """Writes all files, each whole or not at all; the marker tells first that they come, last that all are there."""
    storage.make_folder(output_dir)
    marker_path = storage.join(output_dir, MARKER)
    _write(marker_path, json.dumps({'files': None}).encode())
    for name, content in files.items():
        _write(storage.join(output_dir, name), content)
    sizes = {name: len(content) for name, content in files.items()}
    _write(marker_path, f'{json.dumps({**marker, "files": sizes}, indent=2)}\n'.encode())


def _write(path: str, content: bytes) -> None:
    with storage.atomic_writer(path) as file:
        file.write(content)


if __name__ == '__main__':
    program.run(main)
