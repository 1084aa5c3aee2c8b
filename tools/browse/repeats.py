"""Pictures that stand several times in a dataset, byte for byte: where, and under which categories.

Synopsis:

    found = repeats.find(scan.read('data/shards', made, categories=len(label_map)))
    print(f'{len(found.group) - len(found.times):,} of {len(found.group):,} pictures repeat another')

Pictures are the same if their MD5s are. To find them takes 50 bytes a picture for a while, and 12 remain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble import known_images
from ensemble.known_images import Known
from pipeline import split
from tools.browse.scan import Scan


@dataclass(frozen=True, eq=False)
class Repeats:
    """The different pictures of a dataset, of which there are D.

    Attributes:
        group: int32 [N], which of them each picture is.
        order: int32 [N], the pictures in order of their group, label and number.
        times: int32 [D], how often each stands.
        products: int32 [D], in how many products.
        labels: int32 [D], under how many categories; test's aren't known and don't count.
        splits: uint8 [D], in which splits: bit k stands for split.SPLITS[k].
        within: pictures that repeat an earlier one of the same product.
    """

    group: np.ndarray
    order: np.ndarray
    times: np.ndarray
    products: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    within: int

    def members(self, one: int) -> np.ndarray:
        """The numbers of the pictures that are this one, in order of their label: int32 [times]."""
        start = np.searchsorted(self.group, one, sorter=self.order)
        return self.order[start : start + self.times[one]]


def find(scan: Scan) -> Repeats:
    """Compares all pictures of a dataset, which has some."""
    group = known_images.numbered(scan.md5).astype(np.int32)
    label = scan.label[scan.product]
    order = np.lexsort((label, group)).astype(np.int32)
    of_group, of_label, of_product = group[order], label[order], scan.product[order]
    # A product has one label and the sort is stable, so the pictures of one that are the same stand together.
    new_group, new_label, new_product = (
        np.diff(column, prepend=-2) != 0 for column in (of_group, of_label, of_product)
    )
    new_label, new_product = new_label | new_group, new_product | new_group
    bits = (1 << scan.split[of_product]).astype(np.uint8)
    count = int(group.max()) + 1
    return Repeats(
        group=group,
        order=order,
        times=np.bincount(group, minlength=count).astype(np.int32),
        products=np.bincount(of_group[new_product], minlength=count).astype(np.int32),
        labels=np.bincount(of_group[new_label & (of_label >= 0)], minlength=count).astype(np.int32),
        splits=np.bitwise_or.reduceat(bits, np.flatnonzero(new_group)),
        within=int(len(group) - new_product.sum()),
    )


def known(scan: Scan, repeats: Repeats, name: str, *, sources: tuple[str, ...]) -> Known:
    """As ensemble.known_images.find(): what other splits tell of a split's products by the pictures they share."""
    label, of_split = scan.label[scan.product], scan.split[scan.product]
    numbers = [split.SPLITS.index(source) for source in sources]
    is_source = np.isin(of_split, numbers)
    of_source = known_images.agreed(label[is_source], repeats.group[is_source], len(repeats.times))
    own = scan.of_split(name)
    place = np.cumsum(own) - 1  # of each product of the split, among those
    mask = sum(1 << number for number in numbers)
    seen = own[scan.product] & ((repeats.splits & mask) > 0)[repeats.group]
    product = place[scan.product[seen]]
    return Known(
        scan.product_id[own],
        scan.images[own].astype(np.int64),
        seen=np.bincount(product, minlength=int(own.sum())),
        label=known_images.agreed(of_source[repeats.group[seen]], product, int(own.sum())),
    )
