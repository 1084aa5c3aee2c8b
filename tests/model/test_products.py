"""Models that see several pictures of a product, or its title: what they compute, from training to the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ensemble import combine, logits, predictions
from model import answers, backbone, classifier, inference, predict, runs, serving, train
from model.accumulate import AccumulatingModel
from model.answers import Chain
from model.classifier import Options
from model.inputs import Inputs
from pipeline import augment, convert, dataset, pictures
from pipeline.dataset import Shards
from pipeline.errors import InputError, UsageError
from pipeline.records import Product
from tests import catalogue
from tests import shards as small
from tests.model import finished_run, tiny

CLOSE = 2**-8  # a step of float16 in a logit: batches of another size may add up in another order
COUNTS = (1, 3, 2, 4, 1, 4, 2)
KINDS = {
    'two': Options(inputs=Inputs(2)),
    'all, gated': Options(inputs=Inputs(4, fewer=True)),
    'all, concat': Options(inputs=Inputs(4, fewer=True), join='concat', features=12, units=5),
    'all, max, titles': Options(inputs=Inputs(4, fewer=True, title='text'), join='max'),
    'titles': Options(inputs=Inputs(title='top')),
    'titles, shared': Options(inputs=Inputs(4, fewer=True, title='text', title_weights='shared'), join='mean'),
}


@pytest.fixture(scope='module', autouse=True)
def _tiny() -> Iterator[None]:
    with tiny.known():
        yield


@pytest.fixture(scope='module')
def shards(tmp_path_factory) -> Shards:
    """Seven products with the ids 0 to 6, all in val."""
    products = [
        Product(n, 1000 + n, n, 'val', tuple(catalogue.jpeg(10 * n + place, n) for place in range(count)))
        for n, count in enumerate(COUNTS)
    ]
    folder = tmp_path_factory.mktemp('shards')
    small.write_products(folder, {'val': [products]})
    return dataset.open_shards(str(folder))


def pixels_of(shards: Shards) -> list[np.ndarray]:
    (file,) = shards.manifest.files
    products = dataset.Products(4, fewer=True)
    images, mask, *_ = next(iter(dataset.views(shards, file, batch_size=7, tta=1, seed=0, products=products)))
    return [some.numpy()[there] for some, there in zip(images, mask.numpy(), strict=True)]


def agree(ids, probabilities, other_ids, other_probabilities) -> None:
    """The same categories, but for those as good as impossible, and their probabilities."""
    np.testing.assert_allclose(probabilities, other_probabilities, rtol=CLOSE, atol=1e-9)
    possible = np.asarray(probabilities) > 1e-8
    np.testing.assert_array_equal(ids[possible], other_ids[possible])
    assert possible.sum() > len(ids), 'more than the best of each'


def run_of(kind: str, shards: Shards, folder: Path) -> Path:
    finished_run.write(folder / 'run', shards.label_map, seed=4, options=KINDS[kind])
    return folder / 'run'


@pytest.mark.parametrize(('kind', 'tta'), [*((kind, 1) for kind in KINDS), ('all, max, titles', 3)])
def test_products_get_the_answers_of_predict_and_combine(kind, tta, shards, tmp_path):
    run_dir, name = run_of(kind, shards, tmp_path), 'val' if tta == 1 else f'val-tta{tta}'
    words = [f'--run_dir={run_dir}', f'--shards_dir={shards.folder}', '--split=val', f'--tta={tta}', '--seed=5']
    predict.main(['predict', *words, '--micro_batch=3'])
    combine.main(['combine', '--runner=FnApiRunner', '--rule=mean', f'--logits={run_dir}/logits/{name}'])
    expected = predictions.read(str(run_dir / 'predictions' / name))
    model = inference.load(str(run_dir), micro_batch=3)
    exactly = model.inputs_of_row.pictures if not model.inputs_of_row.fewer else 0
    chosen = [number for number, count in enumerate(COUNTS) if not exactly or count == exactly]
    assert expected.product_id.tolist() == chosen
    assert expected.pictures.tolist() == [COUNTS[number] for number in chosen]
    pixels = pixels_of(shards)
    given = [pixels[number] for number in chosen]
    labels, probabilities = Chain(model, answers.Options(rule='mean', tta=tta, seed=5))(given)
    agree(shards.label_map.ids[labels], probabilities, expected.likeliest, expected.probabilities)


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_exported_answers_as_the_chain(kind, shards, tmp_path):
    model = inference.load(str(run_of(kind, shards, tmp_path)), micro_batch=3)
    serving.write(str(tmp_path / 'served'), model, shards.label_map, answers.Options())
    served = tf.saved_model.load(str(tmp_path / 'served')).signatures['serving_default']
    exactly = model.inputs_of_row.pictures if not model.inputs_of_row.fewer else 0
    chosen = [number for number, count in enumerate(COUNTS) if not exactly or count == exactly]
    rows = [[catalogue.jpeg(10 * n + place, n) for place in range(COUNTS[n])] for n in chosen]
    width = max(map(len, rows))
    found = served(pictures=tf.constant([[*row, *[b''] * (width - len(row))] for row in rows]))
    pixels = pixels_of(shards)
    labels, probabilities = Chain(model, answers.Options())([pixels[number] for number in chosen])
    agree(found['category_id'].numpy(), found['probability'], shards.label_map.ids[labels], probabilities)


def test_a_product_with_other_numbers_of_pictures_is_refused_by_chain_and_server(shards, tmp_path):
    model = inference.load(str(run_of('two', shards, tmp_path)), micro_batch=3)
    with pytest.raises(InputError, match=r'a product with 3 picture\(s\): this run was trained .* exactly 2'):
        Chain(model, answers.Options())([pixels_of(shards)[1]])
    serving.write(str(tmp_path / 'served'), model, shards.label_map, answers.Options())
    served = tf.saved_model.load(str(tmp_path / 'served')).signatures['serving_default']
    with pytest.raises(tf.errors.InvalidArgumentError, match='every product must have exactly 2 pictures'):
        served(pictures=tf.constant([[catalogue.jpeg(place, 1) for place in range(3)]]))


def test_absent_pictures_and_the_order_of_micro_batches_change_nothing(shards, tmp_path):
    model = inference.load(str(run_of('all, max, titles', shards, tmp_path)), micro_batch=3)
    images = np.zeros([2, 4, *pictures.SHAPE], np.uint8)
    images[:, :2] = np.random.default_rng(0).integers(0, 256, images[:, :2].shape)
    mask = np.array([[True, True, False, False]] * 2)
    before = model.logits(images, mask)
    images[:, 2:] = 77
    np.testing.assert_allclose(model.logits(images, mask), before, rtol=1e-6)
    np.testing.assert_allclose(model.logits(images[1:], mask[1:]), before[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['all, gated', 'all, concat', 'two'])
def test_a_product_begins_as_the_mean_of_its_pictures(kind, shards, tmp_path):
    """The dense layers of a run of single pictures take the mean of the features."""
    options = KINDS[kind]
    one = Options(units=options.units)
    finished_run.write(tmp_path / 'one', shards.label_map, seed=4, options=one)
    network = backbone.build('tiny', image_size=16, width=1)
    model = classifier.build(network, classes=len(shards.label_map), options=options)
    said = classifier.load_weights(model, network, str(tmp_path / 'one'), options)
    assert said.endswith('the dense layer among them')
    single = runs.load_model(str(tmp_path / 'one'))
    features = keras.Model(single.input, single.get_layer('head_dense' if options.units else 'logits').input)
    count = options.inputs.pictures
    given = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.float32)
    mean = features(given).numpy().mean(axis=0, keepdims=True)
    for layer in single.layers[single.layers.index(single.get_layer('pool')) + 1 :]:
        mean = layer(mean)
    np.testing.assert_allclose(model([given, np.ones([1, count])]), mean, rtol=1e-4, atol=1e-4)


def test_the_backbone_takes_pictures_and_titles_of_a_row_together():
    inputs = Inputs(2, title='top', title_weights='shared')
    images = np.random.default_rng(0).integers(0, 256, (3, 2, *pictures.SHAPE)).astype(np.uint8)
    prepared, present = inputs.prepare(images, np.ones([3, 2], bool), None, augmentation=None, size=20)
    assert (prepared.shape, present.shape) == ((12, 20, 20, 3), (3, 2))
    rows = prepared.numpy().reshape(3, 4, 20, 20, 3)
    plain = augment.resize(images.reshape(6, *pictures.SHAPE), size=20).numpy().reshape(3, 2, 20, 20, 3)
    np.testing.assert_array_equal(rows[:, :2], plain)
    third = images[:, :, :60].astype(float).mean(axis=(2, 3))
    np.testing.assert_allclose(rows[:, 2:].mean(axis=(2, 3)), third, atol=3)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ((5,), '--pictures=5: a product has 1 to 4; 0 takes each as a row'),
        ((2, True), '--fewer_pictures takes all products, which have up to 4 pictures: --pictures=4'),
        ((0, False, 'bottom'), '--title=bottom: must be one of off, top, text'),
    ],
)
def test_inputs_that_mean_nothing_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Inputs(*values)


def test_a_step_on_products_is_one_on_all_of_them_however_they_are_cut():
    """As for pictures: two micro batches, the second smaller, and one of all make the same update."""
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 20, 20, 3)).astype(np.uint8)
    mask = np.array([[True, True]] * 4 + [[True, False]])
    draws = np.full([5, 2, augment.DRAWS], augment.PLAIN, np.float32)
    found = []
    for micro_batch in (3, 5):
        keras.utils.set_random_seed(0)
        network = backbone.build('tiny', image_size=20, width=1)
        network.model.trainable = True
        for layer in network.model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False  # its means are those of a micro batch
        options = Options(inputs=Inputs(2))
        model = AccumulatingModel(
            classifier.build(network, classes=3, options=options), micro_batch=micro_batch, inputs=options.inputs
        )
        model.compile(keras.optimizers.SGD(0.1))
        model.train_step((images, mask, draws, np.arange(5) % 3))
        found.append(model.classifier.get_weights())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


SMALL = (
    '--backbone=tiny', '--image_size=32', '--micro_batch=4', '--accumulate=2', '--epoch_images=64', '--val_images=20',
    '--flip_probability=0.5', '--epochs=0.5',
)  # fmt: skip


@pytest.mark.slow
def test_four_models_one_for_each_number_of_pictures_make_a_submission(tmp_path, capsys):
    catalogue.write_catalogue(tmp_path / 'data', products=120, categories=3)
    shards_dir = f'{tmp_path}/shards'
    convert.main(['convert', f'--input_dir={tmp_path}/data', f'--output_dir={shards_dir}', '--runner=FnApiRunner'])
    common = ['train', f'--shards_dir={shards_dir}', *SMALL]
    train.main([*common, f'--run_dir={tmp_path}/one', '--weights=none'])
    for count in (1, 2, 3, 4):
        train.main(
            [*common, f'--run_dir={tmp_path}/p{count}', f'--weights={tmp_path}/one', f'--pictures={count}',
             '--features=12', f'--join={"concat" if count % 2 else "gated"}', '--title=text']
        )  # fmt: skip
    said = capsys.readouterr().out
    assert 'beside the plain network of the same backbone' in said
    assert 'the dense layer among them' in said
    group = '+'.join(f'{tmp_path}/p{count}/logits/test' for count in (1, 2, 3, 4))
    combine.main(['combine', '--runner=FnApiRunner', f'--logits={group},{tmp_path}/one/logits/test',
                  f'--output_dir={tmp_path}/out'])  # fmt: skip
    made = dataset.open_shards(shards_dir).manifest
    found = predictions.read(f'{tmp_path}/out/predictions/test')
    assert len(found) == made.products('test')
    assert (tmp_path / 'out' / 'submission.csv.gz').exists()
    for count in (1, 2, 3, 4):
        store = logits.read_manifest(f'{tmp_path}/p{count}/logits/test')
        assert store.products('test') == store.images('test') == int((found.pictures == count).sum())


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--title_levels=LIVRES'], '--title_levels says which categories --title counts for'),
        (['--title=top', '--title_levels=NONE'], "no name of level 1 is 'NONE'"),
        (['--head_dropout=0.5'], '--head_dropout is of the layer that --head_units=N makes'),
        (['--features=8'], '--features=8: must be more than the 8'),
    ],
)
def test_flags_that_mean_nothing_are_refused_before_anything_is_made(flags, message, tmp_path):
    made = small.write(tmp_path / 'shards', train=20, val=5)
    with pytest.raises(UsageError, match=message):
        train.main(
            ['train', f'--shards_dir={made.folder}', f'--run_dir={tmp_path}/run', *SMALL, '--weights=none', *flags]
        )
    assert not (tmp_path / 'run').exists()
