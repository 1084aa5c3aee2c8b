"""What a classifier is given of a product: one picture, or its first few together, and the area of the title.

Synopsis:

    inputs = Inputs(pictures=2, title='top')
    logits = network(inputs.prepare(images, mask, draws, augmentation=augment.NONE, size=180))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from model import title
from pipeline import augment
from pipeline.augment import Augmentation
from pipeline.dataset import PICTURES, Products
from pipeline.errors import UsageError

TITLES = ('off', *title.MODES)
TITLE_WEIGHTS = ('own', 'shared')


@dataclass(frozen=True)
class Inputs:
    """What a row is, and which parts of it the network sees.

    Attributes:
        pictures: 0: a row is a picture. 1 to 4: it is a product, and the network sees so many of its pictures.
        fewer: whether products with fewer pictures are rows too, with 4 all of them. If not, only products with exactly
            so many are.
        title: off, or where the crop that is the second input is taken from: top, the upper third, or text, the band
            that looks most like text (model/title.py).
        title_weights: own: the crop goes through a branch of its own. shared: through the backbone, as if it were
            another picture.
    """

    pictures: int = 0
    fewer: bool = False
    title: str = 'off'
    title_weights: str = 'own'

    def __post_init__(self) -> None:
        if not 0 <= self.pictures <= PICTURES:
            raise UsageError(f'--pictures={self.pictures}: a product has 1 to {PICTURES}; 0 takes each as a row')
        if self.fewer and self.pictures != PICTURES:
            raise UsageError(
                f'--fewer_pictures takes all products, which have up to {PICTURES} pictures: --pictures={PICTURES}'
            )
        for flag, known in (('title', TITLES), ('title_weights', TITLE_WEIGHTS)):
            if getattr(self, flag) not in known:
                raise UsageError(f'--{flag}={getattr(self, flag)}: must be one of {", ".join(known)}')

    @classmethod
    def of_run(cls, settings: Mapping[str, Any]) -> Inputs:
        """Those of a run, by its settings; runs that are older than these settings take single pictures."""
        return cls(
            settings.get('pictures', 0),
            settings.get('fewer_pictures', False),
            settings.get('title', 'off'),
            settings.get('title_weights', 'own'),
        )

    @property
    def products(self) -> Products | None:
        """Which products are rows; None if pictures are."""
        return Products(self.pictures, fewer=self.fewer) if self.pictures else None

    @property
    def unit(self) -> str:
        """What a row is, in the plural, where rows are counted."""
        return 'products' if self.pictures else 'images'

    @property
    def noun(self) -> str:
        """The same in a sentence."""
        return 'products' if self.pictures else 'pictures'

    @property
    def shares(self) -> bool:
        """Whether the backbone sees crops of the title, too."""
        return self.title != 'off' and self.title_weights == 'shared'

    @property
    def pictures_a_row(self) -> int:
        """How many pictures the backbone sees of a row."""
        return max(1, self.pictures) * (2 if self.shares else 1)

    def prepare(self, images: Any, mask: Any, draws: Any, *, augmentation: Augmentation | None, size: int) -> Any:
        """The network's inputs.

        Args:
            images: uint8 [n, side, side, 3], or [n, pictures, side, side, 3] for products.
            mask: bool [n, pictures], where a product has a picture; None for pictures.
            draws: float32 [n, augment.DRAWS], or [n, pictures, augment.DRAWS]; None without augmentation.
            augmentation: how the pictures vary; None: not at all. Titles stay as they are, to be read.
            size: pixels a side that the backbone takes.

        Returns:
            One tensor or a list of them:
            pictures float32 [n * pictures_a_row, size, size, 3], values 0..255: of each row its pictures, then the
            crops if the backbone takes them. For products then present float32 [n, pictures]. With a branch for the
            title then its crops, float32 [n * pictures, title.HEIGHT, side, 3].
        """
        flat = tf.reshape(images, [-1, *images.shape[-3:]])
        if augmentation is None:
            pictures = augment.resize(flat, size=size)
        else:
            draws = tf.reshape(draws, [-1, augment.DRAWS])
            pictures = augment.upscale_crop_flip(flat, draws, augmentation=augmentation, size=size)
        prepared = [pictures]
        if self.shares:
            crops = _stretched(title.crop(flat, mode=self.title), size=size)
            rows = [tf.reshape(part, [-1, max(1, self.pictures), size, size, 3]) for part in (pictures, crops)]
            prepared = [tf.reshape(tf.concat(rows, axis=1), [-1, size, size, 3])]
        if self.pictures:
            prepared.append(tf.cast(mask, tf.float32))
        if self.title != 'off' and not self.shares:
            prepared.append(title.crop(flat, mode=self.title))
        return prepared if len(prepared) > 1 else prepared[0]


SINGLE = Inputs()  # a picture, and nothing else


def _stretched(crops: Any, *, size: int) -> Any:
    """Crops [n, height, width, 3] as square pictures float32 [n, size, size, 3]."""
    rows, columns = (tf.constant(augment.interpolation_matrix(side, size), tf.float32) for side in crops.shape[1:3])
    stretched = tf.einsum('yh,nhwc,xw->nyxc', rows, tf.cast(crops, tf.float32), columns)
    return tf.clip_by_value(stretched, 0, 255)
