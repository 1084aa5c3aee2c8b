"""Xception with two middle blocks for eight: learns small pictures on a CPU (demo.flags)."""

from __future__ import annotations

from model.backbone import Backbone
from model.backbones import xception

MIN_IMAGE_SIZE = xception.MIN_IMAGE_SIZE
MIDDLE_BLOCKS = 2


def build(*, image_size: int, width: float) -> Backbone:
    """A shallow Xception; 0.8 million parameters at width 0.25."""
    return xception.build_xception(image_size=image_size, width=width, stem_strides=2, middle_blocks=MIDDLE_BLOCKS)
