"""Stores of logits that are one model together: each product is read from the store made for its number of pictures.

Synopsis:

    from ensemble import routing

    (group,) = routing.open_groups(['runs/a/logits/val+runs/p2/logits/val'])
    for file in group.files():
        for rows in group.read(file):
            print(rows.product_id.tolist(), rows.image_index.tolist())

A model that looks at products with exactly K pictures has a store of these products only. Named with + between them,
stores of several such models are a group. A product belongs to the store of the products with as many pictures as it
has; where the group has none, or that doesn't hold it, to the group's one store of all products. So a group holds every
product once, or it is refused. A single store stands for itself, also if it is of a part of the products.

File i of every store holds its products of dataset shard i, in order of (split.order_hashes, product_id). So the files
of a group are merged block by block, and the rows that come out are in the dataset's order again.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ensemble import logits
from ensemble.logits import Rows
from ensemble.logits_folder import JOINT
from pipeline import categories, dataset, split, storage
from pipeline.errors import InputError
from pipeline.manifest import FileInfo, Manifest

NUMBERS = tuple(range(1, dataset.PICTURES + 1))


@dataclass(frozen=True)
class Store:
    """A store of logits.

    Attributes:
        folder: where it lies.
        manifest: what it holds.
    """

    folder: str
    manifest: Manifest

    @property
    def pictures(self) -> int:
        """How many pictures of a product a row is of, 1..4; 0 where a row is a picture."""
        return self.manifest.about.get('pictures', 0)

    @property
    def part(self) -> int:
        """K, if it is of the products with exactly K pictures; 0: of all products."""
        return 0 if self.manifest.about.get('fewer_pictures') else self.pictures

    @property
    def which(self) -> str:
        """Which products it is of, in words."""
        return _with_pictures([self.part]) if self.part else 'all products'

    @property
    def products(self) -> int:
        """How many products it holds."""
        return self.manifest.products(self.manifest.about['split'])

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return self.manifest.images(self.manifest.about['split'])

    @property
    def dataset_products(self) -> int:
        """How many products the split has; a store that doesn't say so is older than stores of a part."""
        said = self.manifest.about.get('dataset_products')
        return self.products if said is None else said

    def read(self, file: FileInfo) -> Iterator[Rows]:
        """Yields the blocks of a file, in order.

        Raises:
            InputError: it is damaged, or its products haven't the pictures that its manifest says.
        """
        for rows in logits.read_shard(self.folder, file):
            counts = np.zeros(1, np.int64) if rows.pictures is None else rows.pictures
            if (counts[0] > 0) != (self.pictures > 0) or (self.part and (counts != self.part).any()):
                raise InputError(
                    f'{storage.join(self.folder, file.name)}: holds other products or pictures than its manifest says; '
                    'make the logits again'
                )
            yield rows


@dataclass(frozen=True)
class GroupFile:
    """The files of a group that hold the products of the same shard.

    Attributes:
        of_stores: one a store.
        products: how many products they hold together, each counted once.
    """

    of_stores: tuple[FileInfo, ...]
    products: int

    @property
    def name(self) -> str:
        """The name of all of them."""
        return self.of_stores[0].name


@dataclass(frozen=True)
class Group:
    """The stores of logits of one model, of which there are several if it has one for each number of pictures.

    Attributes:
        stores: one or more; of several, each of other products.
    """

    stores: tuple[Store, ...]

    @property
    def name(self) -> str:
        """Their folders, as in --logits."""
        return JOINT.join(store.folder for store in self.stores)

    @property
    def products(self) -> int:
        """How many products they hold."""
        return sum(file.products for file in self.files())

    @property
    def dataset_products(self) -> int:
        """How many products the split has."""
        return self.stores[0].dataset_products

    @property
    def part(self) -> int:
        """K, if it holds only the products with K pictures, and there are others; 0: all products."""
        return self.stores[0].part if self.products < self.dataset_products else 0

    @property
    def told(self) -> str:
        """How many products it holds, and of how many: `12 of 60 products (those with 2 pictures)`."""
        few = f' of {self.dataset_products:,} products ({self.stores[0].which})' if self.part else ' products'
        return f'{self.products:,}{few}'

    def files(self) -> list[GroupFile]:
        """Its files, in order: one for each shard of the dataset."""
        every = [store.manifest.files for store in self.stores if not store.part]
        found = []
        for place, files in enumerate(zip(*(store.manifest.files for store in self.stores), strict=True)):
            counted = (every[0][place],) if every else files
            found.append(GroupFile(files, sum(file.products for file in counted)))
        return found

    def read(self, file: GroupFile) -> Iterator[Rows]:
        """Yields the rows of the products of a shard in the dataset's order, block by block.

        Of a group of several stores, all rows have `pictures`.

        Raises:
            InputError: a file is damaged, its products don't stand in order, or one stands in two stores.
        """
        if len(self.stores) == 1:
            return self.stores[0].read(file.of_stores[0])
        return _merged(list(zip(self.stores, file.of_stores, strict=True)))

    def paths(self, file: GroupFile) -> str:
        """Where the files of a shard lie, for errors."""
        return JOINT.join(storage.join(store.folder, file.name) for store in self.stores)


