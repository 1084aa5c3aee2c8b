"""The chain as one graph, for TensorFlow Serving: encoded pictures of products -> their likeliest categories."""

from __future__ import annotations

import tensorflow as tf

from ensemble import graph_rules
from model import inference
from model.accumulate import AccumulatingModel
from model.answers import Options
from pipeline import graph_pictures
from pipeline.categories import Categories
from pipeline.dataset import PICTURES
from pipeline.pictures import JPEG

SEPARATOR = ' > '  # between the names of a category's levels


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
    ids = tf.constant(label_map.ids)
    names = tf.constant([SEPARATOR.join(levels) for levels in label_map.names])

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.string, name='pictures')], autograph=False)
    def answer(pictures: tf.Tensor) -> dict[str, tf.Tensor]:
        present = pictures != ''
        with tf.control_dependencies(_checks(pictures, present)):
            places = tf.where(present)
        pixels = graph_pictures.decode(tf.gather_nd(pictures, places))
        logits = tf.cast(inference.halved(model.logits(pixels)), tf.float32)  # as they would be stored
        shape = tf.concat([tf.shape(pictures), [len(label_map)]], axis=0)
        padded = tf.ensure_shape(tf.scatter_nd(places, logits, tf.cast(shape, tf.int64)), [None, None, len(label_map)])
        scores = graph_rules.log_scores(padded, present, rule=options.rule, power=options.power)
        labels, probabilities = graph_rules.likeliest(scores, count=options.count)
        return {
            'category_id': tf.gather(ids, labels),
            'category': tf.gather(names, labels),
            'probability': probabilities,
        }

    module = tf.Module()
    module.kept = [variable.value for variable in model.classifier.variables]
    module.answer = answer
    tf.saved_model.save(module, folder, signatures={tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: answer})


def _checks(pictures: tf.Tensor, present: tf.Tensor) -> list[tf.Operation]:
    """What must hold before anything is decoded; each says the rule and where it is broken."""
    counts = tf.reduce_sum(tf.cast(present, tf.int32), axis=1)
    is_jpeg = tf.strings.substr(pictures, 0, len(JPEG)) == JPEG
    rules = [
        (tf.shape(pictures)[:1] > 0, 'there must be a product'),
        (counts > 0, 'every product must have a picture; none has product (from 0)'),
        (counts <= PICTURES, f'a product may have {PICTURES} pictures at most; more has product (from 0)'),
        (is_jpeg | ~present, 'every picture must be a JPEG file; none is (product, place, from 0)'),
    ]
    return [tf.debugging.Assert(tf.reduce_all(kept), [said, tf.where(~kept)]) for kept, said in rules]
