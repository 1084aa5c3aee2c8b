"""The schedule as a function of the update."""

import math

import pytest

from model import backbone, classifier, stages
from model.stages import Schedule, Segment, Stage
from pipeline.errors import InputError

BLOCKS = ('block1', 'block2', 'block10')


def schedule(**changes) -> Schedule:
    values = {
        'steps_per_pass': 10.0,
        'epoch_steps': 4,
        'total_steps': 20,
        'stages': (Stage('all', 0),),
        'learning_rate': 1.0,
        'decay_at': (),
        'decay_factor': 0.5,
    }
    return Schedule(**{**values, **changes})


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('all@0', (Stage('all', 0),)),
        ('block10@0,all@2.9', (Stage('block10', 0), Stage('all', 2.9))),
        ('head@0, block2@1,all@2', (Stage('head', 0), Stage('block2', 1), Stage('all', 2))),
    ],
)
def test_stages_are_read(text, expected):
    assert stages.parse_stages(text, BLOCKS) == expected


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('block3@0', "no block 'block3'; known are all, head, block1, block2, block10"),
        ('', "no block ''"),
        ('all', "'' must be a number of passes"),
        ('all@x', "'x' must be a number of passes"),
        ('all@-1', "'-1' must be a number of passes"),
        ('all@nan', "'nan' must be a number of passes"),
        ('all@1', 'the first stage must start @0'),
        ('head@0,all@2,block2@2', 'each later one after the one before'),
    ],
)
def test_stages_that_make_no_sense_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        stages.parse_stages(text, BLOCKS)


@pytest.mark.parametrize(
    ('step', 'rate'),
    # Decays after 0.5, 1.24 (rounded to update 12) and 1.5 passes of 10 updates.
    [(0, 1), (4, 1), (5, 0.5), (11, 0.5), (12, 0.25), (14, 0.25), (15, 0.125), (19, 0.125)],
)
def test_the_learning_rate_decays_at_the_nearest_update(step, rate):
    assert schedule(decay_at=(0.5, 1.24, 1.5)).learning_rate_at(step) == rate


def test_the_order_of_decays_does_not_matter():
    one, other = schedule(decay_at=(1.5, 0.5)), schedule(decay_at=(0.5, 1.5))
    assert [one.learning_rate_at(step) for step in range(20)] == [other.learning_rate_at(step) for step in range(20)]


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        # (stage, first update, updates)
        ({'total_steps': 8}, [(0, 0, 4), (0, 4, 4)]),
        ({'total_steps': 9}, [(0, 0, 4), (0, 4, 4), (0, 8, 1)]),
        ({'total_steps': 3}, [(0, 0, 3)]),
        ({'total_steps': 12, 'stages': (Stage('head', 0), Stage('all', 0.6))},
         [(0, 0, 4), (0, 4, 2), (1, 6, 4), (1, 10, 2)]),
        ({'total_steps': 6, 'stages': (Stage('head', 0), Stage('all', 0.6))}, [(0, 0, 4), (0, 4, 2)]),
        ({'total_steps': 5, 'stages': (Stage('head', 0), Stage('all', 2.9))}, [(0, 0, 4), (0, 4, 1)]),
    ],
)  # fmt: skip
def test_segments_cover_every_update_once_and_never_cross_a_stage(changes, expected):
    assert schedule(**changes).segments() == [Segment(*segment) for segment in expected]


def test_the_papers_schedule_has_its_numbers():
    """1,302 updates of 1,536 pictures in 2 million, and 11.16 million pictures a pass: ten passes are 72,656."""
    images = 11_160_000
    plan = schedule(
        steps_per_pass=images / 1536,
        epoch_steps=round(2_000_000 / 1536),
        total_steps=round(10 * images / 1536),
        stages=(Stage('block10', 0), Stage('all', 2.9)),
        decay_at=(4, 6, 8, 9),
    )
    segments = plan.segments()
    assert plan.epoch_steps == 1302
    assert sum(segment.steps for segment in segments) == 72656
    assert next(segment for segment in segments if segment.stage == 1).start == round(2.9 * images / 1536)
    assert math.isclose(plan.learning_rate_at(72655), 0.5**4)


@pytest.mark.parametrize(
    ('first_block', 'millions'),
    # Millions of parameters of Xception, moving statistics included; counted by layer index (block 10 starts at 86).
    [('all', 20.86), ('block10', 11.66), ('head', 0)],
)
def test_layers_from_a_block_on_learn_and_the_head_always(first_block, millions):
    network = backbone.build('xception', image_size=71, width=1)
    model = classifier.build(network, classes=10, options=classifier.Options(dropout=0.2))
    stages.set_trainable(model, first_block, network.blocks)
    head = 2048 * 10 + 10
    learning = sum(layer.count_params() for layer in model.layers if layer.trainable) - head
    assert round(learning / 1e6, 2) == millions


def test_freezing_is_undone_by_a_later_stage():
    network = backbone.build('xception_small', image_size=32, width=0.05)
    model = classifier.build(network, classes=3)
    everything = len(model.trainable_variables)
    assert stages.set_trainable(model, 'head', network.blocks) == 1
    assert len(model.trainable_variables) == 2
    stages.set_trainable(model, 'all', network.blocks)
    assert len(model.trainable_variables) == everything
