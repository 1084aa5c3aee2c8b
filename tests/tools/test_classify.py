"""Pictures of one product in, its likeliest categories out: as the chain has them, whatever the files."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from ensemble import combine, predictions
from model import predict
from pipeline import categories
from pipeline.dataset import Shards
from pipeline.errors import InputError
from tests import catalogue
from tests import shards as small
from tests.model import finished_run
from tools import classify, sample_products


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> Shards:
    return small.write(tmp_path_factory.mktemp('shards'), train=0, val=7)


@pytest.fixture(scope='module')
def run_dir(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('runs') / 'one'
    finished_run.write(folder, shards.label_map, seed=4)
    return folder


@pytest.fixture
def front(tmp_path) -> Path:
    path = tmp_path / 'front.jpg'
    path.write_bytes(catalogue.jpeg(1))
    return path


def classified(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    """What --json says."""
    capsys.readouterr()
    classify.main(['classify', '--json', *map(str, words)])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize('rule', ['product', 'median'])
def test_a_product_gets_the_answer_of_predict_and_combine(shards, run_dir, tmp_path, capsys, rule):
    predict.main(['predict', f'--run_dir={run_dir}', f'--shards_dir={shards.folder}', '--split=val'])
    words = [f'--rule={rule}', f'--logits={run_dir}/logits/val', f'--output_dir={tmp_path}', '--runner=FnApiRunner']
    combine.main(['combine', *words])
    expected = predictions.read(str(tmp_path / 'predictions' / 'val'))
    (file,) = shards.manifest.files
    for place, product in enumerate(
        sample_products.read(shards.folder, [(file, number) for number in range(1, 4)]), start=1
    ):
        paths = [tmp_path / f'{product.product_id}-{number}.jpg' for number in range(len(product.images))]
        for path, image in zip(paths, product.images, strict=True):
            path.write_bytes(image)
        said = classified(capsys, f'--run_dir={run_dir}', f'--rule={rule}', *paths)
        assert (said['rule'], said['pictures']) == (rule, list(map(str, paths)))
        found = said['categories']
        assert [one['category_id'] for one in found] == expected.likeliest[place].tolist()
        # A step of float16 in a logit: batches of another size may add up in another order.
        probabilities = [one['probability'] for one in found]
        np.testing.assert_allclose(probabilities, expected.probabilities[place], rtol=2**-8)
        labels = [one['label'] for one in found]
        assert shards.label_map.ids[labels].tolist() == [one['category_id'] for one in found]
        assert all(one['names'] == ['A', 'B', 'C'] for one in found)


def test_the_table_has_a_line_for_each_category(run_dir, front, capsys):
    expected = classified(capsys, f'--run_dir={run_dir}', '--top=7', front)['categories']
    classify.main(['classify', str(front), f'--run_dir={run_dir}', '--top=100'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == small.CATEGORIES, 'there are no more'
    for line, one in zip(lines, expected, strict=True):
        found = re.fullmatch(r' *([0-9.]+)% +([0-9]+)  A > B > C', line)
        assert found
        assert float(found[1]) == pytest.approx(100 * one['probability'], abs=0.005)
        assert int(found[2]) == one['category_id']


def test_more_views_change_the_probabilities_a_little_and_hang_on_the_seed(run_dir, front, capsys):
    plain, some, again, others = (
        classified(capsys, f'--run_dir={run_dir}', front, '--top=7', *more)
        for more in ([], ['--tta=4'], ['--tta=4'], ['--tta=4', '--seed=1'])
    )
    assert some == again
    assert plain != some != others


def test_the_best_weights_are_asked_with_best(run_dir, front, capsys, shards, tmp_path):
    finished_run.write(tmp_path / 'run', shards.label_map, seed=4)
    with pytest.raises(InputError, match=r'best\.keras: no such file'):
        classify.main(['classify', f'--run_dir={tmp_path}/run', '--best', str(front)])
    finished_run.write_model(tmp_path / 'run', seed=5, name='best.keras')
    last, best = (classified(capsys, f'--run_dir={tmp_path}/run', flag, front) for flag in ('--nobest', '--best'))
    assert last == classified(capsys, f'--run_dir={run_dir}', front)
    assert best != last


# Pictures that aren't JPEG files.


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


DRAWN = Image.open(io.BytesIO(catalogue.jpeg(3, 1, size=(300, 200))))


@pytest.mark.parametrize('form', ['PNG', 'WEBP', 'BMP', 'GIF'])
def test_other_formats_are_taken_through_pillow(tmp_path, form):
    data = encoded(DRAWN, form, **({'lossless': True} if form == 'WEBP' else {}))
    (tmp_path / 'picture').write_bytes(data)
    picture = Image.open(io.BytesIO(data)).convert('RGB').resize((180, 180), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(classify.read_picture(str(tmp_path / 'picture')), np.asarray(picture))


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_what_is_transparent_is_white(tmp_path, mode):
    picture = Image.new('RGBA', (180, 180), (0, 0, 0, 0))
    picture.paste((80, 80, 80, 255), (0, 0, 90, 180))
    (tmp_path / 'picture.png').write_bytes(encoded(picture.convert(mode), 'PNG'))
    pixels = classify.read_picture(str(tmp_path / 'picture.png'))
    assert (pixels[:, :90] == 80).all() and (pixels[:, 90:] == 255).all()


def test_without_pillow_other_formats_are_an_error_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / 'picture.png').write_bytes(encoded(DRAWN, 'PNG'))
    (tmp_path / 'picture.jpg').write_bytes(encoded(DRAWN, 'JPEG'))
    monkeypatch.setitem(sys.modules, 'PIL', None)
    assert classify.read_picture(str(tmp_path / 'picture.jpg')).shape == (180, 180, 3)
    with pytest.raises(InputError, match=r"picture\.png: no JPEG file, .* pip install .*\[report\]', or save"):
        classify.read_picture(str(tmp_path / 'picture.png'))


# What can't be used.


def test_a_damaged_picture_is_told_on_stderr_and_taken_as_far_as_it_goes(run_dir, tmp_path, capsys):
    (tmp_path / 'half.jpg').write_bytes(catalogue.jpeg(1)[:1500])
    classify.main(['classify', '--json', f'--run_dir={run_dir}', str(tmp_path / 'half.jpg')])
    said = capsys.readouterr()
    assert len(json.loads(said.out)['categories']) == 5
    assert f'note: {tmp_path}/half.jpg: cut off or damaged, taken as far as it can be decoded' in said.err


def huge(side: int) -> bytes:
    """A PNG of few bytes."""
    return encoded(Image.new('1', (side, side)), 'PNG')


ANEW = '.*; save the picture anew$'
UNUSABLE = {
    'text': (b'some text', 'no picture, or of a format that pillow does not know'),
    'empty': (b'', 'no picture'),
    'the head of a JPEG': (
        catalogue.jpeg(1)[:100],
        f'no JPEG picture, or its header is damaged {ANEW}',
    ),
    'a PNG that is cut off': (encoded(DRAWN, 'PNG')[:-2000], f"can't be decoded {ANEW}"),
    'too many pixels': (
        huge(5000),
        'has 5000x5000 pixels; at most 16,777,216 and 8,192 a side are decoded; make it smaller',
    ),
    '16 bits of grey': (
        encoded(Image.new('I;16', (4, 4), 999), 'PNG'),
        'has more than 8 bits a colour; save it as a JPEG',
    ),
    'what Pillow warns of': (huge(10_000), 'has 10000x10000 pixels'),
    'what Pillow refuses': (huge(14_000), f"can't be decoded {ANEW}"),
}


@pytest.mark.parametrize(('data', 'message'), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_can_not_be_decoded_is_an_error(tmp_path, data, message):
    (tmp_path / 'picture').write_bytes(data)
    with pytest.raises(InputError, match=f'^{re.escape(str(tmp_path))}/picture: {message}') as error:
        classify.read_picture(str(tmp_path / 'picture'))
    assert '\n' not in str(error.value)


def test_a_missing_file_is_an_error_before_the_model_is_loaded(tmp_path, front, monkeypatch):
    for path in (tmp_path / 'nothing.jpg', tmp_path):
        with pytest.raises(InputError, match=f'^{re.escape(str(path))}: no such file$'):
            classify.main(['classify', '--run_dir=nowhere', str(front), str(path)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f'^nothing.jpg: no such file in {re.escape(str(tmp_path))}$'):
        classify.main(['classify', '--run_dir=nowhere', str(front), 'nothing.jpg'])


@pytest.mark.parametrize('count', [0, 5])
def test_no_picture_and_more_than_four_are_bad_usage(front, count):
    with pytest.raises(flags.Error, match=f'name the files of 1 to 4 pictures of one product, not {count}'):
        classify.main(['classify', *[str(front)] * count])


def test_a_flag_that_is_not_known_is_bad_usage(front):
    for words in (['--rool=mean', str(front)], [str(front), '--rool=mean']):
        with pytest.raises(flags.Error, match='rool'):
            classify.main(['classify', *words])


def test_a_run_without_its_categories_is_an_error_with_the_remedy(shards, front, tmp_path):
    finished_run.write(tmp_path / 'run', shards.label_map, seed=4)
    path = tmp_path / 'run' / categories.NAME
    words = ['classify', f'--run_dir={tmp_path}/run', str(front)]
    path.unlink()
    with pytest.raises(InputError, match=r'categories\.csv: no such file; the same model\.train command adds it'):
        classify.main(words)
    categories.write(categories.Categories(np.arange(3), (('A', 'B', 'C'),) * 3), str(tmp_path / 'run'))
    with pytest.raises(InputError, match='has 3 categories, the model 7; the same model.train command writes it anew'):
        classify.main(words)
