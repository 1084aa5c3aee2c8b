"""Plans of experiments: which networks are trained, how they are combined, and what each is held against.

Synopsis:

    plan = experiment_plan.read('winner')
    for experiment in plan.needed(['routed']):
        print(experiment.name, experiment.flags)

A plan is a TOML file: `flags` of model.train for all, `seeds`, `rule`, `notes` (sentences printed under the table) and
an [[experiment]] for each row of the table, with the keys of Experiment.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags as absl_flags

from ensemble import rules
from ensemble.logits_folder import JOINT
from ensemble.mixture import ACROSS
from pipeline import storage
from pipeline.errors import InputError

SUFFIX = '.toml'
# What tools.experiments gives model.train by itself.
OWN_FLAGS = ('run_dir', 'seed', 'shards_dir', 'predict')


@dataclass(frozen=True)
class Experiment:
    """A row of the table: a network that is trained, or several whose logits are combined.

    Attributes:
        name: what it and the folders of its runs are called.
        idea: what it tries, in words; '' for what others are only held against or made of.
        flags: of model.train, after those of the plan.
        weights: name of the experiment from whose run by the same seed it begins; '': from what its flags say.
        combine: instead of a training, names of others: + between those that are one model together, each for products
            with another number of pictures, and commas between models that are averaged.
        across: which mean of the models' probabilities is taken.
        base: name of the experiment that its gain is over; of several with commas, the one that is best on validation.
        claim: what the winner says the idea gained, in points.
        seeds: how many of the plan's seeds it is run with, the first ones; 0: all.
    """

    name: str
    idea: str = ''
    flags: tuple[str, ...] = ()
    weights: str = ''
    combine: str = ''
    across: str = ACROSS[0]
    base: str = ''
    claim: float = 0
    seeds: int = 0

    @property
    def members(self) -> tuple[str, ...]:
        """Names of what it combines."""
        return tuple(re.split(f'[,{re.escape(JOINT)}]', self.combine)) if self.combine else ()

    @property
    def bases(self) -> tuple[str, ...]:
        """Names of what it may be held against."""
        return tuple(self.base.split(',')) if self.base else ()

    @property
    def begins_with(self) -> tuple[str, ...]:
        """Names of what must be run before it."""
        return (*self.members, *([self.weights] if self.weights else []))


@dataclass(frozen=True)
class Plan:
    """What is tried.

    Attributes:
        path: of its file.
        name: of its file, without .toml.
        flags: of model.train, for all experiments.
        seeds: of the trainings.
        rule: how the pictures of a product are combined.
        notes: what the table can't show, and how it was made.
        experiments: in the order in which they are run.
    """

    path: str
    name: str
    flags: tuple[str, ...]
    seeds: tuple[int, ...]
    rule: str
    notes: tuple[str, ...]
    experiments: tuple[Experiment, ...]

    def find(self, name: str) -> Experiment:
        """The experiment of this name."""
        return next(one for one in self.experiments if one.name == name)

    def seeds_of(self, experiment: Experiment) -> tuple[int, ...]:
        """By which seeds it is run."""
        return self.seeds[: experiment.seeds or None]

    def with_seeds(self, seeds: Sequence[int]) -> Plan:
        """The same with other seeds.

        Raises:
            InputError: one stands twice.
        """
        _check_seeds('--seeds', seeds)
        return dataclasses.replace(self, seeds=tuple(seeds))

    def needed(self, names: Collection[str]) -> list[Experiment]:
        """These experiments and what must be run before them; without names all."""
        wanted = set(names)
        for one in reversed(self.experiments):
            if one.name in wanted:
                wanted.update(one.begins_with)
        return [one for one in self.experiments if one.name in wanted or not names]


def known() -> list[str]:
    """Names of the plans that come with this package."""
    found = (importlib.resources.files('tools') / 'plans').iterdir()
    return sorted(one.name.removesuffix(SUFFIX) for one in found if one.name.endswith(SUFFIX))


def read(name: str) -> Plan:
    """Reads a plan.

    Args:
        name: of one of known(), or the path of a .toml file.

    Raises:
        InputError: there is none, or something in it can't be used; names the file and the key.
    """
    if name.endswith(SUFFIX):
        path = name
    elif name in known():
        path = str(importlib.resources.files('tools') / 'plans' / (name + SUFFIX))
    else:
        raise InputError(f'--plan={name}: no such plan; give one of {", ".join(known())}, or the path of a .toml file')
    with storage.open_read(path) as file:
        data = file.read()
    try:
        found = tomllib.loads(data.decode())
    except ValueError as error:  # of TOML, or of UTF-8
        raise InputError(f'{path}: must be TOML ({error})') from None
    return _plan(path, found)


def _plan(path: str, found: dict[str, Any]) -> Plan:
    tables = found.pop('experiment', [])
    if not isinstance(tables, list) or not tables:
        raise InputError(f'{path}: must have experiments; add a table [[experiment]] for each')
    shared: dict[str, Any] = {'flags': (), 'seeds': (1, 2, 3), 'rule': 'product', 'notes': ()}
    shared |= _checked(path, found, shared)
    if shared['rule'] not in rules.names():
        raise InputError(f'{path}: rule: must be one of {", ".join(rules.names())}, is {shared["rule"]!r}')
    _check_seeds(f'{path}: seeds', shared['seeds'])
    _check_flags(path, shared['flags'])
    experiments = [_experiment(path, table) for table in tables]
    _check_references(path, experiments, most_seeds=len(shared['seeds']))
    name = path.rpartition('/')[2].removesuffix(SUFFIX)
    return Plan(path, name, **shared, experiments=tuple(experiments))


def _check_seeds(place: str, seeds: Sequence[Any]) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        raise InputError(f'{place}: must be different whole numbers, are {", ".join(map(str, seeds))}')


def _experiment(path: str, table: Any) -> Experiment:
    name = table.get('name') if isinstance(table, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r'\w[\w.-]*', name):
        raise InputError(f'{path}: experiment.name: must be letters, digits, dots, _ and -, is {name!r}')
    place = f'{path}: experiment {name}'
    defaults = {field.name: field.default for field in dataclasses.fields(Experiment)} | {'name': name}
    made = Experiment(**_checked(place, table, defaults))
    _check_flags(place, made.flags)
    if made.combine and (made.flags or made.weights):
        raise InputError(f'{place}: combine: nothing is trained for it; leave out flags and weights')
    if made.weights and 'weights' in _names(made.flags):
        raise InputError(f'{place}: flags: --weights is what the key weights stands for; give one of them')
    if made.across not in ACROSS:
        raise InputError(f'{place}: across: must be {" or ".join(ACROSS)}, is {made.across!r}')
    return made


def _checked(place: str, found: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values, lists as tuples, if each has a name and type that is known."""
    values = {}
    for key, value in found.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1)
            meant = f'perhaps {near[0]} is meant' if near else f'known are {", ".join(defaults)}'
            raise InputError(f'{place}: unknown key {key}; {meant}')
        default = defaults[key]
        # A number of points may be whole; True is no number here.
        kind = {float: (int, float), int: (int, float) if key == 'claim' else int, tuple: list}.get(
            type(default), type(default)
        )
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f'{place}: {key}: must be like {default!r}, is {value!r}')
        values[key] = tuple(value) if isinstance(value, list) else value
    return values


