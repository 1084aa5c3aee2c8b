"""Which picture comes when: pure functions of the seed, so that any step can be gone to without reading what is before.

A pass takes the chunks of all shards (about 1 MB each) in a random order and cuts that order into groups. A window of
the stream is a quarter of each of four groups, all of its pictures in a random order. The four pictures that a product
may have stand one after the other in a chunk, so each comes in another window; and because the windows that share a
group are never neighbours, no batch as small as a window has two pictures of one product.

    groups    A B C D E F G H ...   pictures 0 4 8 ... of a group are its first quarter, 1 5 9 ... its second
    window 6  G: first quarter, E: second, C: third, A: fourth
    window 7  H: first quarter, F: second, D: third, B: fourth

So seven groups are in memory, and an eighth while it is read. The first windows of a pass take the quarters that they
lack from its last groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline import hashing

LANES = 4  # windows that a group of pictures is dealt out to: as many as a product may have pictures
SPACING = 2  # from one window that takes part of a group to the next that does
GROUPS_HELD = 9  # the seven of a window, the one that is read ahead, and what is left of the one before


@dataclass(frozen=True)
class Pass:
    """One pass over the training data.

    Attributes:
        seed: of the order.
        number: of the pass, from 0 on.
        groups: the numbers of each group's chunks, in their order; int64 [chunks of the group] each.
        group_rows: how many rows (pictures, or products) each group has, int64 [groups].
        lanes: how many windows a group is dealt out to: 4 for pictures, 1 for products.
    """

    seed: int
    number: int
    groups: tuple[np.ndarray, ...]
    group_rows: np.ndarray
    lanes: int

    def window_rows(self) -> np.ndarray:
        """How many rows each window has, int64 [windows]; there are as many windows as groups."""
        parts = [np.roll(-(-(self.group_rows - lane) // self.lanes), SPACING * lane) for lane in range(self.lanes)]
        return np.sum(parts, axis=0)

    def held(self, number: int) -> list[int]:
        """The groups that a window or one of those after it takes rows from, but for those not begun yet."""
        return [(number - back) % len(self.groups) for back in range(SPACING * (self.lanes - 1) + 1)]

    def window(self, number: int) -> tuple[list[int], np.ndarray]:
        """What makes up a window.

        Returns:
            the numbers of its groups; and the rows in the order of the stream, as indices into all rows of these groups
            one group after the other: int64 [rows of the window].
        """
        groups = [(number - SPACING * lane) % len(self.groups) for lane in range(self.lanes)]
        needed = list(dict.fromkeys(groups))  # fewer than lanes if the pass has fewer groups
        firsts = dict(zip(needed, np.cumsum([0, *self.group_rows[needed]])[:-1].tolist(), strict=True))
        rows = [
            np.arange(firsts[group] + lane, firsts[group] + self.group_rows[group], self.lanes)
            for lane, group in enumerate(groups)
        ]
        together = np.concatenate(rows)
        return needed, together[hashing.permutation(len(together), self.seed, self.number, number)]


def one_pass(chunk_rows: np.ndarray, *, seed: int, number: int, shuffle_rows: int, lanes: int) -> Pass:
    """The order of a pass.

    Args:
        chunk_rows: how many rows each chunk has, int64 [chunks].
        seed: of the order.
        number: of the pass.
        shuffle_rows: how many rows may be in memory; a group has at least one chunk, whatever this is.
        lanes: how many windows a group is dealt out to.
    """
    order = hashing.permutation(len(chunk_rows), seed, number)
    starts = np.cumsum(chunk_rows[order]) - chunk_rows[order]
    group = starts // max(1, shuffle_rows // GROUPS_HELD)
    groups = np.split(order, np.flatnonzero(np.diff(group)) + 1)
    return Pass(seed, number, tuple(groups), np.array([chunk_rows[chunks].sum() for chunks in groups]), lanes)
