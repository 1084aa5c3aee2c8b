"""Exports a finished run for TensorFlow Serving: `python -m tools.export --run_dir=runs/latest --rule=product`

Writes OUTPUT_DIR/1/ (or the next free number), a SavedModel that takes products and gives categories. Its signature:
  pictures     string [P, 4] (or fewer columns): JPEG files, 1 to 4 a product, '' where it has fewer
  category_id  int64 [P, 5], the likeliest first; category: string [P, 5], their names; probability: float32 [P, 5]
Before it gets its number it must give the same answers as the chain on products of the shards. Then its speed is told.
With --nocheck it needs no shards, is neither checked nor timed, and the last line says so.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import dataclasses
import itertools
import os
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import flags

from ensemble import rules
from model import answers, inference, runs, serving
from model.answers import Chain
from model.inputs import Inputs
from pipeline import dataset, storage
from pipeline.errors import InputError, UsageError
from pipeline.progress import Progress
from tools import serving_checks
from tools.serving_checks import Product

FLAGS = program.flag_values()
program.group(FLAGS, 'What is exported, and where to')
RUN_DIR = flags.DEFINE_string('run_dir', 'runs/latest', "The run's folder.", flag_values=FLAGS)
BEST = flags.DEFINE_bool(
    'best', False, 'The weights with the best validation accuracy, not the last ones.', flag_values=FLAGS
)
RULE = flags.DEFINE_enum('rule', 'product', rules.names(), "How a product's pictures combine.", flag_values=FLAGS)
POWER = flags.DEFINE_float('power', rules.POWER, 'Exponent of the rule power (paper: 0.1).', flag_values=FLAGS)
OUTPUT_DIR = flags.DEFINE_string(
    'output_dir', '', "Folder of the numbered versions; if empty, serving/ in the run's folder.", flag_values=FLAGS
)
VERSION_NUMBER = flags.DEFINE_integer(
    'version_number', None, 'Number of this version; with none it is one more than the highest there.', lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
program.group(FLAGS, 'Check')
CHECK = flags.DEFINE_bool(
    'check', True, 'Hold it to the chain and tell its speed; --nocheck: write it as it is.', flag_values=FLAGS
)
SHARDS_DIR = flags.DEFINE_string(
    'shards_dir', 'data/shards', 'Folder of the shards, whose products it is checked on.', flag_values=FLAGS
)

CHECKED = 64  # products
BATCHES = (1, 8, 32)  # products at a time, whose rates are told
SECONDS = 2.0  # that each is measured for


def main(argv: list[str]) -> None:
    """Writes one version."""
    program.parse(FLAGS, argv, doc=__doc__)
    if storage.is_remote(OUTPUT_DIR.value):
        raise UsageError(
            f'--output_dir={OUTPUT_DIR.value}: must be on a local disk; copy the version when it is written'
        )
    run_dir = os.path.realpath(RUN_DIR.value)
    output_dir = os.path.abspath(OUTPUT_DIR.value) if OUTPUT_DIR.value else os.path.join(run_dir, 'serving')
    options = answers.Options(rule=RULE.value, power=POWER.value)
    model = inference.load(RUN_DIR.value, best=BEST.value, micro_batch=answers.AT_ONCE)
    label_map = runs.read_categories(RUN_DIR.value, model.classifier)
    path = os.path.join(output_dir, str(_version(output_dir)))
    products = _products(model.inputs_of_row) if CHECK.value else []
    storage.make_folder(output_dir)
    with storage.atomic_path(path) as temporary:
        serving.write(temporary, model, label_map, options)
        served = tf.saved_model.load(temporary).signatures['serving_default']
        if products:
            chain = Chain(model, dataclasses.replace(options, count=len(label_map)))
            print(serving_checks.check(served, chain, label_map, products), flush=True)
    if products:
        _tell_rates(served, products)
    megabytes = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
    name = os.path.basename(run_dir)
    _tell_how_to_ask(output_dir, name=name)
    state = '' if products else ', not checked'
    program.last_line(
        f'wrote {path}: {options.rule}, {len(label_map):,} categories, {megabytes / 1e6:,.1f} MB{state}',
        then=f'tensorflow_model_server --rest_api_port=8501 --model_name={shlex.quote(name)} '
        f'--model_base_path={shlex.quote(output_dir)}',
    )


def _version(output_dir: str) -> int:
    """The number of the version to write."""
    there = [int(name) for name in storage.list_names(output_dir) if name.isdecimal()]
    number = VERSION_NUMBER.value or max(there, default=0) + 1
    if number in there:
        raise InputError(f'{os.path.join(output_dir, str(number))}: stands already; give another --version_number')
    return number


def _products(inputs: Inputs) -> list[Product]:
    """Products to check it on."""
    try:
        return serving_checks.products_of(dataset.open_shards(SHARDS_DIR.value), inputs, count=CHECKED)
    except InputError as error:
        raise InputError(f'{error}; --nocheck exports without shards') from None


def _tell_rates(served: Callable[..., Any], products: Sequence[Product]) -> None:
    """Prints how many products a second it takes, in batches of one to many."""
    with Progress(total=len(BATCHES), label='measure rates', unit='sizes') as bar:
        for size in BATCHES:
            endless = itertools.cycle(products)
            batches = [serving_checks.tensor(list(itertools.islice(endless, size))) for _ in range(4)]
            calls = serving_checks.rate(lambda batch: served(pictures=batch), batches, seconds=SECONDS)
            bar.write(f'{size:2} products at a time: {calls * size:,.1f} products/s')
            bar.update()


def _tell_how_to_ask(output_dir: str, *, name: str) -> None:
    """What to type beside the server."""
    output_dir, name = shlex.quote(output_dir), shlex.quote(name)
    print(
        'TensorFlow Serving takes up each new version by itself; without it on this machine: docker run --rm '
        f'-p 8501:8501 -v {output_dir}:/models/{name} -e MODEL_NAME={name} tensorflow/serving'
    )
    print(
        """ask it: printf '{"instances": [{"pictures": [{"b64": "%s"}, {"b64": "%s"}]}]}' "$(base64 -w0 front.jpg)" """
        f'"$(base64 -w0 back.jpg)" | curl -d @- http://localhost:8501/v1/models/{name}:predict'
    )


if __name__ == '__main__':
    program.run(main)
