"""What is exported stands whole in a numbered folder, answers as the chain does, and needs nothing but TensorFlow."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from tensorflow.core.protobuf import saved_model_pb2

from model import answers, runs, serving
from model.accumulate import AccumulatingModel
from model.classifier import Options
from model.inputs import Inputs
from pipeline import dataset, progress
from pipeline.dataset import Shards
from pipeline.errors import InputError, UsageError
from pipeline.records import Product
from tests import catalogue
from tests import shards as small
from tests.model import finished_run
from tools import export, sample_products, serving_checks

# Reads pictures as base64 on stdin, answers in JSON; knows nothing of this project, as a server does. A session runs
# the graph of the tag `serve` between the tensors that its signature names, which is how TensorFlow Serving does it;
# the other way is TensorFlow 2's own.
ALONE = """
import base64, json, sys
import tensorflow as tf
path, way = sys.argv[1:]
rows = [[base64.b64decode(image) for image in row] for row in json.load(sys.stdin)]
if way == 'session':
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        signature = tf.compat.v1.saved_model.loader.load(session, ['serve'], path).signature_def['serving_default']
        outputs = {name: signature.outputs[name].name for name in ('category_id', 'probability')}
        found = session.run(outputs, {signature.inputs['pictures'].name: rows})
else:
    found = tf.saved_model.load(path).signatures['serving_default'](pictures=tf.constant(rows))
assert not {name.partition('.')[0] for name in sys.modules} & {'pipeline', 'model', 'ensemble', 'tools', 'simplejpeg'}
print(json.dumps({name: found[name].tolist() if way == 'session' else found[name].numpy().tolist()
                  for name in ('category_id', 'probability')}))
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(export, 'SECONDS', 0.01)


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> Shards:
    return small.write(tmp_path_factory.mktemp('shards'), train=0, val=22)


@pytest.fixture
def run_dir(shards, tmp_path) -> Path:
    folder = tmp_path / 'runs' / 'one'
    finished_run.write(folder, shards.label_map, seed=4)
    return folder


def arguments(run_dir: Path, shards_dir: str, *more: str) -> list[str]:
    return ['export', f'--run_dir={run_dir}', f'--shards_dir={shards_dir}', *more]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_for_a_number_of_pictures_is_checked_on_products_with_so_many(shards, tmp_path, capsys):
    options = Options(inputs=Inputs(2))
    finished_run.write(tmp_path / 'two', shards.label_map, seed=4, options=options)
    export.main(arguments(tmp_path / 'two', shards.folder))
    with_two = sum(
        len(product.images) == 2
        for product in sample_products.read(
            shards.folder, [(file, number) for file in shards.manifest.files for number in range(file.products)]
        )
    )
    assert capsys.readouterr().out.startswith(f'checked on {with_two} products: ')


def test_it_says_that_it_was_checked_how_fast_it_is_and_how_it_is_served(run_dir, shards, capsys):
    export.main(arguments(run_dir, shards.folder, '--rule=mean'))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        'checked on 22 products: 110 of 110 categories are those of the chain, probabilities differ'
    )
    for line, size in zip(said[1:4], (1, 8, 32), strict=True):
        assert re.fullmatch(f' ?{size} products at a time: [0-9,.]+ products/s', line)
    assert said[-2].endswith('curl -d @- http://localhost:8501/v1/models/one:predict')
    assert re.fullmatch(
        rf'wrote {run_dir}/serving/1: mean, 7 categories, [0-9.]+ MB; next: tensorflow_model_server '
        rf'--rest_api_port=8501 --model_name=one --model_base_path={run_dir}/serving',
        said[-1],
    )


@pytest.mark.slow
@pytest.mark.parametrize('way', ['session', 'object'])
def test_a_fresh_process_with_tensorflow_alone_answers_as_the_chain(run_dir, shards, way):
    export.main(arguments(run_dir, shards.folder, '--rule=mean'))
    products = serving_checks.products_of(shards, count=6)
    rows = [[base64.b64encode(image).decode() for image in product.images] for product in products]
    rows = [row + [''] * (4 - len(row)) for row in rows]
    command = [sys.executable, '-c', ALONE, str(run_dir / 'serving' / '1'), way]
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, cwd=run_dir, check=True)
    found = json.loads(done.stdout)
    model = AccumulatingModel(runs.load_model(str(run_dir)), micro_batch=8)
    chain = answers.Chain(model, answers.Options(rule='mean'))
    labels, probabilities = chain([product.pixels for product in products])
    assert found['category_id'] == shards.label_map.ids[labels].tolist()
    np.testing.assert_allclose(found['probability'], probabilities, rtol=2**-8, atol=1e-30)


def test_the_signature_is_the_one_documented(run_dir, capsys):
    export.main(arguments(run_dir, 'nowhere', '--nocheck'))
    saved = saved_model_pb2.SavedModel.FromString((run_dir / 'serving' / '1' / 'saved_model.pb').read_bytes())
    (graph,) = saved.meta_graphs
    assert list(graph.meta_info_def.tags) == ['serve']
    signature = graph.signature_def['serving_default']
    assert signature.method_name == 'tensorflow/serving/predict'
    told = {
        name: (tf.dtypes.as_dtype(info.dtype).name, [side.size for side in info.tensor_shape.dim])
        for name, info in [*signature.inputs.items(), *signature.outputs.items()]
    }
    assert told == {
        'pictures': ('string', [-1, -1]),
        'category_id': ('int64', [-1, 5]),
        'category': ('string', [-1, 5]),
        'probability': ('float32', [-1, 5]),
    }
    used = {node.op for function in graph.graph_def.library.function for node in function.node_def}
    assert 'DecodeJpeg' in used
    assert not {op for op in used if 'PyFunc' in op}


