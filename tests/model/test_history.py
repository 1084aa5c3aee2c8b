"""history.csv: what a row is the mean of, and what a run that goes on keeps of the file."""

import numpy as np
import pytest

from model import history
from model.history import COLUMNS, History, Window
from pipeline.errors import InputError

HEADER = (
    'step,images,passes,epoch,stage,learning_rate,loss,accuracy,images_per_second,'
    'val_loss,val_accuracy,val_level1,val_level2,val_level3\n'
)
ROWS = [f'{step},{32 * step},0.5,1,0,0.005,2.0,0.25,100.0,,,,,\n' for step in (2, 4, 6)]


def test_a_window_has_the_means_over_its_pictures():
    """Batches of 10 and 30 pictures: each picture counts once, so the second batch counts three times."""
    window = Window()
    window = window.plus(images=10, loss=4.0, accuracy=0.5, seconds=1.0)
    window = window.plus(images=30, loss=2.0, accuracy=0.1, seconds=3.0)
    assert window == Window(images=40, loss=100.0, hits=8.0, seconds=4.0)
    assert window.means() == {'loss': 2.5, 'accuracy': 0.2, 'images_per_second': 10.0}


def test_a_new_run_has_only_the_header(tmp_path):
    History(str(tmp_path), step=0)
    assert (tmp_path / 'history.csv').read_text() == HEADER


def test_a_row_has_its_numbers_rounded_and_what_it_lacks_empty(tmp_path):
    kept = History(str(tmp_path), step=0)
    kept.add({'step': 3, 'images': 96, 'passes': 2 / 3, 'epoch': 1, 'stage': 0, 'learning_rate': 0.005})
    kept.add({'step': 4, 'loss': 1.23456789, 'val_level3': 1.0})
    assert (tmp_path / 'history.csv').read_text() == (
        HEADER + '3,96,0.6666667,1,0,0.005,,,,,,,,\n' + '4,,,,,,1.234568,,,,,,,1\n'
    )


@pytest.mark.parametrize(('step', 'kept'), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (6, 3), (7, 3)])
def test_a_run_that_goes_on_from_an_update_drops_the_rows_of_later_ones(tmp_path, step, kept):
    path = tmp_path / 'history.csv'
    path.write_text(HEADER + ''.join(ROWS))
    going_on = History(str(tmp_path), step=step)
    assert path.read_text() == HEADER + ''.join(ROWS[:kept])
    going_on.add({'step': step + 1})
    assert path.read_text() == HEADER + ''.join(ROWS[:kept]) + f'{step + 1}' + ',' * (len(history.COLUMNS) - 1) + '\n'


def test_a_last_line_that_was_cut_off_is_dropped_wherever_it_was_cut(tmp_path):
    """As by kill -9, or a full disk, in the middle of a row; the row is of an update that the run goes on from."""
    path = tmp_path / 'history.csv'
    for length in range(1, len(ROWS[1])):
        path.write_text(HEADER + ROWS[0] + ROWS[1][:length])
        History(str(tmp_path), step=4)
        assert path.read_text() == HEADER + ROWS[0]


@pytest.mark.parametrize('text', ['', 'step,ima', HEADER])
def test_a_file_with_no_whole_row_begins_anew(tmp_path, text):
    path = tmp_path / 'history.csv'
    path.write_text(text)
    History(str(tmp_path), step=4)
    assert path.read_text() == HEADER


def test_a_history_is_read_back_by_column_while_it_is_written(tmp_path):
    kept = History(str(tmp_path), step=0)
    assert {name: len(values) for name, values in history.read(str(tmp_path)).items()} == dict.fromkeys(COLUMNS, 0)
    kept.add({'step': 3, 'images': 96, 'passes': 0.5, 'loss': 1.25})
    kept.add({'step': 6, 'images': 192, 'passes': 1.0, 'loss': 0.75, 'val_accuracy': 0.5})
    with open(tmp_path / 'history.csv', 'a') as file:
        file.write('9,28')
    found = history.read(str(tmp_path))
    assert found['step'].tolist() == [3, 6]
    assert found['loss'].tolist() == [1.25, 0.75]
    assert np.isnan(found['val_accuracy']).tolist() == [True, False]
    assert history.read(str(tmp_path / 'none'))['step'].tolist() == []


def test_a_history_with_a_cell_that_is_no_number_is_refused(tmp_path):
    (tmp_path / 'history.csv').write_text(HEADER + ROWS[0].replace('0.25', 'much'))
    with pytest.raises(InputError, match=r"history\.csv: every cell must be a number or empty .*'much'"):
        history.read(str(tmp_path))
