"""Plans of experiments: what is in them, and what is refused before anything is run."""

import pytest

from ensemble import rules
from model import train
from pipeline import program
from pipeline.errors import InputError
from tests.documents import ROOT
from tools import experiment_plan

SMALL = """
flags = ['--epochs=1']

[[experiment]]
name = 'base'

[[experiment]]
name = 'wide'
idea = 'wider'
flags = ['--width=2']
base = 'base'
claim = 3

[[experiment]]
name = 'on'
weights = 'base'
base = 'base,wide'
seeds = 2

[[experiment]]
name = 'both'
combine = 'on,base'
seeds = 2
"""


@pytest.fixture
def read(tmp_path):
    def run(text):
        (tmp_path / 'mine.toml').write_text(text)
        return experiment_plan.read(str(tmp_path / 'mine.toml'))

    return run


def test_a_plan_is_read_with_defaults(read):
    plan = read(SMALL)
    assert (plan.name, plan.flags, plan.seeds, plan.rule) == ('mine', ('--epochs=1',), (1, 2, 3), 'product')
    assert [one.name for one in plan.experiments] == ['base', 'wide', 'on', 'both']
    wide, on, both = plan.experiments[1:]
    assert (wide.flags, wide.bases, wide.claim, plan.seeds_of(wide)) == (('--width=2',), ('base',), 3, (1, 2, 3))
    assert (on.begins_with, on.bases, plan.seeds_of(on)) == (('base',), ('base', 'wide'), (1, 2))
    assert (both.members, both.begins_with) == (('on', 'base'), ('on', 'base'))


@pytest.mark.parametrize(
    ('names', 'needed'),
    [
        (['wide'], ['wide']),
        (['on'], ['base', 'on']),
        (['both'], ['base', 'on', 'both']),
        ([], ['base', 'wide', 'on', 'both']),
    ],
)
def test_what_an_experiment_begins_with_is_run_too_and_before_it(read, names, needed):
    assert [one.name for one in read(SMALL).needed(names)] == needed


ONE = "[[experiment]]\nname = 'a'\n"
TWO = f"{ONE}[[experiment]]\nname = 'b'\n"


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('', ': must have experiments'),
        ('a =', ': must be TOML'),
        (f'flag = []\n{ONE}', ': unknown key flag; perhaps flags is meant'),
        (f"rule = 'mode'\n{ONE}", r": rule: must be one of .*, is 'mode'"),
        (f'seeds = [1, 1]\n{ONE}', ': seeds: must be different whole numbers, are 1, 1'),
        (f"seeds = 'a'\n{ONE}", r": seeds: must be like \(1, 2, 3\), is 'a'"),
        (f"flags = ['epochs']\n{ONE}", ": flags: every option is written --name=value, not 'epochs'"),
        ('[[experiment]]\nflags = []\n', r': experiment\.name: must be .*, is None'),
        ("[[experiment]]\nname = 'a+b'\n", r": experiment\.name: must be .*, is 'a\+b'"),
        (f"{ONE}idae = 'x'\n", ': experiment a: unknown key idae; perhaps idea is meant'),
        (f"{ONE}claim = '3'\n", ": experiment a: claim: must be like 0, is '3'"),
        (f"{ONE}flags = ['--seed=2']\n", ': experiment a: flags: --seed is given by tools.experiments; leave it out'),
        (f"{ONE}across = 'mean'\n", ": experiment a: across: must be arithmetic or geometric, is 'mean'"),
        (f'{ONE}{ONE}', ': experiment a: stands twice'),
        (f"{ONE}base = 'c'\n", ": experiment a: base: there is no experiment 'c'"),
        (f"{ONE}base = 'a'\n", ': experiment a: base: is the experiment itself'),
        (f"{TWO}combine = 'a+c'\n", ": experiment b: combine: there is no experiment 'c'"),
        (f"{TWO}combine = 'a'\nflags = ['--width=2']\n", ': experiment b: combine: nothing is trained for it'),
        (f"{TWO}weights = 'a'\nflags = ['--weights=none']\n", ': experiment b: flags: --weights is what the key'),
        (f"{TWO}weights = 'b'\n", ': experiment b: weights: needs a run of b, which must stand before it'),
        (
            f"{ONE}weights = 'b'\n[[experiment]]\nname = 'b'\nweights = 'a'\n",
            ': experiment a: weights: needs a run of b',
        ),
        (f"{TWO}combine = 'a'\n[[experiment]]\nname = 'c'\ncombine = 'b'\n", ': experiment c: combine: b has no run'),
        (f"{ONE}seeds = 1\n[[experiment]]\nname = 'b'\nweights = 'a'\n", ': experiment b: seeds: a has fewer'),
    ],
)
def test_what_cannot_be_used_is_one_line_with_file_and_key(read, tmp_path, text, said):
    with pytest.raises(InputError, match=f'^{tmp_path}/mine.toml{said}') as error:
        read(text)
    assert '\n' not in str(error.value)


def test_an_unknown_plan_is_answered_with_those_there_are():
    with pytest.raises(InputError, match='--plan=winer: no such plan; give one of winner, or the path'):
        experiment_plan.read('winer')


def test_a_flagfile_that_is_not_there_is_told_with_the_plan(tmp_path):
    with pytest.raises(InputError, match='^mine.toml: flags: .*no/flags'):
        experiment_plan.expanded('mine.toml', ['--flagfile=no/flags'])


@pytest.mark.parametrize('name', experiment_plan.known())
def test_model_train_understands_the_flags_of_the_plans_that_come_along(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = experiment_plan.read(name)
    assert plan.rule in rules.names()
    for one in plan.experiments:
        program.parse(train.FLAGS, ['train', *plan.flags, *one.flags], doc='')
        assert not one.begins_with or one.base or not one.combine, 'what is combined is held against something'


def test_the_winners_plan_has_all_his_ideas():
    plan = experiment_plan.read('winner')
    assert sorted({one.claim for one in plan.experiments if one.claim}) == [0.4, 0.5, 1.0, 2.0, 3.0, 7.0]
    assert len(plan.find('ensemble').members) == 5
    # What goes on from base's weights is held against base trained on for as long.
    longer = plan.find('longer')
    for one in plan.experiments:
        names = one.members if '+' in one.combine else (one.name,)
        begun = [plan.find(name) for name in names if plan.find(name).weights]
        if one is not longer and begun and one.base:
            assert one.base == 'longer'
            assert all(set(longer.flags) <= set(member.flags) for member in begun)
