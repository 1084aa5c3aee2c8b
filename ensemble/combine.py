"""Combines the logits of each product's pictures into one prediction: `python -m ensemble.combine --rule product`

A Beam job over the files of a logits store; only a prediction a product leaves a worker.
  test logits  writes submission.csv.gz for Kaggle; with --solution=data/solution.csv prints its accuracy too
  val logits   prints the accuracy with its 95 % interval
  --rule all   compares all rules in one reading of the logits: prints a table and writes it as rules-val.csv
Beam's flags pass through: --runner=DirectRunner (the default: one process a core), FnApiRunner (one process),
FlinkRunner, DataflowRunner, and what belongs to each, such as --direct_num_workers=4.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import contextlib
import os
import uuid
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import tensorflow as tf
from absl import flags

from ensemble import logits, rules, submission
from ensemble.submission import Score
from pipeline import beam_job, categories, storage, tables
from pipeline.beam_job import Engine
from pipeline.categories import Categories
from pipeline.errors import InputError
from pipeline.manifest import FileInfo, Manifest

FLAGS = program.flag_values()
LOGITS = flags.DEFINE_string('logits', 'runs/latest/logits/test', 'Folder of a logits store.', flag_values=FLAGS)
RULE = flags.DEFINE_string(
    'rule', 'product', f'How to combine: {", ".join(rules.names())}, or all to compare them.', flag_values=FLAGS
)
POWER = flags.DEFINE_float('power', rules.POWER, 'Exponent of the rule power (paper: 0.1).', flag_values=FLAGS)
SOLUTION = flags.DEFINE_string(
    'solution', '', "A solution.csv with the test products' categories, to score with.", flag_values=FLAGS
)
OUTPUT_DIR = flags.DEFINE_string(
    'output_dir', '', "Folder for what is written; if empty, the run's folder, two above --logits.", flag_values=FLAGS
)


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        folder: the logits store.
        parts: folder for the predictions of each of its files.
        rules: names of rules.
        power: exponent of the rule power.
    """

    folder: str
    parts: str
    rules: tuple[str, ...]
    power: float

    def part(self, file: FileInfo) -> str:
        """Path of the predictions of one file."""
        return storage.join(self.parts, f'{file.name}.npz')


def main(argv: list[str]) -> None:
    """Combines a store of logits."""
    engine = beam_job.engine(program.parse(FLAGS, argv, doc=__doc__, pass_through=True))
    folder = LOGITS.value.rstrip('/')
    output_dir = OUTPUT_DIR.value or os.path.dirname(os.path.dirname(folder)) or '.'
    compare = RULE.value == 'all'
    names = rules.names() if compare else (RULE.value,)
    for name in names:
        rules.find(name, power=POWER.value)
    manifest = logits.read_manifest(folder)
    label_map = _read_label_map(folder, manifest)
    solution = _read_solution(SOLUTION.value, manifest, label_map, compare=compare)
    job = Job(folder, storage.join(output_dir, f'.tmp-combine-{uuid.uuid4().hex}'), names, POWER.value)
    predictions = _reduce(engine, manifest, job)
    truth = solution.labels_of(predictions.product_id) if solution else predictions.label
    correct = predictions.prediction == truth
    if compare:
        path = storage.join(output_dir, _table_name(manifest))
        _report_all(names, correct, predictions.pictures >= 2, path=path)
        print(f'wrote {path}; next: {_command("product", folder)}')
        return
    is_test = manifest.about['split'] == 'test'
    if solution or not is_test:
        print(f'{names[0]}: accuracy {submission.accuracy(correct[0])}')
    if is_test:
        _write_submission(predictions, manifest, label_map, path=storage.join(output_dir, submission.NAME))
    else:
        print(f'wrote nothing: these are not the test products; next: {_command(names[0], folder)}')


def _command(rule: str, folder: str) -> str:
    """The command that makes the submission of the run that `folder` belongs to."""
    return f'python -m ensemble.combine --rule {rule} --logits={storage.join(os.path.dirname(folder), "test")}'


def _read_label_map(folder: str, manifest: Manifest) -> Categories:
    label_map = categories.read(folder)
    if label_map.digest() != manifest.about['label_map_digest']:
        raise InputError(
            f'{storage.join(folder, categories.NAME)}: not the label map of these logits; make the logits again'
        )
    return label_map


