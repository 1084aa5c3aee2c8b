"""Parts of the page of a dataset: what it is, its categories, samples, distributions, and what was left out of it.

Synopsis:

    dataset = Dataset('data/shards', made, label_map, scan.read('data/shards', made, categories=len(label_map)))
    page.write('page.html', 'Shards', '', [shard_sections.summary(dataset), shard_sections.distributions(dataset)])
"""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import manifest, shards, split, storage
from pipeline.bson_stream import PICTURE_SIZE
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from pipeline.records import Product
from tools import page, sample_products
from tools.browse.scan import Scan
from tools.page import Cell, Section

if TYPE_CHECKING:
    from markupsafe import Markup

LONG = 50  # rows; a longer table is folded
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
REJECTED_SHOWN = 200
BINS = 60  # of a histogram


@dataclass(frozen=True, eq=False)
class Dataset:
    """What the page is about.

    Attributes:
        folder: where the shards lie.
        made: their manifest.
        label_map: their categories.
        scan: what is in them.
    """

    folder: str
    made: Manifest
    label_map: Categories
    scan: Scan

    def name(self, label: int) -> str:
        """The names of a category's levels."""
        return self.label_map.path(label) if label >= 0 else 'category unknown'

    def counts(self, name: str, *, pictures: bool = False) -> np.ndarray:
        """How many products, or pictures, each category has in a split: int64 [C]."""
        own = self.scan.of_split(name) & (self.scan.label >= 0)
        weights = self.scan.images[own] if pictures else None
        return np.bincount(self.scan.label[own], weights, minlength=len(self.label_map)).astype(np.int64)


def share(part: float, whole: float) -> Cell:
    """A cell of a percentage."""
    return Cell(f'{100 * part / whole:.2f} %', part / whole) if whole else Cell('', '')


def product_card(product: Product, *more: str) -> list[Markup]:
    """A product, its split and its pictures."""
    words = ' · '.join((f'product {product.product_id}', product.split, *more))
    return [page.text(words), page.pictures(product.images, f'product {product.product_id}')]


def long_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, what: str) -> Markup:
    """A table, folded if it is long."""
    table = page.table(columns, rows)
    return page.fold(f'{len(rows):,} {what}', [table]) if len(rows) > LONG else table


def summary(dataset: Dataset) -> Section:
    """How much there is, and what it was made from."""
    made = dataset.made
    rows = [
        [
            name,
            page.count(made.products(name)),
            page.count(made.images(name)),
            Cell('unknown', '') if name == 'test' else page.count(np.count_nonzero(dataset.counts(name))),
            page.count(len(made.of_split(name))),
            page.number(sum(file.bytes for file in made.of_split(name)) / 1e6, 1),
        ]
        for name in split.SPLITS
    ]
    columns = ['split', 'products', 'pictures', 'categories', 'shards', 'MB']
    made_from = page.table(['what', 'value'], list(_made_from(dataset)))
    return Section(
        'Summary', [page.table(columns, rows), page.fold('What it was made from, and its digests', [made_from])]
    )


def _made_from(dataset: Dataset) -> Iterator[tuple[str, str]]:
    path = storage.join(dataset.folder, manifest.NAME)
    written = datetime.datetime.fromtimestamp(storage.modified_ns(path) / 1e9, datetime.UTC)
    yield 'manifest written', f'{written:%Y-%m-%d %H:%M} UTC'
    yield 'SHA-256 of the manifest', dataset.made.digest()
    about = dict(dataset.made.about)
    for name, source in about.pop('source', {}).items():
        yield name, ', '.join(f'{key} {value}' for key, value in source.items())
    about.pop('splits', None)  # which the table above has
    for name, value in about.items():
        yield name.replace('_', ' '), str(value)


