"""All sections of a page that come from logits: rules, categories, confusions, single products, calibration.

Synopsis:

    sections = predicted.sections(
        engine, ['runs/noaug', 'runs/aug'], split='val', rule='product', solution='', shards_dir='data/shards',
        output_dir='runs/noaug',
    )
    page.write('report.html', 'noaug', '', sections)
"""

from __future__ import annotations

from collections.abc import Sequence

from ensemble import reduction, submission
from ensemble.submission import Solution
from pipeline import storage
from pipeline.beam_job import Engine
from tools import table
from tools.page import Section
from tools.reports import table_one


def sections(
    engine: Engine, folders: Sequence[str], *, split: str, rule: str, solution: str, shards_dir: str, output_dir: str
) -> list[Section]:
    """Combines the runs' logits by all rules, and reports on what comes of them.

    Args:
        engine: what runs the jobs.
        folders: of runs. The first one is reported on in full, by its logits of one view; the others are only compared.
        split: val or test.
        rule: the one whose predictions are looked at one by one.
        solution: path of a solution.csv; '' if there is none. Without it, test has no truth to report on.
        shards_dir: the dataset. If it isn't the one the logits were made from, pictures are left out, and it is told.
        output_dir: a folder that all workers reach; what they leave there goes at the end.

    Raises:
        InputError: a run has no logits of the split, logits don't belong together, or something is damaged.
    """
    stores = table.find_stores(folders, split)
    opened = reduction.open_stores([store.folder for store in stores])
    table.check_same_weights(stores, opened)
    truth: Solution | None = submission.read_solution(solution, opened.label_map) if solution else None
    table.tell_missing(list(folders), split)
    known = table.find_known(engine, opened, shards_dir=shards_dir, output_dir=output_dir)
    rows: list[table.Row] = []
    with storage.scratch(output_dir, 'report') as scratch:
        for number, store in enumerate(stores):
            print(f'combining {store.folder} by all rules', flush=True)
            rows += table.measure(
                engine, store, scratch=storage.join(scratch, str(number)), solution=truth, known=known
            )
    return [table_one.accuracy_section(rows, split), table_one.calibration_section(rows)]
