"""The trainings of a plan: their commands, which of them are done, and one process after another that does the rest.

Synopsis:

    for training in experiment_runs.trainings(plan, options):
        if not training.finished():
            code = runner.run(training)
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ensemble import logits_folder
from model import runs
from pipeline import manifest, program, storage
from pipeline.errors import InputError
from tools import experiment_plan
from tools.experiment_plan import Experiment, Plan

# In a run's folder: what the training was to be, so that a run by other flags or from other weights isn't taken for it.
NAME = 'experiment.json'


@dataclass(frozen=True)
class Options:
    """Where a plan is carried out.

    Attributes:
        shards_dir: folder of the shards.
        dataset_digest: their manifest's.
        runs_dir: folder for the runs.
        splits: whose logits are wanted.
    """

    shards_dir: str
    dataset_digest: str
    runs_dir: str
    splits: tuple[str, ...]

    def run_dir(self, name: str, seed: int) -> str:
        """Folder of an experiment's run."""
        return storage.join(self.runs_dir, f'{name}-s{seed}')


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        experiment: its experiment.
        seed: its seed.
        run_dir: its folder.
        words: of model.train.
        digest: of all that decides what comes out: flags, with those of flagfiles, dataset, and the same of the run
            from whose weights it begins.
        splits: whose logits are wanted.
    """

    experiment: Experiment
    seed: int
    run_dir: str
    words: tuple[str, ...]
    digest: str
    splits: tuple[str, ...]

    @property
    def command(self) -> str:
        """What it is as typed."""
        return program.command('model.train', *self.words)

    def finished(self) -> bool:
        """Whether it is done, with the logits.

        Raises:
            InputError: its folder has a run by other flags or from other weights.
        """
        path = storage.join(self.run_dir, NAME)
        if not storage.exists(path):
            return False
        with storage.open_read(path) as file:
            if file.read() != self._note():
                raise InputError(
                    f'{self.run_dir}: was made by other flags, from other weights or on other shards; remove it, or '
                    'give another --runs_dir'
                )
        stores = (logits_folder.folder(self.run_dir, split) for split in self.splits)
        made = all(storage.exists(storage.join(store, manifest.NAME)) for store in stores)
        return made and runs.is_finished(self.run_dir)

    def begin(self) -> None:
        """Notes what the training is to be."""
        storage.make_folder(self.run_dir)
        with storage.atomic_writer(storage.join(self.run_dir, NAME)) as file:
            file.write(self._note())

    def _note(self) -> bytes:
        return (json.dumps({'experiment': self.experiment.name, 'digest': self.digest}) + '\n').encode()


def trainings(plan: Plan, options: Options, *, only: Sequence[str] = ()) -> list[Training]:
    """The trainings of a plan, in an order in which each finds the weights it begins with; seed by seed.

    Args:
        plan: the plan.
        options: where.
        only: names of experiments; what must be run before them is added. All, if there are none.

    Raises:
        InputError: a flagfile can't be read.
    """
    found: dict[tuple[str, int], Training] = {}
    for seed in plan.seeds:
        for one in plan.needed(only):
            if not one.combine and seed in plan.seeds_of(one):
                found[one.name, seed] = _training(plan, options, one, seed, found.get((one.weights, seed)))
    return list(found.values())


def _training(plan: Plan, options: Options, one: Experiment, seed: int, first: Training | None) -> Training:
    given = [*plan.flags, *one.flags]
    run_dir = options.run_dir(one.name, seed)
    words = [*given, *([f'--weights={first.run_dir}'] if first else []), f'--seed={seed}', f'--run_dir={run_dir}']
    words += [f'--shards_dir={options.shards_dir}', f'--predict={",".join(options.splits)}']
    made_of = [experiment_plan.expanded(plan.path, given), seed, options.dataset_digest, first.digest if first else '']
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    return Training(one, seed, run_dir, tuple(words), digest, options.splits)


def check_flags(plan: Plan, experiments: Sequence[Experiment]) -> None:
    """Has model.train look at the flags of experiments, without training.

    It is another program, so it is asked: with --help it refuses what it doesn't understand, and does nothing else.

    Raises:
        InputError: it doesn't understand a flag; names the experiment.
    """
    trained = [one for one in experiments if not one.combine]
    if not _refused([*plan.flags, *(word for one in trained for word in one.flags)]):
        return
    for place, words in (('', plan.flags), *((f' experiment {one.name}:', one.flags) for one in trained)):
        if said := _refused(words):
            raise InputError(f'{plan.path}:{place} flags: {said}')


def _refused(words: Sequence[str]) -> str:
    """Why model.train refuses these flags; '' if it takes them."""
    done = subprocess.run(_command([*words, '--help']), capture_output=True, text=True)
    if not done.returncode:
        return ''
    last = (done.stderr.splitlines() or [f'model.train ended with exit code {done.returncode}'])[-1]
    return last.removeprefix('error: ').removesuffix('; --help lists the flags')


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, '-m', 'model.train', *words]


class Runner:
    """Runs trainings, one at a time; SIGTERM and Ctrl-C are handed on to the one at work, which then saves and ends.

    Attributes:
        asked: the signal that asked to end, or 0.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._process: subprocess.Popen | None = None

    def run(self, training: Training) -> int:
        """Trains until the end, or until asked to end; gives the exit code, 128 + N after signal N."""
        training.begin()
        # In a process group of its own, so that a Ctrl-C on the terminal reaches it once: through here.
        self._process = subprocess.Popen(_command(training.words), stdin=subprocess.DEVNULL, process_group=0)
        try:
            if self.asked:  # meanwhile
                self._process.send_signal(self.asked)
            code = self._process.wait()
        finally:
            self._process = None
        return code if code >= 0 else 128 - code

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals while it lasts."""

        def ask(number: int, frame: Any) -> None:
            self.asked = number
            if self._process:
                self._process.send_signal(number)

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
