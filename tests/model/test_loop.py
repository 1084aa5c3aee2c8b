"""The training loop on a model of three categories, whose every update is known in closed form."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from model import accumulate, checkpoint, devices
from model.accumulate import AccumulatingModel
from model.evaluation import Evaluation
from model.loop import Loop, Options
from model.stages import Schedule, Stage
from pipeline import augment, progress
from pipeline.errors import InputError

SIDE = 4
CLASSES = 3
BATCH = 6  # pictures
NEVER = 1e9  # seconds
BAD = 2  # the label of pictures that spoil an update


class ScriptedEvaluator:
    """Finds one accuracy after the other, and notes the classifier's bias each time."""

    def __init__(self, model: AccumulatingModel, accuracies: list[float]) -> None:
        self.model = model
        self.accuracies = iter(accuracies)
        self.biases: list[float] = []

    def evaluate(self, batches: Any, *, images: int, go_on: Callable[[], bool]) -> Evaluation:
        self.biases.append(first_bias(self.model.classifier))
        hits = round(100 * next(self.accuracies))
        return Evaluation(0.5, (1.0, 0.75, 0.5), np.array([100, 0, 0]), np.array([hits, 0, 0]))


def make_loop(
    run_dir: Path,
    *,
    total_steps: int,
    epoch_steps: int,
    history_steps: int = 100,
    save_seconds: float = NEVER,
    accuracies: list[float] | None = None,
    optimizer: Callable[[], Any] = lambda: keras.optimizers.SGD(),
    **schedule: Any,
) -> Loop:
    """A loop on one device, of two pictures a micro batch and five updates a pass."""
    image = keras.Input([SIDE, SIDE, 3])
    dense = layers.Dense(CLASSES, kernel_initializer='zeros', dtype='float32')
    classifier = keras.Model(image, dense(layers.GlobalAveragePooling2D()(image)))
    model = AccumulatingModel(classifier, micro_batch=2)
    run_dir.mkdir(exist_ok=True)
    options = Options(str(run_dir), {'seed': 0}, BATCH, history_steps, save_seconds, val_images=100, show_graph=False)
    plan: dict[str, Any] = {'stages': (Stage('all', 0),), 'learning_rate': 0.5, 'decay_at': (), 'decay_factor': 0.5}
    return Loop(
        model,
        Schedule(steps_per_pass=5, epoch_steps=epoch_steps, total_steps=total_steps, **{**plan, **schedule}),
        strategy=devices.strategy('one'),
        evaluator=ScriptedEvaluator(model, accuracies or []),  # type: ignore[arg-type]
        begin_stage=lambda number: model.compile(optimizer()),
        options=options,
    )


def black(*labels: list[int]) -> Iterator[Any]:
    """A batch of black pictures for each list of labels, or of 6 of label 0 for ever: only the bias can learn."""
    for some in labels or iter(lambda: [0] * BATCH, None):
        images = tf.zeros([BATCH, SIDE, SIDE, 3], tf.uint8)
        yield images, tf.fill([BATCH, augment.DRAWS], augment.PLAIN), tf.constant(some, tf.int64)


def spoilt_at(update: int) -> Iterator[Any]:
    """Batches of which one, numbered from 1, has a picture of label BAD."""
    return black(*[[0] * 5 + [BAD * (number == update)] for number in range(1, 20)])


def first_bias(classifier: keras.Model) -> float:
    return float(classifier.weights[1].numpy()[0])


def first_logit(labels: Any, logits: Any, **options: Any) -> Any:
    """A loss whose gradient is 1 for the first bias and 0 for all else, so that SGD takes off the learning rate."""
    return logits[:, 0]


def spoils_loss(labels: Any, logits: Any, **options: Any) -> Any:
    return logits[:, 0] + tf.where(labels == BAD, np.nan, 1.0)


def spoils_gradient(labels: Any, logits: Any, **options: Any) -> Any:
    """The loss is the first logit, whatever the labels; the gradient is no number where one is BAD."""

    @tf.custom_gradient
    def of(logits: Any) -> Any:
        return logits[:, 0], lambda up: up[:, None] * tf.where(labels == BAD, np.nan, 1.0)[:, None] * [[1.0, 0.0, 0.0]]

    return of(logits)


def rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / 'history.csv', newline='') as file:
        return list(csv.DictReader(file))


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / 'checkpoints').glob('*'))


