"""The part of a dataset's page on pictures that stand several times."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from ensemble import known_images
from pipeline import split
from pipeline.records import Product
from tools import page
from tools.browse import repeats
from tools.browse.repeats import Repeats
from tools.browse.shard_sections import Dataset, product_card, read, share
from tools.page import Cell, Section

if TYPE_CHECKING:
    from markupsafe import Markup

MOST = 30  # pictures that repeat most often
EXAMPLES = 12  # of pictures under several categories
NAMED = 3  # categories of a picture that are named


def section(dataset: Dataset, found: Repeats, *, seed: int) -> Section:
    """How many pictures repeat, where, which most often; and examples under several categories, by the seed."""
    if (found.times == 1).all():
        return Section('Repeats', [page.text(f'None: all {len(found.group):,} pictures differ.')])
    blocks = [
        page.text(
            'Pictures are the same if their bytes are, by their MD5s. What many products have is often a placeholder.'
        ),
        _counts(found),
        page.heading('Pictures that other splits have'),
        *_across_splits(dataset, found),
        page.heading('The pictures that stand most often'),
        _most(dataset, found),
        page.heading('Under several categories'),
        *_examples(dataset, found, seed=seed),
    ]
    return Section('Repeats', blocks)


def _counts(found: Repeats) -> Markup:
    """How many pictures stand once or several times, and where."""
    pictures, different = len(found.group), len(found.times)
    several_splits = found.splits & (found.splits - 1) > 0
    chosen = {
        'there are': np.ones(different, bool),
        'stand once': found.times == 1,
        'stand several times': found.times > 1,
        'stand in several products': found.products > 1,
        'stand in several splits': several_splits,
        'stand under several categories': found.labels > 1,
    }
    rows = [
        [what, page.count(which.sum()), share(which.sum(), different)]
        + [page.count(found.times[which].sum()), share(found.times[which].sum(), pictures)]
        for what, which in chosen.items()
    ]
    rows += [
        [
            'repeat an earlier one',
            *[Cell('', '')] * 2,
            page.count(pictures - different),
            share(pictures - different, pictures),
        ],
        [
            'repeat one of the same product',
            *[Cell('', '')] * 2,
            page.count(found.within),
            share(found.within, pictures),
        ],
    ]
    return page.table(['pictures that', 'different', 'share of those', 'pictures', 'share of all'], rows)


def _across_splits(dataset: Dataset, found: Repeats) -> list[Markup]:
    rows = []
    for name, sources in (('val', ('train',)), ('test', ('train',)), ('test', known_images.SOURCES)):
        if dataset.made.products(name):
            known = repeats.known(dataset.scan, found, name, sources=sources)
            seen, told = (known.seen > 0).sum(), (known.label >= 0).sum()
            rows.append(
                [
                    name,
                    ' or '.join(sources),
                    page.count(known.seen.sum()),
                    share(known.seen.sum(), known.pictures.sum()),
                ]
                + [page.count(seen), share(seen, len(known.seen)), page.count(told), share(told, len(known.seen))]
            )
    if not rows:
        return [page.text('There is no product of val or test.')]
    columns = [
        'split',
        'are also in',
        'pictures',
        'share',
        'products with one',
        'share',
        'that tell one category',
        'share',
    ]
    words = (
        'Products tell one category if all their pictures that the other split has stand under one category there '
        '(ensemble.combine --known_images uses that).'
    )
    return [page.table(columns, rows), page.text(words, faint=True)]


def _most(dataset: Dataset, found: Repeats) -> Markup:
    ones = np.argsort(-found.times, kind='stable')[:MOST]
    ones = ones[found.times[ones] > 1]
    rows = []
    for one, image in zip(ones.tolist(), _images(dataset, found, ones), strict=True):
        rows.append([
            page.pictures([image], f'stands {found.times[one]} times'),
            *(page.count(column[one]) for column in (found.times, found.products, found.labels)),
            ', '.join(name for number, name in enumerate(split.SPLITS) if found.splits[one] >> number & 1),
            _largest_categories(dataset, found.members(one)),
        ])  # fmt: skip
    return page.table(['picture', 'times', 'products', 'categories', 'splits', 'most often under'], rows)


def _images(dataset: Dataset, found: Repeats, ones: np.ndarray) -> list[bytes]:
    """Each of these pictures."""
    firsts = np.array([found.members(one)[0] for one in ones.tolist()])
    return [product.images[0] for product in _with_first(dataset, firsts)]


def _with_first(dataset: Dataset, pictures: np.ndarray) -> list[Product]:
    """The products of some pictures, each with its picture before its others."""
    numbers = dataset.scan.product[pictures]
    places = (pictures - np.searchsorted(dataset.scan.product, numbers)).tolist()
    return [
        product._replace(images=(product.images[place], *product.images[:place], *product.images[place + 1 :]))
        for product, place in zip(read(dataset, numbers), places, strict=True)
    ]


def _largest_categories(dataset: Dataset, members: np.ndarray) -> str:
    labels = dataset.scan.label[dataset.scan.product[members]]
    times = Counter(labels[labels >= 0].tolist()).most_common()
    names = [f'{dataset.name(label)} ({count:,})' for label, count in times[:NAMED]]
    return '; '.join(names + ['...'] * (len(times) > NAMED))


def _examples(dataset: Dataset, found: Repeats, *, seed: int) -> list[Markup]:
    several = np.flatnonzero(found.labels > 1)
    if not len(several):
        return [page.text('No picture stands under several categories.')]
    drawn = np.random.default_rng(seed).choice(several, min(EXAMPLES, len(several)), replace=False)
    cards = []
    for one in drawn.tolist():
        members = found.members(one)
        labels = dataset.scan.label[dataset.scan.product[members]]
        firsts = [members[labels == label][0] for label in np.unique(labels[labels >= 0])[:2]]
        products = _with_first(dataset, np.array(firsts))
        words = (
            f'One picture in {found.products[one]:,} products of {found.labels[one]:,} categories, such as these two:'
        )
        shown = [block for product in products for block in product_card(product, dataset.name(product.label))]
        cards.append([page.text(words), *shown])
    return [
        page.text(f'{len(several):,} pictures do; random ones of them, each before the other pictures of its product:'),
        page.cards(cards),
    ]