def categories(dataset: Dataset) -> Section:
    """How large the categories are, and all of them."""
    label_map, names = dataset.label_map, ('train', 'val')
    products = {name: dataset.counts(name) for name in names}
    pictures = {name: dataset.counts(name, pictures=True) for name in names}
    total = sum(products.values(), np.zeros(len(label_map), np.int64))
    empty = int((total == 0).sum())
    words = f'{len(label_map):,} categories' + (
        f', {empty:,} of which have no product.' if empty else ', none without a product.'
    )
    levels = [int(row.max()) + 1 for row in label_map.levels()]
    words += ' Their names have {:,} first levels, {:,} second and {:,} third; '.format(*levels)
    words += "test's products have no category here, so they don't count."
    rows = [
        [Cell(str(number), int(number)), *level_names]
        + [page.count(counts[label]) for counts in (*products.values(), *pictures.values())]
        + [share(total[label], total.sum())]
        for label, (number, level_names) in enumerate(zip(label_map.ids, label_map.names, strict=True))
    ]
    columns = [
        'id',
        'level 1',
        'level 2',
        'level 3',
        *(f'{name}: {what}' for what in ('products', 'pictures') for name in names),
        'share',
    ]
    blocks = [page.text(words), *_plot_sizes(products, total)]
    blocks += [
        long_table(columns, rows, what='categories'),
        page.heading('First levels'),
        _first_levels(dataset, total),
    ]
    return Section('Categories', blocks)


