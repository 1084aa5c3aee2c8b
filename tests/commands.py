"""Whether a command would be understood by the program that it names."""

import importlib
import shlex

from pipeline import beam_job, program


def understood(command: str) -> list[str]:
    """Parses `python -m MODULE ...` as the program would; gives the words that are neither its own nor Beam's flags."""
    python, minus_m, module, *arguments = shlex.split(command)
    assert (python, minus_m) == ('python', '-m'), command
    flag_values = importlib.import_module(module).FLAGS
    runs_beam = module in ('pipeline.convert', 'ensemble.combine', 'tools.report')
    takes_words = module in ('tools.bench', 'tools.classify', 'tools.count_operations', 'tools.report')
    rest = program.parse(
        flag_values, [module, *arguments], doc='', pass_through=runs_beam, words='WORD ...' if takes_words else ''
    )
    words = [word for word in rest if takes_words and not word.startswith('-')]
    if runs_beam:
        beam_job.engine([word for word in rest if word not in words])
    return words


def following(said: str) -> str:
    """The command that the last line of a program's output names."""
    last = said.splitlines()[-1]
    done, _, command = last.partition('; next: ')
    assert done and command, last
    if command.startswith('python'):
        assert understood(command) == []
    return command