@pytest.mark.parametrize(
    ('losses', 'told'),
    [
        (spoils_loss, 'the loss is nan, the length of its gradient 1'),
        (spoils_gradient, 'the loss is {}, the length of its gradient nan'),
    ],
)
@pytest.mark.parametrize(
    ('update', 'save_seconds', 'last'),
    [
        # Saved at the ends of artificial epochs of 3 updates, or after every update.
        (1, NEVER, None),
        (3, NEVER, None),
        (5, NEVER, 3),
        (5, 0, 4),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_not_saved(
    monkeypatch, tmp_path, losses, told, update, save_seconds, last
):
    """Also the first and the last update of an artificial epoch."""
    monkeypatch.setattr(accumulate, '_losses', losses)
    loop = make_loop(tmp_path, total_steps=9, epoch_steps=3, save_seconds=save_seconds)
    path = str(tmp_path / 'checkpoints' / f'step-{last:09d}.npz') if last else 'none'
    first = 6 * (update - 1)
    told = told.format(f'{0.5 - 0.5 * update:g}')
    message = (
        f'update {update} (pictures {first} to {first + 5} of the run): {told}; the last good checkpoint is {path}; '
        'begin another --run_dir with a smaller --learning_rate'
    )
    with pytest.raises(InputError, match=f'^{re.escape(message)}$'):
        loop.run(spoilt_at(update), None)
    assert checkpoints(tmp_path)[-1:] == ([Path(path).name] if last else [])
    if last:
        found = checkpoint.read(loop.folder)
        assert found
        assert found.weights[1].tolist() == [-0.5 * last, 0, 0], 'the weights before it'


def test_a_gradient_that_no_scale_makes_finite_stops_the_run(monkeypatch, tmp_path):
    """From 2 to the 14 to below 2 to the -10: after 25 updates that are left out."""
    monkeypatch.setattr(accumulate, '_losses', spoils_gradient)
    keras.config.set_dtype_policy('mixed_float16')
    try:
        loop = make_loop(tmp_path, total_steps=40, epoch_steps=40)
        with pytest.raises(InputError, match='^update 25 .* the length of its gradient nan; the last good checkpoint'):
            loop.run(black(*[[0] * 5 + [BAD]] * 40), None)
    finally:
        keras.config.set_dtype_policy('float32')


def test_an_overflow_under_float16_leaves_out_the_update_and_goes_on(monkeypatch, tmp_path):
    """Keras' loss scaling takes care of it; but not of a loss that is no number."""
    monkeypatch.setattr(accumulate, '_losses', spoils_gradient)
    keras.config.set_dtype_policy('mixed_float16')
    try:
        loop = make_loop(tmp_path / 'gradient', total_steps=6, epoch_steps=3)
        assert loop.run(spoilt_at(5), None)
        assert first_bias(loop.model.classifier) == -0.5 * 5
        assert float(loop.model.optimizer.dynamic_scale.numpy()) == 2.0**15 / 2 / 2, 'halved once'

        monkeypatch.setattr(accumulate, '_losses', spoils_loss)
        with pytest.raises(InputError, match='update 5 .*: the loss is nan'):
            make_loop(tmp_path / 'loss', total_steps=6, epoch_steps=3).run(spoilt_at(5), None)
    finally:
        keras.config.set_dtype_policy('float32')


@pytest.mark.parametrize(
    ('error', 'expected', 'message'),
    [
        (
            tf.errors.ResourceExhaustedError,
            InputError,
            r'^update 3: a device has too little memory \(OOM when allocating tensor with shape\[64,180\]\); '
            'go on with a smaller --micro_batch and as much larger an --accumulate$',
        ),
        # One machine alone can't have lost another.
        (tf.errors.UnavailableError, tf.errors.UnavailableError, 'OOM'),
    ],
)
def test_an_error_of_tensorflow_is_one_line_where_it_has_a_remedy(tmp_path, error, expected, message):
    def batches() -> Iterator[Any]:
        yield from black([0] * BATCH, [0] * BATCH)
        places = 'Graph execution error:\n\nDetected at node x defined at (most recent call last):\n  File "a.py"\n\n'
        raise error(None, None, f'{places}OOM when allocating tensor with shape[64,180]\n\t [[{{{{node x}}}}]]')

    with pytest.raises(expected, match=message):
        make_loop(tmp_path, total_steps=4, epoch_steps=4).run(batches(), None)


def test_every_update_has_the_rate_of_the_schedule(monkeypatch, tmp_path):
    """By how far it moves the bias; past a new stage with its fresh optimizer, and from a checkpoint on."""
    monkeypatch.setattr(accumulate, '_losses', first_logit)
    plan: dict[str, Any] = {'stages': (Stage('all', 0), Stage('all', 0.8)), 'decay_at': (0.4, 1.2)}  # updates 4; 2, 6
    biases: list[float] = []

    def watched(loop: Loop) -> Iterator[Any]:
        for batch in black():
            biases.append(first_bias(loop.model.classifier))
            yield batch

    loop = make_loop(tmp_path, total_steps=7, epoch_steps=3, **plan)
    loop.run(watched(loop), None)
    assert (-np.diff([*biases, first_bias(loop.model.classifier)])).tolist() == [0.5] * 2 + [0.25] * 4 + [0.125]
    assert [row['learning_rate'] for row in rows(tmp_path)] == ['0.25', '0.25', '0.125'], "the last update's"

    biases.clear()
    found = checkpoint.read(loop.folder)
    assert found
    going_on = make_loop(tmp_path, total_steps=9, epoch_steps=3, **plan)
    going_on.resume(found)
    going_on.run(watched(going_on), None)
    assert (-np.diff([*biases, first_bias(going_on.model.classifier)])).tolist() == [0.125, 0.125]


def test_the_best_model_is_kept(monkeypatch, tmp_path):
    """A worse one and an equal one leave the file alone, also after going on from a checkpoint."""
    monkeypatch.setattr(accumulate, '_losses', first_logit)

    def best() -> float:
        return first_bias(keras.models.load_model(tmp_path / 'best.keras', compile=False))

    accuracies = [0.5, 0.25, 0.5, 0.75]
    kept = [-1.0, -1.0, -1.0, -4.0]  # 2 updates of 0.5 before each
    for number, expected in enumerate(kept, start=1):
        loop = make_loop(tmp_path, total_steps=2 * number, epoch_steps=2, accuracies=accuracies[number - 1 : number])
        found = checkpoint.read(loop.folder)
        if found:
            loop.resume(found)
        assert loop.run(black(), validation=())
        assert first_bias(loop.model.classifier) == -number
        assert best() == expected
        assert loop.state.best_accuracy == max(accuracies[:number])


@pytest.mark.parametrize(
    ('epoch_steps', 'history_steps', 'second_stage', 'steps'),
    [
        # Rows at the ends of artificial epochs and, counted from their beginnings, at every so many updates.
        (4, 100, None, [4, 8, 10]),
        (4, 4, None, [4, 8, 10]),
        (4, 3, None, [3, 4, 7, 8, 10]),
        (4, 2, None, [2, 4, 6, 8, 10]),
        (4, 1, None, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (100, 4, None, [4, 8, 10]),
        (4, 2, 5, [2, 4, 5, 7, 9, 10]),  # an artificial epoch ends where a stage does
        (5, 3, 1, [1, 4, 6, 9, 10]),
    ],
)
def test_history_has_a_row_at_each_end_of_a_window_and_of_an_artificial_epoch(
    tmp_path, epoch_steps, history_steps, second_stage, steps
):
    stages = (Stage('all', 0),) if second_stage is None else (Stage('all', 0), Stage('all', second_stage / 5))
    # The first n pictures of update n, up to all 6, are of label 0, which zero weights predict.
    shares = [min(number, 6) / 6 for number in range(1, 11)]
    labels = [[0] * min(number, 6) + [1] * max(6 - number, 0) for number in range(1, 11)]
    loop = make_loop(
        tmp_path, total_steps=10, epoch_steps=epoch_steps, history_steps=history_steps, stages=stages,
        learning_rate=0.0, accuracies=[0.25] * 10,
    )  # fmt: skip
    assert loop.run(black(*labels), validation=())
    found = rows(tmp_path)
    assert [int(row['step']) for row in found] == steps
    ends = [segment.end for segment in loop.schedule.segments()]
    for row, start, end in zip(found, [0, *steps], steps, strict=False):
        epoch = sum(one < end for one in ends)
        assert (int(row['images']), float(row['passes']), int(row['epoch'])) == (6 * end, end / 5, epoch + 1)
        assert int(row['stage']) == int(second_stage is not None and end > second_stage)
        assert float(row['loss']) == pytest.approx(np.log(3), abs=1e-6)
        assert float(row['accuracy']) == pytest.approx(np.mean(shares[start:end]), abs=1e-6)
        assert float(row['images_per_second']) > 0
        validated = [row[name] for name in ('val_loss', 'val_accuracy', 'val_level1', 'val_level2', 'val_level3')]
        assert validated == (['0.5', '0.25', '1', '0.75', '0.5'] if end in ends else [''] * 5)


@pytest.mark.parametrize(('total_steps', 'times'), [(20, 0), (21, 1), (30, 1)])
def test_progress_has_rate_loss_and_accuracy_and_tells_the_time_left_once(
    tmp_path, capsys, monkeypatch, total_steps, times
):
    monkeypatch.setattr(progress, 'WATCHED_AFTER', 0)
    loop = make_loop(tmp_path, total_steps=total_steps, epoch_steps=10, learning_rate=0.0, accuracies=[0.5, 0.25, 0.75])
    loop.run(black(*[[0] * 2 + [1] * 4] * total_steps), validation=())
    out, err = capsys.readouterr()
    last = [line for line in err.splitlines() if line.startswith('train: ')][-1]
    images = 6 * total_steps
    pattern = rf'train: {images} of {images} images \(100 %\), .* images/s; learning rate 0, loss 1.099, accuracy 0.333'
    assert re.fullmatch(pattern, last)
    told = [line for line in out.splitlines() if line.startswith('artificial epoch')]
    assert told[:2] == [
        'artificial epoch 1: update 10, validation accuracy 0.5000, the best 0.5000',
        'artificial epoch 2: update 20, validation accuracy 0.2500, the best 0.5000',
    ]
    left = re.findall(r'^[\d,]+ images/s in 20 updates: the training ends in about \d+:\d\d:\d\d, not .*$', out, re.M)
    assert len(left) == times


def test_a_run_without_validation_keeps_no_best_model(tmp_path, capsys):
    make_loop(tmp_path, total_steps=2, epoch_steps=1).run(black(), None)
    assert capsys.readouterr().out == 'artificial epoch 1: update 1\nartificial epoch 2: update 2\n'
    assert not (tmp_path / 'best.keras').exists()
    assert checkpoints(tmp_path) == ['step-000000001.npz', 'step-000000002.npz']