def _plot_sizes(products: dict[str, np.ndarray], total: np.ndarray) -> list[Markup]:
    """Sizes by rank, and how many categories are of a size."""
    if not total.any():
        return []
    by_rank, axes = page.axes('rank of the category', 'products')
    for name, counts in products.items():
        sizes = np.sort(counts[counts > 0])[::-1]
        if len(sizes):
            axes.loglog(np.arange(1, len(sizes) + 1), sizes, label=name, marker='.' if len(sizes) < 3 else '')
    axes.legend()
    by_size, axes = page.axes('products of a category, train and val', 'categories')
    sizes = total[total > 0]
    # Bounds lie between whole numbers, as many to a factor as there are whole numbers to tell apart.
    bounds = np.unique(np.floor(np.geomspace(sizes.min(), sizes.max() + 1, BINS // 2))) - 0.5
    bounds = np.append(bounds[:-1], sizes.max() + 0.5) if len(bounds) > 1 else sizes.max() + np.array([-0.5, 0.5])
    axes.stairs(np.histogram(sizes, bounds)[0], bounds, fill=True)
    axes.set_xscale('log')
    axes.locator_params(axis='y', integer=True)
    return [
        page.side_by_side([
            page.figure(by_rank, 'Products of each category, from the largest to the smallest; both axes logarithmic.'),
            page.figure(by_size, 'How many categories have so many products; the sizes are logarithmic.'),
        ])
    ]  # fmt: skip


def _first_levels(dataset: Dataset, total: np.ndarray) -> Markup:
    first = dataset.label_map.levels()[0]
    names = dict(zip(first.tolist(), (names[0] for names in dataset.label_map.names), strict=True))
    sizes, products = np.bincount(first), np.bincount(first, total)
    rows = [
        [
            names[number],
            page.count(sizes[number]),
            page.count(int(products[number])),
            share(products[number], total.sum()),
        ]
        for number in np.argsort(-products, kind='stable').tolist()
    ]
    return long_table(['level 1', 'categories', 'products', 'share'], rows, what='first levels')


def choose_categories(total: np.ndarray, *, categories: int, seed: int) -> dict[str, list[int]]:
    """The labels of the largest categories, the smallest that have a product, and random ones, a third each.

    Args:
        total: products of each category, int64 [C].
        categories: how many; if there are no more, they are all there is, in order of size.
        seed: of the random ones.
    """
    by_size = [label for label in np.argsort(-total, kind='stable').tolist() if total[label]]
    if len(by_size) <= categories:
        return {'All categories, from the largest to the smallest': by_size}
    largest, smallest = -(-categories // 3), categories // 3
    rest = by_size[largest : len(by_size) - smallest]
    drawn = np.random.default_rng(seed).choice(rest, categories - largest - smallest, replace=False)
    return {
        'The largest categories': by_size[:largest],
        'The smallest categories': by_size[len(by_size) - smallest :][::-1],
        'Random categories': drawn.tolist(),
    }


def samples(dataset: Dataset, chosen: dict[str, list[int]], *, per_category: int, seed: int) -> Section:
    """Products of some categories, and of test.

    Args:
        dataset: of which.
        chosen: labels, under headings.
        per_category: how many products of a category, of each split; and four times as many of test.
        seed: of the choice.
    """
    blocks = [page.text('Random products of each category, with their split and all their pictures.')]
    for title, labels in chosen.items():
        if labels:
            blocks.append(page.heading(title))
        for place, label in enumerate(labels):
            blocks.append(_category_samples(dataset, label, per_category=per_category, seed=seed, open=place == 0))
    if not any(chosen.values()):
        blocks.append(page.text('No category is shown: none was asked for, or none has a product.'))
    own = np.flatnonzero(dataset.scan.of_split('test'))
    draw = np.random.default_rng([seed, len(dataset.label_map)])
    blocks.append(page.heading('Test'))
    if len(own) and per_category:
        drawn = draw.choice(own, min(4 * per_category, len(own)), replace=False)
        blocks.append(page.cards([product_card(product) for product in read(dataset, drawn)]))
    else:
        blocks.append(page.text('No product of test is shown: none was asked for, or there is none.'))
    return Section('Samples', blocks)


def _category_samples(dataset: Dataset, label: int, *, per_category: int, seed: int, open: bool) -> Markup:
    drawn, said = [], []
    for number, name in enumerate(('train', 'val')):
        own = np.flatnonzero(dataset.scan.of_split(name) & (dataset.scan.label == label))
        draw = np.random.default_rng([seed, label, number])
        drawn.append(draw.choice(own, min(per_category, len(own)), replace=False))
        said.append(f'{len(own):,} in {name}')
    products = read(dataset, np.concatenate(drawn))
    summary = f'{dataset.name(label)} ({dataset.label_map.ids[label]}): {", ".join(said)}'
    cards = (
        page.cards([product_card(product) for product in products]) if products else page.text('No product is shown.')
    )
    return page.fold(summary, [cards], open=open)


def read(dataset: Dataset, numbers: np.ndarray) -> list[Product]:
    """The products of these numbers, in their order."""
    return sample_products.read(dataset.folder, sample_products.find(dataset.made.files, numbers))


def distributions(dataset: Dataset) -> Section:
    """Pictures of a product, bytes of a picture, and sizes in pixels."""
    scan = dataset.scan
    blocks = [page.side_by_side([_plot_images(scan), _plot_lengths(scan)]), page.heading('Pictures of a product')]
    most = int(scan.images.max())
    counts = {name: np.bincount(scan.images[scan.of_split(name)], minlength=most + 1) for name in split.SPLITS}
    rows = [
        [page.count(images)]
        + [cell for own in counts.values() for cell in (page.count(own[images]), share(own[images], own.sum()))]
        for images in range(most + 1)
        if any(own[images] for own in counts.values())
    ]
    columns = ['pictures', *(title for name in split.SPLITS for title in (f'{name}: products', 'share'))]
    blocks += [page.table(columns, rows), page.heading('Bytes of a picture, as it is encoded'), _length_table(scan)]
    return Section('Distributions', [*blocks, page.heading('Width and height'), *_sizes(scan)])


def _plot_images(scan: Scan) -> Markup:
    drawn, axes = page.axes('pictures of a product', 'share of the products')
    most = int(scan.images.max())
    names = [name for name in split.SPLITS if scan.of_split(name).any()]
    for place, name in enumerate(names):
        counts = np.bincount(scan.images[scan.of_split(name)], minlength=most + 1)
        offset = (place - (len(names) - 1) / 2) * 0.25
        axes.bar(np.arange(1, most + 1) + offset, counts[1:] / counts.sum(), 0.23, label=name)
    axes.set_xticks(np.arange(1, most + 1))
    axes.legend()
    return page.figure(drawn, 'How many pictures products have, by split.')


def _plot_lengths(scan: Scan) -> Markup:
    drawn, axes = page.axes('kB of a picture', 'share of the pictures')
    top = float(np.percentile(scan.length, 99.5))
    bounds = np.linspace(0, top, BINS + 1)
    for name in split.SPLITS:
        lengths = scan.length[scan.of_split(name)[scan.product]]
        if len(lengths):
            axes.stairs(np.histogram(lengths, bounds)[0] / len(lengths), bounds / 1000, label=name, linewidth=1.5)
    axes.legend()
    return page.figure(drawn, 'Encoded length of pictures, by split; the longest 0.5 % lie outside.')


def _length_table(scan: Scan) -> Markup:
    rows = []
    for name in split.SPLITS:
        lengths = scan.length[scan.of_split(name)[scan.product]]
        if len(lengths):
            percentiles = np.percentile(lengths, PERCENTILES)
            rows.append([name, *(page.count(round(value)) for value in (lengths.mean(), *percentiles))])
    titles = ['least', *(f'{number} %' for number in PERCENTILES[1:-1]), 'most']
    return page.table(['split', 'mean', *titles], rows)


def _sizes(scan: Scan) -> list[Markup]:
    looked_at = scan.sizes.total()
    usual = scan.sizes[PICTURE_SIZE, PICTURE_SIZE]
    which = f'all {looked_at:,} pictures'
    if scan.step > 1:
        which = f'a random sample of {looked_at:,} pictures, one of {scan.step}'
    size = f'{PICTURE_SIZE}x{PICTURE_SIZE} pixels'
    words = f'By the headers of {which}: {looked_at - usual:,} are of another size than {size}.'
    rows = [
        [f'{found[0]}x{found[1]}' if found else 'no header of a JPEG', page.count(times), share(times, looked_at)]
        for found, times in scan.sizes.most_common()
    ]
    return [page.text(words), long_table(['pixels', 'pictures', 'share'], rows, what='sizes')]


def rejected(dataset: Dataset) -> Section:
    """The documents that the conversion left out; a later one that was refused or only planned leaves its list too."""
    count = dataset.made.about.get('rejected', 0)
    path = storage.join(dataset.folder, shards.REJECTED)
    listed = storage.exists(path)
    if not count:
        said = 'None: every document of the catalogue is in the shards.'
        said += f' The list {shards.REJECTED} beside them is of another run.' if listed else ''
        return Section('Rejected documents', [page.text(said)])
    rows = _read_rejected(path) if listed else []
    said = f'{count:,} documents were left out of the shards, because they can not be used.'
    if not listed:
        said += f' Their list {shards.REJECTED} is missing.'
    elif len(rows) != count:
        said += f' The list {shards.REJECTED} beside them has {len(rows):,}: it is of another run, and not shown.'
    return Section('Rejected documents', [page.text(said), *(_list_rejected(rows) if len(rows) == count else [])])


def _read_rejected(path: str) -> list[tuple[str, int, int, str]]:
    """File, byte, length and reason of each."""
    with storage.open_read(path) as file:
        lines = file.read().splitlines()
    try:
        return [(row['file'], row['offset'], row['length'], row['reason']) for row in map(json.loads, lines)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: not a list of rejected documents ({error!r}); remove it, or convert again') from None


def _list_rejected(rows: Sequence[tuple[str, int, int, str]]) -> list[Markup]:
    """Their reasons, and where the first ones stand."""
    # Numbers are those of one document, so reasons that differ in nothing else are the same.
    reasons = Counter(re.sub(r'\d+', 'N', reason) for *_, reason in rows)
    table = [[name, page.count(offset), page.count(length), reason] for name, offset, length, reason in rows]
    shown = table[:REJECTED_SHOWN]
    note = f'the first {len(shown):,} of {len(rows):,}' if len(rows) > len(shown) else f'all {len(rows):,}'
    return [
        page.table(['reason', 'documents'], [[name, page.count(times)] for name, times in reasons.most_common()]),
        page.fold(f'Where they stand: {note}', [page.table(['file', 'byte', 'bytes', 'reason'], shown)]),
    ]
