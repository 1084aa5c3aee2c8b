"""What happens at every artificial epoch and update of a training run."""

from __future__ import annotations

from typing import Any

import keras

from model import checkpoint
from model.stages import Schedule, Segment
from pipeline import storage, tables

HISTORY_NAME = 'history.csv'
HISTORY_COLUMNS = (
    'epoch', 'step', 'passes', 'stage', 'learning_rate', 'loss', 'accuracy', 'val_loss', 'val_accuracy'
)  # fmt: skip


class LearningRate(keras.callbacks.Callback):
    """Sets the learning rate of every update from the schedule alone, so that resuming needs no state."""

    async_safe = True  # doesn't look at the step's results, so Keras need not wait for them

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.step = 0  # the next update

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets it."""
        self.model.optimizer.learning_rate = self.schedule.learning_rate_at(self.step)
        self.step += 1


class SaveCheckpoint(keras.callbacks.Callback):
    """Saves after every artificial epoch."""

    def __init__(self, folder: str, segments: list[Segment]) -> None:
        super().__init__()
        self.folder = folder
        self.segments = segments

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves."""
        segment = self.segments[epoch]
        state = checkpoint.State(step=segment.start + segment.steps, stage=segment.stage, epoch=epoch + 1)
        checkpoint.save(self.model, state, self.folder)


class HistoryFile(keras.callbacks.Callback):
    """Adds a row to history.csv after every artificial epoch; rows past a resumed checkpoint are replaced."""

    def __init__(self, run_dir: str, schedule: Schedule, segments: list[Segment]) -> None:
        super().__init__()
        self.path = storage.join(run_dir, HISTORY_NAME)
        self.schedule = schedule
        self.segments = segments

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the file anew, whole."""
        segment = self.segments[epoch]
        step = segment.start + segment.steps
        row = {
            'epoch': epoch + 1,
            'step': step,
            'passes': round(step / self.schedule.steps_per_pass, 4),
            'stage': segment.stage,
            'learning_rate': self.schedule.learning_rate_at(step - 1),
            **{name: round(float(value), 6) for name, value in (logs or {}).items()},
        }
        last = [row.get(name, '') for name in HISTORY_COLUMNS]
        tables.write(self.path, HISTORY_COLUMNS, [*self._rows_before(epoch + 1), last])

    def _rows_before(self, epoch: int) -> list[list[str]]:
        if not storage.exists(self.path):
            return []
        return [row for row in tables.read(self.path, HISTORY_COLUMNS) if int(row[0]) < epoch]