def open_groups(names: Sequence[str]) -> tuple[Group, ...]:
    """Opens stores of logits of the same products, one a model or several with + between.

    Args:
        names: of the models: each a folder, or several with + between.

    Raises:
        InputError: a store isn't finished or holds nothing, two aren't of the same split, dataset and categories, a
            group lacks products or has two stores for the same ones, or two groups hold other products.
    """
    groups = tuple(Group(tuple(map(_open, name.split(JOINT)))) for name in names)
    first = groups[0].stores[0]
    for store in (one for group in groups for one in group.stores):
        _check_alike(store, first)
    for group in groups:
        _check_whole(group)
        _check_products(group, groups[0])
    return groups


def _open(folder: str) -> Store:
    store = Store(folder, logits.read_manifest(folder))
    if categories.read(folder).digest() != store.manifest.about['label_map_digest']:
        path = storage.join(folder, categories.NAME)
        raise InputError(f'{path}: not the label map of these logits; make the logits again')
    return store


def _check_alike(store: Store, first: Store) -> None:
    """Checks that both are of the same shards."""
    ours, others = store.manifest.about, first.manifest.about
    for name, what in (('split', 'split'), ('label_map_digest', 'label map'), ('dataset_digest', 'dataset')):
        if ours[name] != others[name]:
            raise InputError(
                f'{store.folder}: its {what} is {ours[name][:12]}, that of {first.folder} is {others[name][:12]}; only '
                'logits of the same shards can be combined: make them by model.predict with the same --shards_dir'
            )
    seeds = {about.get('order_seed') for about in (ours, others)} - {None}
    names = [[file.name for file in one.manifest.files] for one in (store, first)]
    if len(seeds) > 1 or names[0] != names[1]:
        raise _other_files(store.folder, first.folder)


def _other_files(name: str, first: str) -> InputError:
    return InputError(f'{name}: has other files or products than {first}; make the logits again')


def _check_whole(group: Group) -> None:
    """Checks that a group holds each product once, or a single store what it says."""
    found: dict[int, Store] = {}
    for store in group.stores:
        if store.part in found:
            raise InputError(
                f'{store.folder}: is of {store.which}, as {found[store.part].folder} is; join only stores of different '
                f'products by {JOINT} (models that are averaged have a comma between them)'
            )
        found[store.part] = store
        alone = len(group.stores) == 1
        if not store.products and (alone or not store.part):
            raise InputError(f'{store.folder}: holds no product; make the logits again')
        if not store.part and store.products != store.dataset_products:
            raise InputError(
                f'{store.folder}: holds {store.products:,} products, the dataset has {store.dataset_products:,}; make '
                'the logits again'
            )
    if len(found) > 1 and group.products != group.dataset_products:
        raise _lacking(group)


def _lacking(group: Group) -> InputError:
    """Says which products a group of stores of parts has not."""
    missing = group.dataset_products - group.products
    numbers = sorted(set(NUMBERS) - {store.part for store in group.stores})
    if missing < 0 or not numbers:
        return InputError(
            f'{group.name}: hold {group.products:,} products, the dataset has {group.dataset_products:,}; make the '
            'logits again'
        )
    which = _with_pictures(numbers)
    return InputError(
        f'{group.name}: {missing:,} of {group.dataset_products:,} products are missing, {which}; name a store of '
        f'{"them" if len(numbers) == 1 else "each"} too, or one of all products, with {JOINT} between'
    )


def _with_pictures(numbers: Sequence[int]) -> str:
    return f'those with {" or ".join(map(str, numbers))} picture{"" if list(numbers) == [1] else "s"}'


def _check_products(group: Group, first: Group) -> None:
    """Checks that two groups hold the same products, as far as their manifests tell."""
    held = [[(file.name, file.products) for file in one.files()] for one in (group, first)]
    if held[0] == held[1]:
        return
    if group.part == first.part:
        raise _other_files(group.name, first.name)
    raise InputError(
        f'{group.name}: holds {group.told}, {first.name} {first.told}; only logits of the same products can be '
        f'combined or compared: join the stores of a model by {JOINT}'
    )


