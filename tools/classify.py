"""Names the likeliest categories of one product: `python -m tools.classify --run_dir=runs/latest front.jpg back.jpg`

The words are files, 1 to 4 pictures of the product, in the order of importance (the rule `first` looks at the first
alone). JPEG files are decoded as in training; others (PNG, WebP and what else Pillow opens) need the extra `report`.
--json prints one JSON object instead of a table: rule, pictures, and of each category category_id, label, names and
probability.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import io
import json
import os
import sys
import warnings

import numpy as np
from absl import flags

from ensemble import rules
from model import answers, inference, runs
from pipeline import pictures, storage
from pipeline.categories import Categories
from pipeline.dataset import PICTURES
from pipeline.errors import InputError, one_line

FLAGS = program.flag_values()
program.group(FLAGS, 'Model')
RUN_DIR = flags.DEFINE_string('run_dir', 'runs/latest', "The run's folder.", flag_values=FLAGS)
BEST = flags.DEFINE_bool(
    'best', False, 'By the weights with the best validation accuracy, not the last ones.', flag_values=FLAGS
)
program.group(FLAGS, 'Rule and views')
RULE = flags.DEFINE_enum('rule', 'product', rules.names(), "How the product's pictures combine.", flag_values=FLAGS)
POWER = flags.DEFINE_float('power', rules.POWER, 'Exponent of the rule power (paper: 0.1).', flag_values=FLAGS)
TTA = flags.DEFINE_integer('tta', 1, 'Views of each picture (paper: 5).', lower_bound=1, flag_values=FLAGS)
SEED = flags.DEFINE_integer('seed', 0, 'Decides how the views after the first differ.', flag_values=FLAGS)
program.group(FLAGS, 'What is printed')
TOP = flags.DEFINE_integer('top', rules.LIKELIEST, 'How many categories are named.', lower_bound=1, flag_values=FLAGS)
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead of a table.', flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Classifies the product whose pictures are named on the command line."""
    paths = program.parse(FLAGS, argv, doc=__doc__, words='PICTURE ...')
    if not 1 <= len(paths) <= PICTURES:
        raise flags.Error(f'name the files of 1 to {PICTURES} pictures of one product, not {len(paths)}')
    options = answers.Options(rule=RULE.value, power=POWER.value, tta=TTA.value, seed=SEED.value, count=TOP.value)
    pixels = np.stack([read_picture(path) for path in paths])
    model = inference.load(RUN_DIR.value, best=BEST.value, micro_batch=answers.AT_ONCE)
    label_map = runs.read_categories(RUN_DIR.value, model.classifier)
    (labels,), (probabilities,) = answers.Chain(model, options)([pixels])
    found = [(int(label), float(one)) for label, one in zip(labels, probabilities, strict=True)]
    _print(paths, found, label_map)


def _print(paths: list[str], found: list[tuple[int, float]], label_map: Categories) -> None:
    """Prints labels and probabilities, as a table or in JSON."""
    if not JSON.value:
        for label, probability in found:
            print(f'{probability:7.2%}  {label_map.ids[label]:10}  {label_map.path(label)}')
        return
    rows = [
        {
            'category_id': int(label_map.ids[label]),
            'label': label,
            'names': label_map.names[label],
            'probability': probability,
        }
        for label, probability in found
    ]
    print(json.dumps({'rule': RULE.value, 'pictures': paths, 'categories': rows}))


def read_picture(path: str) -> np.ndarray:
    """Decodes a file: a JPEG as the chain does, anything else through Pillow; uint8 [180, 180, 3].

    Says on stderr if a JPEG is damaged but can be decoded in part.

    Raises:
        InputError: there is no such file, or it can't be decoded.
    """
    if not (storage.is_remote(path) or os.path.isabs(path) or storage.exists(path)):
        raise InputError(f'{path}: no such file in {os.getcwd()}')
    with storage.open_read(path) as file:
        data = file.read()
    if not data.startswith(pictures.JPEG):
        return pictures.resized(_read_by_pillow(path, data))
    pixels = np.empty((1, *pictures.SHAPE), np.uint8)
    for _, problem in pictures.decode_into(pixels, [memoryview(data)]):
        if problem.startswith(pictures.AS_GREY):
            raise InputError(f'{path}: {problem.removeprefix(pictures.AS_GREY)}; save the picture anew')
        print(f'note: {path}: {problem}', file=sys.stderr)
    return pixels[0]


def _read_by_pillow(path: str, data: bytes) -> np.ndarray:
    """A picture in any format, what is transparent in white: uint8 [height, width, 3]."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError(
            f"{path}: no JPEG file, and others need pillow: pip install -c constraints.txt -e '.[report]', or save it "
            'as a JPEG'
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # its size is looked at below
            picture: Image.Image = Image.open(io.BytesIO(data))
        width, height = picture.size
        if width * height > pictures.LARGEST or max(width, height) > pictures.LONGEST:
            raise InputError(
                f'{path}: has {width}x{height} pixels; at most {pictures.LARGEST:,} and {pictures.LONGEST:,} a side '
                'are decoded; make it smaller'
            )
        if picture.mode.startswith(('I', 'F')):  # Pillow would cut them off at white
            raise InputError(f'{path}: has more than 8 bits a colour; save it as a JPEG')
        if picture.has_transparency_data:
            white = Image.new('RGBA', picture.size, 'white')
            picture = Image.alpha_composite(white, picture.convert('RGBA'))
        return np.asarray(picture.convert('RGB'))
    except UnidentifiedImageError:
        raise InputError(f'{path}: no picture, or of a format that pillow does not know') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: can't be decoded ({one_line(error)}); save the picture anew") from None


if __name__ == '__main__':
    program.run(main)