def _read_solution(
    path: str, manifest: Manifest, label_map: Categories, *, compare: bool
) -> submission.Solution | None:
    split = manifest.about['split']
    if path and split != 'test':
        raise InputError(f'--solution={path} is for the test set, these logits are of {split}; leave it out')
    if compare and split == 'test' and not path:
        raise InputError(
            '--rule all needs labels, which the test set has not: give --solution=data/solution.csv, or --logits with '
            'the val logits of the run'
        )
    return submission.read_solution(path, label_map) if path else None


def _reduce(engine: Engine, manifest: Manifest, job: Job) -> rules.Predictions:
    """Runs the job and gathers what its workers found, in the store's order."""
    split = manifest.about['split']
    print(
        f'combining {manifest.images(split):,} rows of {manifest.products(split):,} products in {job.folder} '
        f'({len(manifest.files)} files) by {", ".join(job.rules)}',
        flush=True,
    )
    files = [file for file in manifest.files if file.products]
    if not files:
        raise InputError(f'{job.folder}: holds no product; make the logits again')
    storage.make_folder(job.parts)
    try:
        engine.run(lambda pipeline: _build(pipeline, files, job))
        predictions = rules.Predictions.concatenate([_read_part(job.part(file)) for file in files])
    finally:
        storage.remove(job.parts)
    submission.check_products(predictions.product_id, expected=manifest.products(split))
    return predictions


def _build(pipeline: beam.Pipeline, files: list[FileInfo], job: Job) -> None:
    pipeline | 'Files' >> beam.Create(files) | 'Reduce' >> beam.Map(reduce_file, job)


def reduce_file(file: FileInfo, job: Job) -> None:
    """Reduces one file of logits and writes its predictions as a part.

    Raises:
        InputError: the file is damaged.
    """
    with contextlib.suppress(RuntimeError):  # raised if TensorFlow has run in this process before
        tf.config.set_visible_devices([], 'GPU')  # else each process would take all of the GPU's memory
    chosen = [rules.find(name, power=job.power) for name in job.rules]
    blocks = [rules.predict(rows, chosen) for rows in logits.read_shard(job.folder, file)]
    with storage.atomic_writer(job.part(file)) as part:
        np.savez(part, **vars(rules.Predictions.concatenate(blocks)))


def _read_part(path: str) -> rules.Predictions:
    with storage.open_read(path) as file, np.load(file) as arrays:
        return rules.Predictions(**arrays)


def _write_submission(predictions: rules.Predictions, manifest: Manifest, label_map: Categories, *, path: str) -> None:
    category_id = label_map.ids[predictions.prediction[0]]
    submission.write(path, predictions.product_id, category_id, expected=manifest.products('test'))
    print(
        f'wrote {path}: {len(category_id):,} products; next: upload it to '
        'https://www.kaggle.com/c/cdiscount-image-classification-challenge, or score it here with --solution'
    )


def _table_name(manifest: Manifest) -> str:
    tta = manifest.about['tta']
    return f'rules-{manifest.about["split"]}{f"-tta{tta}" if tta > 1 else ""}.csv'


def _report_all(names: tuple[str, ...], correct: np.ndarray, several: np.ndarray, *, path: str) -> None:
    """Prints and writes the comparison.

    Args:
        names: R rules.
        correct: bool [R, P].
        several: bool [P], whether a product has two pictures or more.
        path: of the .csv file.
    """
    table = [
        (name, submission.accuracy(correct[row]), submission.accuracy(correct[row][several]))
        for row, name in enumerate(names)
    ]
    print(
        f'{"rule":8}  {"accuracy":>8}  {"95 % interval":>16}  {"products":>10}  {"2+ pictures":>11}  {"products":>10}'
    )
    for name, every, some in table:
        print(
            f'{name:8}  {every.value:8.4f}  {every.low:.4f} to {every.high:.4f}  {every.count:10,}'
            f'  {some.value:11.4f}  {some.count:10,}'
        )
    gain = submission.gain(correct[names.index('product')][several], correct[names.index('first')][several])
    print(f'with two pictures or more, product gains {gain} over first')
    _write_table(table, path)


def _write_table(table: list[tuple[str, Score, Score]], path: str) -> None:
    columns = ('rule', 'accuracy', 'low', 'high', 'products', 'accuracy_2_pictures', 'products_2_pictures')
    rows = []
    for name, every, some in table:
        numbers = [f'{number:.6f}' for number in (every.value, every.low, every.high)]
        rows.append([name, *numbers, every.count, f'{some.value:.6f}', some.count])
    tables.write(path, columns, rows)


if __name__ == '__main__':
    program.run(main)