class _Piece(NamedTuple):
    """Products of one file that are merged with those of others.

    Attributes:
        path: of the file.
        part: Store.part of its store.
        rows: the products', with `pictures`.
        starts: int64 [P + 1], where each product begins in the rows, and their end.
        product_id: int64 [P].
        order: uint64 [P], what they stand in order of, before their ids.
    """

    path: str
    part: int
    rows: Rows
    starts: np.ndarray
    product_id: np.ndarray
    order: np.ndarray

    def keys(self) -> list[tuple[int, int]]:
        """What decides where each product stands."""
        return list(zip(self.order.tolist(), self.product_id.tolist(), strict=True))

    def cut(self, count: int) -> tuple[_Piece, _Piece | None]:
        """The first products, of which there may be none, and the others if there are any."""
        row = self.starts[count]
        first, rest = (
            self._replace(rows=rows, starts=starts, product_id=self.product_id[which], order=self.order[which])
            for rows, starts, which in (
                (self.rows[:row], self.starts[: count + 1], slice(count)),
                (self.rows[row:], self.starts[count:] - row, slice(count, None)),
            )
        )
        return first, rest if len(rest.product_id) else None


def _merged(files: Sequence[tuple[Store, FileInfo]]) -> Iterator[Rows]:
    """The products of all files in their common order; those of the store of all products only where no other has them.

    As much is read of each file as is needed to know what comes next: a block.
    """
    (seed,) = {store.manifest.about['order_seed'] for store, _ in files if store.part}
    # The store of all products comes last, so that of the same product its rows stand behind those that are wanted.
    readers = [_pieces(store, file, seed=seed) for store, file in sorted(files, key=lambda one: not one[0].part)]
    waiting: list[_Piece | None] = [None] * len(readers)
    while True:
        waiting = [piece or next(reader, None) for piece, reader in zip(waiting, readers, strict=True)]
        ready = [piece.keys() for piece in waiting if piece]
        if not ready:
            return
        bound = min(keys[-1] for keys in ready)  # what will be read of any file comes after it
        cuts = [piece.cut(bisect.bisect_right(piece.keys(), bound)) if piece else None for piece in waiting]
        yield _interleaved([cut[0] for cut in cuts if cut])
        waiting = [cut and cut[1] for cut in cuts]


def _pieces(store: Store, file: FileInfo, *, seed: int) -> Iterator[_Piece]:
    """Reads a file and checks that its products stand in order."""
    path = storage.join(store.folder, file.name)
    last = (-1, -1)
    for rows in store.read(file):
        starts = np.append(rows.starts(), len(rows))
        product_id = rows.product_id[starts[:-1]]
        if rows.pictures is None:
            counts = np.maximum.reduceat(rows.image_index, starts[:-1]) + 1
            rows = dataclasses.replace(rows, pictures=np.repeat(counts, np.diff(starts)))
        piece = _Piece(path, store.part, rows, starts, product_id, split.order_hashes(product_id, seed=seed))
        if any(one >= other for one, other in itertools.pairwise([last, *piece.keys()])):
            raise InputError(f"{path}: its products don't stand in the dataset's order; make the logits again")
        last = piece.keys()[-1]
        yield piece


def _interleaved(pieces: Sequence[_Piece]) -> Rows:
    """The rows of several files' products in order, each product from the first file that has it."""
    source = np.repeat(np.arange(len(pieces)), [len(piece.product_id) for piece in pieces])
    product_id = np.concatenate([piece.product_id for piece in pieces])
    order = np.lexsort((source, product_id, np.concatenate([piece.order for piece in pieces])))
    again = np.flatnonzero(product_id[order[1:]] == product_id[order[:-1]]) + 1
    wrong = again[np.array([piece.part > 0 for piece in pieces])[source[order[again]]]]
    if len(wrong):
        one, other = (pieces[source[order[place]]].path for place in (wrong[0] - 1, wrong[0]))
        raise InputError(f'product {product_id[order[wrong[0]]]} stands in {one} and in {other}; make the logits again')
    order = np.delete(order, again)
    lengths = np.concatenate([np.diff(piece.starts) for piece in pieces])
    shifts = (np.cumsum(lengths) - lengths)[order] - (np.cumsum(lengths[order]) - lengths[order])
    places = np.repeat(shifts, lengths[order]) + np.arange(lengths[order].sum())
    return Rows.concatenate([piece.rows for piece in pieces]).take(places)
