"""Turns a catalogue on disk into shards for training: `python -m pipeline.convert --runner=DirectRunner`

A shard is a file of some 128 MB with thousands of products in random order, as training reads them. A Beam job in
three steps; the pictures go straight from the .bson file into a shard.
  read    the index: where each product stands in its file, its id and category; pictures are not read
  plan    which split it belongs to (10 % of every category are held out), which shard, and its place there
  write   each shard: read its products by position, write under a temporary name, rename
The manifest, which lists the shards, is written last. The same input and seed give the same bytes on every runner and
number of processes. The same command goes on with a conversion that was interrupted.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from absl import flags

from pipeline import beam_job, categories, commands, journal, manifest, plan, progress, shards, storage, worklog
from pipeline.errors import CatalogueError, InputError

FLAGS = program.flag_values()
program.group(FLAGS, 'Input and output')
INPUT_DIR = flags.DEFINE_string(
    'input_dir', 'data', 'Folder of train.bson, test.bson and category_names.csv: the catalogue.', flag_values=FLAGS
)
OUTPUT_DIR = flags.DEFINE_string(
    'output_dir', 'data/shards', 'Folder for the shards, on this machine or s3://bucket/folder.', flag_values=FLAGS
)
program.group(FLAGS, 'Split and shards')
VAL_FRACTION = flags.DEFINE_float(
    'val_fraction', 0.1, 'Share of the products of every category held out for validation (paper: 0.1).',
    lower_bound=0, upper_bound=0.5, flag_values=FLAGS,
)  # fmt: skip
SEED = flags.DEFINE_integer(
    'seed', 0, 'Decides which products are held out, and the order in the shards.', flag_values=FLAGS
)
SHARD_MB = flags.DEFINE_integer(
    'shard_mb', 128, 'About how large a shard is, in MB (a million bytes).', lower_bound=1, flag_values=FLAGS
)
program.group(FLAGS, 'Damaged catalogues')
ON_ERROR = flags.DEFINE_enum(
    'on_error', 'stop', ['stop', 'skip'],
    'What to do with a document that can not be used: end the conversion, or leave it out and list it in '
    'rejected.jsonl.', flag_values=FLAGS,
)  # fmt: skip
MAX_REJECTED = flags.DEFINE_float(
    'max_rejected', 0.001, 'With --on_error=skip, the largest share of all documents, and of all bytes, that may '
    'be left out; more end the conversion.',
    lower_bound=0, upper_bound=1, flag_values=FLAGS,
)  # fmt: skip
PLAN_ONLY = flags.DEFINE_bool(
    'plan_only', False, 'Stop after the plan: check the catalogue and say what would be written.', flag_values=FLAGS
)

NOTE_SECONDS = 2  # between two notes of how far a source is read


def main(argv: list[str]) -> None:
    """Converts a catalogue."""
    engine = beam_job.engine(program.parse(FLAGS, argv, doc=__doc__, pass_through=True), known=FLAGS)
    started = time.time()
    _check_sources(INPUT_DIR.value)
    job = plan.Job(
        input_dir=INPUT_DIR.value,
        output_dir=OUTPUT_DIR.value,
        label_map=dataclasses.replace(categories.read_source(INPUT_DIR.value), names=()),  # each step carries it
        val_fraction=VAL_FRACTION.value,
        seed=SEED.value,
        shard_bytes=SHARD_MB.value * 10**6,
        skip=ON_ERROR.value == 'skip',
        max_rejected=MAX_REJECTED.value,
        plan_only=PLAN_ONLY.value,
        sources=tuple(_identity(storage.join(INPUT_DIR.value, name)) for name in plan.SOURCES),
    )
    source_bytes = sum(source['bytes'] for source in job.sources)
    print(f'converting {source_bytes / 1e6:,.1f} MB of {job.input_dir} into {job.output_dir}', flush=True)
    storage.make_folder(job.output_dir)
    shards.forget_plan(job)
    try:
        with progress.watched(lambda: _progress(job)):
            report = engine.run(lambda pipeline: _build(pipeline, job))
    except BaseException:
        with contextlib.suppress(InputError, OSError):  # the first error is the one to tell
            shards.forget_plan(job)
        raise
    _print_plan(job)
    _print_times(report, seconds=time.time() - started, source_bytes=source_bytes)
    shards.end(job)
    if job.plan_only:
        again = program.command(
            'pipeline.convert', *(word for word in argv[1:] if word != '--plan_only'), '--noplan_only'
        )
        program.last_line(f'wrote no shards into {job.output_dir}: this is only the plan', then=again)
        return
    made = manifest.read(job.output_dir, kind='shards', remedy='run pipeline.convert again')
    journal.remove_stale(job.output_dir, made)
    _log(made, report, seconds=time.time() - started, source_bytes=source_bytes)
    program.last_line(
        f'wrote {job.output_dir}: {len(made.files)} shards and {manifest.NAME}',
        then=commands.train(job.output_dir, pictures=made.images('train')),
    )


def _check_sources(input_dir: str) -> None:
    for name in (*plan.SOURCES, categories.SOURCE_NAME):
        path = storage.join(input_dir, name)
        if not storage.exists(path):
            raise InputError(
                f'{path}: no such file; make a catalogue with python -m tools.demo_catalogue --output_dir={input_dir}, '
                'or get the real one: https://www.kaggle.com/c/cdiscount-image-classification-challenge/data'
            )
    if not storage.size(storage.join(input_dir, plan.SOURCES[0])):
        raise CatalogueError(
            f'{storage.join(input_dir, plan.SOURCES[0])}: byte 0: the file is empty; get the file again'
        )


def _identity(path: str) -> dict[str, int | str]:
    """What tells one source file from another without reading all of it: its length, SHA-256 of both its ends."""
    end = 2**20
    with storage.open_ranges(path) as file:
        digest = hashlib.sha256(file.window(0, end).data)
        digest.update(file.window(max(0, file.size - end), end).data)
        ends = digest.hexdigest()
        return {'bytes': file.size, 'sha256_of_ends': ends, 'modified_ns': storage.modified_ns(path)}


def _build(pipeline: beam.Pipeline, job: plan.Job) -> None:
    planned = (
        pipeline
        | 'Sources' >> beam.Create(range(len(plan.SOURCES)))
        | 'Plan' >> beam.FlatMap(plan_source, job).with_outputs('totals', 'rejected', main='shards')
    )
    begun = (
        pipeline
        | 'Once' >> beam.Create([job])
        | 'Begin' >> beam.Map(shards.begin, beam.pvalue.AsList(planned.totals), beam.pvalue.AsList(planned.rejected))
    )
    if job.plan_only:
        return
    infos = (
        planned.shards
        | 'Spread' >> beam.Reshuffle()
        | 'Write' >> beam.Map(write_shard, beam.pvalue.AsSingleton(begun), job)
    )
    begun | 'Finish' >> beam.Map(shards.finish, beam.pvalue.AsList(infos), job)


def plan_source(source: int, job: plan.Job) -> Iterator[Any]:
    """The shards of a source file; its totals and what is rejected go to outputs of their own."""
    blocks = []
    noted = time.monotonic()
    with beam_job.span('read'):
        for found in plan.index_source(source, job):
            if isinstance(found, plan.Rejected):
                yield beam.pvalue.TaggedOutput('rejected', found)
            else:
                blocks.append(found)
                if time.monotonic() - noted > NOTE_SECONDS and len(found):
                    shards.note_read(source, int(found['offset'][-1] + found['length'][-1]), job)
                    noted = time.monotonic()
    places = np.concatenate([np.empty(0, plan.PLACE), *blocks])
    blocks.clear()
    for made in plan.plan_source(source, places, job):
        if isinstance(made, plan.Rejected):
            yield beam.pvalue.TaggedOutput('rejected', made)
        else:
            shards.note_places(made, job)
            yield beam.pvalue.TaggedOutput('totals', made.total)
            yield from made.shards


def write_shard(shard: plan.Shard, _: shards.Plan, job: plan.Job) -> manifest.FileInfo:
    """shards.write_shard(), timed and counted; the plan is waited for, because an earlier manifest goes with it."""
    with beam_job.span('write'):
        made, kept = shards.write_shard(shard, job)
    if kept:
        beam_job.count('kept')
    return made


def _progress(job: plan.Job) -> progress.Standing:
    """What is done at the moment: how much of the catalogue is read, then how many shards are written."""
    if not shards.is_planned(job):
        size = sum(source['bytes'] for source in job.sources)
        return progress.Standing('read and plan', shards.bytes_read(job), size, 'B')
    return progress.Standing('write', shards.finished(job), shards.read_plan(job).shards, 'shards')


def _print_plan(job: plan.Job) -> None:
    planned = shards.read_plan(job)
    print(f'{"split":6} {"products":>10} {"images":>11} {"categories":>11} {"shards":>7} {"source MB":>10}')
    for total in planned.totals:
        row = f'{total.split:6} {total.products:10,} {total.images:11,} {total.categories or "unknown":>11}'
        print(f'{row} {total.shards:7,} {total.source_bytes / 1e6:10,.1f}')
    if planned.rejected:
        path = storage.join(job.output_dir, shards.REJECTED)
        documents = '1 document' if planned.rejected == 1 else f'{planned.rejected:,} documents'
        print(f'left out {documents} that can not be used, listed in {path}')
    for path in planned.cut_off:
        print(
            f'warning: {path} ends in the middle of a document: whatever followed is missing and can not be counted; '
            'get the file again'
        )


def _print_times(report: beam_job.Report, *, seconds: float, source_bytes: int) -> None:
    """Seconds from the first process that began a step to the last that ended it."""
    read, write = report.spans['read'], report.spans.get('write')
    parts = {'read': read[1] - read[0]}
    if write:
        parts |= {'plan': write[0] - read[1], 'write': write[1] - write[0]}
    said = ', '.join(f'{name} {span:.1f} s' for name, span in parts.items())
    kept = f'; kept {report.counts["kept"]} shards of an earlier run' if 'kept' in report.counts else ''
    print(f'{source_bytes / 1e6:,.1f} MB in {seconds:.1f} s, {source_bytes / 1e6 / seconds:.1f} MB/s ({said}{kept})')


def _log(made: manifest.Manifest, report: beam_job.Report, *, seconds: float, source_bytes: int) -> None:
    counts = {
        'images': sum(file.images for file in made.files),
        'products': sum(file.products for file in made.files),
        'source_bytes': source_bytes,
        'shards': len(made.files),
        'kept_shards': report.counts.get('kept', 0),  # by an interrupted conversion; counted above, too
    }
    worklog.add(OUTPUT_DIR.value, 'convert', seconds=seconds, counts=counts)


if __name__ == '__main__':
    program.run(main)
