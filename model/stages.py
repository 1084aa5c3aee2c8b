"""What is trainable and at which learning rate, as a function of how far training is.

Points of the schedule are in passes over the training data, as the paper's are. They take effect at the nearest update.
Each stage starts with a fresh optimizer: Adam's step count is one for all variables, so variables that join late would
take steps up to 6.6 times too long: (1 - 0.9^t) / sqrt(1 - 0.999^t), Adam's missing bias correction, is that at t = 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras

from model.classifier import HEAD
from pipeline.errors import UsageError


@dataclass(frozen=True)
class Stage:
    """From when on which layers learn.

    Attributes:
        first_block: the lowest block that learns; the blocks after it and the head do too. `head` or `all` as well.
        start: in passes over the training data.
    """

    first_block: str
    start: float


@dataclass(frozen=True)
class Schedule:
    """The plan of a training run.

    Attributes:
        steps_per_pass: updates in one pass over the training data; no whole number.
        epoch_steps: updates in an artificial epoch: how often it validates and saves.
        total_steps: updates in all.
        stages: in order, the first from 0 on.
        learning_rate: at the start.
        decay_at: passes after which the learning rate is multiplied by decay_factor, each once.
        decay_factor: in (0, 1].
    """

    steps_per_pass: float
    epoch_steps: int
    total_steps: int
    stages: tuple[Stage, ...]
    learning_rate: float
    decay_at: tuple[float, ...]
    decay_factor: float

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of an update, numbered from 0."""
        decays = sum(step >= self._step(point) for point in self.decay_at)
        return self.learning_rate * self.decay_factor**decays

    def segments(self) -> list[Segment]:
        """The run cut into artificial epochs of equal length; a stage's last one may be shorter."""
        segments: list[Segment] = []
        starts = [self._step(stage.start) for stage in self.stages]
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], self.total_steps], strict=True)):
            for step in range(start, min(end, self.total_steps), self.epoch_steps):
                segments.append(Segment(number, step, min(self.epoch_steps, end - step, self.total_steps - step)))
        return segments

    def _step(self, passes: float) -> int:
        return round(passes * self.steps_per_pass)


@dataclass(frozen=True)
class Segment:
    """One artificial epoch.

    Attributes:
        stage: number of its stage.
        start: its first update.
        steps: how many updates.
    """

    stage: int
    start: int
    steps: int

    @property
    def end(self) -> int:
        """The update after its last."""
        return self.start + self.steps


def parse_stages(text: str, blocks: Sequence[str]) -> tuple[Stage, ...]:
    """Reads --unfreeze, such as block10@0,all@2.9.

    Raises:
        InputError: it isn't BLOCK@PASSES,..., names no known block, or doesn't go on from 0.
    """
    stages = []
    for entry in text.split(','):
        name, _, start = entry.strip().partition('@')
        if name not in ('all', 'head', *blocks):
            raise UsageError(f'--unfreeze={text}: no block {name!r}; known are all, head, {", ".join(blocks)}')
        stages.append(Stage(name, _passes(start, flag=f'--unfreeze={text}')))
    starts = [stage.start for stage in stages]
    if starts[0] != 0 or any(later <= earlier for earlier, later in zip(starts, starts[1:], strict=False)):
        raise UsageError(f'--unfreeze={text}: the first stage must start @0 and each later one after the one before')
    return tuple(stages)


def parse_points(texts: Sequence[str], *, flag: str) -> tuple[float, ...]:
    """Reads points of the schedule, in passes."""
    return tuple(_passes(text, flag=flag) for text in texts if text)


def _passes(text: str, *, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float('inf'):
        raise UsageError(f'{flag}: {text!r} must be a number of passes over the training data, 0 or more')
    return value


def set_trainable(classifier: keras.Model, first_block: str, blocks: Sequence[str]) -> int:
    """Freezes the layers of the blocks before `first_block` and frees the others.

    A frozen batch normalisation uses its moving statistics and leaves them alone.

    Returns:
        How many layers with weights learn.
    """
    order = [*blocks, 'head']
    first = 0 if first_block == 'all' else order.index(first_block)
    learning = 0
    for layer in classifier.layers:
        block = 'head' if layer.name == HEAD else layer.name.split('_')[0]
        layer.trainable = block not in order or order.index(block) >= first
        learning += bool(layer.trainable and layer.weights)
    return learning
