"""What --help prints of a program's docstring and flags."""

import pytest
from absl import flags

from pipeline import help_text, program

DOC = """Greets people: `python -m tools.greet --name=you`

A greeting is a word and a name, and it is said to whoever is named; this line is long enough to be
wrapped anew.
  word   what is said first
  name   whom it is said to, which may be a name of several words that goes on for more than one line of the text
After the columns goes on the text.

    python -m tools.greet --name=someone
"""


@pytest.fixture
def values() -> flags.FlagValues:
    """The flags of a program: one in no group, two groups."""
    made = program.flag_values()
    flags.DEFINE_string('name', 'world', 'Whom to greet.', flag_values=made)
    program.group(made, 'How often')
    flags.DEFINE_integer('count', 20_000, 'How many times.', lower_bound=1, flag_values=made)
    flags.DEFINE_float('pause', 0.5, 'Seconds between two.', 0, 60, flag_values=made)
    flags.DEFINE_integer('most', None, 'Words at most.', upper_bound=9, flag_values=made)
    program.group(made, 'How')
    flags.DEFINE_bool('loud', False, 'In capitals.', flag_values=made)
    flags.DEFINE_enum('tone', 'warm', ['warm', 'cool'], 'The tone.', flag_values=made)
    flags.DEFINE_list('words', [], 'What else to say.', flag_values=made)
    flags.DEFINE_list('ends', ['so', 'then'], 'Last words.', flag_values=made)
    flags.DEFINE_string('cards_dir', '', 'Folder of cards.', flag_values=made)
    return made


def lines(values: flags.FlagValues, doc: str = DOC, *, words: str = '', to_beam: bool = False, codes: str = ''):
    return help_text.compose(values, doc, 'greet', words=words, to_beam=to_beam, codes=codes).split('\n')


def test_it_says_what_it_is_for_how_it_is_called_and_every_flag(values, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    assert lines(values, words='CARD ...', codes='75 try again') == [
        'Greets people.',
        '',
        'usage: python -m tools.greet [--flag=value ...] CARD ...',
        'for example: python -m tools.greet --name=you',
        '',
        'A greeting is a word and a name, and it is said to whoever is named; this line is long enough to be',
        'wrapped anew.',
        '  word   what is said first',
        '  name   whom it is said to, which may be a name of several words that goes on for more than one',
        '         line of the text',
        'After the columns goes on the text.',
        '',
        '    python -m tools.greet --name=someone',
        '',
        'Flags:',
        '  --name=VALUE', '      Whom to greet. (default: world)',
        '',
        'How often:',
        '  --count=NUMBER', '      How many times. (default: 20_000; 1 or more)',
        '  --pause=NUMBER', '      Seconds between two. (default: 0.5; 0 to 60)',
        '  --most=NUMBER', '      Words at most. (default: none; 9 or less)',
        '',
        'How:',
        '  --[no]loud', '      In capitals. (default: no)',
        '  --tone=warm|cool', '      The tone. (default: warm)',
        '  --words=A,B,...', '      What else to say. (default: none)',
        '  --ends=A,B,...', '      Last words. (default: so,then)',
        '  --cards_dir=FOLDER', '      Folder of cards. (default: none)',
        '',
        'All programs:',
        '  --flagfile=FILE', '      Read flags from this file, one --name=value a line; later flags win.',
        '  --help, -h', '      Show this text.',
        '',
        'Exit codes: 0 done, 1 bad input, 2 bad usage, 75 try again, 130 interrupted.',
    ]  # fmt: skip


@pytest.mark.parametrize(('columns', 'width'), [('300', 100), ('100', 100), ('60', 60), ('3', 40)])
def test_it_is_as_wide_as_the_terminal_but_not_wider_than_can_be_read(values, monkeypatch, columns, width):
    monkeypatch.setenv('COLUMNS', columns)
    made = lines(values, DOC.replace('python -m tools.greet --name=someone', 'python'), to_beam=True)
    text = [line for line in made if not line.startswith(('usage: ', 'for example: '))]
    assert width - 12 < max(map(len, text)) <= width


def test_a_docstring_without_a_command_is_called_by_its_file(values):
    made = lines(values, 'Greets.')
    assert made[:4] == ['Greets.', '', 'usage: greet [--flag=value ...]', '']


def test_a_default_is_written_so_that_it_can_be_typed(values):
    values(['greet', '--count=2_000_000'])
    assert values['count'].value == 2_000_000
