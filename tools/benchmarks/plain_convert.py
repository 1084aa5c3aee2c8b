"""The reference of the conversion's benchmark: the plain loop that a notebook would have.

    python -m tools.benchmarks.plain_convert CATALOGUE OUTPUT

One process decodes every BSON document and writes one tf.train.Example a picture with TFRecordWriter, into 16 files in
turn. No split, no labels, no checks, no checksums of files, no sync.
"""

from __future__ import annotations

import itertools
import os
import sys

import bson
import tensorflow as tf

FILES = 16


def main(catalogue: str, output: str) -> None:
    """Converts train.bson and test.bson of a catalogue."""
    os.makedirs(output)
    writers = [tf.io.TFRecordWriter(f'{output}/{number:02d}.tfrecord') for number in range(FILES)]
    turns = itertools.cycle(writers)
    for name in ('train.bson', 'test.bson'):
        with open(f'{catalogue}/{name}', 'rb') as file:
            for document in bson.decode_file_iter(file):
                for entry in document['imgs']:
                    features = {
                        'product_id': _int64(document['_id']),
                        'category_id': _int64(document.get('category_id', -1)),
                        'image': tf.train.Feature(bytes_list=tf.train.BytesList(value=[entry['picture']])),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    next(turns).write(example.SerializeToString())
    for writer in writers:
        writer.close()


def _int64(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


if __name__ == '__main__':
    main(*sys.argv[1:])
