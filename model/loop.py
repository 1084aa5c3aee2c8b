"""The training loop: updates, validation after every artificial epoch, checkpoints, and going on from them.

Not Keras' fit: a run must leave and go on between any two updates, and fit knows only epochs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from model import checkpoint, devices, evaluation, runs
from model.accumulate import AccumulatingModel
from model.board import Board
from model.checkpoint import State
from model.evaluation import Evaluation, Evaluator
from model.history import History, Window
from model.stages import Schedule, Segment
from pipeline import program, progress, storage
from pipeline.errors import InputError

TIMED_UPDATES = 20  # after so many the time left is told
LEAST_SCALE = 2.0**-10  # of the loss; Keras begins with 2 to the 15 for the mean of a micro batch


@dataclass(frozen=True)
class Options:
    """How a loop keeps its run.

    Attributes:
        run_dir: the run's folder.
        settings: what makes the run what it is; checkpoints carry them.
        batch_images: pictures of an effective batch, over all replicas; products, where a row of the data is one.
        history_steps: updates in a row of history.csv.
        save_seconds: time after which it saves a checkpoint within an artificial epoch.
        val_images: validation pictures, or products, after an artificial epoch.
        show_graph: whether TensorBoard gets the graph.
        show_pictures: whether it gets the first pictures; there must be some in the batches.
        command: what goes on with the run, to be told where it is interrupted.
    """

    run_dir: str
    settings: dict[str, Any]
    batch_images: int
    history_steps: int
    save_seconds: float
    val_images: int
    show_graph: bool = False
    show_pictures: bool = True
    command: str = 'the same command'


class Loop:
    """Trains a model by a schedule, from wherever its run is."""

    def __init__(
        self,
        model: AccumulatingModel,
        schedule: Schedule,
        *,
        strategy: tf.distribute.Strategy,
        evaluator: Evaluator,
        begin_stage: Callable[[int], None],
        options: Options,
    ) -> None:
        """Makes a loop at the run's beginning; resume() moves it on.

        Args:
            model: what is trained, made under the strategy.
            schedule: until when, in which stages, at which learning rates.
            strategy: the devices.
            evaluator: for the validation pictures.
            begin_stage: frees the layers of a stage and compiles the model with a fresh optimizer.
            options: how the run is kept.
        """
        self.model = model
        self.schedule = schedule
        self.strategy = strategy
        self.evaluator = evaluator
        self.begin_stage = begin_stage
        self.options = options
        self.is_chief = devices.place(strategy)[0] == 0
        self.folder = storage.join(options.run_dir, 'checkpoints')
        self.state = State(settings=options.settings)
        self._signal = 0  # the one that asked to end; 0: none
        self._leaving = False  # whether this machine or another was asked to end
        self._saved = time.monotonic()
        self._last: str | None = None  # the checkpoint to go on from
        self._times: list[float] = []  # when each of the first updates of this process ended

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Goes to where a checkpoint was saved."""
        self._begin(found.state.stage)
        checkpoint.restore(self.model, found)
        self.state = found.state
        self._last = found.path

    def run(self, stream: Iterator[Any], validation: Any) -> bool:
        """Trains to the end of the schedule, or until it is asked to end, and saves then.

        Args:
            stream: distributed training batches, from the state's update on.
            validation: distributed batches to evaluate on; None if there are no such pictures.

        Returns:
            Whether the schedule is at its end.

        Raises:
            InputError: the loss is no longer finite, or a device has too little memory.
        """
        if self.is_chief:
            open_updates = self.state.window.images // self.options.batch_images  # of a row that isn't written yet
            last = self.state.step - open_updates
            self._history = History(self.options.run_dir, step=last)
            first = last + 1 if last else 0
            self._board = Board(storage.join(self.options.run_dir, 'tensorboard'), first_step=first)
            self._board.settings(self.options.settings, self.options.command)
        images = self.options.batch_images
        bar = progress.Progress(
            total=self.schedule.total_steps * images,
            initial=self.state.step * images,
            label='train',
            unit=self.model.inputs_of_row.unit,
            disable=not self.is_chief,
        )
        with bar as self._bar, self._errors_of_one_line():
            return self._run(stream, validation)

    def _run(self, stream: Iterator[Any], validation: Any) -> bool:
        for segment in self.schedule.segments()[self.state.epoch :]:
            if self.state.stage != segment.stage:
                self._begin(segment.stage)
            if not self._train_until(segment, stream) or not self._validate(segment, validation):
                self._save()
                return False
            self._save()
        return True

    def _begin(self, stage: int) -> None:
        self.begin_stage(stage)
        self._move(stage=stage)

        @tf.function(autograph=False)  # one for each stage: other layers learn
        def update(batch: Any, leave: Any) -> Any:
            return self.strategy.run(self.model.train_step, args=(batch, leave))

        self._update = update

    def _train_until(self, segment: Segment, stream: Iterator[Any]) -> bool:
        """Takes the segment's updates that are left; False if it was asked to end."""
        while self.state.step < segment.end:
            started = time.monotonic()
            found = self._step(stream)
            window = self.state.window.plus(
                images=self.options.batch_images,
                loss=found['loss'],
                accuracy=found['accuracy'],
                seconds=time.monotonic() - started,
            )
            self._move(step=self.state.step + 1, window=window)
            self._show(window)
            done = self.state.step - segment.start
            if done % self.options.history_steps == 0 and self.state.step < segment.end:
                self._add_row()
            self._leaving = found['leaving'] > 0
            if self._leaving:
                return False
            if time.monotonic() - self._saved > self.options.save_seconds:
                self._save()
        return True

    def _step(self, stream: Iterator[Any]) -> dict[str, float]:
        """One update; what it found."""
        step = self.state.step
        self.model.optimizer.learning_rate = self.schedule.learning_rate_at(step)
        batch = next(stream)
        if self.is_chief and step == 0 and self.options.show_pictures:
            self._show_pictures(batch)
        leave = tf.constant(float(self._signal != 0))
        found = {
            name: float(self.strategy.experimental_local_results(value)[0])
            for name, value in self._update(batch, leave).items()
        }
        if self.is_chief and step == 0 and self.options.show_graph:
            self._board.graph(self._update.get_concrete_function(batch, leave).graph)
        if not math.isfinite(found['loss']) or not (math.isfinite(found['gradient_norm']) or self._scales_down()):
            images = self.options.batch_images
            place = f'{self.model.inputs_of_row.noun} {step * images:,} to {(step + 1) * images - 1:,} of the run'
            raise InputError(
                f'update {step + 1:,} ({place}): the loss is {found["loss"]:g}, the length of its gradient '
                f'{found["gradient_norm"]:g}; the last good checkpoint is {self._last or "none"}; begin another '
                '--run_dir with a smaller --learning_rate'
            )
        return found

    def _scales_down(self) -> bool:
        """Whether a gradient that isn't finite means no more than a loss scaled too much (mixed_float16).

        Keras leaves such an update out and halves the scale; below LEAST_SCALE something else is wrong.
        """
        scale = getattr(self.model.optimizer, 'dynamic_scale', None)
        return scale is not None and float(scale.numpy()) >= LEAST_SCALE

    def _validate(self, segment: Segment, validation: Any) -> bool:
        """Ends an artificial epoch: its last row, and the best model; False if it was asked to end meanwhile."""
        found: Evaluation | None = None
        if validation is not None:
            shown = self.options.val_images if self.is_chief else None
            found = self.evaluator.evaluate(validation, images=shown, go_on=self.go_on)
            if found is None:
                return False
        self._add_row(**found.columns() if found else {})
        best = self.state.best_accuracy
        if found and found.accuracy > best:
            best = found.accuracy
            if self.is_chief:
                runs.save_model(self.model.whole, self.options.run_dir, name=runs.BEST_NAME)
        self._move(epoch=self.state.epoch + 1, best_accuracy=best)
        if self.is_chief:
            told = f', validation accuracy {found.accuracy:.4f}, the best {best:.4f}' if found else ''
            self._bar.write(f'artificial epoch {self.state.epoch}: update {segment.end:,}{told}')
        return True

    def finish(self, validation: Any, *, rows: int) -> bool:
        """Evaluates the trained model and writes it as the run's finished one.

        Args:
            validation: distributed batches of all validation pictures, or products; None if there are none.
            rows: how many there are.

        Returns:
            Whether it is done; False if it was asked to end meanwhile.
        """
        found: Evaluation | None = None
        if validation is not None:
            found = self.evaluator.evaluate(validation, images=rows if self.is_chief else None, go_on=self.go_on)
            if found is None:
                return False
        if not self.is_chief:
            return True
        if found:
            evaluation.write_by_category(found, self.evaluator.label_map, runs.by_category_path(self.options.run_dir))
            levels = ', '.join(f'level {number} {share:.4f}' for number, share in enumerate(found.levels, start=1))
            noun = self.model.inputs_of_row.noun
            print(f'accuracy on all {found.images.sum():,} validation {noun}: {found.accuracy:.4f} ({levels})')
        self._board.end(self.state.step, found.accuracy if found else None)
        runs.save_model(self.model.whole, self.options.run_dir)
        return True

    @property
    def asked(self) -> bool:
        """Whether this machine, or another in the last update, was asked to end."""
        return self._signal != 0 or self._leaving

    def go_on(self) -> bool:
        """Whether nobody asked to end; several machines end together, after an update, so one alone goes on."""
        return not self._signal or devices.place(self.strategy)[1] > 1

    def _add_row(self, **more: float) -> None:
        """Closes the window: a row of history.csv, and points of TensorBoard's curves."""
        step = self.state.step
        values = {
            'learning_rate': self.schedule.learning_rate_at(step - 1),
            **self.state.window.means(),
            **more,
        }
        self._move(window=Window())
        if not self.is_chief:
            return
        place = {
            'step': step,
            'images': step * self.options.batch_images,
            'passes': step / self.schedule.steps_per_pass,
            'epoch': self.state.epoch + 1,
            'stage': self.state.stage,
        }
        self._history.add({**place, **values})
        self._board.scalars(step, values)

    def _show(self, window: Window) -> None:
        """Moves the progress bar, and tells the time left once the first updates have been timed."""
        if not self.is_chief:
            return
        means = window.means()
        rate = self.schedule.learning_rate_at(self.state.step - 1)
        self._bar.note = f'learning rate {rate:.3g}, loss {means["loss"]:.3f}, accuracy {means["accuracy"]:.3f}'
        self._bar.update(self.options.batch_images)
        if len(self._times) > TIMED_UPDATES:
            return
        self._times.append(time.monotonic())
        if len(self._times) > TIMED_UPDATES:  # the first one compiles and isn't counted
            seconds = (self._times[-1] - self._times[0]) / TIMED_UPDATES
            left = datetime.timedelta(seconds=round(seconds * (self.schedule.total_steps - self.state.step)))
            speed = f'{self.options.batch_images / seconds:,.0f} {self.model.inputs_of_row.unit}/s'
            self._bar.write(
                f'{speed} in {TIMED_UPDATES} updates: the training ends in about {left}, not counting validation'
            )

    def _show_pictures(self, batch: Any) -> None:
        images, *_, draws, _ = (self.strategy.experimental_local_results(column)[0] for column in batch)
        model = self.model
        if model.inputs_of_row.pictures:  # of each product the first
            images, draws = images[:, 0], draws[:, 0]
        self._board.pictures(0, images, draws, augmentation=model.augmentation, size=model.image_size)

    def _save(self) -> None:
        if self.is_chief:
            checkpoint.save(self.model, self.state, self.folder)
        self._last = checkpoint.path_of(self.folder, self.state.step)
        self._saved = time.monotonic()

    def _move(self, **changes: Any) -> None:
        self.state = dataclasses.replace(self.state, **changes)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Has SIGTERM and Ctrl-C ask to end; a second Ctrl-C is not waited for.

        Raises:
            KeyboardInterrupt: at the end, after Ctrl-C.
        """

        def ask(number: int, frame: Any) -> None:
            if self._signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self._signal:
                with contextlib.suppress(OSError):  # by os.write, as a print may be what was interrupted
                    os.write(2, b'ending after this update, then saving\n')
            self._signal = number

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked:
            program.last_line(f'wrote {self._last}: ended as asked', then=self.options.command)
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _errors_of_one_line(self) -> Iterator[None]:
        """Says what TensorFlow means where memory is gone."""
        try:
            yield
        except tf.errors.ResourceExhaustedError as error:
            raise InputError(
                f'update {self.state.step + 1:,}: a device has too little memory ({devices.reason(error)}); '
                'go on with a smaller --micro_batch and as much larger an --accumulate'
            ) from None