def _check_flags(place: str, given: Sequence[Any]) -> None:
    for word in given:
        if not isinstance(word, str) or not re.match(r'--\w', word):
            raise InputError(f'{place}: flags: every option is written --name=value, not {word!r}')
    for name in _names(given):
        if name in OWN_FLAGS:
            raise InputError(f'{place}: flags: --{name} is given by tools.experiments; leave it out')


def _names(given: Iterable[str]) -> list[str]:
    return [word.removeprefix('--').partition('=')[0] for word in given]


def _check_references(path: str, experiments: Sequence[Experiment], *, most_seeds: int) -> None:
    """Checks that what each experiment names is there, and stands before it if it needs its runs: so no two can wait
    for one another.

    Raises:
        InputError: a name stands twice or isn't there, or too late.
    """
    names = [one.name for one in experiments]
    for place, one in enumerate(experiments):
        where = f'{path}: experiment {one.name}'
        if one.name in names[:place]:
            raise InputError(f'{where}: stands twice; give each a name of its own')
        if one.name in one.bases:
            raise InputError(f'{where}: base: is the experiment itself; name another')
        keys = {'base': one.bases, 'combine': one.members, 'weights': one.begins_with[len(one.members) :]}
        for key, name in ((key, name) for key, some in keys.items() for name in some):
            if name not in names:
                raise InputError(f'{where}: {key}: there is no experiment {name!r}; name one of this file')
            other = experiments[names.index(name)]
            if key == 'base':
                continue
            if name not in names[:place]:
                raise InputError(f'{where}: {key}: needs a run of {name}, which must stand before it in the file')
            if other.combine:
                raise InputError(f'{where}: {key}: {name} has no run of its own; name experiments that are trained')
            if (other.seeds or most_seeds) < (one.seeds or most_seeds):
                raise InputError(f'{where}: seeds: {name} has fewer; give both as many')


def expanded(path: str, words: Sequence[str]) -> list[str]:
    """Flags with those of flagfiles in their places.

    Raises:
        InputError: a flagfile can't be read.
    """
    try:
        return absl_flags.FlagValues().read_flags_from_files(list(words), force_gnu=False)
    except absl_flags.CantOpenFlagFileError as error:
        raise InputError(
            f"{path}: flags: {str(error).rpartition('flagfile: ')[2]}; run it in the project's folder"
        ) from None
