"""The table of chunks for a shard that a test makes by itself."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import manifest, records


def table(
    encoded: Sequence[bytes], images: Sequence[int], *, chunk_products: int = manifest.CHUNK_PRODUCTS
) -> tuple[tuple[int, ...], ...]:
    """FileInfo.chunks of the shard that holds these records, which have so many pictures each."""
    runs = [slice(first, first + chunk_products) for first in range(0, len(encoded), chunk_products)]
    return tuple(
        (len(records.frame(encoded[run])), *(list(images[run]).count(pictures) for pictures in (1, 2, 3, 4)))
        for run in runs
    )