def test_without_usable_shards_nothing_is_written(run_dir, shards, tmp_path):
    shutil.copytree(shards.folder, tmp_path / 'damaged')
    (tmp_path / 'damaged' / 'manifest.json').write_text('{')
    for folder, message in (('nowhere', 'no such file'), (f'{tmp_path}/damaged', 'manifest.json')):
        with pytest.raises(InputError, match=rf'^{folder}/.*{message}.*; --nocheck exports without shards$') as error:
            export.main(arguments(run_dir, folder))
        assert '\n' not in str(error.value)
    assert not (run_dir / 'serving').exists()


def test_what_need_not_be_checked_needs_no_shards_and_says_so_last(run_dir, capsys):
    export.main(arguments(run_dir, 'nowhere', '--nocheck'))
    said = capsys.readouterr().out
    assert 'products/s' not in said
    assert re.search(r'/serving/1: product, 7 categories, [0-9.]+ MB, not checked; next: ', said.splitlines()[-1])
    assert names(run_dir / 'serving') == ['1']


def test_its_progress_is_shown(run_dir, shards, monkeypatch, capsys):
    monkeypatch.setattr(progress, 'WATCHED_AFTER', 0)
    export.main(arguments(run_dir, shards.folder))
    told = capsys.readouterr().err
    assert 'check: 2 of 2 batches (100 %)' in told
    assert 'measure rates: 3 of 3 sizes (100 %)' in told


def test_versions_are_numbered_on_and_none_is_overwritten(run_dir, tmp_path):
    there = tmp_path / 'versions'
    (there / '7').mkdir(parents=True)
    (there / 'notes').mkdir()
    words = arguments(run_dir, 'nowhere', '--nocheck', f'--output_dir={there}')
    export.main(words)
    assert names(there) == ['7', '8', 'notes']
    export.main([*words, '--version_number=3'])
    before = (there / '3' / 'saved_model.pb').stat().st_mtime_ns
    with pytest.raises(InputError, match='versions/3: stands already; give another --version_number'):
        export.main([*words, '--version_number=3'])
    assert names(there) == ['3', '7', '8', 'notes']
    assert (there / '3' / 'saved_model.pb').stat().st_mtime_ns == before


def wrong_rule(write: Callable[..., None], folder: str, model: Any, label_map: Any, options: answers.Options) -> None:
    write(folder, model, label_map, answers.Options(rule='first'))


def wrong_categories(write: Callable[..., None], folder: str, model: Any, label_map: Any, options: Any) -> None:
    write(folder, model, type(label_map)(label_map.ids[::-1].copy(), label_map.names), options)


@pytest.mark.parametrize('spoil', [wrong_rule, wrong_categories])
def test_a_model_that_answers_otherwise_is_refused_and_leaves_nothing(run_dir, shards, monkeypatch, spoil):
    original = serving.write
    monkeypatch.setattr(serving, 'write', lambda *args: spoil(original, *args))
    with pytest.raises(
        InputError, match=r'the exported model must answer as the chain does, .* nothing is written'
    ) as error:
        export.main(arguments(run_dir, shards.folder))
    assert '\n' not in str(error.value)
    assert names(run_dir / 'serving') == []


def test_products_with_damaged_pictures_are_not_checked_on(tmp_path):
    sound, damaged = catalogue.jpeg(1), catalogue.jpeg(2)[:1000]
    products = [
        Product(number, 1000, 0, 'val', images)
        for number, images in enumerate([(sound,), (sound, damaged), (damaged,), (sound, sound)])
    ]
    small.write_products(tmp_path / 'some', {'val': [products]})
    small.write_products(tmp_path / 'none', {'val': [products[1:3]]})
    some, none = (dataset.open_shards(str(tmp_path / name)) for name in ('some', 'none'))
    assert [len(one.images) for one in serving_checks.products_of(some, count=10)] == [1, 2]
    with pytest.raises(InputError, match='none: holds no product with sound pictures'):
        serving_checks.products_of(none, count=10)


def test_bad_input_leaves_nothing(run_dir):
    (run_dir / 'categories.csv').unlink()
    with pytest.raises(InputError, match='the same model.train command adds it'):
        export.main(arguments(run_dir, 'nowhere'))
    with pytest.raises(flags.Error, match='version_number'):
        export.main(arguments(run_dir, 'nowhere', '--version_number=0'))
    with pytest.raises(UsageError, match='--output_dir=s3://bucket/x: must be on a local disk'):
        export.main(arguments(run_dir, 'nowhere', '--output_dir=s3://bucket/x'))
    assert not (run_dir / 'serving').exists()


def test_the_rate_is_of_as_many_products_as_are_said(shards, capsys):
    """Of fewer than a batch, some come again."""
    products = serving_checks.products_of(shards, count=5)
    sizes: list[int] = []
    export._tell_rates(lambda pictures: sizes.append(len(pictures)), products)
    assert set(sizes) == {1, 8, 32}
