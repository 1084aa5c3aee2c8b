"""What all programs keep to. They are found by looking for modules that call program.run."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from pipeline import help_text, program
from tests import catalogue, shards
from tests.ensemble import stores

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for package in ('pipeline', 'model', 'ensemble', 'tools')
    for path in (ROOT / package).glob('*.py')
    if re.search(r"^if __name__ == '__main__':\n    program\.run\(main\)$", path.read_text(), re.MULTILINE)
)

# A word that says what a number counts.
UNITS = re.compile(
    r'\b(picture|image|product|categor(y|ie)|document|view|logit|row|update|micro batch|pass|epoch|minute|second|pixel|'
    r'byte|[kM]B|share|time|shard|port|feature|unit)(s|es)?\b',
    re.IGNORECASE,
)
PURE_NUMBERS = {'seed', 'learning_rate', 'decay_factor', 'power', 'version_number'}
# Flags that name what must be there already; what a program must be told beside them to look for it; and what isn't
# asked for: training makes the folder of its run, the report does without shards, and exporting looks for them only
# when it has a run (tests/tools/test_export.py).
INPUTS = ('input', 'input_dir', 'shards_dir', 'logits', 'run_dir')
TOLD = {
    'ensemble.combine': ('--known_images',),
    'tools.report': ('--table',),
    'tools.classify': ('picture.jpg',),
    'tools.import_weights': ('--backbone=dpn92',),
}
NOT_NEEDED = {
    ('model.train', 'run_dir'),
    ('model.train_head', 'run_dir'),
    ('tools.export', 'shards_dir'),
    ('tools.report', 'shards_dir'),
}


class Said(NamedTuple):
    """What a program did."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Runs a program's main in an empty folder, as the command line would."""

    def run(module: ModuleType, *words: str) -> Said:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv('COLUMNS', '300')
        monkeypatch.setattr('sys.argv', [module.__name__, *words])
        with pytest.raises(SystemExit) as end:
            program.run(module.main)
        assert isinstance(end.value.code, int)
        return Said(end.value.code, *capsys.readouterr())

    return run


@pytest.fixture(params=PROGRAMS)
def module(request) -> ModuleType:
    return importlib.import_module(request.param)


def names(module: ModuleType) -> list[str]:
    return [name for some in help_text.groups(module.FLAGS).values() for name in some]


def test_they_are_found():
    assert {'pipeline.convert', 'model.train', 'model.predict', 'ensemble.combine', 'tools.bench'} <= set(PROGRAMS)
    assert 'pipeline.program' not in PROGRAMS


def test_help_says_all_a_newcomer_needs(module, call):
    done = call(module, '--help')
    assert (done.code, done.err) == (0, '')
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert re.fullmatch(r'[A-Z].*\.', lines[0]), 'a sentence that says what it is for'
    assert lines[2].startswith(f'usage: python -m {module.__name__} [--flag=value ...]')
    assert lines[-1].startswith('Exit codes: 0 done, 1 bad input, 2 bad usage, ')
    place = 0
    for title, some in help_text.groups(module.FLAGS).items():
        place = lines.index(f'{title}:', place)
        for name in some:
            flag = module.FLAGS[name]
            (place,) = (at for at, line in enumerate(lines) if re.match(rf'  --(\[no\])?{name}(=|$)', line))
            end = next(at for at, line in enumerate(lines) if at > place and re.match('$|  --', line))
            told = ' '.join(line.strip() for line in lines[place + 1 : end])
            assert told.startswith(help_text.text_of(flag))
            assert re.search(r' \(default: \S.*\)$', told)


def test_help_of_more_than_three_flags_is_in_groups(module):
    assert len(names(module)) <= 3 or help_text.UNGROUPED not in help_text.groups(module.FLAGS)


def test_help_of_a_flag_is_a_sentence_and_says_what_its_numbers_count(module):
    for name in names(module):
        flag = module.FLAGS[name]
        text = help_text.text_of(flag)
        assert re.fullmatch(r'\S.*\.', text), f'--{name}: {text}'
        if help_text.is_number(flag) and name not in PURE_NUMBERS:
            assert UNITS.search(text), f'--{name}: in which unit? {text}'


def test_an_unknown_flag_is_refused_with_the_one_that_may_be_meant(module, call):
    name = names(module)[0]
    done = call(module, *TOLD.get(module.__name__, ()), f'--{name}x=1')
    assert (done.code, done.out) == (2, '')
    assert done.err == f'error: unknown flag --{name}x, perhaps --{name} is meant; --help lists the flags\n'


def test_a_bad_value_and_a_stray_word_are_bad_usage(module, call):
    takes_words = not call(module, '--help').out.splitlines()[2].endswith('[--flag=value ...]')
    checked = [name for name in names(module) if help_text.is_number(module.FLAGS[name])]
    for words in [[f'--{name}=much'] for name in checked] + ([] if takes_words else [['stray']]):
        done = call(module, *words)
        assert (done.code, done.out) == (2, ''), words
        assert re.fullmatch(r'error: .*; --help lists the flags\n', done.err)


def test_missing_input_is_one_line_and_exit_code_1(module, call, tmp_path):
    shards.write(tmp_path / 'data' / 'shards', train=14, val=7)
    rows = stores.random_rows(5, shards.CATEGORIES, seed=0, labels=False)
    stores.write(tmp_path / 'runs' / 'latest' / 'logits' / 'test', [rows], stores.label_map(shards.CATEGORIES))
    (tmp_path / 'picture.jpg').write_bytes(catalogue.jpeg(0))
    there = set(tmp_path.rglob('*'))
    inputs = [name for name in INPUTS if name in names(module) and (module.__name__, name) not in NOT_NEEDED]
    for flag in ('--flagfile=no/flags', *(f'--{name}=no/such' for name in inputs)):
        done = call(module, *TOLD.get(module.__name__, ()), flag)
        assert done.code == 1, flag
        missing = flag.partition('=')[2]
        assert re.fullmatch(rf'error: .*\b{missing}\b.*\n', done.err) and re.search('[Nn]o such', done.err), flag
        assert set(tmp_path.rglob('*')) == there, 'and nothing was written'


def test_what_is_common_is_called_the_same_everywhere():
    """A flag of the same name is of the same kind, whatever the program."""
    kinds: dict[str, set[str]] = {}
    for each in PROGRAMS:
        module = importlib.import_module(each)
        for name in names(module):
            flag = module.FLAGS[name]
            kind = 'number' if help_text.is_number(flag) else 'switch' if flag.boolean else 'words'
            kinds.setdefault(name, set()).add(kind)
    # --json=FILE of tools.bench is older than --json of tools.classify.
    assert [name for name, found in kinds.items() if len(found) > 1] in ([], ['json'])
