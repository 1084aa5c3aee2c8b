"""The plan: each product in one split and one shard, in the order of its hash; a repeated id counts once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import categories, plan, split
from pipeline.errors import CatalogueError


def job(*, shard_bytes: int = 1000, skip: bool = False) -> plan.Job:
    return plan.Job(
        input_dir='data',
        output_dir='shards',
        label_map=categories.Categories(np.arange(10), ()),
        val_fraction=0.1,
        seed=0,
        shard_bytes=shard_bytes,
        skip=skip,
        max_rejected=1,
        plan_only=False,
        sources=(),
    )


def places(product_ids: list[int], *, labels: int = 2) -> np.ndarray:
    """Products of 100 bytes and two pictures each, one after the other."""
    made = np.zeros(len(product_ids), plan.PLACE)
    made['product_id'], made['offset'] = product_ids, np.arange(len(product_ids)) * 100
    made['length'], made['images'] = 100, 2
    made['label'] = np.arange(len(product_ids)) % labels
    return made


def splits(source: int, chosen: np.ndarray, the_job: plan.Job) -> dict[str, plan.Split]:
    made = list(plan.plan_source(source, chosen, the_job))
    return {one.total.split: one for one in made if isinstance(one, plan.Split)}


def rejected(product_ids: list[int]) -> list[tuple[int, str]]:
    made = plan.plan_source(0, places(product_ids), job(skip=True))
    return [(one.damage.offset, one.damage.reason) for one in made if isinstance(one, plan.Rejected)]


def test_every_product_is_in_one_split_and_one_shard_in_the_order_of_hashes():
    made = splits(0, places(list(range(1, 401))), job())
    assert {name: one.total.products for name, one in made.items()} == {'train': 360, 'val': 40}
    assert sorted(np.concatenate([one.places['product_id'] for one in made.values()])) == list(range(1, 401))
    for one in made.values():
        hashes = split.order_hashes(one.places['product_id'], seed=0)
        assert (np.diff(hashes.astype(object)) > 0).all()
        for shard in one.shards:
            assert set(split.shard_index(hashes[shard.start : shard.stop], shard.count)) == {shard.index}
        assert [shard.stop for shard in one.shards[:-1]] == [shard.start for shard in one.shards[1:]]
        assert (one.shards[0].start, one.shards[-1].stop) == (0, one.total.products)


def test_a_split_is_counted():
    made = splits(0, places(list(range(1, 401))), job(shard_bytes=10_000))
    assert made['train'].total == plan.Total('train', 360, 720, 2, 36_000, 4)
    assert made['val'].total == plan.Total('val', 40, 80, 2, 4_000, 1)


def test_a_shard_that_gets_no_product_is_not_written():
    made = splits(0, places([5]), job(shard_bytes=10))['train']
    assert made.total.shards == 10
    (shard,) = made.shards
    assert (shard.start, shard.stop, shard.count) == (0, 1, 10)


def test_test_products_have_no_label_and_are_never_held_out():
    chosen = places(list(range(50)))
    chosen['label'] = plan.NO_LABEL
    made = splits(1, chosen, job())
    assert list(made) == ['test']
    assert made['test'].total.categories == 0
    assert [shard.source for shard in made['test'].shards] == [1] * len(made['test'].shards)


@pytest.mark.parametrize(
    ('product_ids', 'repeats'),
    [
        ([1, 2, 3], []),
        ([3, 1, 2], []),
        ([1, 1, 2], [(100, 'product 1 stands at byte 0 already')]),
        ([7, 1, 7, 2, 7], [(200, 'product 7 stands at byte 0 already'), (400, 'product 7 stands at byte 0 already')]),
        ([2, 1, 1, 2], [(200, 'product 1 stands at byte 100 already'), (300, 'product 2 stands at byte 0 already')]),
    ],
)
def test_of_products_with_one_id_the_first_stays(product_ids, repeats):
    assert rejected(product_ids) == repeats
    kept = splits(0, places(product_ids), job(skip=True))
    found = {(row['product_id'], row['offset']) for one in kept.values() for row in one.places}
    assert found == {(product_id, 100 * product_ids.index(product_id)) for product_id in product_ids}


def test_a_repeated_id_is_an_error_unless_it_may_be_skipped():
    error = r'^data/train.bson: byte 100: product 1 stands at byte 0 already; each may stand once$'
    with pytest.raises(CatalogueError, match=error):
        list(plan.plan_source(0, places([1, 1]), job()))


def test_a_source_without_products_gives_nothing():
    assert list(plan.plan_source(1, places([]), job())) == []
