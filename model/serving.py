"""The chain as one graph, for TensorFlow Serving: encoded pictures of products -> their likeliest categories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ensemble import graph_rules
from model import inference
from model.accumulate import AccumulatingModel
from model.answers import AT_ONCE, Options
from model.inputs import Inputs
from pipeline import graph_pictures
from pipeline.categories import Categories
from pipeline.dataset import PICTURES
from pipeline.pictures import JPEG


def write(folder: str, model: AccumulatingModel, label_map: Categories, options: Options) -> None:
    """Writes a SavedModel of standard operations, with the signature serving_default.

    It takes `pictures`, string [P, K]: the JPEG files of P products, 1 to 4 each, '' where a product has fewer. It
    gives `category_id` int64 [P, count], `category` string [P, count] (the names of the three levels) and `probability`
    float32 [P, count], the likeliest first. A product without a picture or with more than four, and a picture that is
    no sound JPEG file, are an InvalidArgumentError.

    Args:
        folder: where to; made anew.
        model: the trained model.
        label_map: what its outputs mean.
        options: how a product's pictures are taken together; of one view.
    """
    if options.tta != 1:
        raise ValueError(f'the served model looks at each picture once; tta must be 1, is {options.tta}')
    inputs = model.inputs_of_row
    ids = tf.constant(label_map.ids)
    names = tf.constant([label_map.path(label) for label in range(len(label_map))])

    def likeliest(pictures: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Labels int32 and probabilities float32, both [p, count], of a few products."""
        present = tf.sequence_mask(_counts(pictures))  # without the empty places between
        places = tf.where(present)
        pixels = graph_pictures.decode(tf.boolean_mask(pictures, pictures != ''))
        if inputs.pictures:
            present, columns = _whole(pixels, present, places, count=inputs.pictures)
            places = tf.where(present)
        else:
            columns = (pixels,)
        logits = tf.cast(inference.halved(model.logits(*columns)), tf.float32)  # as they would be stored
        shape = tf.concat([tf.shape(present), [len(label_map)]], axis=0)
        padded = tf.ensure_shape(tf.scatter_nd(places, logits, tf.cast(shape, tf.int64)), [None, None, len(label_map)])
        scores = graph_rules.log_scores(padded, present, rule=options.rule, power=options.power)
        return graph_rules.likeliest(scores, count=options.count)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.string, name='pictures')], autograph=False)
    def answer(pictures: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies(_checks(pictures, inputs)):
            pictures = tf.identity(pictures)
        labels, probabilities = _in_slices(likeliest, pictures, count=min(options.count, len(label_map)))
        return {
            'category_id': tf.gather(ids, labels),
            'category': tf.gather(names, labels),
            'probability': probabilities,
        }

    module = tf.Module()
    module.kept = [variable.value for variable in model.classifier.variables]
    module.answer = answer
    tf.saved_model.save(module, folder, signatures={tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: answer})


def _in_slices(function: Callable[..., Any], pictures: tf.Tensor, *, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """As function(pictures), by as many products at a time as have AT_ONCE pictures: so much memory is enough.

    Args:
        function: string [p, K] -> int32 and float32 [p, count].
        pictures: string [P, K], 1 to PICTURES of each product.
        count: how many columns the function gives.
    """
    ends = tf.cumsum(_counts(pictures))

    def add_slice(start: Any, before: Any, *found: Any) -> Any:
        stop = tf.searchsorted(ends, [before + AT_ONCE], side='right')[0]
        more = function(pictures[start:stop])
        return stop, ends[stop - 1], *(tf.concat(pair, axis=0) for pair in zip(found, more, strict=True))

    none = tf.zeros([0, count], tf.int32), tf.zeros([0, count])
    shapes = [[], [], [None, count], [None, count]]
    # TensorFlow would begin the next slice while one is at work, with the memory of both.
    _, _, *found = tf.while_loop(
        lambda start, *_: start < tf.shape(pictures)[0], add_slice, [0, 0, *none],
        shape_invariants=[tf.TensorShape(shape) for shape in shapes], parallel_iterations=1,
    )  # fmt: skip
    return tuple(found)


def _whole(pixels: tf.Tensor, present: tf.Tensor, places: tf.Tensor, *, count: int) -> tuple[tf.Tensor, Any]:
    """Pictures as rows of products.

    Args:
        pixels: uint8 [n, side, side, 3], of all products.
        present: bool [p, k], where a product has one.
        places: int64 [n, 2], of each picture in `present`.
        count: how many pictures of a product are a row.

    Returns:
        bool [p, 1], for each product has one row; and the row's columns, uint8 [p, count, side, side, 3] and mask
        bool [p, count].
    """
    chosen = places[:, 1] < count
    pixels, places = tf.boolean_mask(pixels, chosen), tf.boolean_mask(places, chosen)
    products, side = tf.shape(present)[0], pixels.shape[1]
    # Bytes can't be scattered on every device.
    shape = tf.stack([products, count, side, side, 3])
    images = tf.cast(tf.scatter_nd(tf.cast(places, tf.int32), tf.cast(pixels, tf.float32), shape), tf.uint8)
    mask = tf.sequence_mask(tf.minimum(tf.reduce_sum(tf.cast(present, tf.int32), axis=1), count), count)
    return tf.ones([products, 1], tf.bool), (tf.ensure_shape(images, [None, count, side, side, 3]), mask)


def _counts(pictures: tf.Tensor) -> tf.Tensor:
    """How many each product has: string [P, K] -> int32 [P]."""
    return tf.reduce_sum(tf.cast(pictures != '', tf.int32), axis=1)


def _checks(pictures: tf.Tensor, inputs: Inputs) -> list[tf.Operation]:
    """What must hold before anything is decoded; each says the rule and where it is broken."""
    present, counts = pictures != '', _counts(pictures)
    is_jpeg = tf.strings.substr(pictures, 0, len(JPEG)) == JPEG
    rules = [
        (tf.shape(pictures)[:1] > 0, 'there must be a product'),
        (counts > 0, 'every product must have a picture; none has product (from 0)'),
        (counts <= PICTURES, f'a product may have {PICTURES} pictures at most; more has product (from 0)'),
        (is_jpeg | ~present, 'every picture must be a JPEG file; none is (product, place, from 0)'),
    ]
    if inputs.pictures and not inputs.fewer:
        exactly = (
            f'every product must have exactly {inputs.pictures} pictures, as in training; others has product (from 0)'
        )
        rules.append((counts == inputs.pictures, exactly))
    return [tf.debugging.Assert(tf.reduce_all(kept), [said, tf.where(~kept)]) for kept, said in rules]
