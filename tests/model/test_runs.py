"""A run's folder."""

import os

import keras
import pytest

from model import runs
from pipeline.errors import InputError

SETTINGS = {'epochs': 3.0, 'backbone': 'xception', 'decay_at': ['1', '2']}


def test_a_run_goes_on_with_the_same_settings(tmp_path):
    run = str(tmp_path / 'runs' / 'one')
    runs.check_settings(run, SETTINGS)
    runs.write_settings(run, SETTINGS)
    runs.check_settings(run, SETTINGS)
    assert runs.read_settings(run) == SETTINGS
    assert not runs.is_finished(run)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (
            {**SETTINGS, 'epochs': 4.0},
            r'began with epochs=3.0, now it is 4.0; give the same flags.*or another --run_dir',
        ),
        ({**SETTINGS, 'new': 1}, 'began with new=None, now it is 1'),
        ({'epochs': 3.0, 'backbone': 'xception'}, 'began with decay_at='),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, changed, message):
    runs.write_settings(str(tmp_path), SETTINGS)
    with pytest.raises(InputError, match=message):
        runs.check_settings(str(tmp_path), changed)


def test_what_is_no_run_or_not_finished_is_refused(tmp_path):
    with pytest.raises(InputError, match=r'run.json: no such file, so .* is no run; train one: python -m model.train'):
        runs.load_model(str(tmp_path))
    runs.write_settings(str(tmp_path), SETTINGS)
    with pytest.raises(InputError, match='its training is not finished'):
        runs.load_model(str(tmp_path))


@pytest.mark.parametrize(('count', 'told'), [(0, ''), (2, '; there are: {0}/run0, {0}/run1'), (7, 'run3, {0}/run4')])
def test_where_there_is_no_run_some_beside_it_are_named(tmp_path, count, told):
    (tmp_path / 'no-run').mkdir()
    for number in range(count):
        runs.write_settings(str(tmp_path / f'run{number}'), SETTINGS)
    with pytest.raises(InputError, match=f'{told.format(tmp_path) or "--help"}$'):
        runs.read_settings(f'{tmp_path}/latset/')


def test_a_finished_model_comes_back(tmp_path):
    runs.write_settings(str(tmp_path), SETTINGS)
    image = keras.Input([2, 2, 3])
    runs.save_model(keras.Model(image, keras.layers.Flatten()(image)), str(tmp_path))
    assert runs.is_finished(str(tmp_path))
    assert runs.load_model(str(tmp_path)).output_shape == (None, 12)


def test_latest_points_to_the_run_finished_last(tmp_path):
    for name in ('one', 'two'):
        (tmp_path / 'runs' / name).mkdir(parents=True)
        assert runs.point_latest(str(tmp_path / 'runs' / name)) == str(tmp_path / 'runs' / 'latest')
        assert os.readlink(tmp_path / 'runs' / 'latest') == name
    assert sorted(os.listdir(tmp_path / 'runs')) == ['latest', 'one', 'two']


def test_a_run_reached_through_latest_stays_what_latest_points_to(tmp_path):
    (tmp_path / 'one').mkdir()
    runs.point_latest(str(tmp_path / 'one'))
    runs.check_folder(str(tmp_path / 'latest'))
    runs.point_latest(str(tmp_path / 'latest'))
    assert os.readlink(tmp_path / 'latest') == 'one'


@pytest.mark.parametrize(
    ('run_dir', 'message'),
    [('runs/latest', 'latest is the link to the last finished run'), ('s3://bucket/run', 'must lie on a local disk')],
)
def test_a_folder_that_no_run_can_lie_in_is_refused(tmp_path, monkeypatch, run_dir, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        runs.check_folder(run_dir)


def test_damaged_files_of_a_run_are_named(tmp_path):
    (tmp_path / 'run.json').write_text('{')
    with pytest.raises(InputError, match='run.json: damaged .* remove .* and train again'):
        runs.read_settings(str(tmp_path))
    runs.write_settings(str(tmp_path), SETTINGS)
    (tmp_path / 'model.keras').write_bytes(b'PK')
    with pytest.raises(InputError, match='model.keras: damaged .* remove it, and train again with the same command'):
        runs.load_model(str(tmp_path))
