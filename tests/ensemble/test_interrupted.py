"""A combination that is killed leaves no submission, not even an older one, and the next one is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ensemble import combine, predictions
from tests.ensemble import stores

FILES = 40
CLASSES = 1000


@pytest.mark.slow
def test_a_combination_that_is_killed_leaves_no_submission(tmp_path: Path) -> None:
    folder = tmp_path / 'runs' / 'demo' / 'logits' / 'test'
    shards = [stores.random_rows(80, CLASSES, seed=n, first_id=1000 * n, labels=False) for n in range(FILES)]
    stores.write(folder, shards, stores.label_map(CLASSES))
    run = folder.parents[1]
    (run / 'submission.csv.gz').write_bytes(b'of an earlier combination')
    command = [
        sys.executable,
        '-m',
        'ensemble.combine',
        '--rule=median',
        f'--logits={folder}',
        '--direct_num_workers=1',
    ]
    environment = {**os.environ, 'PYTHONPATH': str(Path(combine.__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as killed:
        made = run / 'predictions' / 'test'
        end = time.monotonic() + 120
        while not list(made.glob('test-*.parquet')):
            assert killed.poll() is None and time.monotonic() < end
            time.sleep(0.001)
        os.killpg(killed.pid, signal.SIGKILL)
    assert len(list(made.glob('test-*.parquet'))) < FILES, 'killed in the middle'
    assert not (made / 'manifest.json').exists()
    assert not (run / 'submission.csv.gz').exists()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert len(predictions.read(str(made))) == 80 * FILES
    assert sorted(path.name for path in made.iterdir())[0] == 'manifest.json', 'no temporary file is left'
    assert (run / 'submission.csv.gz').read_bytes()[:2] == b'\x1f\x8b'
